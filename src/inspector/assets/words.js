// What a send's end means, in a sentence for the workflow's author: why it went so, and what to do next.

import { ms } from "./format.js";

const PHASES = {
  dns: "looking the name up",
  connect: "connecting",
  tls: "the TLS handshake",
  write: "sending the request",
  wait: "waiting for the answer to begin",
  read: "reading the answer",
};

const ALLOW_LIST = "If the receiver admits by address, give its owner the list at /public-ips.txt.";

/** `{why, next}` for each code; functions of the record. */
const CODES = {
  timeout: (record) => timeout(record),
  dns_not_found: () => ["The host name does not exist.", "Check the spelling of the host; a name registered just now may take a while to be seen."],
  dns_failed: () => ["The host's name servers gave no usable answer.", "The fault is with the domain's name servers. Resend once they answer."],
  dns_no_address: () => ["The host name exists and has no address we can reach.", "Ask the receiver for a name with an A record (or AAAA, where this tier has IPv6)."],
  connection_refused: () => ["Nothing listens on that port, or a firewall refuses us.", `Check the port and that the receiver is up. ${ALLOW_LIST}`],
  connection_reset: () => ["The receiver broke the connection off.", "It may have taken the request in. Look at its logs before you resend."],
  connection_closed: () => ["The receiver closed the connection without a complete answer.", "It may have taken the request in. Look at its logs before you resend."],
  host_unreachable: () => ["No route leads to the receiver's address.", `The receiver's network is down, or turns us away. ${ALLOW_LIST}`],
  network_unreachable: () => ["The receiver's network cannot be reached from here.", "The operator of this tier can say whether the network side is up."],
  tls_certificate: (record) => ["The receiver's certificate is not to be trusted.", certificateNext(record)],
  tls_handshake: () => ["No TLS connection could be agreed on.", "The port may not speak TLS (try http://), or only versions older than TLS 1.2."],
  protocol_error: () => ["What came back is not HTTP as the standard has it.", "Check that the port speaks HTTP. The receiver may have taken the request in."],
  response_headers_too_large: () => ["The receiver's headers are larger than we read.", "Have the receiver send fewer or shorter headers. It has taken the request in."],
  source_unavailable: () => ["No source address of the right kind may carry this send.", "The operator of this tier has to add or restore one."],
  source_ports_exhausted: () => ["Every source address has used up its ports towards this receiver.", "Spread the sends out, or have the operator add source addresses."],
  policy_url: () => ["The address is not a plain http or https URL.", "Write the whole address; put a username and password into auth, not into the URL."],
  policy_port: () => ["The port is not one that may be sent to.", "Use 80, 443 or another allowed port."],
  policy_name: () => ["The host is a name for private or special use.", "Use a public name. The operator can open a private one as an exception."],
  policy_address: () => ["The host leads to an address that is not public.", "Use a public receiver. The operator can open a private network as an exception."],
  policy_metadata: () => ["The host leads to a cloud's metadata service.", "It is never reachable from here; there is no exception."],
  policy_scan: () => ["This account tried too many different hosts and ports within a minute.", "Spread the sends out, or ask the operator for a higher bound."],
  policy_self: () => ["The host leads back to this appliance.", "Send to the receiver itself."],
  policy_mixed: () => ["The host name answers with private addresses beside public ones.", "Have the receiver's DNS give public addresses only."],
  policy_denied: () => ["The host is on a deny list.", "Ask the operator, who keeps the list."],
  policy_not_allowed: () => ["This account may only send to certain hosts, and this is none of them.", "Ask the operator to add the host to the account's allow list."],
  suspended: () => ["Sends of this kind are suspended.", "The operator suspended the account, the workflow or the host, and can lift it."],
  interrupted: () => ["The appliance went down while this was being delivered.", "The receiver may or may not have the request. Ask there before you resend."],
  expired: () => ["It was not started before it expired.", "Resend it if it still matters. A longer expires_in gives it more time in the queue."],
  discarded: () => ["Its execution was discarded, so it was never sent.", "Nothing to do, unless the workflow should have sent it: then see why the run failed."],
  internal: () => ["Something went wrong inside egressd.", "Give the operator this send's id."],
};

function timeout(record) {
  const phase = record.error?.phase;
  const total = ms(record.timings_ms?.total);
  const why = `The time ran out after ${total}, while ${PHASES[phase] ?? "delivering"}.`;
  const next = {
    dns: "The domain's name servers are too slow. Resend once they answer.",
    connect: `The receiver's address does not answer. ${ALLOW_LIST}`,
    tls: "The receiver is slow to begin TLS, or the port does not speak it.",
    write: "The receiver stopped taking the request in. A smaller body may pass.",
    wait: "The receiver has the request and works too long on it. Have it answer at once and do the work afterwards.",
    read: "The receiver answers too slowly. Have it send a short answer, and all of it at once.",
  };
  return [why, next[phase] ?? "Have the receiver answer sooner."];
}

function certificateNext(record) {
  const after = record.connection?.tls?.certificate?.not_after;
  if (after && Date.parse(after) < Date.parse(record.finished_at ?? "")) return "It has expired: the receiver has to renew it.";
  return "The receiver has to present a certificate for this host name, not expired, from a public authority, with its whole chain.";
}

const STATUS = {
  400: "The receiver could not read the request: compare what was sent with its documentation.",
  401: "The receiver wants credentials: check auth or the Authorization header.",
  403: `The receiver knows the request and forbids it: check the credentials' rights. ${ALLOW_LIST}`,
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

/** @returns {{why: string, next: string | null, tone: string}} */
export function explain(record) {
  const { state, outcome } = record;
  const total = ms(record.timings_ms?.total);
  const status = record.response?.status;
  if (state === "held") return plain("It waits for its execution to finish.", "It leaves when the workflow's run ends.", "waiting");
  if (state === "queued") return plain("It waits for its turn.", "It leaves as soon as there is room.", "waiting");
  if (state === "sending") return plain("It is on its way.", null, "waiting");
  if (outcome === "delivered") return plain(`The receiver answered ${status} in ${total}.`, null, "delivered");
  if (outcome === "rejected" && status < 400) {
    return plain(`The receiver answered ${status} in ${total}: a redirect, which is never followed. What was sent was not taken.`,
      "Send to the address in its location header instead.", "rejected");
  }
  if (outcome === "rejected") {
    const advice = STATUS[status] ?? (status >= 500 ? STATUS[500] : STATUS[400]);
    return plain(`The receiver answered ${status} in ${total}.`, advice, "rejected");
  }
  const [why, next] = CODES[record.error?.code]?.(record) ?? ["It ended without a complete answer.", null];
  return plain(why, next, outcome ?? "failed");
}

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

/** What a list shows as a send's answer: a status, a code, or where it is on its way. */
export function answer(record) {
  if (record.response) return String(record.response.status);
  const code = record.error?.code ?? "";
  // Some codes only say the outcome again.
  return code === record.outcome ? "" : code;
}

export function outcomeOf(record) {
  return record.outcome ?? record.state;
}
