"""Names that real name servers answer: how a send to each ends, beside what the C library's resolver makes of it."""

import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from common import Egressd, Process, differences

ZONE = "interop-egressd.net"
MANY = "\n".join(f"many A 127.0.{number // 200 + 1}.{number % 200 + 1}" for number in range(90))
RECORDS = f"""$TTL 60
@ SOA ns.{ZONE}. admin.{ZONE}. 1 3600 600 86400 60
@ NS ns
ns A 127.0.0.2
good A 127.0.0.1
both A 127.0.0.1
both AAAA ::1
two A 127.0.0.1
two A 127.0.0.9
alias CNAME good
alias1 CNAME alias2
alias2 CNAME alias3
alias3 CNAME alias4
alias4 CNAME good
dangling CNAME gone
only6 AAAA ::1
text TXT "no address"
*.wild A 127.0.0.1
_service A 127.0.0.1
-lead A 127.0.0.1
trail- A 127.0.0.1
xn--bcher-kva A 127.0.0.1
private A 10.9.8.7
toprivate CNAME private
old DNAME new
x.new A 127.0.0.1
{MANY}
"""

DELIVERED = {"outcome": "delivered", "code": None, "status": 200}


def failed(code):
    return {"outcome": "failed", "code": code, "phase": "dns", "processed": "no"}


# The name under the zone, what comes of a send to it, and the addresses that it resolved to.
ROWS = [
    ("good", DELIVERED | {"resolved": ["127.0.0.1"]}),
    ("both", DELIVERED | {"resolved": ["127.0.0.1"]}),
    ("two", DELIVERED | {"resolved": ["127.0.0.1", "127.0.0.9"]}),
    ("alias", DELIVERED | {"resolved": ["127.0.0.1"]}),
    ("alias1", DELIVERED | {"resolved": ["127.0.0.1"]}),
    ("any.wild", DELIVERED | {"resolved": ["127.0.0.1"]}),
    ("a.b.wild", DELIVERED | {"resolved": ["127.0.0.1"]}),
    ("_service", DELIVERED | {"resolved": ["127.0.0.1"]}),
    ("-lead", DELIVERED | {"resolved": ["127.0.0.1"]}),
    ("trail-", DELIVERED | {"resolved": ["127.0.0.1"]}),
    ("bücher", DELIVERED | {"resolved": ["127.0.0.1"]}),
    ("GoOd", DELIVERED | {"resolved": ["127.0.0.1"]}),
    ("x.old", DELIVERED | {"resolved": ["127.0.0.1"]}),
    # More than a datagram holds.
    ("many", DELIVERED),
    ("dangling", failed("dns_not_found")),
    ("missing", failed("dns_not_found")),
    ("deep.er.missing", failed("dns_not_found")),
    ("only6", failed("dns_no_address")),
    ("text", failed("dns_no_address")),
    ("private", {"outcome": "blocked", "code": "policy_address"}),
    ("toprivate", {"outcome": "blocked", "code": "policy_address"}),
]

# Whole names elsewhere: a zone that the server has and cannot load, and one that is none of its.
ELSEWHERE = [("www.broken-egressd.net", failed("dns_failed")), ("www.not-ours-egressd.net", failed("dns_failed"))]


def bind(scratch, directory):
    (directory / "named.conf").write_text(
        f"""options {{ directory "{directory}"; listen-on {{ 127.0.0.2; }}; listen-on-v6 {{ none; }}; recursion no;
  pid-file "{directory}/pid"; session-keyfile "{directory}/key"; dnssec-validation no; empty-zones-enable no; }};
controls {{ }};
zone "{ZONE}" {{ type primary; file "{directory}/zone"; check-names ignore; }};
zone "broken-egressd.net" {{ type primary; file "{directory}/there-is-none"; }};
"""
    )
    command = ["named", "-g", "-c", str(directory / "named.conf")]
    return Process("bind", command, scratch, [53], "127.0.0.2")


def knot(scratch, directory):
    (directory / "knot.conf").write_text(
        f"""server:
  listen: 127.0.0.3@53
  rundir: {directory}
database:
  storage: {directory}/db
zone:
  - domain: {ZONE}
    file: {directory}/zone
    zonefile-sync: -1
  - domain: broken-egressd.net
    file: {directory}/there-is-none
"""
    )
    return Process("knot", ["knotd", "-c", str(directory / "knot.conf")], scratch, [53], "127.0.0.3")


def unbound(scratch, directory):
    (directory / "unbound.conf").write_text(
        f"""server:
  directory: "{directory}"
  pidfile: "{directory}/pid"
  username: ""
  chroot: ""
  use-syslog: no
  interface: 127.0.0.4
  module-config: "iterator"
  do-not-query-localhost: no
  do-ip6: no
forward-zone:
  name: "."
  forward-addr: 127.0.0.2
remote-control:
  control-enable: no
"""
    )
    return Process("unbound", ["unbound", "-d", "-c", str(directory / "unbound.conf")], scratch, [53], "127.0.0.4")


def dnsmasq(scratch, directory):
    options = "--keep-in-foreground --no-resolv --no-hosts --conf-file=/dev/null --user=root --listen-address=127.0.0.5"
    command = ["dnsmasq", *options.split(), "--bind-interfaces", "--server=127.0.0.2", f"--pid-file={directory}/pid"]
    return Process("dnsmasq", command, scratch, [53], "127.0.0.5")


# Those that know the zone, and then those that ask one of them.
SERVERS = [(bind, "127.0.0.2"), (knot, "127.0.0.3"), (unbound, "127.0.0.4"), (dnsmasq, "127.0.0.5")]


class Receiver(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


def of_the_c_library(name):
    """What `getent ahostsv4` finds, sorted."""
    output = subprocess.run(["getent", "ahostsv4", name], capture_output=True, text=True).stdout
    return sorted({line.split()[0] for line in output.splitlines()})


def run(count, binary, scratch):
    receiver = ThreadingHTTPServer(("0.0.0.0", 8080), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    running = []
    for start, address in SERVERS:
        name = start.__name__
        directory = Path(scratch) / name
        directory.mkdir()
        (directory / "zone").write_text(f"$ORIGIN {ZONE}.\n{RECORDS}")
        directory.chmod(0o777)
        running.append(start(scratch, directory))
        resolv = directory / "resolv.conf"
        resolv.write_text(f"nameserver {address}\n")
        subprocess.run(["mount", "--bind", str(resolv), "/etc/resolv.conf"], check=True)
        egressd = Egressd(binary, scratch, name, f"{address}:53", '[delivery]\ndeadline = "20s"\ndrain = "20s"\n')
        rows = [(f"{label}.{ZONE}", wanted) for label, wanted in ROWS] + ELSEWHERE
        records = egressd.records([{"method": "GET", "url": f"http://{host}:8080/"} for host, _ in rows])
        for (host, wanted), record in zip(rows, records, strict=True):
            problems = differences(wanted, record)
            theirs = of_the_c_library(host)
            ours = sorted(one["ip"] for one in (record["connection"] or {}).get("resolved") or [])
            # At most sixteen addresses are looked at.
            if theirs and not set(ours) <= set(theirs) or bool(theirs) > bool(ours):
                problems.append(f"the C library finds {theirs}, we {ours}")
            if host == f"good.{ZONE}" and not theirs:
                problems.append("the C library is not asked: it finds nothing")
            count.check(f"{name}: {host}", problems)
        egressd.stop()
        subprocess.run(["umount", "/etc/resolv.conf"], check=True)
    for process in reversed(running):
        process.stop()
