// What a send's end means, in a sentence for its author. Why it failed and what to do next is the record's to say: its
// message is shown as it is, and nothing is added for a code.

import { ms } from "./format.js";

const PHASES = {
  dns: "looking the name up",
  connect: "connecting",
  tls: "the TLS handshake",
  write: "sending the request",
  wait: "waiting for the answer to begin",
  read: "reading the answer",
};

const STATUS = {
  400: "The receiver could not read the request: compare what was sent with its documentation.",
  401: "The receiver wants credentials: check auth or the Authorization header.",
  403: "The receiver knows the request and forbids it: check the credentials' rights. If it admits by address, give its owner the list at /public-ips.txt.",
  404: "The receiver has nothing at this path: check the URL.",
  405: "The receiver takes another method at this path.",
  409: "The receiver says it conflicts with what it has: it may have this already.",
  410: "What was there is gone for good: the endpoint has been retired.",
  411: "The receiver wants a body with its length: give data, or an empty string.",
  413: "The body is larger than the receiver takes.",
  415: "The receiver does not take this Content-Type.",
  422: "The receiver understood the request and did not accept its values: its answer usually says which.",
  429: "The receiver says it gets too many requests: send fewer, or spread them out.",
  500: "The receiver failed: its logs at this time say why.",
  502: "A proxy in front of the receiver got no good answer from it.",
  503: "The receiver is overloaded or down for now.",
  504: "A proxy in front of the receiver waited too long for it.",
};

/** What a send is, in a method's and an address's places: `{method, url}`. */
export function asked({ request, email, s3, sql }) {
  if (sql) return { method: TABLE, url: sql.table };
  if (s3) return { method: BUCKET, url: `s3://${s3.bucket}/${s3.prefix}` };
  if (!email) return { method: request?.method ?? "", url: request?.url ?? "" };
  const to = [email.headers?.to, email.headers?.cc].flat().filter(Boolean).join(", ");
  return { method: MAIL, url: to || "the tenant's own address" };
}

export const MAIL = "EMAIL";
export const BUCKET = "S3";
export const TABLE = "SQL";
/** Those that have a place and no URL. */
export const PLACES = [MAIL, BUCKET, TABLE];

/** @returns {{why: string, next: string | null, tone: string}} */
export function explain(record) {
  const { state, outcome } = record;
  const total = ms(record.timings_ms?.total);
  const status = record.response?.status;
  // Who answers a message is the relay that takes it.
  const receiver = record.email ? "The relay" : record.s3 ? "The store" : record.sql ? "The database" : "The receiver";
  const after = total === "" ? "" : ` in ${total}`;
  if (state === "held") return plain("It waits for its execution to finish.", "It leaves when the workflow's run ends.", "waiting");
  if (state === "queued" && record.batch) return plain("It gathers with others, or its batch is tried.", "It leaves with its batch.", "waiting");
  if (state === "queued") return plain("It waits for its turn.", "It leaves as soon as there is room.", "waiting");
  if (state === "sending") return plain("It is on its way.", null, "waiting");
  if (outcome === "delivered") return plain(`${receiver} answered ${status}${after}.`, null, "delivered");
  if (outcome === "rejected") {
    // A redirect has a message of its own, and so has a relay's refusal.
    const advice = record.error ? null : STATUS[status] ?? (status >= 500 ? STATUS[500] : STATUS[400]);
    return plain(`${receiver} answered ${status}${after}.`, advice, "rejected");
  }
  if (outcome === "failed") return plain(`It failed${PHASES[record.error?.phase] ? ` while ${PHASES[record.error.phase]}` : ""}${record.timings_ms?.total ? `, after ${total}` : ""}.`, null, "failed");
  return plain(ENDS[outcome] ?? "It ended without a complete answer.", null, outcome ?? "failed");
}

const ENDS = {
  blocked: "It was not sent: the acceptable-use policy stopped it.",
  expired: "It was not started before it expired.",
  discarded: "Its execution was discarded, so it was never sent.",
  interrupted: "The appliance went down while this was being delivered.",
};

/** What is known of the request at the receiver, for an error. */
export const PROCESSED = {
  no: "nothing of it was processed",
  maybe: "the receiver may have processed it",
  yes: "the receiver has it",
};

function plain(why, next, tone) {
  return { why, next, tone };
}

/** The reasons that HTTP gives its statuses, for those that people meet. */
export const REASONS = {
  101: "Switching Protocols", 200: "OK", 201: "Created", 202: "Accepted", 203: "Non-Authoritative Information",
  204: "No Content", 205: "Reset Content", 206: "Partial Content", 300: "Multiple Choices", 301: "Moved Permanently",
  302: "Found", 303: "See Other", 304: "Not Modified", 307: "Temporary Redirect", 308: "Permanent Redirect",
  400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
  405: "Method Not Allowed", 406: "Not Acceptable", 408: "Request Timeout", 409: "Conflict", 410: "Gone",
  411: "Length Required", 412: "Precondition Failed", 413: "Content Too Large", 414: "URI Too Long",
  415: "Unsupported Media Type", 418: "I'm a Teapot", 421: "Misdirected Request", 422: "Unprocessable Content",
  425: "Too Early", 426: "Upgrade Required", 428: "Precondition Required", 429: "Too Many Requests",
  431: "Request Header Fields Too Large", 451: "Unavailable For Legal Reasons", 500: "Internal Server Error",
  501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
};

/** What a list shows as a send's answer: why there is none, and the status where one came. */
export function answer(record) {
  const code = record.error?.code ?? null;
  const status = record.response ? String(record.response.status) : null;
  // Of a complete answer the status says it all; some codes only say the outcome again.
  const answered = record.outcome === "delivered" || record.outcome === "rejected";
  return [answered || code === record.outcome ? null : code, status].filter((one) => one !== null);
}

export function outcomeOf(record) {
  return record.outcome ?? record.state;
}
