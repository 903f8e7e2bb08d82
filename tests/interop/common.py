"""Processes, the appliance among them, and the count of what held."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
# How long anything may take before it is given up: a busy machine is no failure.
PATIENCE = 180


class Count:
    def __init__(self):
        self.passed, self.failed = 0, 0

    def check(self, name, problems):
        if problems:
            self.failed += 1
            print(f"not ok: {name}\n    " + "\n    ".join(problems))
        else:
            self.passed += 1

    def end(self):
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(0 if self.failed == 0 and self.passed > 0 else 1)


def within_patience(what, holds):
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {PATIENCE} s")
        time.sleep(0.02)


def listens(address, port):
    try:
        socket.create_connection((address, port), 5).close()
    except OSError:
        return False
    return True


class Process:
    """A server of the step's own: its output is shown when it does not stay."""

    def __init__(self, name, command, scratch, ports=(), address="127.0.0.1", env=None):
        self.name, self.log = name, Path(scratch) / f"{name}.log"
        log = open(self.log, "w")
        environment = os.environ | (env or {})
        self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        for port in ports:
            within_patience(f"{name} on {port}", lambda port=port: self.runs() and listens(address, port))

    def runs(self):
        if self.child.poll() is not None:
            raise SystemExit(f"{self.name} ended with {self.child.returncode}:\n{self.log.read_text()}")
        return True

    def stop(self):
        self.child.terminate()
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class Egressd:
    def __init__(self, binary, scratch, name, dns, more=""):
        directory = Path(scratch) / f"egressd-{name}"
        directory.mkdir()
        self.api = "http://127.0.0.1:8700"
        (directory / "public-ips.txt").write_text("127.0.0.31\n")
        config = directory / "egressd.toml"
        config.write_text(
            f"""[api]
listen = "127.0.0.1:8700"
[metrics]
listen = "127.0.0.1:8701"
[[egress.source]]
public = "127.0.0.31"
[dns]
servers = ["{dns}"]
[store]
path = "{directory}/store"
key_file = "{directory}/key"
[[policy.exception]]
networks = ["127.0.0.0/8"]
reason = "the servers of this step"
{more}"""
        )
        self.process = Process(f"egressd-{name}", [binary, "serve", "--config", str(config)], scratch, [8700, 8701])

    def call(self, method, path, body=None):
        request = urllib.request.Request(self.api + path, method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("content-type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{method} {path}: {error.code} {error.read().decode()}") from None

    def records(self, sends):
        """The records of these sends, in their order, once all are done."""
        ids = [record["id"] for record in self.call("POST", "/v1/sends", sends)["sends"]]
        end = time.monotonic() + PATIENCE
        records = []
        for id in ids:
            while (record := self.call("GET", f"/v1/sends/{id}?wait=10"))["state"] != "done":
                if time.monotonic() > end:
                    raise SystemExit(f"{id} never ended: {record}")
            records.append(record)
        return records

    def stop(self):
        self.process.stop()


def differences(wanted, record):
    """What a record says otherwise: of outcome, code, phase, processed, status, version, body, tls."""
    error, response, connection = (record[key] or {} for key in ("error", "response", "connection"))
    found = {
        "outcome": record["outcome"],
        "code": error.get("code"),
        "phase": error.get("phase"),
        "processed": error.get("processed"),
        "status": response.get("status"),
        "version": response.get("version"),
        "body": response.get("body"),
        "tls": (connection.get("tls") or {}).get("version"),
        "resolved": sorted(one["ip"] for one in connection.get("resolved") or []),
    }
    wrong = []
    for key, value in wanted.items():
        held = found[key] in value if isinstance(value, tuple) else found[key] == value
        if not held:
            wrong.append(f"{key} is {found[key]!r}, not {value!r} ({error.get('message')})")
    return wrong
