// What Node answers: HTTP/1.1 on the first port, HTTPS on the second, HTTP/2 on the third.
//
//   node answers.mjs PORT PORT PORT CERTIFICATE KEY

import { appendFileSync, readFileSync } from "node:fs";
import http from "node:http";
import http2 from "node:http2";
import https from "node:https";

const [plain, tls, two, certificate, key] = process.argv.slice(2);
const files = { cert: readFileSync(certificate), key: readFileSync(key) };
const { constants } = http2;

async function handle(request, response) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  const headers = Object.fromEntries(Object.entries(request.headers).filter(([name]) => !name.startsWith(":")));
  const version = request.httpVersionMajor === 2 ? "HTTP/2" : `HTTP/${request.httpVersion}`;
  appendFileSync(process.env.SEEN, `${JSON.stringify({ method: request.method, target: request.url, version, headers, body: Buffer.concat(pieces).toString("latin1"), raw: request.rawHeaders })}\n`);
  const text = (status, body, more = {}) => response.writeHead(status, { "content-type": "text/plain", "content-length": body.length, ...more }).end(body);
  const half = (end) => {
    response.writeHead(200, { "content-length": 10 });
    response.write("abc", end);
  };
  // What a peer says in HTTP/2 alone.
  const reset = (code) => () => response.stream.close(code);
  switch (new URL(request.url, "http://node").pathname) {
    case "/ok": return text(200, "ok\n");
    case "/take": return text(201, "taken\n");
    case "/moved": return text(302, "", { location: "/landed" });
    case "/busy": return text(503, "later\n", { "retry-after": 0 });
    case "/pieces": response.writeHead(200); response.write("one "); return response.end("two");
    case "/hints": response.writeEarlyHints({ link: "</style.css>; rel=preload" }); return text(200, "ok\n");
    case "/trailers": response.writeHead(200, { trailer: "x-after" }); response.write("ok\n"); response.addTrailers({ "x-after": "1" }); return response.end();
    case "/cut": return half(() => (response.stream ?? request.socket).destroy());
    case "/destroy": return (response.stream ?? request.socket).destroy();
    case "/hang": return undefined;
    case "/half-without-error": return half(reset(constants.NGHTTP2_NO_ERROR));
    case "/half-reset": return half(reset(constants.NGHTTP2_INTERNAL_ERROR));
    case "/refused": return reset(constants.NGHTTP2_REFUSED_STREAM)();
    case "/want-1.1": return reset(constants.NGHTTP2_HTTP_1_1_REQUIRED)();
    case "/reset": return reset(constants.NGHTTP2_INTERNAL_ERROR)();
    default: return text(404, "nothing here\n");
  }
}

http.createServer(handle).listen(plain, "127.0.0.1");
https.createServer(files, handle).listen(tls, "127.0.0.1");
http2.createSecureServer(files, handle).listen(two, "127.0.0.1");
