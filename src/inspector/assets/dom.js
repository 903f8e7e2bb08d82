// Making elements. Text only ever becomes a text node: nothing here, or anywhere in this page, parses markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * `h("button", { class: "x", onclick }, "text", child, null)`
 *
 * A property whose name starts with `on` is a listener; `style` is an object of properties; `true` makes a bare
 * attribute, and `null`, `undefined` and `false` none.
 */
export function h(tag, properties, ...children) {
  return build(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function s(tag, properties, ...children) {
  return build(document.createElementNS(SVG, tag), properties, children);
}

function build(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? (name.startsWith("aria-") ? "true" : "") : value);
  }
  add(element, children);
  return element;
}

export function add(element, children) {
  for (const child of children.flat(3)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

export function replace(element, ...children) {
  element.replaceChildren();
  return add(element, children);
}

/**
 * Characters that change how the text around them looks without being seen themselves: controls, direction marks,
 * zero-width characters, lone surrogates, and whatever else has no glyph of its own.
 */
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb]|[\u{e0000}-\u{e0fff}]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/gu;

const NAMES = { 0: "NUL", 9: "TAB", 10: "LF", 13: "CR", 27: "ESC", 127: "DEL" };

/** How much of one text is put on the page at once. */
const SHOWN_CHARS = 2000;

/**
 * Foreign text for one line: every unseen character has a name on the page, so that a text cannot pose as another.
 * Long text is cut, and says how long it is.
 *
 * @param {{lines?: boolean, limit?: number}} options  `lines`: line ends and tabs are kept as they are
 */
export function foreign(text, { lines = false, limit = SHOWN_CHARS } = {}) {
  const whole = String(text);
  const cut = whole.length > limit;
  const out = h("bdi", { class: "foreign", dir: "ltr" });
  fill(out, cut ? whole.slice(0, limit) : whole, lines);
  if (cut) {
    const more = h("button", {
      class: "more",
      type: "button",
      onclick: (event) => {
        event.stopPropagation();
        out.replaceChildren();
        fill(out, whole, lines);
      },
    }, `… ${(whole.length - limit).toLocaleString("en")} more characters`);
    out.append(more);
  }
  return out;
}

function fill(out, text, lines) {
  let from = 0;
  for (const match of text.matchAll(UNSEEN)) {
    const code = match[0].codePointAt(0);
    if (lines && (code === 9 || code === 10)) continue;
    // A carriage return before a line feed is how many receivers end their lines.
    if (lines && code === 13 && text[match.index + 1] === "\n") continue;
    if (match.index > from) out.append(text.slice(from, match.index));
    out.append(h("span", { class: "unseen" }, NAMES[code] ?? `U+${code.toString(16).toUpperCase().padStart(4, "0")}`));
    from = match.index + match[0].length;
  }
  if (from < text.length) out.append(text.slice(from));
}

/** The same as plain text, for attributes and titles. */
export function plainForeign(text, limit = 300) {
  const whole = String(text);
  const cut = whole.length > limit ? `${whole.slice(0, limit)}…` : whole;
  return cut.replace(UNSEEN, (char) => `⟨U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

/** A button that copies, and says that it did. */
export function copyButton(label, text, properties = {}) {
  const button = h("button", {
    type: "button",
    class: "button small",
    ...properties,
    onclick: async () => {
      await copy(typeof text === "function" ? text() : text);
      const before = button.textContent;
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = before), 1200);
    },
  }, label);
  return button;
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The clipboard's interface is missing where the page came over plain HTTP from another host.
    const area = h("textarea", { class: "offscreen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

/** A short notice that goes away by itself, also read out. */
export function note(text, kind = "info") {
  const box = document.getElementById("notes");
  const one = h("div", { class: `note ${kind}` }, text);
  box.append(one);
  setTimeout(() => one.remove(), 5000);
}

/** Saves text as a file. */
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
