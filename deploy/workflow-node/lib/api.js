// The API of egressd as this package needs it: one POST at a time, under a deadline, its answer read with a bound.

import http from "node:http";
import https from "node:https";

import { ApiError } from "./errors.js";
import { ANSWER_BYTES } from "./limits.js";

export class Api {
  #base;
  #headers;
  #agent;
  #request;

  /** @param {{api: string, token?: string, tenant?: string, tls?: object}} options */
  constructor({ api, token, tenant, tls }) {
    let base;
    try {
      base = new URL(api);
    } catch {
      throw new TypeError(`connect: invalid value ${api} for api: write the API's address, such as http://127.0.0.1:8700`);
    }
    if (base.protocol !== "http:" && base.protocol !== "https:") {
      throw new TypeError(`connect: invalid value ${api} for api: write http:// or https://`);
    }
    if (base.username !== "" || base.password !== "") {
      throw new TypeError("connect: invalid value for api: it holds a username or password; write token instead");
    }
    this.#base = base;
    // Ids and states are all that is read of an answer: what was sent is known here.
    this.#headers = { "content-type": "application/json", accept: "application/json", prefer: "return=minimal" };
    if (token !== undefined) this.#headers.authorization = `Bearer ${token}`;
    if (tenant !== undefined) this.#headers["egressd-tenant"] = tenant;
    const secure = base.protocol === "https:";
    this.#request = secure ? https.request : http.request;
    this.#agent = new (secure ? https : http).Agent({ keepAlive: true, maxSockets: 16, ...(secure ? tls : {}) });
  }

  /** Idle connections are closed; calls under way end as they would. */
  close() {
    this.#agent.destroy();
  }

  /** The address of a path, for messages. */
  address(path) {
    return `${this.#base.origin}${this.#base.pathname.replace(/\/$/, "")}${path}`;
  }

  /**
   * POSTs once and gives the answer's JSON.
   *
   * @param {string} path
   * @param {string} body   JSON text, or "" for none
   * @param {{key?: string, signal: AbortSignal}} options
   * @throws {ApiError}
   */
  async post(path, body, { key, signal }) {
    const what = `POST ${this.address(path)}`;
    const headers = { ...this.#headers, "content-length": Buffer.byteLength(body) };
    if (body === "") delete headers["content-type"];
    if (key !== undefined) headers["idempotency-key"] = key;
    let answer;
    try {
      answer = await this.#exchange(path, body, headers, signal);
    } catch (error) {
      if (error instanceof ApiError) throw error;
      if (signal.aborted) throw new ApiError(`${what}: ${reason(signal)}`, { again: true, cause: error });
      // A connection refused on every address of a name comes as an AggregateError without a message.
      const why = error.errors?.map((one) => one.message).join(", ") || error.message || error.code;
      throw new ApiError(`${what}: ${why}`, { again: true, cause: error });
    }
    return read(what, answer);
  }

  #exchange(path, body, headers, signal) {
    return new Promise((resolve, reject) => {
      const { hostname, port, pathname, protocol } = this.#base;
      const request = this.#request({
        protocol,
        hostname: hostname.replace(/^\[(.*)\]$/, "$1"),
        port,
        path: pathname.replace(/\/$/, "") + path,
        method: "POST",
        headers,
        agent: this.#agent,
        signal,
      }, (response) => {
        const pieces = [];
        let size = 0;
        response.on("data", (piece) => {
          size += piece.length;
          if (size > ANSWER_BYTES) request.destroy(new Error(`the answer is longer than ${ANSWER_BYTES} bytes`));
          else pieces.push(piece);
        });
        response.on("error", reject);
        response.on("end", () => {
          if (!response.complete) reject(new Error("the connection closed within the answer"));
          else resolve({ status: response.statusCode, headers: response.headers, text: Buffer.concat(pieces).toString() });
        });
      });
      request.on("error", reject);
      request.end(body);
    });
  }
}

function reason(signal) {
  return signal.reason?.name === "TimeoutError" ? "no answer in time" : `given up: ${signal.reason?.message ?? signal.reason}`;
}

/** Statuses after which the same call may succeed: the API is full, draining, or not reachable behind its proxy. */
const AGAIN = new Set([408, 425, 429, 500, 502, 503, 504]);

function read(what, { status, headers, text }) {
  let json = null;
  try {
    json = JSON.parse(text);
  } catch {
    // Judged below: an answer that is no JSON is not the API's.
  }
  if (status >= 200 && status < 300) {
    if (json !== null && typeof json === "object") return json;
    throw new ApiError(`${what}: answered ${status} without JSON; is this egressd's API?`, { status });
  }
  const problem = json !== null && typeof json === "object" ? json : {};
  const said = problem.detail ?? problem.title ?? (text.trim().slice(0, 200) || "no explanation");
  const errors = Array.isArray(problem.errors) ? problem.errors : [];
  const each = errors.slice(0, 5).map((one) => `${one.pointer}: ${one.detail}${one.hint ? ` (${one.hint})` : ""}`);
  if (errors.length > 5) each.push(`and ${errors.length - 5} more`);
  const retryAfter = /^\d+$/.test(headers["retry-after"] ?? "") ? Number(headers["retry-after"]) : null;
  const code = typeof problem.code === "string" ? problem.code : null;
  throw new ApiError(`${what}: ${status}${code ? ` ${code}` : ""}: ${[said, ...each].join("; ")}`, {
    status, code, errors, retryAfter, again: AGAIN.has(status),
  });
}
