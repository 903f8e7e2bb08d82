"""One egressd for each store; every event that it is given is read back from its object, once."""

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import boto3
import duckdb
from botocore.config import Config

SOURCE = "127.0.0.42"
PATIENCE = 180
KEY = re.compile(r"(\d{4})/(\d\d)/(\d\d)/(\d\d)/\1-\2-\3-\4-\d\d-\d\d-[0-9a-f]{64}\.gz$")
PAYLOADS = [{"n": 1, "text": "caf\u00e9 \U0001f980"}, [1, 2, {"three": 3}], "a line", "two\nlines", {}]
# As they stand in the object.
LINES = ['{"n": 1, "text": "caf\u00e9 \U0001f980"}', '[1, 2, {"three": 3}]', "a line", '"two\\nlines"', "{}"]


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(what, holds):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            found = holds()
        except (OSError, urllib.error.URLError):
            found = None
        if found:
            return found
        time.sleep(0.05)
    raise SystemExit(f"{what} never came")


def listens(at):
    with socket.create_connection(("127.0.0.1", at), timeout=5):
        return True


def call(api, method, path, body=None):
    headers = {"Content-Type": "application/json"}
    data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{api}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def done(api, identity):
    def ended():
        _, record = call(api, "GET", f"/v1/sends/{identity}?wait=30")
        return record if record["state"] == "done" else None

    return until(identity, ended)


def client_of(service, store, access, secret):
    return boto3.client(
        service, endpoint_url=f"http://127.0.0.1:{store}", region_name="us-east-1", aws_access_key_id=access,
        aws_secret_access_key=secret, config=Config(s3={"addressing_style": "path"}),
    )


def load(client, api, place):
    """By DuckDB, from a copy of the bucket: what is there, then what has come since, and nothing twice."""
    statements = (Path(__file__).parents[2] / "deploy/warehouses/duckdb.sql").read_text()
    statements = statements.replace("s3://logs", str(place / "copy"))
    database = duckdb.connect()
    wanted = []
    for turn in range(3):
        if turn < 2:
            events = [{"turn": turn, "n": n, "text": "caf\u00e9"} for n in range(5)]
            _, answer = call(api, "POST", "/v1/sends", [
                {"s3": {"bucket": "logs", "prefix": "orders", "payload": event}} for event in events])
            for send in answer["sends"]:
                record = done(api, send["id"])
                wanted.append((record["batch"]["id"], record["s3"]["payload"]))
            for one in client.list_objects_v2(Bucket="logs", Prefix="orders/")["Contents"]:
                file = place / "copy" / one["Key"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(client.get_object(Bucket="logs", Key=one["Key"])["Body"].read())
        database.execute(statements)
        found = [(batch, json.loads(event)) for batch, event in database.execute("SELECT * FROM orders").fetchall()]
        order = lambda row: (row[1]["turn"], row[1]["n"])
        assert sorted(found, key=order) == sorted(wanted, key=order), (turn, found)


def drive(egressd, name, store, access, secret):
    """`store`: the port at which it listens."""
    if name == "moto":
        # From its fifth call on it looks at who calls, and at each signature.
        iam = client_of("iam", store, access, secret)
        iam.create_user(UserName="writer")
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        iam.put_user_policy(UserName="writer", PolicyName="all", PolicyDocument=json.dumps(policy))
        made = iam.create_access_key(UserName="writer")["AccessKey"]
        access, secret = made["AccessKeyId"], made["SecretAccessKey"]
    client = client_of("s3", store, access, secret)
    client.create_bucket(Bucket="logs")
    with tempfile.TemporaryDirectory() as directory:
        place, api, metrics = Path(directory), port(), port()
        (place / "public-ips.txt").write_text(SOURCE)
        credentials = place / "credentials"

        def write(identity, key):
            credentials.write_text(f"[default]\naws_access_key_id = {identity}\naws_secret_access_key = {key}\n")

        write(access, secret)
        (place / "egressd.toml").write_text(f"""
            node = "test"
            [api]
            listen = "127.0.0.1:{api}"
            [metrics]
            listen = "127.0.0.1:{metrics}"
            [[egress.source]]
            public = "{SOURCE}"
            [dns]
            servers = ["127.0.0.1:53"]
            [store]
            path = "store"
            key_file = "key"
            [[policy.exception]]
            networks = ["127.0.0.0/8"]
            reason = "the store of a test"
            destinations = ["s3"]
            [destination.s3]
            endpoint = "http://127.0.0.1:{store}"
            path_style = true
            credentials_file = "credentials"
            every = "1s"
        """)
        process = subprocess.Popen([egressd, "serve", "--config", place / "egressd.toml"])
        try:
            until("egressd", lambda: listens(api))
            events = [{"s3": {"bucket": "logs", "prefix": f"in/{number % 2} \u00e9+(x)/", "payload": payload}}
                      for number, payload in enumerate(PAYLOADS * 20)]
            status, answer = call(api, "POST", "/v1/sends", events)
            assert status == 202, answer
            # Records of events that wait say which batch they are in, and that is where they are.
            batches = {}
            for send in answer["sends"]:
                record = done(api, send["id"])
                assert record["outcome"] == "delivered", (name, record)
                assert record["batch"]["id"] == send["batch"]["id"], (send, record)
                batches.setdefault(record["batch"]["id"], []).append(send["id"])
            found = []
            for prefix in ("in/0 \u00e9+(x)/", "in/1 \u00e9+(x)/"):
                listed = client.list_objects_v2(Bucket="logs", Prefix=prefix)["Contents"]
                for one in listed:
                    assert KEY.fullmatch(one["Key"].removeprefix(prefix)), one["Key"]
                    batch = one["Key"][-67:-3]
                    content = client.get_object(Bucket="logs", Key=one["Key"])["Body"].read()
                    lines = gzip.decompress(content).decode().splitlines()
                    assert len(lines) == len(batches.pop(batch)), one["Key"]
                    found += lines
                    _, told = call(api, "GET", f"/v1/batches/{batch}")
                    assert told["destination"]["s3"]["key"] == one["Key"], told
                    assert told["attempts"][-1]["connection"]["public_ip"] == SOURCE, told
            assert not batches, batches
            assert sorted(found) == sorted(LINES * 20), (name, found)

            load(client, api, place)

            # A wrong bucket ends at once; so do a wrong signature, where a store looks at it, and a stranger. The file is
            # read again.
            status, answer = call(api, "POST", "/v1/sends", {"s3": {"bucket": "none-such", "prefix": "", "payload": {}}})
            record = done(api, answer["id"])
            assert (record["outcome"], record["response"]["status"]) == ("rejected", 404), (name, record)
            assert "NoSuchBucket" in record["error"]["message"], record
            write(*((access, secret[:-1]) if name == "moto" else ("STRANGER", secret)))
            code = "SignatureDoesNotMatch" if name == "moto" else "InvalidAccessKeyId"
            _, answer = call(api, "POST", "/v1/sends", {"s3": {"bucket": "logs", "prefix": "", "payload": {}}})
            record = done(api, answer["id"])
            assert (record["outcome"], record["response"]["status"]) == ("rejected", 403), (name, record)
            assert code in record["error"]["message"], (name, record)
            write(access, secret)
            _, answer = call(api, "POST", "/v1/sends", {"s3": {"bucket": "logs", "prefix": "", "payload": {}}})
            assert done(api, answer["id"])["outcome"] == "delivered"
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
    print(f"{name}: {len(LINES) * 20} events read back from their objects, each once")


def main():
    egressd, tools = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as directory:
        for name, command, access, secret in [
            ("moto", lambda at: [tools / "venv/bin/moto_server", "-H", "127.0.0.1", "-p", str(at)], "AKIDTEST", "secret"),
            ("s3rver", lambda at: [tools / "node_modules/.bin/s3rver", "--address", "127.0.0.1", "--port", str(at),
                                   "--directory", directory, "--silent"], "S3RVER", "S3RVER"),
        ]:
            at = port()
            environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "4"}
            quiet = subprocess.DEVNULL
            store = subprocess.Popen(command(at), stdout=quiet, stderr=quiet, env=environment)
            try:
                until(name, lambda: listens(at))
                drive(egressd, name, at, access, secret)
            finally:
                store.terminate()
                store.wait()


main()
