// Canned records, as the API answers them: made up from a number, so that any count of them is the same every time.

const HOSTS = ["api.shop.example", "hooks.billing.example", "crm.example.com", "events.warehouse.example", "n8n.partner.example"];
const PATHS = ["/v2/orders", "/hook/7fd2c1", "/contacts/88213/notes", "/ingest", "/webhooks/egress?source=flow"];
const WORKFLOWS = ["order-paid", "nightly-sync", "lead-intake", "stock-alert"];
const STEPS = ["notify_shop", "post_invoice", "update_crm", "fan_out"];
export const SOURCES = ["203.0.113.10", "203.0.113.11", "203.0.113.12", "203.0.113.13"];
const NODE = "egress-1";

/** A version 7 identity for an instant and a number. */
export function id(at, n) {
  const time = at.toString(16).padStart(12, "0");
  const tail = (n * 2654435761 % 2 ** 32).toString(16).padStart(8, "0");
  const seq = (n % 4096).toString(16).padStart(3, "0");
  return `${time.slice(0, 8)}-${time.slice(8)}-7${seq}-8${tail.slice(0, 3)}-${tail}${(n % 65536).toString(16).padStart(4, "0")}`;
}

const random = (n, salt = 1) => {
  let x = Math.imul(n + 1, 0x9e3779b1) ^ Math.imul(salt, 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 15), 0x2c1b3c6d);
  x = Math.imul(x ^ (x >>> 12), 0x297a2d39);
  return ((x ^ (x >>> 15)) >>> 0) / 2 ** 32;
};
const pick = (list, n, salt) => list[Math.floor(random(n, salt) * list.length)];
const iso = (at) => new Date(at).toISOString();

const ENDS = [
  ...Array(74).fill(["delivered", 200]), ...Array(5).fill(["delivered", 204]), ["rejected", 302],
  ...Array(3).fill(["rejected", 422]), ["rejected", 401], ["rejected", 429], ...Array(3).fill(["rejected", 500]),
  ...Array(4).fill(["failed", "timeout"]), ...Array(2).fill(["failed", "connection_refused"]), ["failed", "tls_certificate"], ["failed", "dns_not_found"],
  ["blocked", "policy_address"], ["expired", "expired"], ["discarded", "discarded"], ["interrupted", "interrupted"],
];

const MESSAGES = {
  timeout: "no answer from 192.0.2.80:443 within 5 s: the request was written, nothing came back. Have the receiver answer sooner",
  connection_refused: "192.0.2.80:443 refused the connection: check the port, and that the receiver is up",
  tls_certificate: "the certificate of crm.example.com has expired (2026-11-02): the receiver has to renew it",
  dns_not_found: "the name hooks.billing.example does not exist: check its spelling",
  policy_address: "the address of this host is private (policy_address): use a public receiver",
  expired: "not started within 60 s of its release: resend it if it still matters",
  discarded: "its execution was discarded",
  interrupted: "the appliance went down after the delivery had begun: the receiver may or may not have the request",
};
const PHASE = { timeout: "wait", connection_refused: "connect", tls_certificate: "tls", dns_not_found: "dns" };

const PROCESSED = { timeout: "maybe", interrupted: "maybe" };
const REDIRECTED = "the receiver answered 302 and points to https://api.shop.example/v3/orders: a redirect is never followed, and what was sent was not taken; send to that address instead";

function errorOf(what, code) {
  if (code) return { code, phase: PHASE[code] ?? null, processed: PROCESSED[code] ?? "no", message: MESSAGES[code] };
  return what === 302 ? { code: null, phase: null, processed: "yes", message: REDIRECTED } : null;
}

/** Tunnels as the API lists them, the open one first: so many that were closed, and one of each other kind. */
export function tunnels(closed, now) {
  const one = (n, over) => ({
    id: id(now - n * 1000, n), tenant: "acme", node: NODE, end: "closed", code: null, message: null, client_ip: "10.0.0.7", client_port: 50_000 + n,
    host: HOSTS[n % HOSTS.length], port: 443, server_name: HOSTS[n % HOSTS.length], source_ip: "10.0.0.10", public_ip: SOURCES[0], remote_ip: "192.0.2.80", remote_port: 443,
    resolved: [{ ip: "192.0.2.80", verdict: "allowed" }], would_block: null, dns_ms: 1.5, connect_ms: 12.25, bytes_up: 1536, bytes_down: 4 * 2 ** 30,
    begun_at: iso(now - n * 1000), ended_at: iso(now - n * 1000 + 800), ...over,
  });
  const unopened = { public_ip: null, source_ip: null, remote_ip: null, remote_port: null, connect_ms: null, server_name: null, bytes_up: 0, bytes_down: 0 };
  return [
    one(0, { end: null, bytes_up: null, bytes_down: null, ended_at: null, server_name: null }),
    one(1, { ...unopened, end: "refused", code: "policy_metadata", message: "169.254.169.254 is a metadata service: no send goes there", host: "169.254.169.254", port: 80, resolved: [{ ip: null, verdict: "policy_metadata" }] }),
    one(2, { end: "reset", code: "interrupted", message: "the appliance stopped while this tunnel was open: how long it was and what it carried is not known", bytes_up: null, bytes_down: null }),
    one(3, { end: "refused", code: "policy_sni", message: "the TLS client in this tunnel names other.example.com, and the tunnel was opened to api.shop.example: open it to the server that is meant", server_name: "other.example.com", bytes_up: 0, bytes_down: 0 }),
    one(4, { host: "2001:db8::1", server_name: null, remote_ip: "2001:db8::1" }),
    ...Array.from({ length: closed }, (_, n) => one(5 + n, {})),
  ];
}

export const BATCH = "ab".repeat(32);

/** A batch as the API tells it: the first try was not answered, the second one is its end. */
export function batch(of, now, over = {}) {
  const attempt = (n, rest) => ({
    outcome: "delivered", error: null, response: { status: 200, version: "HTTP/1.1", headers: { etag: ["\"x\""] }, body: "", body_encoding: "utf8", body_bytes: 0, body_declared: 0, body_truncated: false, truncated: false },
    connection: { source_ip: "10.0.0.10", public_ip: SOURCES[0], source_port: 40_000 + n, local_ip: "10.0.0.10", remote_ip: "192.0.2.80", remote_port: 443, reused: false, resolved: [], tls: null },
    timings_ms: { held: null, queued: 3, dns: null, connect: 2, tls: 8, write: 1, wait: 30, read: 1, total: 42.5 }, started_at: iso(now - 9000 + n * 1000), finished_at: iso(now - 8900 + n * 1000), ...rest,
  });
  return {
    id: of, tenant: "acme", state: "done", outcome: "delivered", destination: { s3: { bucket: "acme-logs", prefix: "orders", key: `orders/2026/11/30/10/2026-11-30-10-00-00-${of}.gz` } },
    sends: 4200, bytes: 900_000, opened_at: iso(now - 70_000), closes_at: iso(now - 10_000), finished_at: iso(now - 8000), tried: 2,
    attempts: [attempt(0, { outcome: "failed", error: { code: "timeout", phase: "wait", processed: "maybe", message: "the bucket <b>did not answer</b> within 30 s" }, response: null }), attempt(1, {})], ...over,
  };
}

export function record(n, at, over = {}) {
  const [outcome, what] = over.end ?? pick(ENDS, n, 7);
  const host = pick(HOSTS, n, 2);
  const method = outcome === "delivered" && random(n, 3) < 0.2 ? "GET" : "POST";
  const url = `https://${host}${pick(PATHS, n, 4)}`;
  const answered = outcome === "delivered" || outcome === "rejected";
  const dialled = answered || outcome === "failed" || outcome === "interrupted";
  const code = answered ? null : what;
  const reached = ["dns", "connect", "tls", "write", "wait", "read"];
  const stop = answered ? 6 : outcome === "interrupted" ? 0 : dialled ? reached.indexOf(PHASE[code] ?? "wait") + 1 : 0;
  const spread = (low, high, salt) => Math.round((low + random(n, salt) * (high - low)) * 1000) / 1000;
  const timings = { held: spread(2, 900, 11), queued: spread(0.2, 3, 12), dns: spread(0.6, 9, 13), connect: spread(2, 30, 14), tls: spread(4, 40, 15), write: spread(0.05, 0.4, 16), wait: spread(12, 420, 17), read: spread(0.05, 3, 18) };
  reached.forEach((phase, place) => (place >= stop ? (timings[phase] = null) : null));
  if (code === "timeout") timings.wait = 5000 - timings.dns - timings.connect - timings.tls - timings.write + 0.4;
  const total = stop === 0 ? null : reached.reduce((sum, phase) => sum + (timings[phase] ?? 0), 0);
  const started = at + timings.held + timings.queued;
  const data = JSON.stringify({ order: 41000 + n, total: 129.5, currency: "EUR", items: [{ sku: "A-113", n: 2 }, { sku: "B-7", n: 1 }], customer: { name: "Jyn Erso", vip: n % 3 === 0 } });
  const source = pick(SOURCES, n, 20);
  const body = what === 204 ? "" : answered && what < 300 ? JSON.stringify({ ok: true, id: `ord_${(n * 7919).toString(36)}`, received: 3 }) : JSON.stringify({ error: "unprocessable", fields: { total: "must be a string" } });
  return {
    id: id(at, n),
    state: "done",
    outcome,
    error: errorOf(what, code),
    resend_of: null,
    context: { tenant: n % 5 === 0 ? "globex" : "acme", workflow: pick(WORKFLOWS, n, 5), execution: `run-${Math.floor(n / 6)}`, step: pick(STEPS, n, 6), index: n % 6 },
    request: {
      method, url,
      headers: {
        ...(dialled ? { host: [host] } : {}),
        ...(method === "POST" ? { "content-type": ["application/json"], "content-length": [String(data.length)] } : {}),
        authorization: ["[redacted hmac:5f3a9c01]"],
        "user-agent": ["egressd/0.1.0"],
        "x-request-id": [`wf-${n}`],
      },
      dropped_headers: n % 4 === 0 ? ["connection", "x-forwarded-for"] : [],
      body: method === "POST" ? data : null, body_encoding: "utf8", body_bytes: method === "POST" ? data.length : 0,
      body_truncated: false, body_sha256: method === "POST" ? "9b5f0e2c".repeat(8) : null,
    },
    response: answered ? {
      status: what, version: "HTTP/1.1",
      headers: { date: ["Sun, 22 Nov 2026 03:12:44 GMT"], server: ["nginx"], "content-type": ["application/json; charset=utf-8"], "content-length": [String(body.length)], ...(what === 302 ? { location: ["https://api.shop.example/v3/orders"] } : {}), "set-cookie": ["[redacted hmac:11c0ffee]"] },
      body, body_encoding: "utf8", body_bytes: body.length, body_declared: body.length, body_truncated: false,
    } : null,
    would_block: n % 97 === 5 ? "policy_denied" : null,
    connection: dialled ? {
      source_ip: source.replace("203.0.113", "10.0.0"), public_ip: source, source_port: 40000 + (n % 20000), remote_ip: "192.0.2.80", remote_port: 443,
      resolved: [{ ip: "192.0.2.80", verdict: "allowed" }, { ip: "2001:db8::80", verdict: "allowed" }], reused: n % 3 === 1,
      tls: stop >= 3 ? { version: "TLSv1.3", cipher: "TLS13_AES_128_GCM_SHA256", alpn: "http/1.1", certificate: { subject: `CN=${host}`, issuer: "CN=R11, O=Let's Encrypt, C=US", names: [host, `*.${host}`], not_before: iso(Date.UTC(2026, 9, 22)), not_after: iso(Date.UTC(2027, 0, 20)), key: "ECDSA P-256", sha256: "c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2" } } : null,
    } : null,
    timings_ms: { ...timings, total },
    node: NODE,
    created_at: iso(at), released_at: iso(at + timings.held), started_at: stop === 0 && outcome !== "interrupted" ? null : iso(started), finished_at: iso(started + (total ?? 0)),
    ...over.record,
  };
}

/** What a list and the tail show: bodies are left out. */
export function listed(one) {
  return { ...one, request: { ...one.request, body: null }, response: one.response && { ...one.response, body: null } };
}
