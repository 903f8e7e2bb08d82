// A value as JSON text, taken at once: what the author's object becomes later changes nothing that is sent.

const PLAIN_KEY = /^[A-Za-z_$][\w$]*$/;

/** `data.items[3]["first name"]` */
export function join(path, key) {
  if (typeof key === "number" || /^\d+$/.test(key)) return `${path}[${key}]`;
  return PLAIN_KEY.test(key) ? `${path}.${key}` : `${path}[${JSON.stringify(key)}]`;
}

/** What an error message shows of a value: short, on one line. */
export function shown(value) {
  let text;
  if (typeof value === "string") text = value === "" ? '""' : value;
  else if (typeof value === "bigint") text = `${value}n`;
  else if (typeof value === "function") text = `function ${value.name || "(anonymous)"}`;
  else if (typeof value === "symbol") text = value.toString();
  else if (value === null || typeof value !== "object") text = String(value);
  else {
    try {
      text = JSON.stringify(value) ?? Object.prototype.toString.call(value);
    } catch {
      text = Object.prototype.toString.call(value);
    }
  }
  text = text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, (char) =>
    `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return text.length > 80 ? `${text.slice(0, 79)}…` : text;
}

/** Why a value is no JSON, and where. */
export class NotJson extends Error {
  constructor(path, value, why) {
    super(`invalid value ${shown(value)} for ${path}: ${why}`);
    this.path = path;
  }
}

/**
 * JSON text of `value`, as `JSON.stringify` has it (so a `Date` is its ISO text and an `undefined` member is left
 * out), but refusing what it would drop or cannot write: functions, symbols, BigInt, cycles, `Map` and `Set`.
 *
 * @param {string} path       the field's name, for messages
 * @param {boolean} finite    also refuse NaN and infinities, which JSON turns into `null`
 * @returns {string | undefined}  `undefined` where there is no value
 */
export function jsonText(value, path, { finite = false } = {}) {
  // The objects being written, outermost first, each with its path.
  const open = [];
  try {
    return JSON.stringify(value, function (key, current) {
      while (open.length > 0 && open.at(-1).object !== this) open.pop();
      const here = open.length === 0 ? path : join(open.at(-1).path, Array.isArray(this) ? Number(key) : key);
      switch (typeof current) {
        case "bigint":
          throw new NotJson(here, current, "JSON has no BigInt; write String(value) or Number(value)");
        case "function":
          throw new NotJson(here, current, "a function cannot be sent; did you mean to call it?");
        case "symbol":
          throw new NotJson(here, current, "a symbol cannot be sent");
        case "number":
          if (finite && !Number.isFinite(current)) throw new NotJson(here, current, "write a finite number");
          break;
        case "object":
          if (current === null) break;
          if (open.some((outer) => outer.object === current)) {
            const first = open.find((outer) => outer.object === current);
            throw new NotJson(here, "[cyclic]", `it contains itself (it is also ${first.path})`);
          }
          if (current instanceof Map || current instanceof Set) {
            const instead = current instanceof Map ? "Object.fromEntries(map)" : "[...set]";
            throw new NotJson(here, Object.prototype.toString.call(current), `it would become {}; write ${instead}`);
          }
          if (current instanceof Promise) {
            throw new NotJson(here, "[object Promise]", "await it first");
          }
          open.push({ object: current, path: here });
      }
      return current;
    });
  } catch (error) {
    if (error instanceof RangeError) throw new NotJson(path, Object.prototype.toString.call(value), "nested too deep");
    throw error;
  }
}
