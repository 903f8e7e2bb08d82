// A body's bytes as what they are meant to be: inflated, read in their charset, or an image. Everything in bounds, since
// whoever made the bytes may mean harm; and pure, so that it is tested without a browser.

import { headerValue } from "./headers.js";

/** What one body may inflate to on the page: many times what is kept of a body, and nothing to a browser. */
export const INFLATED_BYTES = 1024 * 1024;
/** Codings one after the other; more is no real receiver. */
const CODINGS = 3;
/** What the decoders written in JavaScript are given: on hostile bytes they are slow. */
const SCRIPTED_BYTES = 256 * 1024;
/** Put into a browser's own decoder at a time, so that a bomb is seen before it is whole. */
const SLICE = 1024;

/** The codings of a body, in the order in which they are to be undone. */
export function codingsOf(headers) {
  const values = [headers?.["content-encoding"] ?? []].flat();
  return values.join(",").split(",").map((one) => one.trim().toLowerCase()).filter((one) => one !== "" && one !== "identity").reverse();
}

/**
 * Undoes codings, as far as they are known, whole, and within `limit`.
 *
 * @returns {Promise<{bytes: Uint8Array, done: string[], problem: null | "unknown" | "broken" | "limit", at?: string}>}
 *   with a problem, `bytes` is what came before it
 */
export async function inflate(bytes, codings, limit = INFLATED_BYTES) {
  const done = [];
  if (codings.length > CODINGS) return { bytes, done, problem: "unknown", at: codings.join(", ") };
  for (const coding of codings) {
    if (!Object.hasOwn(DECODERS, coding)) return { bytes, done, problem: "unknown", at: coding };
    const out = new Bounded(limit);
    let problem = null;
    try {
      await DECODERS[coding](bytes, out);
    } catch {
      problem = out.full ? "limit" : "broken";
    }
    // Nothing at all came of it: the bytes as they were say more.
    if (problem === "broken" && out.size === 0) return { bytes, done, problem, at: coding };
    bytes = out.bytes();
    done.push(coding);
    if (problem !== null) return { bytes, done, problem, at: coding };
  }
  return { bytes, done, problem: null };
}

/** Takes bytes up to a limit, and throws at what goes beyond it. */
class Bounded {
  size = 0;
  full = false;
  #pieces = [];

  constructor(limit) {
    this.limit = limit;
  }

  take(piece) {
    const room = this.limit - this.size;
    // Decoders may go on writing where a piece lies.
    const taken = piece.slice(0, room);
    this.#pieces.push(taken);
    this.size += taken.length;
    if (piece.length > room) {
      this.full = true;
      throw new RangeError("more than is shown");
    }
  }

  bytes() {
    const all = new Uint8Array(this.size);
    let at = 0;
    for (const piece of this.#pieces) {
      all.set(piece, at);
      at += piece.length;
    }
    return all;
  }
}

async function native(format, bytes, out) {
  let at = 0;
  const source = new ReadableStream({
    pull(controller) {
      if (at >= bytes.length) controller.close();
      else controller.enqueue(bytes.subarray(at, (at += SLICE)));
    },
  });
  const reader = source.pipeThrough(new DecompressionStream(format)).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      out.take(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Either form goes by the name `deflate`: with the two bytes of zlib before it, as the standard has it, or without. */
function deflate(bytes, out) {
  const zlib = bytes.length > 1 && (bytes[0] & 15) === 8 && ((bytes[0] << 8) | bytes[1]) % 31 === 0;
  return native(zlib ? "deflate" : "deflate-raw", bytes, out);
}

async function brotli(bytes, out) {
  if (bytes.length > SCRIPTED_BYTES) throw new RangeError("too long");
  const { BrotliDecompress } = await import("./vendor-brotli.js");
  let at = 0;
  const input = {
    read(into, from, count) {
      const piece = bytes.subarray(at, at + count);
      into.set(piece, from);
      at += piece.length;
      return piece.length;
    },
  };
  BrotliDecompress(input, { buffer: { length: Infinity }, write: (from, count) => out.take(from.subarray(0, count)) });
  // Bytes that are something else may begin like a stream of nothing, which takes a byte or two.
  if (out.size === 0 && bytes.length > 4) throw new RangeError("no brotli");
}

async function zstd(bytes, out) {
  if (bytes.length > SCRIPTED_BYTES) throw new RangeError("too long");
  const { Decompress } = await import("./vendor-zstd.js");
  new Decompress((piece) => out.take(piece)).push(bytes, true);
}

const gzip = (bytes, out) => native("gzip", bytes, out);
const DECODERS = { gzip, "x-gzip": gzip, deflate, br: brotli, zstd };

/** Types whose bytes are text, whatever their charset. */
const TEXTUAL = /^text\/|[/+](json|xml)$|^application\/(x-www-form-urlencoded|javascript|ecmascript|graphql|sql|yaml|toml|x-ndjson|jsonlines)$|^$/;
/** What no text has, in whatever charset. */
const CONTROLS = /[\u0000-\u0008\u000e-\u001a\u001c-\u001f]/;

export function mediaType(type) {
  return type.split(";")[0].trim().toLowerCase();
}

/**
 * Bytes as text: by their byte order mark, which the Encoding Standard puts first since labels are wrong more often;
 * by the label of their content type; by what an XML or HTML document says of itself; else UTF-8 where they are that;
 * else, where their type is one of texts, what web pages call latin-1.
 *
 * @param {{cut?: boolean}} options  the bytes end somewhere, so that an unfinished last character is no fault
 * @returns {{text: string, charset: string} | null}  `null` where they are no text
 */
export function textOf(bytes, type, { cut = false } = {}) {
  const marked = markOf(bytes);
  if (marked !== null) return decode(marked, bytes, { cut });
  const labelled = /;\s*charset\s*=\s*(?:"([^"]*)"|([^\s;]+))/i.exec(type);
  const declared = labelled?.[1] ?? labelled?.[2] ?? declaredIn(bytes, mediaType(type));
  if (declared !== undefined) {
    const found = decode(declared, bytes, { cut });
    if (found !== null) return found;
  }
  const utf8 = decode("utf-8", bytes, { cut });
  if (utf8 !== null) return utf8;
  if (!TEXTUAL.test(mediaType(type))) return null;
  const latin = decode("latin1", bytes, {});
  return CONTROLS.test(latin.text) ? null : latin;
}

function markOf(bytes) {
  const [one, two, three] = bytes;
  if (one === 0xef && two === 0xbb && three === 0xbf) return "utf-8";
  if (one === 0xfe && two === 0xff) return "utf-16be";
  return one === 0xff && two === 0xfe ? "utf-16le" : null;
}

/** What a document says of itself within its first kilobyte. */
function declaredIn(bytes, type) {
  if (!/xml|html/.test(type)) return undefined;
  const start = String.fromCharCode(...bytes.subarray(0, 1024));
  return /^\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']/.exec(start)?.[1] ?? /<meta[^>]*?\bcharset\s*=\s*["']?([\w.:-]+)/i.exec(start)?.[1];
}

function decode(label, bytes, { cut }) {
  try {
    const decoder = new TextDecoder(label, { fatal: true });
    return { text: decoder.decode(bytes, { stream: cut }), charset: decoder.encoding };
  } catch {
    // No such charset, or not in it.
    return null;
  }
}

/** More pixels than this are not drawn: a few bytes can ask for gigabytes. */
export const PIXELS = 16_000_000;

/**
 * The kinds of images that are drawn, by their type and their first bytes, with where their size stands. A fixed list:
 * an SVG is a document, and stays text.
 */
const IMAGES = {
  "image/png": (b, view) => (text(b, 1, 4) === "PNG" && text(b, 12, 16) === "IHDR" ? [view.getUint32(16), view.getUint32(20)] : null),
  "image/gif": (b, view) => (/^GIF8[79]a$/.test(text(b, 0, 6)) ? gif(b, view) : null),
  "image/bmp": (b, view) => (text(b, 0, 2) === "BM" && view.getUint32(14, true) >= 40 ? [Math.abs(view.getInt32(18, true)), Math.abs(view.getInt32(22, true))] : null),
  "image/webp": (b, view) => (text(b, 0, 4) === "RIFF" && text(b, 8, 12) === "WEBP" ? webp(b, view) : null),
  "image/jpeg": (b, view) => (b[0] === 0xff && b[1] === 0xd8 ? jpeg(b, view) : null),
};
const ALIASES = { "image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png", "image/x-ms-bmp": "image/bmp" };

/** @returns {{type: string, width: number, height: number} | null} */
export function imageOf(bytes, type) {
  const media = mediaType(type);
  const known = Object.hasOwn(ALIASES, media) ? ALIASES[media] : media;
  if (!Object.hasOwn(IMAGES, known)) return null;
  try {
    const size = IMAGES[known](bytes, new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength));
    return size === null || size[0] === 0 || size[1] === 0 ? null : { type: known, width: size[0], height: size[1] };
  } catch {
    // Cut before its size.
    return null;
  }
}

const text = (bytes, from, to) => String.fromCharCode(...bytes.subarray(from, to));

/** Browsers draw the screen, or the first picture where that is larger. */
function gif(bytes, view) {
  const screen = [view.getUint16(6, true), view.getUint16(8, true)];
  let at = 13 + (bytes[10] & 0x80 ? 3 << ((bytes[10] & 7) + 1) : 0);
  while (bytes[at] === 0x21) {
    at += 2;
    while (view.getUint8(at) !== 0) at += 1 + bytes[at];
    at += 1;
  }
  if (bytes[at] !== 0x2c) return null;
  return [0, 2].map((by, axis) => Math.max(screen[axis], view.getUint16(at + 1 + by, true) + view.getUint16(at + 5 + by, true)));
}

function webp(bytes, view) {
  switch (text(bytes, 12, 16)) {
    case "VP8 ": return [view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff];
    case "VP8L": return [(view.getUint32(21, true) & 0x3fff) + 1, ((view.getUint32(21, true) >>> 14) & 0x3fff) + 1];
    case "VP8X": return [(view.getUint32(24, true) & 0xffffff) + 1, (view.getUint32(26, true) >>> 8) + 1];
    default: return null;
  }
}

function jpeg(bytes, view) {
  for (let at = 2; at < bytes.length;) {
    const marker = bytes[at + 1];
    if (bytes[at] !== 0xff) return null;
    // A frame's start: neither tables (C4, C8, CC) nor anything without a length.
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) return [view.getUint16(at + 7), view.getUint16(at + 5)];
    at += marker === 0xff ? 1 : 2 + view.getUint16(at + 2);
  }
  return null;
}
