// Numbers, times and sizes as people read them.

export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${value.toFixed(value < 0.1 ? 2 : 1)} ms`;
  if (value < 100) return `${value.toFixed(1)} ms`;
  if (value < 1000) return `${Math.round(value)} ms`;
  if (value < 60_000) return `${(value / 1000).toFixed(2)} s`;
  return span(value / 1000);
}

/** How long the longest bar is, in milliseconds. */
const LONGEST = 5000;

/**
 * A duration as a share of the longest, by its logarithm: most sends take a hundredth of the budget, and two of them
 * must differ for the eye. A millisecond is a twelfth, 10 ms a quarter, 100 ms a good half, a second four fifths.
 */
export function shareOfTime(milliseconds) {
  return Math.min(1, Math.max(0.03, Math.log1p(Math.max(0, milliseconds)) / Math.log1p(LONGEST)));
}

/** A length of time in its two largest units. */
export function span(seconds) {
  const units = [["d", 86_400], ["h", 3600], ["min", 60], ["s", 1]];
  let left = Math.max(0, Math.round(seconds));
  const parts = [];
  for (const [name, size] of units) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count > 0) parts.push(`${count} ${name}`);
  }
  return parts.slice(0, 2).join(" ") || "0 s";
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1024) return `${value} B`;
  if (value < 1024 * 1024) return `${(value / 1024).toFixed(1)} KiB`;
  return `${(value / 1024 / 1024).toFixed(2)} MiB`;
}

export function count(value) {
  return Number(value ?? 0).toLocaleString("en");
}

const two = (value) => String(value).padStart(2, "0");

function parts(text) {
  const at = new Date(text);
  return Number.isNaN(at.getTime()) ? null : at;
}

/** The clock time, with the date where it is not today's. */
export function clock(text, now = new Date()) {
  const at = parts(text);
  if (at === null) return "–";
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  if (at.toDateString() === now.toDateString()) return time;
  const day = `${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return at.getFullYear() === now.getFullYear() ? `${day} ${time}` : `${at.getFullYear()}-${day}`;
}

/** The whole instant, in the reader's zone. */
export function instant(text) {
  const at = parts(text);
  if (at === null) return "–";
  const offset = -at.getTimezoneOffset();
  const zone = offset === 0 ? "UTC" : `UTC${offset < 0 ? "−" : "+"}${two(Math.floor(Math.abs(offset) / 60))}:${two(Math.abs(offset) % 60)}`;
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${String(at.getMilliseconds()).padStart(3, "0")}`;
  return `${day} ${time} ${zone}`;
}

/** Whole days from now until then; negative once it has passed. */
export function daysUntil(text, now = Date.now()) {
  const at = parts(text);
  return at === null ? null : Math.floor((at.getTime() - now) / 86_400_000);
}

export function ago(text, now = Date.now()) {
  const at = parts(text);
  if (at === null) return "–";
  const seconds = (now - at.getTime()) / 1000;
  return seconds < 0 ? `in ${span(-seconds)}` : `${span(seconds)} ago`;
}

/** Host and rest of an address, for a list; a text that is no address stays whole. */
export function addressParts(text) {
  const match = /^(https?:\/\/)([^/?#]*)([\s\S]*)$/.exec(text);
  return match === null ? { scheme: "", host: text, rest: "" } : { scheme: match[1], host: match[2], rest: match[3] };
}

/** A text as one part of an address; half a surrogate pair, which no address can hold, becomes U+FFFD. */
export function part(text) {
  return encodeURIComponent(String(text).toWellFormed());
}
