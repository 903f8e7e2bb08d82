"""Runs the commands that README and OPERATIONS give, as they stand there, on a host where egressd is installed as they say.

Each command of theirs is in one of the two tables below: RUN says what it must print and how it must end, ELSEWHERE where
it is tried, or why it cannot be here. One that is in neither is a failure, and so is an entry that no text gives any more.

    commands.py EGRESSD ROOT     in a network and a mount namespace of its own, as root: see tests/snippets/run
"""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

EGRESSD, ROOT = Path(sys.argv[1]), Path(sys.argv[2])
PATIENCE = 120
LIST = r"^198\.51\.100\.10$"
USABLE = r"198\.51\.100\.10.*usable"
RECORDS = r'"sends":\['
# Command → what its output must match. `None`: it follows, and is stopped once it has printed that.
FOLLOWS = object()
RUN = {
    "README.md": {
        "curl https://egress.example.net/public-ips.txt": LIST,
        "curl https://egress.example.net/public-ips.json": r'"198\.51\.100\.10/32"',
        "cp config/egressd.toml /etc/egressd/egressd.toml": "",
        "egressd check --config /etc/egressd/egressd.toml": USABLE,
        "egressd serve --config /etc/egressd/egressd.toml": (FOLLOWS, r"ready"),
        "curl -s 'http://127.0.0.1:8700/v1/sends?source_ip=198.51.100.10&host=shop.example.com&since=2026-11-22T14:00:00Z"
        "&until=2026-11-22T14:10:00Z' -H 'Authorization: Bearer …' -H 'Egressd-Tenant: *'": RECORDS,
        "curl -s http://127.0.0.1:8700/v1/suspensions -H 'Content-Type: application/json' -H 'Authorization: Bearer …' -d "
        '\'{"tenant": "acme", "workflow": "wf-7", "reason": "abuse report 4711"}\'': r'"reason":"abuse report 4711"',
        "curl -s http://127.0.0.1:8700/v1/suspensions -H 'Content-Type: application/json' -H 'Authorization: Bearer …' -d "
        '\'{"host": "shop.example.com", "reason": "its owner asked us to stop"}\'': r'"host":"shop.example.com"',
        'token=$(openssl rand -hex 32); printf %s "$token" | sha256sum': r"^[0-9a-f]{64} ",
        "egressd tail": (FOLLOWS, r"delivered"),
        "egressd explain POST https://hooks.example.com/": r"^allowed",
        "egressd ips --verify": r"198\.51\.100\.10.*verified",
        "egressd tenants": r"^default ",
        "egressd nodes": r"198\.51\.100\.10",
        "egressd suspend tenant ID --reason TEXT": r"^suspended: every send of tenant ID",
        "egressd suspend host HOST --reason TEXT": r"^suspended: every tenant's sends to host",
        "egressd suspensions": r"TEXT",
        "egressd lift ID": r"^lifted: ",
        "systemctl reload egressd": "",
    },
    "deploy/OPERATIONS.md": {
        "systemctl stop egressd && cp -a /var/lib/egressd /backup/egressd-$(date +%F) && systemctl start egressd": "",
        "systemctl stop egressd && mv /var/lib/egressd /var/lib/egressd.lost && cp -a /backup/egressd-2026-11-29 "
        "/var/lib/egressd": "",
        "runuser -u egressd -- egressd serve --restored --config /etc/egressd/egressd.toml": (FOLLOWS, r"ready"),
        "systemctl start egressd": "",
        "systemctl stop egressd": "",
        "systemctl restart egressd": "",
        "systemctl reload egressd": "",
        "curl -s localhost:8701/readyz": r"^ready",
        "curl localhost:8701/readyz": r"^ready",
        "curl -s localhost:8701/metrics": r"^egressd_build_info",
        "curl localhost:8701/metrics": r"^egressd_build_info",
        "egressd check --config /etc/egressd/egressd.toml --as-user egressd": USABLE,
        "egressd check --config /etc/egressd/egressd.toml": USABLE,
        "runuser -u egressd -- egressd ips --config /etc/egressd/egressd.toml --verify": r"198\.51\.100\.10.*verified",
        "egressd explain POST https://hooks.example.com/x --config /etc/egressd/egressd.toml": r"^allowed",
        "egressd tail": (FOLLOWS, r"delivered"),
        "egressd tail --outcome failed": (FOLLOWS, r"failed +connection_refused"),
        "egressd tail --since 1h": (FOLLOWS, r"delivered"),
        "curl -s -H \"$auth\" -H 'Egressd-Tenant: *' 'localhost:8700/v1/sends?outcome=failed&limit=50'": RECORDS,
        "curl -s -H \"$auth\" -H 'Egressd-Tenant: *' 'localhost:8700/v1/tunnels?limit=50'": r'"tunnels":\[',
        "curl -s -H \"$auth\" -H 'Egressd-Tenant: *' 'localhost:8700/v1/tunnels?limit=200'": r'"tunnels":\[',
        "curl -s -H \"$auth\" -H 'Egressd-Tenant: *' 'localhost:8700/v1/tunnels?code=source_ports_exhausted'": r'"tunnels":\[',
        'curl -s -H "$auth" localhost:8700/v1/sends/ID': r'"outcome":"delivered"',
        "egressd tenants": r"^default ",
        "egressd suspensions": r"^ID",
        "egressd suspend tenant ID --reason TEXT": r"^suspended: every send of tenant ID",
        "egressd suspend host HOST --reason TEXT": r"^suspended: every tenant's sends to host",
        "egressd lift ID": r"^lifted: ",
        "egressd nodes": r"198\.51\.100\.10",
        "egressd --version": r"^egressd \d+\.\d+\.\d+ \(",
        "cat /var/lib/egressd/format": r"format \d+",
        "egressd ips": LIST,
        "ip -brief address": r"198\.51\.100\.10",
        "df -h /var/lib/egressd": "/",
        "df -i": "/",
        "findmnt --target /var/lib/egressd": "/",
        "sysctl net.ipv4.ip_local_port_range net.ipv4.tcp_tw_reuse": r"ip_local_port_range",
        "ss -tan state all src ADDRESS | awk '{print $5}' | sort | uniq -c | sort -rn | head": "",
        "touch /var/lib/egressd/restored": "",
        "curl https://egress.example.net/whoami": r"^127\.0\.0\.1$",
    },
}
ELSEWHERE = {
    "cargo run --release -- demo": "the gate's step `demo` runs it, of a debug build",
    "tests/run": "is what runs this",
    "tests/run NAME": "is what runs this",
    "tests/run tier_events": "is more of what the step `process` runs, for a quarter of an hour",
    "$EDITOR /etc/egressd/egressd.toml /etc/egressd/public-ips.txt": "what a person writes is written here",
    "egressd demo": "the snippets run against it",
    "egressd check": "a short form of a command that is run",
    "cargo bench": "benches are no part of the gate",
    "cargo bench --bench end_to_end": "benches are no part of the gate",
    "cargo bench --bench peers": "benches are no part of the gate",
    "cargo bench --bench store": "benches are no part of the gate",
    "systemctl status egressd": "there is no systemd here; tests/deploy has the unit",
    "systemctl disable egressd": "there is no systemd here",
    "systemctl restart egressd-addresses": "there is no systemd here; tests/deploy runs the script",
    "journalctl -u egressd -n 100": "there is no systemd here",
    "journalctl -u egressd | grep -i reload": "there is no systemd here",
    "networkctl reload": "there is no systemd here",
    "nft list table inet egressd_guard": "tests/deploy loads the guard",
    "egressd-guard --apply": "tests/deploy loads the guard",
    "iostat -x 1": "of another package, and follows the disk",
    "dmesg | tail": "the kernel's log is not to be read in every container",
    "egressd serve --restored": "a short form of a command that is run",
    "ips --verify": "a short form of a command that is run",
    "curl --interface BIND_ADDRESS REFLECTOR_URL": "is to be dropped by the guard, which tests/deploy loads",
    "curl … '/v1/sends?outcome=interrupted&since=…'": "a short form of one that is run",
    "egressd tail --code internal": "a defect of ours cannot be made to order",
    'sum by (code) (rate(egressd_sends_total{outcome="failed"}[5m]))': "PromQL: tests/deploy holds it to the metrics",
}
PROGRAMS = r"(?:egressd(?:-guard)?|curl|systemctl|journalctl|runuser|nft|df|ip|dmesg|findmnt|iostat|networkctl|touch|cat|tests/run|cargo|sysctl|ss|ips|sum)"


def commands(text):
    """Of `console` blocks, and of code within sentences, in the order of the text, each once; with what follows `#` gone."""
    found = []
    for match in re.finditer(r"```console\n(.*?)```|(?<!`)`([^`]+)`(?!`)", text, re.S):
        block, span = match.groups()
        if block is not None:
            joined = re.sub(r"\\\n\s*", "", block)
            lines = [line.strip()[2:] for line in joined.splitlines() if line.strip().startswith("$ ")]
            found += [re.sub(r"\s+# .*", "", line).strip() for line in lines]
        else:
            span = " ".join(span.replace("\\|", "|").split())
            if re.match(rf"{PROGRAMS}(?: |$)", span) and (" " in span or span == "tests/run"):
                found.append(span)
    return list(dict.fromkeys(found))


def name_server():
    """Answers every question for an A record with 93.184.216.34, others with nothing."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.53", 53))
    while True:
        asked, peer = server.recvfrom(4096)
        end = asked.index(b"\0", 12) + 5
        is_a = asked[end - 4 : end - 2] == b"\0\1"
        head = asked[:2] + struct.pack(">HHHHH", 0x8180, 1, is_a, 0, 0)
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([93, 184, 216, 34])
        server.sendto(head + asked[12:end] + (record if is_a else b""), peer)


def written():
    text = (ROOT / "config/egressd.toml").read_text()
    ours = """
[api]
[metrics]
[publish]
listen = "127.0.0.2:443"
tls = { cert = "/etc/egressd/list.crt", key = "/etc/egressd/list.key" }
[[egress.source]]
public = "198.51.100.10"
[egress.verify]
reflectors = ["http://127.0.0.1:8790/whoami"]
[dns]
servers = ["127.0.0.53"]
[[policy.exception]]
networks = ["127.0.0.0/8"]
reason = "a receiver and a reflector of this test"
[store]
key_file = "/var/lib/egressd/key"
"""
    assert "[publish]" in text
    Path("/etc/egressd/egressd.toml").write_text(ours)
    Path("/etc/egressd/public-ips.txt").write_text("198.51.100.10\n")


def call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request("http://127.0.0.1:8700" + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def send(port):
    record = call("/v1/sends", {"method": "POST", "url": f"http://127.0.0.1:{port}/hook", "data": {"name": "Luke"}})
    return call(f"/v1/sends/{record['id']}?wait=30")


def until(what, done):
    begun = time.monotonic()
    while not (found := done()):
        if time.monotonic() - begun > PATIENCE:
            raise SystemExit(f"never: {what}")
        time.sleep(0.05)
    return found


def answers():
    try:
        urllib.request.urlopen("http://127.0.0.1:8701/readyz", timeout=5).close()
        return True
    except OSError:
        return False


def shell(command, **more):
    return subprocess.Popen(["bash", "-c", command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True, **more)


def follows(command, wanted):
    """Until it has printed that; sends are made meanwhile, where a node answers."""
    process, printed = shell(command), []
    reader = threading.Thread(target=lambda: [printed.append(line) for line in process.stdout])
    reader.start()

    def seen():
        if re.search(wanted, "".join(printed)):
            return True
        if process.poll() is not None:
            raise SystemExit(f"not ok: {command} ended: {''.join(printed)}")
        if "tail" in command:
            send(8790), send(8791)
        return False

    until(f"{command} prints {wanted}", seen)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(PATIENCE)
    reader.join()
    return "".join(printed)


def run(document, command, wanted):
    kind, wanted = wanted if isinstance(wanted, tuple) else (None, wanted)
    given = command
    if command == "egressd lift ID":
        given = command.replace("ID", call("/v1/suspensions")["suspensions"][0]["id"])
    elif command.endswith("/sends/ID"):
        given = command.replace("ID", send(8790)["id"])
    given = given.replace("ADDRESS", "198.51.100.10").replace("egressd-2026-11-29", "egressd-$(date +%F)")
    takes_the_node = "egressd serve" in command
    if takes_the_node:
        subprocess.run(["systemctl", "stop", "egressd"], check=True)
    if kind is FOLLOWS:
        output = follows(given, wanted)
    else:
        process = shell(f"auth='Authorization: Bearer none'; {given}")
        output, _ = process.communicate(timeout=PATIENCE)
        if process.returncode != 0 or not re.search(wanted, output, re.M):
            raise SystemExit(f"not ok: {document}: {command} ended with {process.returncode} and printed\n{output}")
    if command.startswith("cp config/"):
        written()
    if takes_the_node or command.startswith("egressd check") or "/restored" in command:
        subprocess.run(["systemctl", "start", "egressd"], check=True)
    print(f"ok: {document}: {command}")
    return output


def main():
    written()
    threading.Thread(target=name_server, daemon=True).start()
    receiver = subprocess.Popen([EGRESSD, "bin", "--listen", "127.0.0.1:8790"], stdout=subprocess.DEVNULL)
    subprocess.run(["systemctl", "start", "egressd"], check=True)
    ran, missing = 0, []
    for document, table in RUN.items():
        given = commands((ROOT / document).read_text())
        missing += [f"{document} no longer gives: {command}" for command in table if command not in given]
        for command in given:
            if command in table:
                if not answers():
                    subprocess.run(["systemctl", "start", "egressd"], check=True)
                send(8790)
                run(document, command, table[command])
                ran += 1
            elif command not in ELSEWHERE:
                missing.append(f"{document} gives a command that is run nowhere: {command}")
    everything = set().union(*(commands((ROOT / document).read_text()) for document in RUN))
    missing += [f"no text gives any more: {command}" for command in ELSEWHERE if command not in everything]
    receiver.terminate()
    subprocess.run(["systemctl", "stop", "egressd"], check=True)
    if missing:
        raise SystemExit("not ok:\n" + "\n".join(missing))
    print(f"{ran} commands of README and OPERATIONS ran")


if __name__ == "__main__":
    main()
