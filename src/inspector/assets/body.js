// A body as it was on the wire: pretty, unescaped, raw, drawn or as hex. Text whatever it claims to be, unless it is an
// image of the few kinds that are drawn.

import { codingsOf, imageOf, inflate, INFLATED_BYTES, PIXELS, textOf } from "./decode.js";
import { copyButton, foreign, h, replace } from "./dom.js";
import { bytes, count } from "./format.js";
import { headerValue } from "./headers.js";
import { prettyJson, unescapedJson } from "./json.js";

/** Beyond this, pretty printing would cost more than it shows. */
const PRETTY_CHARS = 300_000;
/** What the hex view shows of a body, in bytes. */
const HEX_BYTES = 64 * 1024;

/** What a record keeps of a body, as bytes and, where it is UTF-8, as text. */
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
      // Not UTF-8.
    }
    return { bytes: raw, text };
  }
  return { bytes: new TextEncoder().encode(part.body), text: part.body };
}

/**
 * The body card's inside: tabs, notices and the body.
 *
 * @param {{bodiless?: boolean}} options  an answer that has no body, whatever its Content-Length says
 */
export function bodyView(part, label, { bodiless = false } = {}) {
  const size = part.body_bytes ?? 0;
  const kept = bodyOf(part);
  if (size === 0 && (kept === null || kept.bytes.length === 0)) {
    return [h("p", { class: "no-body" }, kept === null ? "No body." : "Empty body."), lengths(part, 0, { bodiless })];
  }
  if (kept === null) return [h("p", { class: "no-body" }, `The body of ${bytes(size)} is not kept, or is past its retention.`), lengths(part, 0, { bodiless, gone: true })];
  const codings = codingsOf(part.headers);
  const box = h("div", { class: "body-box" });
  if (codings.length === 0) fill(box, part, label, kept.bytes, { bytes: kept.bytes, done: [], problem: null });
  else {
    box.append(h("p", { class: "no-body" }, "Inflating …"));
    inflated(part, kept.bytes, codings).then((found) => fill(box, part, label, kept.bytes, found));
  }
  return box;
}

/** A send is drawn again when more is known of it; its body is inflated once. */
const known = new WeakMap();

function inflated(part, raw, codings) {
  if (!known.has(part)) known.set(part, inflate(raw, codings));
  return known.get(part);
}

function fill(box, part, label, raw, found) {
  const type = headerValue(part.headers, "content-type") ?? "";
  const cut = part.body_truncated === true || found.problem === "limit" || found.problem === "broken";
  const image = imageOf(found.bytes, type);
  const read = found.problem === "unknown" || (found.problem !== null && found.done.length === 0) ? null : textOf(found.bytes, type, { cut });
  const ways = [];
  if (image !== null) ways.push(["Image", () => drawn(found.bytes, image)]);
  if (read !== null) {
    const pretty = read.text.length > PRETTY_CHARS ? [] : prettyOf(read.text, type);
    ways.push(...pretty, ["Raw", () => h("pre", { class: "body" }, foreign(read.text, { lines: true, limit: 100_000 }))]);
  }
  ways.push(["Hex", () => dump(found.bytes)]);
  if (found.done.length > 0) ways.push(["As sent", () => dump(raw)]);

  const pane = h("div", { class: "body-pane", tabindex: 0, role: "tabpanel", "aria-label": `${label} body` });
  const tabs = ways.map(([name], at) => h("button", {
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
  const about = [
    bytes(part.body_bytes ?? raw.length),
    found.done.length > 0 ? `${found.done.join(", ")}, ${bytes(found.bytes.length)} inflated` : null,
    read !== null && read.charset !== "utf-8" ? read.charset : null,
    image !== null ? `${image.width} × ${image.height}` : null,
  ].filter((one) => one !== null);
  replace(box,
    h("div", { class: "body-bar" },
      h("div", { role: "tablist", "aria-label": `${label} body as`, class: "tabs" }, tabs),
      h("span", { class: "dim" }, about.join(" · ")),
      read === null ? null : copyButton("Copy", read.text, { "aria-label": `Copy the ${label} body` })),
    lengths(part, raw.length),
    codingNote(part, found),
    pane);
}

function dump(raw) {
  return [
    h("pre", { class: "body hex" }, hex(raw.subarray(0, HEX_BYTES))),
    raw.length > HEX_BYTES ? h("p", { class: "cut" }, `The first ${bytes(HEX_BYTES)} are shown.`) : null,
  ];
}

/**
 * An image as pixels on a canvas: no address is made of it, so that the page's policy has nothing to admit, and no
 * markup in it can do anything.
 */
function drawn(raw, { type, width, height }) {
  const size = `${count(width)} × ${count(height)}`;
  if (width * height > PIXELS) return h("p", { class: "cut" }, `An image of ${size} pixels is not drawn.`);
  const box = h("div", { class: "image" }, h("p", { class: "no-body" }, "Drawing …"));
  createImageBitmap(new Blob([raw], { type })).then((bitmap) => {
    const canvas = h("canvas", { width: bitmap.width, height: bitmap.height, role: "img", "aria-label": `${type}, ${size} pixels` });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
    replace(box, canvas);
  }, () => replace(box, h("p", { class: "cut" }, "These bytes do not make an image.")));
  return box;
}

/** What is missing of a body, with the real sizes. */
function lengths(part, kept, { bodiless = false, gone = false } = {}) {
  const declared = typeof part.body_declared === "number" ? part.body_declared : null;
  const said = declared === null ? "" : `Its Content-Length said ${bytes(declared)}${declared < 1024 ? "" : ` (${count(declared)} bytes)`}`;
  const size = part.body_bytes ?? 0;
  const parts = [];
  if (part.body_truncated && !gone) {
    parts.push(`Cut: ${bytes(kept)} of ${bytes(size)} (${count(size)} bytes) are kept.`);
    if (declared !== null && declared > size) parts.push(`${said}; reading stopped before.`);
  } else if (bodiless) {
    if (declared > 0) return h("p", { class: "no-body" }, `${said}: that of the body which it would have otherwise.`);
  } else if (declared !== null && declared !== size) parts.push(`${said}; ${bytes(size)} came.`);
  return parts.length === 0 ? null : h("p", { class: "cut", role: "note" }, parts.join(" "));
}

function codingNote(part, { problem, at }) {
  const said = {
    unknown: `Its coding, ${at}, is not one that is undone here.`,
    limit: `It inflates to more than ${bytes(INFLATED_BYTES)}: the first ${bytes(INFLATED_BYTES)} are shown.`,
    broken: part.body_truncated ? `Its ${at} is cut with it: what could be inflated is shown.` : `Its ${at} is broken or unfinished: what could be inflated is shown.`,
  }[problem];
  return said === undefined ? null : h("p", { class: "cut", role: "note" }, foreign(said));
}

/** The ways to show a text besides as it is: `[name, draw]`. */
function prettyOf(text, type) {
  const start = text.trimStart()[0];
  if (/json/i.test(type) || start === "{" || start === "[") {
    const pieces = prettyJson(text);
    if (pieces !== null) {
      const draw = (some, lines) => () => h("pre", { class: "body json" }, some.map(([kind, piece]) => (kind === "" ? piece : h("span", { class: kind }, foreign(piece, { lines, limit: 10_000 })))));
      const plain = unescapedJson(pieces);
      return [["Pretty", draw(pieces, false)], ...(plain === null ? [] : [["Unescaped", draw(plain, true)]])];
    }
  }
  if (/x-www-form-urlencoded/i.test(type)) {
    return [["Pretty", () => h("table", { class: "form" }, h("tbody", {}, text.split("&").slice(0, 500).map((pair) => {
      const at = pair.indexOf("=");
      const [name, value] = at === -1 ? [pair, ""] : [pair.slice(0, at), pair.slice(at + 1)];
      return h("tr", {}, h("th", { scope: "row" }, foreign(unform(name))), h("td", {}, foreign(unform(value))));
    })))]];
  }
  return [];
}

function unform(text) {
  try {
    return decodeURIComponent(text.replaceAll("+", " "));
  } catch {
    return text;
  }
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
