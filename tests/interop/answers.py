"""What the Python servers answer: one set of paths for WSGI, ASGI and aiohttp; a line of JSON for each request seen."""

import json
import os

SEEN = os.environ.get("SEEN", "/dev/null")


def saw(method, target, version, headers, body):
    line = {"method": method, "target": target, "version": version, "headers": headers, "body": body.decode("latin-1")}
    with open(SEEN, "a") as file:
        file.write(json.dumps(line) + "\n")


def answer(path):
    """Status, headers and pieces of the body; a piece that is None: the application fails there."""
    plain = [("content-type", "text/plain")]

    def sized(text):
        return plain + [("content-length", str(len(text)))], [text.encode()]

    match path:
        case "/ok":
            return 200, *sized("ok\n")
        case "/take":
            return 201, *sized("taken\n")
        case "/moved":
            return 302, [("location", "/landed"), ("content-length", "0")], []
        case "/busy":
            headers, pieces = sized("later\n")
            return 503, headers + [("retry-after", "0")], pieces
        case "/pieces":
            return 200, plain, [b"one ", b"two"]
        case "/cut":
            return 200, plain + [("content-length", "10")], [b"abc", None]
        case "/crash":
            return 200, plain, [None]
        case _:
            return 404, *sized("nothing here\n")


class Broken(Exception):
    """What an application that fails raises; its server's log may be full of it."""


def wsgi(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    headers = {key[5:].lower().replace("_", "-"): value for key, value in environ.items() if key.startswith("HTTP_")}
    headers["content-type"] = environ.get("CONTENT_TYPE", "")
    saw(environ["REQUEST_METHOD"], f"{path}?{query}", environ["SERVER_PROTOCOL"], headers, body)
    status, headers, pieces = answer(path)
    if pieces[:1] == [None]:
        raise Broken
    start_response(f"{status} Status", headers)
    if environ["REQUEST_METHOD"] == "HEAD":
        return []

    def iterate():
        for piece in pieces:
            if piece is None:
                raise Broken
            yield piece

    return iterate()


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    path, query = scope["path"], scope["query_string"].decode()
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    saw(scope["method"], f"{path}?{query}", f"HTTP/{scope['http_version']}", headers, body)
    status, headers, pieces = answer(path)
    if pieces[:1] == [None]:
        raise Broken
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    if scope["method"] != "HEAD":
        for piece in pieces:
            if piece is None:
                raise Broken
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def serve_aiohttp(port):
    from aiohttp import web

    async def handle(request):
        body = await request.read()
        version = f"HTTP/{request.version.major}.{request.version.minor}"
        saw(request.method, request.path_qs, version, {k.lower(): v for k, v in request.headers.items()}, body)
        status, headers, pieces = answer(request.path)
        if pieces[:1] == [None]:
            raise Broken
        response = web.StreamResponse(status=status, headers=dict(headers))
        await response.prepare(request)
        if request.method != "HEAD":
            for piece in pieces:
                if piece is None:
                    request.transport.close()
                    raise Broken
                await response.write(piece)
        await response.write_eof()
        return response

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    web.run_app(application, host="127.0.0.1", port=port, print=None)


def serve_waitress(port):
    import waitress

    waitress.serve(wsgi, host="127.0.0.1", port=port)


if __name__ == "__main__":
    import sys

    {"aiohttp": serve_aiohttp, "waitress": serve_waitress}[sys.argv[1]](int(sys.argv[2]))
