"""Real clients through the forward proxy: see `run`.

    main.py EGRESSD SCRATCH
"""

import hashlib
import http.server
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import trustme

EGRESSD, SCRATCH = Path(sys.argv[1]), Path(sys.argv[2])
HERE = Path(__file__).parent
VENV = Path(sys.executable).parent
PATIENCE = 120
SOURCE = "127.0.0.31"
# The exception opens the one; nothing may come to the other, which listens on the same ports.
OPEN, FORBIDDEN = "127.0.0.1", "127.0.0.2"
TENANT, TOKEN = "acme", "a-token-of-the-tests"

failures = []
AUTHORITY = trustme.CA()
CA = SCRATCH / "ca.pem"
AUTHORITY.cert_pem.write_to_path(CA)
# By name, too: an agent of Node.js looks for one where the host is an address.
LEAF = AUTHORITY.issue_cert(OPEN, FORBIDDEN, "localhost")
(SCRATCH / "key.pem").write_bytes(LEAF.private_key_pem.bytes())
(SCRATCH / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in LEAF.cert_chain_pems))
ENVIRONMENT = os.environ | {"CA": str(CA), "GOCACHE": str(SCRATCH / "go"), "HOME": str(SCRATCH), "GOFLAGS": "-mod=mod", "GIT_SSL_CAINFO": str(CA)}


def free_port():
    with socket.socket() as taken:
        taken.bind((OPEN, 0))
        return taken.getsockname()[1]


class Receiver(http.server.SimpleHTTPRequestHandler):
    """Answers with who came and what was asked for; serves what lies under /files."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.client_address[0], self.path, dict(self.headers)))
        if self.path.startswith("/files/"):
            return super().do_GET()
        body = json.dumps({"peer": self.client_address[0], "path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def receiver(address, tls):
    handler = lambda *arguments: Receiver(*arguments, directory=str(SCRATCH))
    server = http.server.ThreadingHTTPServer((address, 0), handler)
    return served(server, tls)


def served(server, tls):
    server.seen = []
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(SCRATCH / "cert.pem", SCRATCH / "key.pem")
        # The handshake is the handler's thread's.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class Silent:
    """Notes whoever connects."""

    def __init__(self):
        self.socket = socket.create_server((FORBIDDEN, 0))
        self.port = self.socket.getsockname()[1]
        self.seen = []
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            stream, peer = self.socket.accept()
            self.seen.append(peer)
            stream.close()


def node(name, tls):
    directory = SCRATCH / name
    directory.mkdir()
    proxy, api, metrics = free_port(), free_port(), free_port()
    (directory / "public-ips.txt").write_text(f"{SOURCE}\n")
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    text = f"""
[api]
listen = "{OPEN}:{api}"
[[api.client]]
name = "clients"
token_sha256 = "{digest}"
tenant = "{TENANT}"
scopes = ["read", "proxy"]
[metrics]
listen = "{OPEN}:{metrics}"
[[egress.source]]
public = "{SOURCE}"
[dns]
servers = ["{OPEN}:53"]
[store]
path = "store"
key_file = "key"
[[policy.exception]]
networks = ["{OPEN}/32"]
reason = "the receivers of the tests"
[proxy]
listen = "{OPEN}:{proxy}"
"""
    if tls:
        text += f'tls = {{ cert = "{SCRATCH}/cert.pem", key = "{SCRATCH}/key.pem" }}\n'
    (directory / "egressd.toml").write_text(text)
    process = subprocess.Popen([EGRESSD, "serve", "--config", directory / "egressd.toml"])
    begun = time.monotonic()
    while True:
        try:
            socket.create_connection((OPEN, metrics)).close()
            break
        except OSError:
            if process.poll() is not None or time.monotonic() - begun > PATIENCE:
                sys.exit(f"{name}: egressd does not answer")
            time.sleep(0.02)
    scheme = "https" if tls else "http"
    return process, f"{scheme}://{TENANT}:{TOKEN}@{OPEN}:{proxy}"


REQUESTS = "import sys, requests; answer = requests.get(sys.argv[2], proxies={'http': sys.argv[1], 'https': sys.argv[1]}, \
verify=sys.argv[3]); answer.raise_for_status(); print(answer.text)"
HTTPX = "import ssl, sys, httpx; context = ssl.create_default_context(cafile=sys.argv[3]); \
client = httpx.Client(proxy=httpx.Proxy(sys.argv[1], ssl_context=context if sys.argv[1].startswith('https') else None), \
verify=context, http2=True, trust_env=False); answer = client.get(sys.argv[2]); answer.raise_for_status(); print(answer.text)"
CLIENTS = {
    "curl": lambda proxy, url: [
        "curl", "-sS", "--fail", "--noproxy", "", "--cacert", CA, "--proxy-cacert", CA, "-x", proxy, url,
    ],
    "requests": lambda proxy, url: [VENV / "python", "-c", REQUESTS, proxy, url, CA],
    "httpx": lambda proxy, url: [VENV / "python", "-c", HTTPX, proxy, url, CA],
    "undici": lambda proxy, url: ["node", HERE / "client.cjs", "undici", proxy, url],
    "axios": lambda proxy, url: ["node", HERE / "client.cjs", "axios", proxy, url],
    "go": lambda proxy, url: [SCRATCH / "go-client", proxy, url],
    "java": lambda proxy, url: [
        "java", "-Djdk.http.auth.tunneling.disabledSchemes=", HERE / "Client.java", proxy, url,
    ],
}
# Over TLS to the proxy itself: those that can.
OVER_TLS = ["curl", "httpx", "undici", "go"]


def run(command):
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=PATIENCE, env=ENVIRONMENT
    )


def check(what, good, told=""):
    print(f"{'ok' if good else 'FAILED'}  {what}", flush=True)
    if not good:
        failures.append(what)
        print(told, flush=True)


def reaches(name, proxy, url, over=""):
    done = run(CLIENTS[name](proxy, url))
    answer = done.stdout.strip()
    good = done.returncode == 0 and answer.startswith("{") and json.loads(answer)["peer"] == SOURCE
    check(f"{name}{over} reaches {url.split(':')[0]} from the published address", good, f"{answer}\n{done.stderr}")


def main():
    secure, plain = receiver(OPEN, True), receiver(OPEN, False)
    forbidden = Silent()
    built = run(["go", "build", "-o", SCRATCH / "go-client", HERE / "client.go"])
    if built.returncode:
        sys.exit(built.stderr)
    (process, proxy), (process_tls, proxy_tls) = node("plain", False), node("tls", True)
    try:
        targets = [f"https://{OPEN}:{secure.server_port}/a", f"http://{OPEN}:{plain.server_port}/b"]
        for name in CLIENTS:
            for url in targets:
                reaches(name, proxy, url)
            for scheme in ("https", "http"):
                done = run(CLIENTS[name](proxy, f"{scheme}://{FORBIDDEN}:{forbidden.port}/"))
                check(f"{name} does not reach what is forbidden over {scheme}", done.returncode != 0, done.stdout)
            wrong = proxy.replace(TOKEN, "another")
            done = run(CLIENTS[name](wrong, targets[0]))
            check(f"{name} with a wrong token reaches nothing", done.returncode != 0, done.stdout)
        for name in OVER_TLS:
            reaches(name, proxy_tls, targets[0], " over TLS")
        git(proxy, secure)
        websocket(proxy)
        for server in (secure, plain):
            peers = {peer for peer, _, _ in server.seen}
            check("every receiver saw the published address alone", peers == {SOURCE}, str(peers))
            headers = {name.lower() for _, _, headers in server.seen for name in headers}
            leaked = {name for name in headers if name.startswith("proxy-") or name.startswith("egressd-")}
            check("no receiver saw what was for the proxy", not leaked, str(leaked))
        check("nobody came to the forbidden one", not forbidden.seen, str(forbidden.seen))
    finally:
        process.terminate()
        process_tls.terminate()
        process.wait()
        process_tls.wait()


def git(proxy, secure):
    repository, clone = SCRATCH / "files" / "a.git", SCRATCH / "clone"
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.net"]
    work = SCRATCH / "work"
    for command in (
        ["git", "init", "-q", work],
        ["git", "-C", work, *identity, "commit", "-q", "--allow-empty", "-m", "one"],
        ["git", "clone", "-q", "--bare", work, repository],
        ["git", "-C", repository, "update-server-info"],
        ["git", "-c", f"http.proxy={proxy}", "clone", "-q", f"https://{OPEN}:{secure.server_port}/files/a.git", clone],
    ):
        done = run(command)
        if done.returncode:
            return check("git clones over https", False, done.stderr)
    log = run(["git", "-C", clone, "log", "--format=%s"])
    check("git clones over https", log.stdout.strip() == "one", log.stderr)


def websocket(proxy):
    from websockets.sync.client import connect
    from websockets.sync.server import serve

    peers = []

    def echo(connection):
        peers.append(connection.remote_address[0])
        for message in connection:
            connection.send(message)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SCRATCH / "cert.pem", SCRATCH / "key.pem")
    trust = ssl.create_default_context(cafile=CA)
    with serve(echo, OPEN, 0, ssl=context) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        with connect(f"wss://{OPEN}:{port}/", proxy=proxy, ssl=trust) as connection:
            connection.send("x" * 100_000)
            answered = connection.recv(timeout=PATIENCE)
        check("a WebSocket goes through", answered == "x" * 100_000 and peers == [SOURCE], str(peers))
        server.shutdown()


main()
print(f"{len(failures)} failures")
sys.exit(1 if failures else 0)
