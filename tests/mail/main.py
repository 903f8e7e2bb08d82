"""One egressd for each kind of relay; every message that it is handed is held to what its author wrote."""

import email
import email.policy
import json
import logging
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from relays import PASSWORD, PATIENCE, REFUSED, USER, Aiosmtpd, Postfix

logging.getLogger("mail.log").setLevel(logging.CRITICAL)

SOURCE = "127.0.0.41"

LETTERS = [
    {"subject": "Order 7", "text": "It has arrived."},
    {"subject": "Zw\u00f6lf Boxk\u00e4mpfer \U0001f980 " * 12, "text": "\u00e4" * 3000 + "\n.\n..\n.dot\n\n", "html": "<p>\u00e4</p>"},
    {"html": "<b>no text</b>\r\n<i>and no subject</i>", "include_collaborators": True},
    {"subject": "s" * 500, "text": "x" * 5000 + "\r\n" + "trailing  \n\ttab\n" + "=20 =\n"},
    {"subject": "=?utf-8?q?not_encoded?=", "text": "", "html": ""},
    {"subject": "large", "text": "a line of text, and another\n" * 30_000},
]
# Bare CR, an end of the message and commands behind it: all of it is text.
SMUGGLED = "a\r\n.\r\nMAIL FROM:<x@y.example>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\nb\n.\nQUIT\n"


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def call(api, method, path, body=None, tenant="default"):
    headers = {"Content-Type": "application/json", "Egressd-Tenant": tenant}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{api}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def done(api, identity, tenant="default"):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        _, record = call(api, "GET", f"/v1/sends/{identity}?wait=30", tenant=tenant)
        if record["state"] == "done":
            return record
    raise SystemExit(f"it never ended: {record}")


def certificate(directory):
    """Of an authority of its own, for 127.0.0.1."""
    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=ca",
            "-addext", "basicConstraints=critical,CA:TRUE", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=relay",
            "-keyout", "relay.key", "-out", "relay.csr")
    (directory / "ext").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    openssl("x509", "-req", "-in", "relay.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "30", "-extfile", "ext",
            "-out", "relay.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "relay.pem", directory / "relay.key")
    return context


def serve(egressd, directory, relay):
    api, metrics = port(), port()
    (directory / "public-ips.txt").write_text(SOURCE + "\n")
    (directory / "password").write_text(PASSWORD + "\n")
    (directory / "egressd.toml").write_text(f"""
node = "mail"
[api]
listen = "127.0.0.1:{api}"
[metrics]
listen = "127.0.0.1:{metrics}"
[[egress.source]]
public = "{SOURCE}"
[dns]
servers = ["127.0.0.1:9"]
[tls]
extra_ca = ["ca.pem"]
[store]
path = "store"
key_file = "key"
[[policy.exception]]
networks = ["127.0.0.0/8"]
reason = "the relay of this test"
destinations = ["email"]
[destination.email]
relay = "{relay}"
user = "{USER}"
password_file = "password"
from = "Work, flows <notifications@example.net>"
[[tenant]]
id = "default"
email = "owner@acme.example"
collaborators = ["a@acme.example", "b@acme.example"]
[[tenant]]
id = "gone"
email = "{REFUSED}"
""".replace("Work, flows", "\\\"Work, flows\\\""))
    process = subprocess.Popen([egressd, "serve", "--config", directory / "egressd.toml"], env={"EGRESSD_LOG": "error"})
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", api), timeout=1).close()
            return process, api
        except OSError:
            assert process.poll() is None, "egressd ended before it answered"
            time.sleep(0.05)
    raise SystemExit("egressd does not answer")


def lines(text):
    return text.replace("\r\n", "\n").replace("\r", "\n")


def body_of(message, kind):
    parts = [part for part in message.walk() if part.get_content_type() == kind]
    return parts[0].get_content() if parts else None


def held_to(letter, record, relay):
    copies = ["a@acme.example", "b@acme.example"] if letter.get("include_collaborators") else []
    recipients = ["owner@acme.example", *copies]
    handed = relay.last(recipients)
    assert record["outcome"] == "delivered", record
    assert handed.peer == SOURCE == record["connection"]["public_ip"], handed.peer
    assert handed.over_tls, "in the clear"
    assert (handed.sender, handed.recipients) == ("notifications@example.net", recipients), (handed.sender, handed.recipients)
    message = email.message_from_bytes(handed.content, policy=email.policy.default)
    assert not message.defects and not any(part.defects for part in message.walk()), message.defects
    assert str(message["subject"]).strip() == letter.get("subject", "").strip(), message["subject"]
    assert message["from"].addresses[0].display_name == "Work, flows", message["from"]
    assert [one.addr_spec for one in message["to"].addresses] == ["owner@acme.example"]
    assert [one.addr_spec for one in message["cc"].addresses] == copies if copies else message["cc"] is None
    assert message["message-id"] == f"<{record['id']}@example.net>" == record["email"]["headers"]["message-id"][0]
    assert message["bcc"] is None and message["auto-submitted"] == "auto-generated"
    for name, kind in (("text", "text/plain"), ("html", "text/html")):
        wanted, found = letter.get(name), body_of(message, kind)
        assert (found is None) == (wanted is None), (name, found)
        if wanted is not None:
            assert lines(found).rstrip("\n") == lines(wanted).rstrip("\n"), (name, found[:200])


def relayed(egressd, scheme, kind):
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        context = certificate(directory)
        at = port()
        relay = kind(scheme, at, directory, context)
        process, api = serve(egressd, directory, f"{scheme}://127.0.0.1:{at}")
        try:
            handed = 0
            for letter in [*LETTERS, {"subject": "smuggled", "text": SMUGGLED, "html": SMUGGLED}]:
                status, accepted = call(api, "POST", "/v1/sends", {"email": letter})
                assert status == 202, accepted
                record = done(api, accepted["id"])
                assert record["outcome"] == "delivered", record["error"] or record["response"]
                held_to(letter, record, relay)
                handed += 3 if letter.get("include_collaborators") else 1
            status, accepted = call(api, "POST", "/v1/sends", {"email": {"text": "x"}}, tenant="gone")
            assert status == 202, accepted
            record = done(api, accepted["id"], tenant="gone")
            refusal = (record["response"] or {}).get("status"), (record["response"] or {}).get("body")
            assert (record["outcome"], refusal) == ("rejected", kind.refusal), record
            # With another password it is the relay that says no.
            (directory / "password").write_text("wrong\n")
            process.send_signal(signal.SIGHUP)
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                _, accepted = call(api, "POST", "/v1/sends", {"email": {"text": "x"}})
                record = done(api, accepted["id"])
                if record["outcome"] == "rejected":
                    break
                relay.last(["owner@acme.example"])
                handed += 1
            assert record["response"]["headers"]["command"] == ["AUTH"], record
            assert "wrong" not in json.dumps(record), record
            assert relay.count() == handed, "once each, and nothing beside them"
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=PATIENCE)
            relay.stop()
        assert code == 0, f"egressd ended with {code}"
    print(f"{kind.__name__}, {scheme}: {len(LETTERS) + 1} messages as they were written, a refusal, a wrong password")


for kind in (Aiosmtpd, Postfix):
    for scheme in ("smtps", "smtp"):
        relayed(sys.argv[1], scheme, kind)
