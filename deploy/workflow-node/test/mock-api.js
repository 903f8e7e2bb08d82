// A scripted stand-in for egressd's API: holds, finishes, discards and replays as the API does, and can be told to
// fail a coming call in any way a network or a server can.

import { createHash, randomUUID } from "node:crypto";
import http from "node:http";

export async function mockApi({ sendsPerRequest = 1000, apiRequestBytes = 16 * 1024 * 1024 } = {}) {
  const executions = new Map();
  const keys = new Map();
  const calls = [];
  const script = [];
  const sockets = new Set();

  const server = http.createServer(async (request, response) => {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    const body = Buffer.concat(pieces).toString();
    const call = { method: request.method, path: request.url, headers: request.headers, body, status: null };
    calls.push(call);
    const step = script.shift();
    const answer = (status, json, headers = {}) => {
      call.status = status;
      const type = status < 400 ? "application/json" : "application/problem+json";
      response.writeHead(status, { "content-type": type, ...headers }).end(JSON.stringify(json));
    };
    if (step?.before === "destroy") return request.socket.destroy();
    if (step?.before === "hang") return undefined;
    if (step?.before) return answer(step.before.status, step.before.json, step.before.headers);
    const [status, json, headers] = handle(call);
    // The call took effect, and its answer is lost.
    if (step?.after === "destroy") return request.socket.destroy();
    if (step?.after === "hang") return undefined;
    if (step?.raw !== undefined) return response.writeHead(200, { "content-type": "text/html" }).end(step.raw);
    return answer(status, json, headers);
  });
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });

  function handle({ method, path, headers, body }) {
    const problem = (status, code, detail, errors) => [status, { type: "about:blank", title: code, status, code, detail, errors }];
    const match = /^\/v1\/executions\/([^/]+)\/(sends|finish|discard)$/.exec(path);
    if (method !== "POST" || match === null) return problem(404, "not_found", path);
    const name = decodeURIComponent(match[1]);
    const tenant = headers["egressd-tenant"] ?? "default";
    const id = `${tenant} ${name}`;
    const execution = executions.get(id) ?? { name, tenant, state: "open", sends: [] };
    if (match[2] !== "sends") {
      const ending = match[2] === "finish" ? "finished" : "discarded";
      if (execution.state !== "open" && execution.state !== ending) return problem(409, "conflict", `it is ${execution.state}`);
      execution.state = ending;
      executions.set(id, execution);
      return [200, { [match[2] === "finish" ? "released" : "discarded"]: execution.sends.length }];
    }
    if (headers["content-type"] !== "application/json") return problem(415, "unsupported_type", "application/json");
    if (Buffer.byteLength(body) > apiRequestBytes) return problem(413, "too_large", `${Buffer.byteLength(body)} bytes`);
    const key = headers["idempotency-key"] && `${id} ${headers["idempotency-key"]}`;
    const fingerprint = createHash("sha256").update(body).digest("hex");
    if (key && keys.has(key)) {
      const first = keys.get(key);
      if (first.fingerprint !== fingerprint) return problem(422, "idempotency_mismatch", "this key came with another body");
      return [202, { sends: first.sends.map((send) => ({ id: send.id, state: "held" })) }, { "idempotency-replayed": "true" }];
    }
    const items = JSON.parse(body);
    if (!Array.isArray(items) || items.length === 0) return problem(400, "shape", "an array");
    if (items.length > sendsPerRequest) return problem(413, "too_large", `${items.length} sends`);
    const errors = items.flatMap((item, at) =>
      item.url === "refuse:me" ? [{ pointer: `/${at}/url`, detail: "refused by this test", hint: "write another" }] : []);
    if (errors.length > 0) return problem(400, "shape", `${errors.length} problems`, errors);
    if (execution.state !== "open") return problem(409, "conflict", `execution ${name} is ${execution.state}`);
    const accepted = items.map((item) => ({ id: randomUUID(), item }));
    execution.sends.push(...accepted);
    executions.set(id, execution);
    if (key) keys.set(key, { fingerprint, sends: accepted });
    return [202, { sends: accepted.map((send, index) => ({ id: send.id, state: "held", context: { index } })) }];
  }

  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    api: `http://127.0.0.1:${server.address().port}`,
    calls,
    /** `tell(step, …)`: what to do with the next calls, one step each; `null` is an ordinary one. */
    tell: (...steps) => script.push(...steps),
    /** Forgets the calls seen and the steps not taken. */
    clear: () => {
      calls.length = 0;
      script.length = 0;
    },
    execution: (name, tenant = "default") => executions.get(`${tenant} ${name}`),
    /** The items of an execution, as they came. */
    items: (name, tenant = "default") => executions.get(`${tenant} ${name}`)?.sends.map((send) => send.item) ?? [],
    close: () => {
      for (const socket of sockets) socket.destroy();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}
