// Headers: one of them, and all of them as they were on the wire.

import { foreign, h } from "./dom.js";

export function headerValue(headers, name) {
  const values = headers?.[name];
  return Array.isArray(values) ? values[0] ?? null : values ?? null;
}

/** Headers, one line each, in the order they came. */
export function headersView(headers, { mark = {} } = {}) {
  const rows = Object.entries(headers ?? {}).flatMap(([name, values]) => [values].flat().map((value) => [name, value]));
  if (rows.length === 0) return h("p", { class: "no-body" }, "No headers.");
  return h("dl", { class: "headers" }, rows.map(([name, value]) => {
    const text = String(value);
    const redacted = /^\[redacted hmac:[0-9a-f]{8}\]$/.test(text);
    return h("div", {}, h("dt", {}, foreign(name)), h("dd", { class: redacted ? "redacted" : null }, foreign(text), mark[name] ?? null));
  }));
}
