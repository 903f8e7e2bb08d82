// JSON for the eye: with line ends and indents, as it was written or with its texts unescaped.

const INDENT = "  ";

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

/**
 * The same with every text as what it says: `"a\nb"` over two lines, `\u00e9` as é.
 *
 * @returns {[kind: string, text: string][] | null}  `null` where nothing is escaped
 */
export function unescapedJson(pieces) {
  let escaped = false;
  const out = pieces.map(([kind, piece]) => {
    if ((kind !== "string" && kind !== "key") || !piece.includes("\\")) return [kind, piece];
    escaped = true;
    return [kind, `"${JSON.parse(piece)}"`];
  });
  return escaped ? out : null;
}
