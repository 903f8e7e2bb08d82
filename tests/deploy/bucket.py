"""Takes objects as a bucket does, and says so: `bucket.py ADDRESS PORT`."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Bucket(BaseHTTPRequestHandler):
    def do_PUT(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("etag", '"an object"')
        self.send_header("content-length", "0")
        self.end_headers()


HTTPServer((sys.argv[1], int(sys.argv[2])), Bucket).serve_forever()
