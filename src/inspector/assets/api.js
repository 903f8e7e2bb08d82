// Asking egressd's API: the token and tenant of this tab, problem details as errors, the tail as a stream.

const store = {
  read(key) {
    try {
      return sessionStorage.getItem(key);
    } catch {
      return null;
    }
  },
  write(key, value) {
    try {
      if (value === null) sessionStorage.removeItem(key);
      else sessionStorage.setItem(key, value);
    } catch {
      // Storage may be forbidden: the token then lives as long as the page.
    }
  },
};

let token = store.read("egressd-token");
// `*` is every tenant; `null` leaves the header out, which is what a client of one tenant needs.
let tenant = store.read("egressd-tenant") ?? "*";
if (tenant === "") tenant = null;

export const session = {
  get signedIn() {
    return token !== null;
  },
  get tenant() {
    return tenant;
  },
  signIn(value) {
    token = value;
    store.write("egressd-token", value);
    this.chooseTenant("*");
  },
  signOut() {
    token = null;
    store.write("egressd-token", null);
    this.chooseTenant("*");
  },
  chooseTenant(value) {
    tenant = value;
    store.write("egressd-tenant", value ?? "");
  },
};

/** An answer that is no success, with the API's own words. */
export class Problem extends Error {
  constructor({ status, code, title, detail, errors, retryAfter }) {
    super(detail ?? title ?? `answered ${status}`);
    this.status = status;
    this.code = code ?? null;
    this.errors = errors ?? [];
    this.retryAfter = retryAfter ?? null;
  }
}

function headers(more, forTenant) {
  const out = { accept: "application/json", ...more };
  if (token !== null) out.authorization = `Bearer ${token}`;
  if (forTenant !== null) out["egressd-tenant"] = forTenant;
  return out;
}

/**
 * @param {string} path
 * @param {{method?: string, body?: string, tenant?: string | null, signal?: AbortSignal, as?: "json" | "text"}} options
 *   `body` is JSON text, so that a caller's own bytes can stand in it
 */
export async function ask(path, { method = "GET", body, tenant: given, signal, as = "json" } = {}) {
  const forTenant = given === undefined ? tenant : given;
  let response;
  try {
    response = await fetch(path, {
      method,
      body,
      signal,
      headers: headers(body === undefined ? {} : { "content-type": "application/json" }, forTenant),
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ status: 0, code: "unreachable", detail: "egressd does not answer. Is it running, and is this its address?" });
  }
  if (!response.ok) throw await problem(response);
  if (as === "text") return response.text();
  return response.status === 204 ? null : response.json();
}

async function problem(response) {
  let said = {};
  try {
    said = await response.json();
  } catch {
    // Something between this page and egressd answered.
  }
  return new Problem({ ...said, status: response.status, retryAfter: response.headers.get("retry-after") });
}

/**
 * The tail: follows until `signal` stops it, connecting again where the last event left off.
 *
 * @param {URLSearchParams} query
 * @param {{onSend: (record: object) => void, onState: (state: "live" | "waiting" | "refused", error?: Problem) => void, signal: AbortSignal}} hooks
 */
export async function tail(query, { onSend, onState, signal }) {
  let last = null;
  for (let pause = 500; !signal.aborted; pause = Math.min(pause * 2, 10_000)) {
    try {
      const text = query.toString();
      const response = await fetch(`/v1/tail${text === "" ? "" : `?${text}`}`, {
        signal,
        headers: headers({ accept: "text/event-stream", ...(last === null ? {} : { "last-event-id": last }) }, tenant),
        credentials: "omit",
        cache: "no-store",
      });
      if (!response.ok) throw await problem(response);
      onState("live");
      pause = 500;
      for await (const event of events(response.body)) {
        if (event.id !== null) last = event.id;
        if (event.type === "send") {
          try {
            onSend(JSON.parse(event.data));
          } catch (error) {
            if (!(error instanceof SyntaxError)) throw error;
          }
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429) {
        onState("refused", error);
        return;
      }
    }
    if (signal.aborted) return;
    onState("waiting");
    await new Promise((resolve) => setTimeout(resolve, pause * (0.75 + Math.random() / 2)));
  }
}

/** Longest event that is kept while it comes in; one longer is not egressd's. */
const EVENT_CHARS = 4 * 1024 * 1024;

/** Server-Sent Events out of a body, as the HTML standard reads them; an id that comes without data is given too. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let type = "message";
  let data = [];
  let id = null;
  let moved = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      if (rest.length > EVENT_CHARS) throw new Error("an event is too long");
      for (;;) {
        const end = /\r\n|\n|\r(?!$)/.exec(rest);
        if (end === null) break;
        const line = rest.slice(0, end.index);
        rest = rest.slice(end.index + end[0].length);
        if (line === "") {
          if (data.length > 0 || moved) yield { type, data: data.join("\n"), id };
          type = "message";
          data = [];
          moved = false;
          continue;
        }
        const colon = line.indexOf(":");
        const field = colon === -1 ? line : line.slice(0, colon);
        const text = colon === -1 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (field === "event") type = text;
        else if (field === "data") data.push(text);
        else if (field === "id" && !text.includes("\0")) [id, moved] = [text, true];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
