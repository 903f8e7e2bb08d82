// `$` as steps know it, beside `$.send`: what a step exports, answers its caller with, and ends early.
//
// A member of the runner's own `$` wins over the one from here. Nothing here can keep a step from sending: an early
// end lets the step return first, and what it sent is handed over.

import { shown } from "./snapshot.js";

/** What the platform's `$.flow` has besides and cannot be had without its scheduler. */
const DURABLE = ["delay", "suspend", "rerun"];

/** What one run's steps have said, apart from what they send. */
export class Said {
  /** By step: what it exported. */
  exports = {};
  /** `{ status, headers, body, immediate }` of the first `$.respond`, or `null`. */
  response = null;
  /** `{ step, reason }` of the first `$.flow.exit`, or `null`. */
  exit = null;
}

/**
 * @param {Said} said
 * @param {string} step
 * @param {object} context  what `$.context` shows
 * @param {{log: (level: string, message: string) => void, respond: () => Promise<void>}} hooks  `respond`: the
 *   answer is to go out now
 * @returns {object} `export`, `respond`, `flow` and `context`
 */
export function dollar(said, step, context, { log, respond }) {
  const flow = {
    exit(reason) {
      said.exit ??= { step, reason: reason ?? null };
    },
  };
  for (const name of DURABLE) {
    flow[name] = () => {
      throw new TypeError(`$.flow.${name} in step ${step}: not supported here, and the runner's own $ does not have it`);
    };
  }
  return {
    export(key, value) {
      if (typeof key !== "string" || key === "") {
        throw new TypeError(`$.export in step ${step}: invalid value ${shown(key)} for the name: write a string`);
      }
      // Also a name such as `__proto__` is only a name.
      Object.defineProperty((said.exports[step] ??= {}), key, { value, enumerable: true, writable: true, configurable: true });
    },
    async respond(given) {
      if (given === null || typeof given !== "object") {
        throw new TypeError(`$.respond in step ${step}: invalid argument ${shown(given)}: give one object, such as { status: 200, body }`);
      }
      const { status = 200, headers = {}, body, immediate = false } = given;
      if (!(Number.isInteger(status) && status >= 200 && status <= 599)) {
        throw new TypeError(`$.respond in step ${step}: invalid value ${shown(status)} for status: write a number from 200 to 599`);
      }
      if (said.response !== null) {
        log("warn", `$.respond in step ${step}: this run has answered already, with ${said.response.status}; the first answer counts`);
        return;
      }
      said.response = { status, headers, body, immediate: immediate === true };
      if (said.response.immediate) await respond();
    },
    flow,
    context,
  };
}

/**
 * What a component's `this` holds: its methods, its props' defaults where nothing is given, and the props given.
 *
 * A default is copied, so that no run sees what another made of it. Props of an app have the app's methods.
 */
export function bound(component, given = {}) {
  const self = { ...component.methods };
  for (const [name, definition] of Object.entries(component.props ?? {})) {
    if (definition?.type === "app") self[name] = { ...definition.methods };
    const value = defaultOf(definition);
    if (value !== undefined) self[name] = structuredClone(value);
  }
  for (const [name, value] of Object.entries(given)) {
    if (component.props?.[name]?.type === "app" && value !== null && typeof value === "object") Object.assign(self[name], value);
    else if (value !== undefined) self[name] = value;
  }
  return self;
}

/** A prop may be defined by its app: `propDefinition: [app, name]`, which its own members go over. */
function defaultOf(definition) {
  if (definition === null || typeof definition !== "object") return undefined;
  if ("default" in definition) return definition.default;
  const [app, name] = Array.isArray(definition.propDefinition) ? definition.propDefinition : [];
  return app?.propDefinitions?.[name]?.default;
}
