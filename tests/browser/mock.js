// A stand-in for egressd's API listener: the inspector's own assets under a strict policy, and canned records behind
// the calls that it makes.

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import http from "node:http";
import { fileURLToPath } from "node:url";

import { BATCH, batch, id, listed, record, SOURCES, tunnels } from "./records.js";

const ASSETS = new URL("../../src/inspector/assets/", import.meta.url);
const TYPES = { html: "text/html; charset=utf-8", js: "text/javascript; charset=utf-8", css: "text/css; charset=utf-8", svg: "image/svg+xml" };
export const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/** By what `key` says of each. */
function grouped(all, key) {
  const groups = new Map();
  for (const one of all) groups.set(key(one), [...(groups.get(key(one)) ?? []), one]);
  return groups;
}

/** An id of the tail: like egressd's, it says neither a number nor an order. */
export const place = (seq) => createHash("sha384").update(`place ${seq}`).digest().subarray(0, 36).toString("base64url");

export async function mock({ count = 60, token = null, port = 0, start = Date.now() - 60_000, spacing = 997 } = {}) {
  // Newest first, as the API lists them.
  const sends = Array.from({ length: count }, (_, n) => record(n, Math.round(start - (count - n) * spacing))).reverse();
  const suspensions = [{ id: id(start, 1), tenant: "globex", workflow: "nightly-sync", reason: "floods a receiver that asked us to stop", by: "ops-anna", created_at: new Date(start).toISOString() },
    { id: id(start - 9e7, 2), host: "old.partner.example", reason: "abuse report 4411", by: "ops-ben", created_at: new Date(start - 9e7).toISOString(), lifted_at: new Date(start - 8e7).toISOString(), lifted_by: "ops-anna" }];
  const followers = new Set();
  const calls = [];
  let seq = 0;
  const state = { sends, suspensions, tunnels: tunnels(65, start), calls, executions: new Map(), operator: true, resendMissing: null, batches: new Map([[BATCH, batch(BATCH, start)]]) };

  const json = (response, status, value, headers = {}) => {
    const type = status < 400 ? "application/json" : "application/problem+json";
    response.writeHead(status, { "content-type": type, "cache-control": "no-store", ...headers }).end(JSON.stringify(value));
  };
  const problem = (response, status, code, detail, errors) => json(response, status, { type: "about:blank", title: code, status, code, detail, errors });

  const matches = (one, query) => {
    const at = Date.parse(one.created_at);
    const tests = {
      outcome: (value) => one.outcome === value, code: (value) => one.error?.code === value, state: (value) => one.state === value,
      status: (value) => (/^\dxx$/.test(value) ? String(one.response?.status)[0] === value[0] : one.response?.status === Number(value)),
      method: (value) => one.request.method === value, path: (value) => URL.canParse(one.request.url) && new URL(one.request.url).pathname.startsWith(value),
      host: (value) => URL.canParse(one.request.url) && (value.startsWith("*.") ? new URL(one.request.url).hostname.endsWith(value.slice(1)) : new URL(one.request.url).hostname === value), workflow: (value) => one.context.workflow === value,
      execution: (value) => one.context.execution === value, step: (value) => one.context.step === value, tenant: (value) => one.context.tenant === value,
      source_ip: (value) => [one.connection?.source_ip, one.connection?.public_ip].includes(value), since: (value) => at >= Date.parse(value), until: (value) => at < Date.parse(value),
    };
    return Object.entries(tests).every(([key, holds]) => !query.has(key) || query.getAll(key).some(holds));
  };

  /** Runs, as the API lists them: by their first sends. */
  const executions = (query) => {
    const runs = new Map();
    for (const one of [...state.sends].reverse()) {
      const { execution, tenant, workflow } = one.context;
      if (!execution) continue;
      const key = `${tenant} ${execution}`;
      const run = runs.get(key) ?? { execution, tenant, workflow, state: "finished", finished_by: "call", delivered: 0, done: 0, total: 0, created_at: one.created_at, ended_at: one.created_at, ...state.executions.get(execution) };
      run.total += 1;
      run.done += one.state === "done" ? 1 : 0;
      run.delivered += one.outcome === "delivered" ? 1 : 0;
      runs.set(key, run);
    }
    return [...runs.values()].reverse().filter((run) => ["workflow", "state", "tenant"].every((key) => !query.has(key) || run[key] === query.get(key)) && (!query.has("since") || Date.parse(run.created_at) >= Date.parse(query.get("since"))));
  };

  /** Ends in their buckets, as the API counts them. */
  const stats = (query) => {
    const [by, bucket] = [query.get("by") ?? "outcome", query.get("bucket") ?? "1h"];
    const step = { "5m": 300, "15m": 900, "1h": 3600, "6h": 21_600, "1d": 86_400 }[bucket] * 1000;
    const until = Math.ceil(Date.now() / step) * step;
    const since = Math.floor(Date.parse(query.get("since")) / step) * step;
    const names = { outcome: (one) => one.outcome, host: (one) => (URL.canParse(one.request.url) ? new URL(one.request.url).hostname : null), tenant: (one) => one.context.tenant, source: (one) => one.connection?.public_ip ?? null };
    const figures = (sends) => {
      const delivered = sends.filter((one) => one.outcome === "delivered").length;
      const times = sends.map((one) => one.timings_ms.total).filter((one) => one !== null).sort((one, two) => one - two);
      const at = (share) => times[Math.min(times.length - 1, Math.floor(share * times.length))];
      return { count: sends.length, delivered, success_rate: sends.length === 0 ? null : delivered / sends.length, latency_ms: times.length === 0 ? null : { p50: at(0.5), p95: at(0.95), p99: at(0.99) } };
    };
    const done = state.sends.filter((one) => one.state === "done" && Date.parse(one.finished_at) >= since && Date.parse(one.finished_at) < until);
    const groups = grouped(done, names[by]);
    return { since: new Date(since).toISOString(), until: new Date(until).toISOString(), bucket, by, total: figures(done), groups: [...groups].map(([name, sends]) => ({
      name, ...figures(sends), buckets: [...grouped(sends, (one) => Math.floor(Date.parse(one.finished_at) / step) * step)].sort(([one], [two]) => one - two).map(([at, those]) => ({ at: new Date(at).toISOString(), ...figures(those) })) })).sort((one, two) => two.count - one.count) };
  };

  const server = http.createServer(async (request, response) => {
    const url = new URL(request.url, "http://mock");
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    const body = Buffer.concat(pieces).toString();
    const asset = url.pathname === "/" ? "index.html" : /^\/inspector\/([\w.-]+)$/.exec(url.pathname)?.[1];
    if (asset !== undefined) {
      try {
        const content = await readFile(new URL(asset, ASSETS));
        response.writeHead(200, { "content-type": TYPES[asset.split(".").pop()], "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer" }).end(content);
      } catch {
        response.writeHead(404).end();
      }
      return;
    }
    calls.push({ method: request.method, path: url.pathname + url.search, headers: request.headers, body });
    if (url.pathname === "/public-ips.json") {
      return json(response, 200, { syncToken: "1795312000", creationTime: "2026-11-22T00:00:00Z", prefixes: [
        ...SOURCES.slice(0, 3).map((ip) => ({ ipv4Prefix: `${ip}/32`, status: "active", announced: "2026-09-01", active: "2026-09-08", retires: null })),
        { ipv4Prefix: `${SOURCES[3]}/32`, status: "retiring", announced: "2026-03-01", active: "2026-03-08", retires: "2026-12-01" },
        { ipv4Prefix: "203.0.113.14/32", status: "announced", announced: "2026-11-20", active: "2026-11-29", retires: null },
        { ipv6Prefix: "2001:db8:7::10/128", status: "active", announced: null, active: null, retires: null }] });
    }
    if (token !== null && request.headers.authorization !== `Bearer ${token}`) return problem(response, 401, "unauthorized", "a token is needed");
    const query = url.searchParams;
    const parts = url.pathname.split("/").slice(2).map(decodeURIComponent);
    if (url.pathname === "/v1/stats") return json(response, 200, stats(query));
    if (url.pathname === "/v1/explain" && request.method === "POST") {
      const { method, url: to } = JSON.parse(body);
      const blocked = to.includes("169.254.");
      return json(response, 200, { tenant: "default", method, url: to, verdict: blocked ? "blocked" : "allowed", code: blocked ? "policy_metadata" : null, message: blocked ? "169.254.169.254 is a metadata service: no send goes there" : null, would_block: null, resolved: [{ ip: blocked ? null : "192.0.2.80", verdict: blocked ? "policy_metadata" : "allowed" }], source_ip: "10.0.0.10", public_ip: SOURCES[0] });
    }
    if (url.pathname === "/v1/executions" && request.method === "GET") {
      const found = executions(query);
      const limit = Number(query.get("limit") ?? 50);
      const from = Number(query.get("cursor") ?? 0);
      if (query.get("since") === "soon") return problem(response, 400, "shape", "the parameter since must be an instant of RFC 3339");
      return json(response, 200, { executions: found.slice(from, from + limit), next: from + limit < found.length ? String(from + limit) : null });
    }
    if (url.pathname === "/v1/tunnels" && request.method === "GET") {
      if (query.get("since") === "soon") return problem(response, 400, "shape", "the parameter since must be an instant of RFC 3339");
      const found = state.tunnels.filter((one) => ["host", "end", "code", "tenant"].every((key) => !query.has(key) || one[key] === query.get(key)));
      const [limit, from] = [Number(query.get("limit") ?? 50), Number(query.get("cursor") ?? 0)];
      return json(response, 200, { tunnels: found.slice(from, from + limit), next: from + limit < found.length ? String(from + limit) : null });
    }
    if (url.pathname.startsWith("/v1/batches/")) {
      const one = state.batches.get(url.pathname.split("/")[3]);
      return one ? json(response, 200, one) : problem(response, 404, "not_found", "no such batch");
    }
    if (url.pathname === "/v1/sends" && request.method === "POST") {
      const given = JSON.parse(body);
      if (!/^https?:/.test(given.url)) return problem(response, 400, "shape", "the send is not of the right shape", [{ pointer: "/url", detail: "is no address" }]);
      const made = record(state.sends.length, Date.now(), { end: ["delivered", 200] });
      state.sends.unshift(made);
      return json(response, 202, made);
    }
    if (url.pathname === "/v1/sends" && request.method === "GET") {
      const wrong = query.getAll("status").filter((one) => !/^[1-9](\d\d|xx)$/.test(one));
      if (wrong.length > 0) return problem(response, 400, "shape", "the parameter status must be a status code or a class of them, e.g. 503 or 5xx");
      const limit = Number(query.get("limit") ?? 50);
      const found = state.sends.filter((one) => matches(one, query));
      const from = query.has("cursor") ? found.findIndex((one) => one.id < query.get("cursor")) : 0;
      if (query.has("text")) {
        // So many at once are searched, few enough that it takes several.
        const some = from === -1 ? [] : found.slice(from, from + 100);
        const body = (message) => (message?.body_encoding === "base64" ? atob(message.body) : message?.body ?? "").toLowerCase();
        const has = some.filter((one) => [one.request, one.response].some((message) => body(message).includes(query.get("text").toLowerCase())));
        return json(response, 200, { sends: has.map(listed), next: from !== -1 && from + 100 < found.length ? some.at(-1).id : null, searched: { sends: some.length, bytes: some.length * 100, back_to: some.at(-1)?.created_at ?? null } });
      }
      const page = from === -1 ? [] : found.slice(from, from + limit);
      return json(response, 200, { sends: page.map(listed), next: from !== -1 && from + limit < found.length ? page.at(-1).id : null });
    }
    if (url.pathname === "/v1/tail") {
      response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" }).write(`retry: 1000\n: welcome\nid: ${place(seq)}\n\n`);
      const follower = { response, query };
      followers.add(follower);
      response.on("close", () => followers.delete(follower));
      return undefined;
    }
    if (parts[0] === "sends" && parts.length === 2 && request.method === "GET") {
      const one = state.sends.find((send) => send.id === parts[1]);
      return one ? json(response, 200, one) : problem(response, 404, "not_found", "no such send");
    }
    if (parts[0] === "sends" && parts[2] === "har") {
      return json(response, 200, { log: { version: "1.2", creator: { name: "egressd", version: "0.1.0" }, entries: [] } });
    }
    if (parts[0] === "sends" && parts[2] === "resend" && request.method === "POST") {
      if (request.headers["content-type"] !== "application/json") return problem(response, 415, "unsupported_type", "application/json");
      if (state.resendMissing !== null && !state.resendMissing.every((pointer) => body.includes(pointer.split("/").pop()))) {
        return problem(response, 409, "resend_incomplete", "the record does not hold all of the request", state.resendMissing.map((pointer) => ({ pointer, detail: "was redacted: supply it" })));
      }
      const of = state.sends.find((send) => send.id === parts[1]);
      const made = record(state.sends.length, Date.now(), { end: ["delivered", 200] });
      made.resend_of = of.id;
      state.sends.unshift(made);
      return json(response, 202, made);
    }
    if (parts[0] === "executions" && request.method === "GET") {
      const execution = parts[1];
      const sends = state.sends.filter((one) => one.context.execution === execution).sort((one, two) => one.context.index - two.context.index);
      if (sends.length === 0) return problem(response, 404, "not_found", "no such execution");
      const limit = Number(query.get("limit") ?? 50);
      const from = Number(query.get("cursor") ?? 0);
      const about = state.executions.get(execution) ?? { state: "finished", finished_by: "call" };
      return json(response, 200, { execution, ...about, delivered: sends.filter((one) => one.outcome === "delivered").length, total: sends.length, sends: sends.slice(from, from + limit).map(listed), next: from + limit < sends.length ? String(from + limit) : null });
    }
    if (!state.operator) return problem(response, 403, "forbidden", "scope operate is needed");
    if (url.pathname === "/v1/sources") {
      return json(response, 200, { node: "egress-1", deadline_ms: 5000, sources: SOURCES.map((ip, at) => ({
        public_ip: ip, bind_ip: ip.replace("203.0.113", "10.0.0"), pool: at === 3 ? "acme" : "default",
        usable: at !== 2, reason: at === 2 ? `the reflectors see another address than ${ip}` : null, verified: ["verified", "verified", "drift", "unverified"][at],
        in_flight: [412, 388, 0, 17][at], ports_used_ratio: [0.31, 0.64, 0, 0.02][at] })) });
    }
    if (url.pathname === "/v1/nodes") {
      return json(response, 200, { held: 15, queued: 81_238, nodes: ["egress-1", "egress-2", "egress-3"].map((node, at) => ({
        node, version: "0.1.0", this: at === 0, lease_age_ms: [900, 2100, 14_000][at], lease_ms: 15_000,
        sources: [[SOURCES[0], SOURCES[1]], [SOURCES[3]], []][at], queued: [512, 40, null][at], in_flight: [88, 200, null][at] })) });
    }
    if (url.pathname === "/v1/tenants") {
      return json(response, 200, { tenants: [
        { tenant: "acme", held: 12, queued: 4, in_flight: 88, oldest_queued: new Date(Date.now() - 400).toISOString(), finished: { delivered: 48211, rejected: 122, failed: 31, blocked: 2 } },
        { tenant: "globex", held: 0, queued: 81234, in_flight: 200, oldest_queued: new Date(Date.now() - 94_000).toISOString(), finished: { delivered: 2210, failed: 17820, expired: 402, interrupted: 3 } },
        { tenant: "initech", held: 3, queued: 0, in_flight: 1, oldest_queued: null, finished: { delivered: 990, discarded: 40 } },
        { tenant: "quiet", held: 0, queued: 0, in_flight: 0, oldest_queued: null, finished: {} }] });
    }
    if (url.pathname === "/v1/suspensions") {
      if (request.method === "GET") return json(response, 200, { suspensions: state.suspensions });
      const made = { id: id(Date.now(), state.suspensions.length + 9), ...JSON.parse(body), by: "you", created_at: new Date().toISOString() };
      state.suspensions.unshift(made);
      return json(response, 201, { ...made, hit: 1204 });
    }
    if (parts[0] === "suspensions" && request.method === "DELETE") {
      const one = state.suspensions.find((suspension) => suspension.id === parts[1]);
      Object.assign(one, { lifted_at: new Date().toISOString(), lifted_by: "you" });
      return response.writeHead(204).end();
    }
    return problem(response, 404, "not_found", url.pathname);
  });

  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return Object.assign(state, {
    url: `http://127.0.0.1:${server.address().port}`,
    record,
    /** A send finishes now: it is in the list, and in the tail of those whose filters let it through. */
    finish(one) {
      const at = state.sends.findIndex((send) => send.id === one.id);
      if (at !== -1) state.sends[at] = one;
      else state.sends.unshift(one);
      seq += 1;
      for (const { response, query } of followers) {
        if (matches(one, query)) response.write(`event: send\nid: ${place(seq)}\ndata: ${JSON.stringify(listed(one))}\n\n`);
      }
    },
    followers,
    close() {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    },
  });
}

// `node mock.js [count] [port]`: for looking at the page by hand, with a send about every second.
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const made = await mock({ count: Number(process.argv[2] ?? 2000), port: Number(process.argv[3] ?? 8799) });
  console.log(made.url);
  setInterval(() => made.finish(record(made.sends.length, Date.now() - 400)), 1000);
}
