// A `send` destination by configuration: where to, and an expression for what, evaluated for every event.

import vm from "node:vm";

import { shown } from "./snapshot.js";

const KEYS = ["endpoint", "payload", "method", "headers", "params", "auth", "timeout"];
const CALL = Symbol.for("egressd destination");

/**
 * A step that sends one request per event.
 *
 * `endpoint` is an address in which `{{ expression }}` stands for a value of the event, percent-encoded; an endpoint
 * that is one such expression alone is used as it is. `payload` is any JavaScript expression; where it gives
 * `undefined`, nothing is sent. Both see `$event` and `steps`. They run in this process, with all its rights, as the
 * steps' own code does.
 *
 * @returns a component: `{ run({ steps, $ }) }`
 */
export function sendDestination(configuration) {
  for (const key of Object.keys(configuration)) {
    if (!KEYS.includes(key)) throw new TypeError(`send destination: unknown key ${key}: there is ${KEYS.join(", ")}`);
  }
  const { endpoint, payload = "$event", method = "POST", headers, params, auth, timeout = 1000 } = configuration;
  if (typeof endpoint !== "string" || endpoint === "") {
    throw new TypeError(`send destination: invalid value ${shown(endpoint)} for endpoint: write an address`);
  }
  if (typeof payload !== "string") {
    throw new TypeError(`send destination: invalid value ${shown(payload)} for payload: write an expression as a string, such as "$event.body"`);
  }
  const address = template(endpoint, timeout);
  const data = compile("payload", payload, timeout);
  return {
    run({ steps, $ }) {
      const $event = steps?.trigger?.event;
      const value = data($event, steps);
      if (value === undefined) return;
      if (typeof value?.then === "function") {
        throw new TypeError(`send destination: payload ${shown(payload)} gave a promise: an expression cannot wait`);
      }
      const call = { method, url: address($event, steps), headers, params, auth };
      // A GET destination has nowhere to put a payload; its expression only decides whether to send.
      if (method !== "GET" && method !== "HEAD") call.data = value;
      $.send.http(call);
    },
  };
}

function template(endpoint, timeout) {
  const whole = /^\s*\{\{([\s\S]+)\}\}\s*$/.exec(endpoint);
  if (whole !== null && !whole[1].includes("{{")) {
    const value = compile("endpoint", whole[1], timeout);
    return ($event, steps) => {
      const url = value($event, steps);
      if (typeof url !== "string") {
        throw new TypeError(`send destination: invalid value ${shown(url)} for endpoint: ${whole[1].trim()} must give an address`);
      }
      return url;
    };
  }
  const parts = endpoint.split(/\{\{([\s\S]+?)\}\}/).map((part, at) => (at % 2 === 0 ? part : compile("endpoint", part, timeout)));
  return ($event, steps) => parts.map((part) => {
    if (typeof part === "string") return part;
    const value = part($event, steps);
    if (!["string", "number", "boolean"].includes(typeof value)) {
      throw new TypeError(`send destination: invalid value ${shown(value)} in endpoint: an expression there must give a string or a number`);
    }
    return encodeURIComponent(value);
  }).join("");
}

/** An expression as a function, bounded in time; a mistake in its text is found here and not at the first event. */
function compile(field, text, timeout) {
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
    try {
      return call.runInThisContext({ timeout });
    } catch (error) {
      if (error?.code === "ERR_SCRIPT_EXECUTION_TIMEOUT") {
        throw new Error(`send destination: ${field} ${shown(text)} took longer than ${timeout} ms`, { cause: error });
      }
      throw new Error(`send destination: ${field} ${shown(text)}: ${error?.message ?? error}`, { cause: error });
    } finally {
      globalThis[CALL] = outer;
    }
  };
}
