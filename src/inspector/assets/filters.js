// The filters of a list, in their three forms: the address bar's query, the search box's text, the API's query.

import { part } from "./format.js";
import { asked } from "./words.js";

export const OUTCOMES = ["delivered", "rejected", "failed", "blocked", "expired", "discarded", "interrupted"];
export const CODES = [
  "timeout", "dns_not_found", "dns_failed", "dns_no_address", "connection_refused", "connection_reset",
  "connection_closed", "host_unreachable", "network_unreachable", "tls_certificate", "tls_handshake",
  "protocol_error", "response_headers_too_large", "source_unavailable", "source_ports_exhausted", "policy_url",
  "policy_port", "policy_name", "policy_address", "policy_metadata", "policy_scan", "policy_self", "policy_mixed",
  "policy_denied", "policy_not_allowed", "policy_sni", "suspended", "interrupted", "expired", "discarded", "internal",
];
export const STATES = ["held", "queued", "sending", "done"];
export const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
export const KEYS = ["outcome", "code", "status", "state", "host", "method", "path", "workflow", "execution", "step", "source_ip", "tenant", "since", "until", "text"];
/** Each of these may have several values, `failed,expired`: any of them will do. */
const SEVERAL = new Set(["outcome", "code", "status"]);

/** The values of such a filter. */
export const several = (value) => (value ?? "").split(",").map((one) => one.trim()).filter((one) => one !== "");

const DURATION = /^(\d+)\s*(s|m|h|d)$/;
const SECONDS = { s: 1, m: 60, h: 3600, d: 86_400 };

/** `host:api.example.com status:500 words` → filters, and the words that only look through what is loaded. */
export function fromText(text) {
  const filters = {};
  const words = [];
  for (const match of text.matchAll(/([a-z_]+):(?:"([^"]*)"|(\S+))|(\S+)/g)) {
    const [whole, key, quoted, bare] = match;
    if (key !== undefined && KEYS.includes(key)) filters[key] = quoted ?? bare;
    else words.push(whole);
  }
  if (words.length > 0) filters.q = words.join(" ");
  return filters;
}

export function toText(filters) {
  const parts = KEYS.filter((key) => filters[key]).map((key) =>
    /[\s"]/.test(filters[key]) ? `${key}:"${filters[key].replaceAll('"', "")}"` : `${key}:${filters[key]}`);
  if (filters.q) parts.push(filters.q);
  return parts.join(" ");
}

export function fromQuery(query) {
  const filters = {};
  for (const key of [...KEYS, "q"]) {
    const value = SEVERAL.has(key) ? query.getAll(key).join(",") : query.get(key);
    if (value) filters[key] = value;
  }
  return filters;
}

export function toQuery(filters) {
  const query = new URLSearchParams();
  for (const key of [...KEYS, "q"]) if (filters[key]) put(query, key, filters[key]);
  return query.toString();
}

function put(query, key, value) {
  if (SEVERAL.has(key)) several(value).forEach((one) => query.append(key, one));
  else query.set(key, value);
}

/** The link of a list. */
export function link(filters = {}) {
  const query = toQuery(filters);
  return query === "" ? "#/sends" : `#/sends?${query}`;
}

/** The API's query: `15m` becomes the instant that long ago. Instants are given to the API as they are. */
export function toApi(filters, now = Date.now()) {
  const query = new URLSearchParams();
  for (const key of KEYS) {
    const value = filters[key];
    if (!value) continue;
    if (key === "since" || key === "until") query.set(key, instantOf(value, now));
    else put(query, key, value);
  }
  return query;
}

/** Where one execution is looked at. It belongs to a tenant, so its link names both. */
export function executionLink({ execution, tenant }, more = {}) {
  const query = new URLSearchParams({ ...(tenant ? { tenant } : {}), ...more }).toString();
  return `#/executions/${part(execution)}${query === "" ? "" : `?${query}`}`;
}

/** `15m` as the instant that long ago; anything else as it is. */
export function instantOf(value, now = Date.now()) {
  const relative = DURATION.exec(value);
  return relative === null ? value : new Date(now - relative[1] * SECONDS[relative[2]] * 1000).toISOString();
}

/** What a row is searched in by plain words. */
export function haystack(record) {
  return [
    record.id, ...Object.values(asked(record)), record.outcome ?? record.state, record.error?.code,
    record.error?.message, record.response?.status, record.context?.workflow, record.context?.execution,
    record.context?.step, record.context?.tenant, record.connection?.public_ip, record.connection?.remote_ip,
  ].filter((part) => part !== null && part !== undefined).join("\n").toLowerCase();
}

export function matches(text, words) {
  return words.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}
