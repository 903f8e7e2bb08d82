"""What is sent to which server, what it must have seen, and what the record must say."""

import json

import servers
from common import differences

H1, H2 = "HTTP/1.1", "HTTP/2"
DELIVERED = {"outcome": "delivered", "code": None}
REJECTED = {"outcome": "rejected", "code": None}


def failed(code, phase, processed):
    return {"outcome": "failed", "code": code, "phase": phase, "processed": processed}


# Of every server and listener: request, how the record ends, and the body that must have arrived.
EVERYWHERE = [
    ("a GET", {"method": "GET", "path": "/ok"}, DELIVERED | {"status": 200, "body": "ok\n"}),
    (
        "a body, byte for byte",
        {"method": "POST", "path": "/take", "data": {"name": "Luke", "n": 1.0}},
        DELIVERED | {"status": 201, "body": "taken\n"},
    ),
    (
        "a body in UTF-8",
        {"method": "PUT", "path": "/take", "data": "Grüße"},
        DELIVERED | {"status": 201, "body": "taken\n"},
    ),
    ("an empty body", {"method": "POST", "path": "/take"}, DELIVERED | {"status": 201}),
    ("HEAD", {"method": "HEAD", "path": "/ok"}, DELIVERED | {"status": 200, "body": ("", None)}),
    ("DELETE of what is not there", {"method": "DELETE", "path": "/none"}, REJECTED | {"status": (404, 405)}),
    ("what is not there", {"method": "GET", "path": "/none"}, REJECTED | {"status": 404}),
    ("a redirect is an answer", {"method": "GET", "path": "/moved"}, REJECTED | {"status": 302}),
    (
        "a header of the author's",
        {"method": "GET", "path": "/ok", "headers": {"x-kind": "interop"}},
        DELIVERED | {"status": 200},
    ),
]

# `retry-after` tempts; the answer stands.
BUSY = ("busy is an answer", {"method": "POST", "path": "/busy", "data": "x"}, REJECTED | {"status": 503})
PIECES = ("a body without a length", {"method": "GET", "path": "/pieces"}, DELIVERED | {"body": "one two"})
CUT = ("a body that breaks off", {"method": "GET", "path": "/cut"})
# Over HTTP/1.1 and over HTTP/2.
CUT_1 = failed(("connection_closed", "connection_reset"), "read", "yes")
CUT_2 = failed("connection_reset", "read", "yes")
CRASH = ("an application that fails", {"method": "POST", "path": "/crash", "data": "x"}, REJECTED | {"status": 500})

LARGE = "x" * 200_000

# Of one server, on the listeners named.
OF = {
    "nginx": [
        (("http", "https", "h2"), *BUSY),
        (
            ("http", "https", "h2"),
            "a body above its limit",
            {"method": "POST", "path": "/small", "data": LARGE},
            REJECTED | {"status": 413},
        ),
        (
            ("http", "https"),
            "closed without an answer (444)",
            {"method": "POST", "path": "/nothing", "data": "x"},
            failed("connection_closed", "wait", "maybe"),
        ),
        (("http", "https"), *CUT, CUT_1),
        (("h2",), *CUT, CUT_2),
        (
            ("http", "h2"),
            "a backend that does not answer (504)",
            {"method": "GET", "path": "/late"},
            REJECTED | {"status": 504},
        ),
        (
            ("http", "h2"),
            "compressed where the author asked for it, and left so",
            {"method": "GET", "path": "/squeezed", "headers": {"accept-encoding": "gzip"}},
            DELIVERED | {"status": 200},
        ),
    ],
    "apache": [
        (("http", "https", "h2"), *BUSY),
        (
            ("h2",),
            "a renegotiation that HTTP/2 has not (HTTP_1_1_REQUIRED)",
            {"method": "GET", "path": "/members"},
            {"outcome": "failed", "processed": "no"},
        ),
    ],
    "lighttpd": [],
    "haproxy": [
        (("http", "https", "h2"), *BUSY),
        (
            ("http", "https", "h2"),
            "too many (429)",
            {"method": "POST", "path": "/slow-down", "data": "x"},
            REJECTED | {"status": 429},
        ),
        (
            ("http", "https"),
            "closed without an answer (reject)",
            {"method": "POST", "path": "/nothing", "data": "x"},
            failed(("connection_closed", "connection_reset"), "wait", "maybe"),
        ),
        (
            ("http",),
            "gone without a word (silent-drop)",
            {"method": "POST", "path": "/vanish", "data": "x"},
            {"outcome": "failed", "code": ("timeout", "connection_reset"), "phase": "wait", "processed": "maybe"},
        ),
        (
            ("http", "h2"),
            "a body refused while it is written (413)",
            {"method": "POST", "path": "/small", "data": "x" * 900_000},
            REJECTED | {"status": 413},
        ),
    ],
    "node": [
        (("http", "https", "h2"), *BUSY),
        (("http", "https", "h2"), *PIECES),
        (("http", "https", "h2"), "early hints first", {"method": "GET", "path": "/hints"}, DELIVERED | {"body": "ok\n"}),
        (("http",), "trailers", {"method": "GET", "path": "/trailers"}, DELIVERED | {"body": "ok\n"}),
        (("http", "https"), *CUT, CUT_1),
        (("h2",), *CUT, {"outcome": "failed", "phase": "read", "processed": "yes"}),
        (
            ("http", "https"),
            "closed without an answer",
            {"method": "POST", "path": "/destroy", "data": "x"},
            failed(("connection_closed", "connection_reset"), "wait", "maybe"),
        ),
        (
            ("http", "h2"),
            "no answer ever",
            {"method": "POST", "path": "/hang", "data": "x"},
            failed("timeout", "wait", "maybe"),
        ),
        (("h2",), "half an answer, ended without an error", {"method": "GET", "path": "/half-without-error"}, CUT_2),
        (("h2",), "half an answer, reset", {"method": "GET", "path": "/half-reset"}, CUT_2),
        (
            ("h2",),
            "refused (REFUSED_STREAM)",
            {"method": "POST", "path": "/refused", "data": "x"},
            failed("connection_refused", "wait", "no"),
        ),
        (
            ("h2",),
            "reset before the answer",
            {"method": "POST", "path": "/reset", "data": "x"},
            failed("connection_reset", "wait", "maybe"),
        ),
    ],
    "gunicorn": [(("http", "https"), *BUSY), (("http", "https"), *PIECES), (("http",), *CUT, CUT_1), (("http",), *CRASH)],
    "uvicorn": [(("http",), *BUSY), (("http",), *PIECES), (("http",), *CUT, CUT_1), (("http",), *CRASH)],
    "hypercorn": [(("http", "h2"), *BUSY), (("http", "h2"), *PIECES), (("http", "h2"), *CRASH)],
    "aiohttp": [(("http",), *BUSY), (("http",), *PIECES), (("http",), *CUT, CUT_1), (("http",), *CRASH)],
    "waitress": [(("http",), *BUSY), (("http",), *PIECES), (("http",), *CUT, CUT_1), (("http",), *CRASH)],
    "openssl": [
        (("as it is",), "TLS 1.3", {"method": "GET", "path": "/"}, DELIVERED | {"status": 200, "tls": "TLSv1.3"}),
        (("TLS 1.2",), "TLS 1.2", {"method": "GET", "path": "/"}, DELIVERED | {"status": 200, "tls": "TLSv1.2"}),
        (("TLS 1.1",), "TLS 1.1 alone", {"method": "GET", "path": "/"}, failed("tls_handshake", "tls", "no")),
        (
            ("a cipher of its own",),
            "a cipher that we do not have",
            {"method": "GET", "path": "/"},
            failed("tls_handshake", "tls", "no"),
        ),
        (
            ("wants a certificate, 1.2",),
            "a certificate is wanted (TLS 1.2)",
            {"method": "GET", "path": "/"},
            failed("tls_handshake", "tls", "no"),
        ),
        (
            ("wants a certificate, 1.3",),
            "a certificate is wanted (TLS 1.3)",
            {"method": "GET", "path": "/"},
            {"outcome": "failed", "code": "tls_handshake"},
        ),
        (("other-name",), "another's certificate", {"method": "GET", "path": "/"}, failed("tls_certificate", "tls", "no")),
        (("expired",), "an expired certificate", {"method": "GET", "path": "/"}, failed("tls_certificate", "tls", "no")),
        (("stranger",), "an unknown authority's", {"method": "GET", "path": "/"}, failed("tls_certificate", "tls", "no")),
        (
            ("plain text",),
            "HTTP to a port of TLS",
            {"method": "GET", "path": "/"},
            {"outcome": "failed", "code": ("protocol_error", "connection_closed", "connection_reset")},
        ),
    ],
}

# Not held to having seen what they could not: requests that never became one.
UNSEEN = {"/nothing", "/vanish", "/small", "/members", "/refused", "/want-1.1", "/reset"}


def table(server):
    rows = [] if server.name == "openssl" else [(tuple(server.listeners), *row) for row in EVERYWHERE]
    return rows + OF[server.name]


def run(count, egressd, scratch, pem):
    running = [start(scratch, pem) for start in servers.ALL]
    sends, rows = [], []
    for server in running:
        for listeners, name, send, wanted in table(server):
            for listener in listeners:
                scheme, port = server.listeners[listener]
                target = f"{send['path']}?row={len(rows)}"
                spec = {key: value for key, value in send.items() if key != "path"}
                sends.append(spec | {"url": f"{scheme}://127.0.0.1:{port}{target}"})
                version = {"h2": H2, "http": H1, "https": H1}.get(listener)
                if version is not None and wanted.get("status") is not None:
                    wanted = wanted | {"version": version}
                rows.append((server, f"{server.name} ({listener}): {name}", target, spec, wanted))
    records = egressd.records(sends)
    for server in running:
        server.stop()
    seen = {server.name: server.seen() if server.seen else None for server in running}
    for (server, name, target, spec, wanted), record in zip(rows, records, strict=True):
        problems = differences(wanted, record)
        if seen[server.name] is not None:
            requests = [one for one in seen[server.name] if one["target"] == target]
            problems += arrived(target, spec, requests)
        count.check(name, problems)
    # Nobody followed a redirect, and nobody asked for anything else.
    for server in running:
        strangers = [one for one in seen[server.name] or [] if "?row=" not in one["target"]]
        count.check(f"{server.name} saw nothing else", [str(one) for one in strangers])


def arrived(target, spec, requests):
    """What a server saw of one send, against what was sent."""
    unseen = target.partition("?")[0] in UNSEEN
    if len(requests) > 1 or (not requests and not unseen):
        return [f"it was seen {len(requests)} times"]
    problems = []
    for request in requests:
        if request["method"] != spec["method"]:
            problems.append(f"it came as {request['method']}")
        kind = spec.get("headers", {}).get("x-kind")
        if kind is not None and request["headers"].get("x-kind") != kind:
            problems.append(f"its headers came as {request['headers']}")
        if target.startswith("/take?"):
            data = spec.get("data", "")
            # As it stood in the call, or in UTF-8.
            expected = (data if isinstance(data, str) else json.dumps(data)).encode()
            if request["body"] not in (expected.decode(), expected.decode("latin-1")):
                problems.append(f"its body came as {request['body']!r}")
    return problems
