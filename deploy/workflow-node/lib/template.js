// Texts of a configuration in which `{{ expression }}` stands for a value, and expressions by themselves.
//
// Expressions run in this process, with all its rights, as the steps' own code does. A mistake in one is found when
// it is compiled, and not at the first event.

import vm from "node:vm";

import { join, shown } from "./snapshot.js";

const CALL = Symbol.for("egressd destination");

/** An expression as a function of `$event` and `steps`, bounded in time. */
export function compile(field, text, timeout) {
  let evaluate;
  try {
    // Alone in parentheses it must be one expression; the name shows in stack traces.
    new vm.Script(`(${text}\n)`);
    evaluate = vm.compileFunction(`"use strict"; return (${text}\n);`, ["$event", "steps"], { filename: `${field} expression` });
  } catch (error) {
    throw new SyntaxError(`send destination: ${field} ${shown(text)} is no expression: ${error.message}`, { cause: error });
  }
  const call = new vm.Script(`globalThis[Symbol.for(${JSON.stringify(CALL.description)})]()`);
  return ($event, steps) => {
    const outer = globalThis[CALL];
    globalThis[CALL] = () => evaluate($event, steps);
    let value;
    try {
      value = call.runInThisContext({ timeout });
    } catch (error) {
      if (error?.code === "ERR_SCRIPT_EXECUTION_TIMEOUT") {
        throw new Error(`send destination: ${field} ${shown(text)} took longer than ${timeout} ms`, { cause: error });
      }
      throw new Error(`send destination: ${field} ${shown(text)}: ${error?.message ?? error}`, { cause: error });
    } finally {
      globalThis[CALL] = outer;
    }
    if (typeof value?.then === "function") {
      throw new TypeError(`send destination: ${field} ${shown(text)} gave a promise: an expression cannot wait`);
    }
    return value;
  };
}

/**
 * A text's pieces: strings as they are and expressions compiled, in turns.
 *
 * An expression ends at the first `}}` with which it is one, so that `{{ { a: { b: 1 } } }}` is read as it is meant.
 */
function pieces(field, text, timeout) {
  const out = [];
  let rest = text;
  for (;;) {
    const open = rest.indexOf("{{");
    if (open === -1) {
      out.push(rest);
      return out;
    }
    out.push(rest.slice(0, open));
    rest = rest.slice(open + 2);
    let first = null;
    for (let close = rest.indexOf("}}"); ; close = rest.indexOf("}}", close + 1)) {
      if (close === -1) throw first ?? new SyntaxError(`send destination: ${field} ${shown(text)} has {{ without its }}`);
      try {
        out.push(compile(field, rest.slice(0, close), timeout));
        rest = rest.slice(close + 2);
        break;
      } catch (error) {
        first ??= error;
      }
    }
  }
}

export const hasTemplate = (text) => text.includes("{{");

/** What a text gives for each event: the text itself where it has no `{{`. */
export function template(field, text, timeout, { encode = String } = {}) {
  if (!hasTemplate(text)) return () => text;
  const parts = pieces(field, text, timeout);
  if (parts.length === 3 && parts[0].trim() === "" && parts[2].trim() === "") return parts[1];
  return ($event, steps) => parts.map((part) => {
    if (typeof part === "string") return part;
    const value = part($event, steps);
    if (!["string", "number", "boolean"].includes(typeof value)) {
      throw new TypeError(`send destination: invalid value ${typeof value === "object" && value !== null ? "[object]" : shown(value)} in ${field}: an expression within a text must give a string or a number`);
    }
    return encode(value);
  }).join("");
}

/** The same for every text within a value. Names are not evaluated, so one with `{{` is refused. */
export function deep(field, value, timeout) {
  if (typeof value === "string") return template(field, value, timeout);
  if (Array.isArray(value)) {
    const members = value.map((one, at) => deep(join(field, at), one, timeout));
    return ($event, steps) => members.map((member) => member($event, steps));
  }
  const plain = value !== null && typeof value === "object" && [Object.prototype, null].includes(Object.getPrototypeOf(value));
  if (!plain) return () => value;
  const members = Object.entries(value).map(([key, one]) => {
    if (hasTemplate(key)) throw new TypeError(`send destination: a name is not evaluated, and ${shown(key)} in ${field} has {{`);
    return [key, deep(join(field, key), one, timeout)];
  });
  return ($event, steps) => Object.fromEntries(members.map(([key, member]) => [key, member($event, steps)]));
}
