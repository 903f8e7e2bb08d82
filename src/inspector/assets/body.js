// A body or a set of headers as it was on the wire: pretty, raw or as hex. Always text, whatever it claims to be.

import { copyButton, foreign, h, replace } from "./dom.js";
import { bytes, count } from "./format.js";

/** Beyond this, pretty printing would cost more than it shows. */
const PRETTY_CHARS = 300_000;
/** What the hex view shows of a body, in bytes. */
const HEX_BYTES = 64 * 1024;
const INDENT = "  ";

/** What a record keeps of a body, as bytes and as text where it is text. */
export function bodyOf(part) {
  if (part.body === null || part.body === undefined) return null;
  if (part.body_encoding === "base64") {
    let binary;
    try {
      binary = atob(part.body);
    } catch {
      return { bytes: new TextEncoder().encode(part.body), text: part.body };
    }
    const raw = Uint8Array.from(binary, (char) => char.charCodeAt(0));
    let text = null;
    try {
      text = new TextDecoder("utf-8", { fatal: true }).decode(raw);
    } catch {
      // Not text: the hex view shows it.
    }
    return { bytes: raw, text };
  }
  return { bytes: new TextEncoder().encode(part.body), text: part.body };
}

export function headerValue(headers, name) {
  const values = headers?.[name];
  return Array.isArray(values) ? values[0] ?? null : values ?? null;
}

/** The body card's inside: tabs, notices and the text. */
export function bodyView(part, label) {
  const size = part.body_bytes ?? 0;
  const kept = bodyOf(part);
  if (kept === null) {
    const why = size === 0 ? "No body." : `The body of ${bytes(size)} is not kept, or is past its retention.`;
    return h("p", { class: "no-body" }, why);
  }
  if (kept.bytes.length === 0 && size === 0) return h("p", { class: "no-body" }, "Empty body.");
  const type = headerValue(part.headers, "content-type") ?? "";
  const ways = [];
  const pretty = kept.text === null ? null : prettyOf(kept.text, type);
  if (pretty !== null) ways.push(["Pretty", pretty]);
  if (kept.text !== null) ways.push(["Raw", () => h("pre", { class: "body" }, foreign(kept.text, { lines: true, limit: 100_000 }))]);
  ways.push(["Hex", () => [
    h("pre", { class: "body hex" }, hex(kept.bytes.subarray(0, HEX_BYTES))),
    kept.bytes.length > HEX_BYTES ? h("p", { class: "cut" }, `The first ${bytes(HEX_BYTES)} are shown.`) : null,
  ]]);

  const pane = h("div", { class: "body-pane", tabindex: 0, role: "tabpanel", "aria-label": `${label} body` });
  const tabs = ways.map(([name, draw], at) => h("button", {
    type: "button", role: "tab", class: "tab",
    onclick: () => choose(at),
    onkeydown: (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by === undefined) return;
      event.stopPropagation();
      const next = (at + by + ways.length) % ways.length;
      choose(next);
      tabs[next].focus();
    },
  }, name));
  const choose = (chosen) => {
    tabs.forEach((tab, at) => {
      tab.setAttribute("aria-selected", String(at === chosen));
      tab.tabIndex = at === chosen ? 0 : -1;
    });
    replace(pane, ways[chosen][1]());
  };
  choose(0);
  return [
    h("div", { class: "body-bar" },
      h("div", { role: "tablist", "aria-label": `${label} body as`, class: "tabs" }, tabs),
      h("span", { class: "dim" }, bytes(size)),
      kept.text === null ? null : copyButton("Copy", kept.text, { "aria-label": `Copy the ${label} body` })),
    truncation(part, kept.bytes.length),
    pane,
  ];
}

/** What is missing of a body, with the real sizes. */
function truncation(part, kept) {
  const declared = part.body_declared;
  const parts = [];
  if (part.body_truncated) {
    parts.push(`Cut: ${bytes(kept)} of ${bytes(part.body_bytes)} (${count(part.body_bytes)} bytes) are kept.`);
    if (typeof declared === "number" && declared > part.body_bytes) parts.push(`Its Content-Length said ${bytes(declared)}; reading stopped before.`);
  } else if (typeof declared === "number" && declared !== part.body_bytes) {
    parts.push(`Its Content-Length said ${bytes(declared)} (${count(declared)} bytes); ${bytes(part.body_bytes)} came.`);
  }
  return parts.length === 0 ? null : h("p", { class: "cut", role: "note" }, parts.join(" "));
}

function prettyOf(text, type) {
  if (text.length > PRETTY_CHARS) return null;
  const start = text.trimStart()[0];
  if (/json/i.test(type) || start === "{" || start === "[") {
    const pieces = prettyJson(text);
    if (pieces !== null) {
      return () => h("pre", { class: "body json" }, pieces.map(([kind, piece]) => (kind === "" ? piece : h("span", { class: kind }, foreign(piece, { limit: 10_000 })))));
    }
  }
  if (/x-www-form-urlencoded/i.test(type)) {
    return () => h("table", { class: "form" }, h("tbody", {}, text.split("&").slice(0, 500).map((pair) => {
      const at = pair.indexOf("=");
      const [name, value] = at === -1 ? [pair, ""] : [pair.slice(0, at), pair.slice(at + 1)];
      return h("tr", {}, h("th", { scope: "row" }, foreign(unform(name))), h("td", {}, foreign(unform(value))));
    })));
  }
  return null;
}

function unform(text) {
  try {
    return decodeURIComponent(text.replaceAll("+", " "));
  } catch {
    return text;
  }
}

const TOKEN = /\s+|[{}[\],:]|"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y;

/**
 * JSON with line ends and indents, each value's own text kept: `1.0` stays `1.0`, a number too large for JavaScript
 * stays whole, and a key given twice is there twice. Text that stops early is shown as far as it goes.
 *
 * @returns {[kind: string, text: string][] | null}  `null` where it is no JSON
 */
export function prettyJson(text) {
  const out = [];
  const open = [];
  let line = "";
  const put = (kind, piece) => {
    if (line !== "") out.push(["", line]);
    line = "";
    out.push([kind, piece]);
  };
  const newline = () => (line += `\n${INDENT.repeat(open.length)}`);
  TOKEN.lastIndex = 0;
  let values = 0;
  let before = "";
  while (TOKEN.lastIndex < text.length) {
    const from = TOKEN.lastIndex;
    const match = TOKEN.exec(text);
    if (match === null) {
      // A cut text ends inside a value; anything else is no JSON.
      if (values === 0 || (open.length === 0)) return null;
      put("broken", text.slice(from));
      return out;
    }
    const piece = match[0];
    if (/^\s/.test(piece)) continue;
    if (open.length === 0 && values > 0) return null;
    switch (piece) {
      case "{": case "[":
        line += piece;
        open.push(piece);
        // Nothing goes between the brackets of an empty one.
        if (!/^\s*[}\]]/.test(text.slice(TOKEN.lastIndex, TOKEN.lastIndex + 64))) newline();
        break;
      case "}": case "]":
        if (open.pop() !== (piece === "}" ? "{" : "[")) return null;
        if (before !== "{" && before !== "[") newline();
        line += piece;
        break;
      case ",":
        line += piece;
        newline();
        break;
      case ":":
        line += ": ";
        break;
      default: {
        const key = piece[0] === '"' && /^\s*:/.test(text.slice(TOKEN.lastIndex, TOKEN.lastIndex + 64));
        put(piece[0] === '"' ? (key ? "key" : "string") : /^[-\d]/.test(piece) ? "number" : "word", piece);
      }
    }
    values += 1;
    before = open.length === 0 ? "end" : piece;
  }
  if (line !== "") out.push(["", line]);
  return values === 0 ? null : out;
}

/** Sixteen bytes a line, as hexdump has them. */
export function hex(raw) {
  const lines = [];
  for (let at = 0; at < raw.length; at += 16) {
    const row = raw.subarray(at, at + 16);
    let left = "";
    let right = "";
    for (let one = 0; one < 16; one += 1) {
      if (one === 8) left += " ";
      left += one < row.length ? `${row[one].toString(16).padStart(2, "0")} ` : "   ";
      if (one < row.length) right += row[one] >= 0x20 && row[one] < 0x7f ? String.fromCharCode(row[one]) : ".";
    }
    lines.push(`${at.toString(16).padStart(8, "0")}  ${left} ${right}`);
  }
  return lines.join("\n");
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
