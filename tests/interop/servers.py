"""The receivers: how each real server is started, and how it is read what it saw.

Each answers `/ok` (200), `/take` (201), `/moved` (302), `/busy` (503) and anything else with 404.
"""

import datetime
import json
import re
import socket
import sys
import threading
from pathlib import Path

import trustme

from common import HERE, Process


class Certificates:
    """Leaves of one authority for 127.0.0.1, and those that must not pass."""

    def __init__(self, scratch):
        self.directory = Path(scratch) / "certificates"
        self.directory.mkdir()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.directory / "ca.pem")
        past = datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC)
        for name, issued in {
            "good": authority.issue_cert("127.0.0.1"),
            "other-name": authority.issue_cert("other.interop-egressd.net"),
            "expired": authority.issue_cert("127.0.0.1", not_before=past, not_after=past + datetime.timedelta(days=9)),
            "stranger": trustme.CA().issue_cert("127.0.0.1"),
        }.items():
            chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
            (self.directory / f"{name}.crt").write_bytes(chain)
            (self.directory / f"{name}.key").write_bytes(issued.private_key_pem.bytes())
            (self.directory / f"{name}.pem").write_bytes(chain + issued.private_key_pem.bytes())

    def __call__(self, name):
        return str(self.directory / name)


class Server:
    """One real server. `listeners`: its ports by how they are spoken to."""

    def __init__(self, name, scratch, listeners):
        self.name, self.listeners = name, listeners
        self.directory = Path(scratch) / name
        self.directory.mkdir()
        self.seen_file = self.directory / "seen"
        self.seen_file.touch()
        self.processes = []

    def file(self, name, text):
        path = self.directory / name
        path.write_text(text)
        return str(path)

    def run(self, command, env=None):
        name = f"{self.name}-{len(self.processes)}"
        environment = {"SEEN": str(self.seen_file), "PYTHONPATH": str(HERE), **(env or {})}
        ports = [port for _, port in self.listeners.values()]
        self.processes.append(Process(name, command, self.directory, ports, env=environment))
        return self

    def stop(self):
        for process in self.processes:
            process.stop()

    def seen(self):
        """Each request that it saw, in any order."""
        return [json.loads(line) for line in self.seen_file.read_text().splitlines() if line.startswith("{")]


class Syslog:
    """Takes datagrams down to a file: HAProxy's way of logging."""

    def __init__(self, port, path):
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind(("127.0.0.1", port))

        def take():
            with open(path, "a", buffering=1) as file:
                while data := listener.recv(65536):
                    file.write(re.sub(rb"^<\d+>[^{]*", b"", data).decode("latin-1").rstrip("\n") + "\n")

        threading.Thread(target=take, daemon=True).start()


def nginx(scratch, pem):
    server = Server("nginx", scratch, {"http": ("http", 8101), "https": ("https", 8102), "h2": ("https", 8103)})
    log = '{"method":"$request_method","target":"$request_uri","version":"$server_protocol",'
    log += (
        '"headers":{"host":"$http_host","content-type":"$content_type","x-kind":"$http_x_kind"},"body":"$request_body"}'
    )
    config = server.file(
        "nginx.conf",
        f"""daemon off; pid {server.directory}/pid; error_log {server.directory}/error.log; user root;
events {{}}
http {{
  log_format seen escape=json '{log}';
  client_body_temp_path {server.directory}/body; proxy_temp_path {server.directory}/proxy;
  fastcgi_temp_path {server.directory}/f; uwsgi_temp_path {server.directory}/u; scgi_temp_path {server.directory}/s;
  access_log off;
  # Behind it: what takes a body, so that it is read; what breaks off, and what never answers.
  server {{ listen 127.0.0.1:8108; return 201 "taken\\n"; }}
  server {{
    listen 127.0.0.1:8101; listen 127.0.0.1:8102 ssl; listen 127.0.0.1:8103 ssl http2;
    ssl_certificate {pem("good.crt")}; ssl_certificate_key {pem("good.key")};
    access_log {server.seen_file} seen;
    default_type text/plain; client_max_body_size 1k; client_body_buffer_size 64k;
    location = /ok {{ return 200 "ok\\n"; }}
    location = /take {{ client_max_body_size 1m; proxy_pass http://127.0.0.1:8108; }}
    location = /small {{ proxy_pass http://127.0.0.1:8108; }}
    location = /moved {{ return 302 /landed; }}
    location = /busy {{ return 503; }}
    location = /nothing {{ return 444; }}
    location = /cut {{ proxy_pass http://127.0.0.1:8109; proxy_buffering off; }}
    location = /late {{ proxy_pass http://127.0.0.1:8110; proxy_read_timeout 1s; }}
    location = /squeezed {{ gzip on; gzip_min_length 1; gzip_types text/plain; return 200 "ok\\n"; }}
    location / {{ return 404; }}
  }}
}}
""",
    )
    half(8109)
    silent(8110)
    return server.run(["nginx", "-c", config, "-p", str(server.directory)])


def half(port):
    """Behind a proxy: a length of ten, three bytes, and the end."""
    listener = socket.create_server(("127.0.0.1", port))

    def serve():
        while True:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
            connection.close()

    threading.Thread(target=serve, daemon=True).start()


def silent(port):
    """Behind a proxy: takes what comes, and says nothing."""
    listener = socket.create_server(("127.0.0.1", port))
    held = []

    def serve():
        while True:
            held.append(listener.accept())

    threading.Thread(target=serve, daemon=True).start()


def apache(scratch, pem):
    server = Server("apache", scratch, {"http": ("http", 8201), "https": ("https", 8202), "h2": ("https", 8203)})
    (server.directory / "none").mkdir()
    echo = server.file("take.py", f"#!/usr/bin/python3\n{CGI}")
    Path(echo).chmod(0o755)
    modules = "mpm_event authz_core authn_core alias ssl http2 cgid setenvif socache_shmcb env"
    load = "\n".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in modules.split())
    log = r"{\"method\":\"%m\",\"target\":\"%U%q\",\"version\":\"%H\",\"body\":\"\","
    log += r"\"headers\":{\"host\":\"%{Host}i\",\"x-kind\":\"%{X-Kind}i\"}}"
    config = server.file(
        "apache.conf",
        f"""ServerRoot {server.directory}
PidFile {server.directory}/pid
ErrorLog {server.directory}/error.log
ServerName 127.0.0.1
Listen 127.0.0.1:8201
Listen 127.0.0.1:8202
Listen 127.0.0.1:8203
{load}
User www-data
Group www-data
DocumentRoot {server.directory}/none
ScriptSock {server.directory}/cgisock
LogFormat "{log}" seen
SetEnvIf Request_URI ^/(take|ok) told
CustomLog {server.seen_file} seen env=!told
PassEnv SEEN
ScriptAlias /take {echo}
ScriptAlias /ok {echo}
Redirect 302 /moved /landed
Redirect 503 /busy
SSLCertificateFile {pem("good.crt")}
SSLCertificateKeyFile {pem("good.key")}
SSLCACertificateFile {pem("ca.pem")}
<Directory {server.directory}>
  Require all granted
</Directory>
<VirtualHost 127.0.0.1:8202>
  SSLEngine on
  Protocols http/1.1
</VirtualHost>
<VirtualHost 127.0.0.1:8203>
  SSLEngine on
  SSLProtocol TLSv1.2
  Protocols h2 http/1.1
  <Location /members>
    SSLVerifyClient require
  </Location>
</VirtualHost>
""",
    )
    server.directory.chmod(0o755)
    server.seen_file.chmod(0o666)
    return server.run(["apache2", "-f", config, "-DFOREGROUND"])


# For Apache and lighttpd: says what came, and answers as its name is.
CGI = """
import json, os, sys
body = sys.stdin.buffer.read(int(os.environ.get("CONTENT_LENGTH") or 0))
headers = {key[5:].lower().replace("_", "-"): value for key, value in os.environ.items() if key.startswith("HTTP_")}
headers["content-type"] = os.environ.get("CONTENT_TYPE", "")
line = {"method": os.environ["REQUEST_METHOD"], "target": os.environ["REQUEST_URI"],
        "version": os.environ["SERVER_PROTOCOL"], "headers": headers, "body": body.decode("latin-1")}
with open(os.environ["SEEN"], "a") as file:
    file.write(json.dumps(line) + "\\n")
take = os.environ["REQUEST_URI"].startswith("/take")
text = "taken\\n" if take else "ok\\n"
sys.stdout.write(f"Status: {201 if take else 200}\\r\\nContent-Type: text/plain\\r\\n")
sys.stdout.write(f"Content-Length: {len(text)}\\r\\n\\r\\n")
if os.environ["REQUEST_METHOD"] != "HEAD":
    sys.stdout.write(text)
"""


def lighttpd(scratch, pem):
    server = Server("lighttpd", scratch, {"http": ("http", 8301), "h2": ("https", 8302)})
    (server.directory / "root").mkdir()
    echo = server.file("echo.py", CGI)
    log = r"{\"request\":\"%r\",\"body\":\"\",\"headers\":{\"host\":\"%{Host}i\",\"x-kind\":\"%{X-Kind}i\"}}"
    config = server.file(
        "lighttpd.conf",
        f"""server.modules = ("mod_cgi", "mod_alias", "mod_redirect", "mod_accesslog", "mod_openssl", "mod_setenv")
server.document-root = "{server.directory}/root"
server.bind = "127.0.0.1"
server.port = 8301
server.errorlog = "{server.directory}/error.log"
$SERVER["socket"] == "127.0.0.1:8302" {{
  ssl.engine = "enable"
  ssl.pemfile = "{pem("good.pem")}"
}}
url.redirect = ("^/moved" => "/landed")
url.redirect-code = 302
alias.url = ("/take" => "{echo}", "/ok" => "{echo}")
setenv.add-environment = ("SEEN" => "{server.seen_file}")
cgi.assign = (".py" => "/usr/bin/python3")
$HTTP["url"] !~ "^/(take|ok)" {{
  accesslog.filename = "{server.seen_file}"
  accesslog.format = "{log}"
}}
""",
    )

    def split(line):
        if "request" in line:
            line["method"], line["target"], line["version"] = line.pop("request").split(" ")
        return line

    plain = server.seen
    server.seen = lambda: [split(line) for line in plain()]
    return server.run(["lighttpd", "-D", "-f", config])


def haproxy(scratch, pem):
    server = Server("haproxy", scratch, {"http": ("http", 8401), "https": ("https", 8402), "h2": ("https", 8403)})
    Syslog(8409, server.seen_file)
    captured = [f'"%[capture.req.hdr({number}),json]"' for number in range(3)]
    log = '{"method":"%HM","target":"%HU","version":"%HV",'
    log += '"headers":{"host":' + captured[0] + ',"x-kind":' + captured[1] + '},"body":' + captured[2] + "}"
    config = server.file(
        "haproxy.cfg",
        f"""global
  log 127.0.0.1:8409 len 65535 format raw local0
defaults
  mode http
  option dontlognull
  timeout client 60s
  timeout connect 5s
  timeout server 60s
  log global
frontend all
  bind 127.0.0.1:8401
  bind 127.0.0.1:8402 ssl crt {pem("good.pem")} alpn http/1.1
  bind 127.0.0.1:8403 ssl crt {pem("good.pem")} alpn h2,http/1.1
  declare capture request len 200
  declare capture request len 200
  declare capture request len 1000
  http-request capture req.hdr(host) id 0
  http-request capture req.hdr(x-kind) id 1
  http-request deny deny_status 413 if {{ path /small }} {{ req.hdr_val(content-length) gt 1000 }}
  http-request wait-for-body time 60s at-least 1 if {{ method POST PUT }}
  http-request capture req.body id 2
  log-format '{log}'
  http-request return status 200 content-type text/plain string "ok\\n" if {{ path /ok }}
  http-request return status 201 content-type text/plain string "taken\\n" if {{ path /take }}
  http-request return status 503 content-type text/plain string "later\\n" if {{ path /busy }}
  http-request redirect location /landed code 302 if {{ path /moved }}
  http-request deny deny_status 429 if {{ path /slow-down }}
  http-request reject if {{ path /nothing }}
  http-request silent-drop if {{ path /vanish }}
  http-request return status 404 content-type text/plain string "nothing here\\n"
""",
    )
    plain = server.seen

    def whole(line):
        # HTTP/2 has the authority in its target, as the log has it; nothing captured is a dash.
        target = re.sub("^https?://[^/]*", "", line["target"])
        return line | {"target": target, "body": "" if line["body"] == "-" else line["body"]}

    server.seen = lambda: [whole(line) for line in plain()]
    return server.run(["haproxy", "-db", "-f", config])


def node(scratch, pem):
    server = Server("node", scratch, {"http": ("http", 8501), "https": ("https", 8502), "h2": ("https", 8503)})
    return server.run(["node", str(HERE / "answers.mjs"), "8501", "8502", "8503", pem("good.crt"), pem("good.key")])


def gunicorn(scratch, pem):
    server = Server("gunicorn", scratch, {"http": ("http", 8601), "https": ("https", 8602)})
    command = [sys.executable, "-m", "gunicorn", "answers:wsgi", "--workers", "2", "--worker-class", "gthread"]
    server.listeners = {"http": ("http", 8601)}
    server.run([*command, "--threads", "4", "--bind", "127.0.0.1:8601"])
    server.listeners = {"https": ("https", 8602)}
    tls = ["--certfile", pem("good.crt"), "--keyfile", pem("good.key"), "--bind", "127.0.0.1:8602"]
    server.run([*command, "--threads", "4", *tls])
    server.listeners = {"http": ("http", 8601), "https": ("https", 8602)}
    return server


def uvicorn(scratch, pem):
    server = Server("uvicorn", scratch, {"http": ("http", 8701 + 1)})
    return server.run([sys.executable, "-m", "uvicorn", "answers:asgi", "--host", "127.0.0.1", "--port", "8702"])


def hypercorn(scratch, pem):
    server = Server("hypercorn", scratch, {"http": ("http", 8801), "h2": ("https", 8802)})
    command = [sys.executable, "-m", "hypercorn", "answers:asgi", "--insecure-bind", "127.0.0.1:8801"]
    tls = ["--bind", "127.0.0.1:8802", "--certfile", pem("good.crt"), "--keyfile", pem("good.key")]
    return server.run([*command, *tls])


def aiohttp(scratch, pem):
    server = Server("aiohttp", scratch, {"http": ("http", 8901)})
    return server.run([sys.executable, str(HERE / "answers.py"), "aiohttp", "8901"])


def waitress(scratch, pem):
    server = Server("waitress", scratch, {"http": ("http", 9001)})
    return server.run([sys.executable, str(HERE / "answers.py"), "waitress", "9001"])


def openssl(scratch, pem):
    """`s_server` in several moods: the listeners are the rows' names."""
    moods = {
        "as it is": ["good", "-www"],
        "TLS 1.2": ["good", "-www", "-tls1_2"],
        "TLS 1.1": ["good", "-www", "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"],
        "a cipher of its own": ["good", "-www", "-tls1_2", "-cipher", "AES128-SHA"],
        "wants a certificate, 1.2": ["good", "-www", "-tls1_2", "-Verify", "1", "-verify_return_error"],
        "wants a certificate, 1.3": ["good", "-www", "-tls1_3", "-Verify", "1", "-verify_return_error"],
        "other-name": ["other-name", "-www"],
        "expired": ["expired", "-www"],
        "stranger": ["stranger", "-www"],
    }
    ports = {mood: ("https", 9101 + number) for number, mood in enumerate(moods)}
    server = Server("openssl", scratch, {})
    for mood, (certificate, *options) in moods.items():
        server.listeners = {mood: ports[mood]}
        files = [
            "-cert",
            pem(f"{certificate}.crt"),
            "-cert_chain",
            pem(f"{certificate}.crt"),
            "-key",
            pem(f"{certificate}.key"),
        ]
        server.run(["openssl", "s_server", "-accept", f"127.0.0.1:{ports[mood][1]}", *files, *options])
    server.listeners = ports | {"plain text": ("http", ports["as it is"][1])}
    server.seen = None
    return server


ALL = [nginx, apache, lighttpd, haproxy, node, gunicorn, uvicorn, hypercorn, aiohttp, waitress, openssl]
