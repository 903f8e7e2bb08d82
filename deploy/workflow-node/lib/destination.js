// A `send` destination by configuration: where to, and what, with values of the event in it.

import { METHODS } from "./call.js";
import { shown } from "./snapshot.js";
import { compile, deep, hasTemplate, template } from "./template.js";

const KEYS = ["url", "endpoint", "payload", "method", "headers", "params", "auth", "timeout"];

/**
 * A step that sends one request per event.
 *
 * In `url` (or `endpoint`, its older name), `method`, `headers`, `params`, `auth` and `payload`, `{{ expression }}`
 * stands for a value of the event; in an address it is percent-encoded, and a text that is one such expression alone
 * is its value, whatever that is. A `payload` without `{{` is a JavaScript expression as a whole; where it gives
 * `undefined`, nothing is sent. Expressions see `$event` and `steps`, and run in this process, with all its rights.
 *
 * @returns a component: `{ run({ steps, $ }) }`
 */
export function sendDestination(configuration) {
  for (const key of Object.keys(configuration)) {
    if (!KEYS.includes(key)) throw new TypeError(`send destination: unknown key ${key}: there is ${KEYS.join(", ")}`);
  }
  const { timeout = 1000 } = configuration;
  const parts = {
    method: method(configuration, timeout),
    url: address(configuration, timeout),
    headers: object("headers", configuration, timeout),
    params: object("params", configuration, timeout),
    auth: object("auth", configuration, timeout),
  };
  const data = payload(configuration.payload ?? "$event", timeout);
  return {
    run({ steps, $ }) {
      const $event = steps?.trigger?.event;
      const value = data($event, steps);
      if (value === undefined) return;
      const call = {};
      for (const [name, part] of Object.entries(parts)) {
        const given = part($event, steps);
        if (given !== undefined) call[name] = given;
      }
      // A GET destination has nowhere to put a payload; its expression only decides whether to send.
      if (call.method !== "GET" && call.method !== "HEAD") call.data = value;
      $.send.http(call);
    },
  };
}

function address({ url, endpoint }, timeout) {
  if (url !== undefined && endpoint !== undefined) throw new TypeError("send destination: url and endpoint are one thing: write one of them");
  const [field, text] = endpoint !== undefined ? ["endpoint", endpoint] : ["url", url];
  if (typeof text !== "string" || text === "") {
    throw new TypeError(`send destination: invalid value ${shown(text)} for ${field}: write an address`);
  }
  const value = template(field, text, timeout, { encode: encodeURIComponent });
  return ($event, steps) => {
    const given = value($event, steps);
    if (typeof given === "string") return given;
    if (given instanceof URL) return given.href;
    throw new TypeError(`send destination: invalid value ${shown(given)} for ${field}: ${text.trim()} must give an address`);
  };
}

function method({ method: given = "POST" }, timeout) {
  if (typeof given !== "string" || (!hasTemplate(given) && !METHODS.includes(given))) {
    throw new TypeError(`send destination: invalid value ${shown(given)} for method: write one of ${METHODS.join(", ")}`);
  }
  return template("method", given, timeout);
}

/** Headers, params or auth: an object, or one expression that gives it. */
function object(field, { [field]: given }, timeout) {
  if (given === undefined || given === null) return () => undefined;
  const whole = typeof given === "string" && /^\s*\{\{[\s\S]*\}\}\s*$/.test(given);
  if (typeof given === "string" ? !whole : typeof given !== "object" || Array.isArray(given)) {
    // It may hold a secret, so its text is not shown.
    throw new TypeError(`send destination: invalid value [${Array.isArray(given) ? "array" : typeof given}] for ${field}: write an object, or one {{ expression }} that gives it`);
  }
  return deep(field, given, timeout);
}

function payload(given, timeout) {
  if (typeof given === "object" && given !== null) return deep("payload", given, timeout);
  if (typeof given !== "string") {
    throw new TypeError(`send destination: invalid value ${shown(given)} for payload: write an expression as a string, such as "$event.body", or an object`);
  }
  if (!hasTemplate(given)) return compile("payload", given, timeout);
  if (/^\s*(\{(?!\{)|\[)/.test(given)) {
    throw new SyntaxError(`send destination: payload ${shown(given)} mixes an expression and {{ }}: write { a: $event.a }, or give an object instead of a text`);
  }
  return template("payload", given, timeout);
}
