"""Serves files, and stands in for Cloudflare's lists as its reference describes them.

    cloudflare_stand_in.py DIRECTORY

Prints its port. The items of the one list are in DIRECTORY/items.json; a replacement is in force at the third time its
operation is asked for, or fails where DIRECTORY/fails is there.
"""

import functools
import http.server
import ipaddress
import json
import sys
from pathlib import Path

LIST = f"/client/v4/accounts/{'a' * 32}/rules/lists"
ITEMS = f"{LIST}/{'b' * 32}/items"


class Handler(http.server.SimpleHTTPRequestHandler):
    asked = 0
    pending = None

    def answer(self, status, result, errors=(), **more):
        body = json.dumps({"success": status == 200, "errors": list(errors), "messages": [], "result": result, **more})
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def allowed(self):
        if self.headers["Authorization"] == "Bearer the-token":
            return True
        self.answer(403, None, [{"code": 10000, "message": "Authentication error"}])
        return False

    def do_GET(self):
        if not self.path.startswith("/client/"):
            super().do_GET()
            return
        if not self.allowed():
            return
        if self.path.startswith(f"{ITEMS}?"):
            items = json.loads(Path(self.directory, "items.json").read_text())
            # Two to a page, so that the pages have to be followed.
            start = int(self.path.partition("cursor=")[2] or 0)
            after = {"cursors": {"after": str(start + 2)}} if start + 2 < len(items) else {}
            self.answer(200, items[start : start + 2], result_info=after)
        elif self.path == f"{LIST}/bulk_operations/op1" and Handler.pending is not None:
            Handler.asked += 1
            if Handler.asked < 3:
                self.answer(200, {"id": "op1", "status": ["pending", "running"][Handler.asked - 1]})
            elif Path(self.directory, "fails").exists():
                self.answer(200, {"id": "op1", "status": "failed", "error": "the list is full"})
            else:
                Path(self.directory, "items.json").write_text(json.dumps(Handler.pending))
                self.answer(200, {"id": "op1", "status": "completed"})
        else:
            self.answer(404, None, [{"code": 7003, "message": "no such route"}])

    def do_PUT(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        for item in body:
            network = ipaddress.ip_network(item["ip"])
            if network.version == 6 and network.prefixlen > 64:
                self.answer(400, None, [{"code": 10009, "message": f"{item['ip']}: /64 or larger"}])
                return
        if self.path == ITEMS:
            Handler.pending, Handler.asked = body, 0
            self.answer(200, {"operation_id": "op1"})
        else:
            self.answer(404, None, [{"code": 7003, "message": "no such route"}])


server = http.server.HTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=sys.argv[1]))
print(server.server_port, flush=True)
server.serve_forever()
