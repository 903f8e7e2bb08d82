// A send as a curl command that makes the same request; from the same address where that is asked for.

import { bodyOf } from "./body.js";

/** One argument for a POSIX shell; control characters take the `$'…'` form that bash, zsh and ksh know. */
export function quote(text) {
  if (/^[\w@%+=:,./-]+$/.test(text)) return text;
  if (!/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/.test(text)) return `'${text.replaceAll("'", "'\\''")}'`;
  const inner = text.replace(/[\\']/g, "\\$&").replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (char) => {
    const known = { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[char];
    return known ?? [...new TextEncoder().encode(char)].map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  });
  return `$'${inner}'`;
}

/** Headers that curl makes itself. */
const OWN = new Set(["host", "content-length", "connection", "transfer-encoding", ":authority", ":method", ":path", ":scheme"]);

/** @param {{bound?: boolean}} options  `bound`: from the source address, for the appliance's own host */
export function curl(record, deadline, { bound = false } = {}) {
  const { request, connection } = record;
  const notes = [];
  const words = ["curl", "--globoff", "--path-as-is", "--max-time", String(deadline / 1000)];
  const lines = [];
  if (bound && connection?.source_ip) lines.push(`--interface ${quote(connection.source_ip)}`);
  else if (bound) notes.push("no source address was chosen, so this leaves from whatever address the host picks");
  if (request.method === "HEAD") lines.push("--head");
  else lines.push(`--request ${quote(request.method)}`);
  const names = new Set();
  let hidden = false;
  for (const [name, values] of Object.entries(request.headers ?? {})) {
    names.add(name);
    if (OWN.has(name)) continue;
    for (const value of [values].flat()) {
      if (/^\[redacted /.test(value)) hidden = true;
      lines.push(value === "" ? `--header ${quote(`${name};`)}` : `--header ${quote(`${name}: ${value}`)}`);
    }
  }
  // What curl would add and the send did not have.
  for (const [name, header] of [["accept", "Accept:"], ["user-agent", "User-Agent:"]]) {
    if (!names.has(name)) lines.push(`--header ${quote(header)}`);
  }
  const kept = bodyOf(request);
  let before = "";
  if (kept !== null && kept.bytes.length > 0) {
    if (!names.has("content-type")) lines.push(`--header ${quote("Content-Type:")}`);
    if (kept.text === null || kept.text.includes("\0")) {
      const base64 = request.body_encoding === "base64" ? request.body : btoa(String.fromCharCode(...kept.bytes));
      before = `printf %s ${quote(base64)} | base64 -d | `;
      lines.push("--data-binary @-");
    } else if (kept.text.startsWith("@")) {
      before = `printf %s ${quote(kept.text)} | `;
      lines.push("--data-binary @-");
    } else lines.push(`--data-binary ${quote(kept.text)}`);
    if (request.body_truncated) notes.push(`only the first ${kept.bytes.length} of ${request.body_bytes} body bytes are kept`);
  } else if ((request.body_bytes ?? 0) > 0) notes.push(`the body of ${request.body_bytes} bytes is not kept: add it with --data-binary`);
  if (hidden) notes.push("put the secrets where [redacted …] stands");
  lines.push(`--url ${quote(request.url)}`);
  return [...notes.map((note) => `# ${note}`), before + [words.join(" "), ...lines].join(" \\\n  ")].join("\n");
}
