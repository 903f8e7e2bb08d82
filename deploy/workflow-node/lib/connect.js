// What a runner holds: the connection to egressd, and the runs made from it.

import { AsyncLocalStorage } from "node:async_hooks";
import { randomUUID } from "node:crypto";

import { Api } from "./api.js";
import { bound } from "./dollar.js";
import { HandOverError, SendCallError } from "./errors.js";
import { Budget, handOver, segment } from "./handover.js";
import { LIMITS } from "./limits.js";
import { contextText, Run } from "./run.js";
import { shown } from "./snapshot.js";

const OPTIONS = ["api", "token", "tenant", "tls", "onThrow", "development", "timeout", "callTimeout", "limits", "log"];

/** The step whose code is running, for the older global `$send`. */
const current = new AsyncLocalStorage();

export function connect(options = {}) {
  return new Egress(options);
}

class Egress {
  #api;
  #options;

  constructor(given) {
    for (const key of Object.keys(given)) {
      if (!OPTIONS.includes(key)) throw new TypeError(`connect: unknown key ${key}: there is ${OPTIONS.join(", ")}`);
    }
    const { onThrow = "discard", timeout = 30_000, callTimeout = 10_000, limits = {} } = given;
    if (onThrow !== "discard" && onThrow !== "send") {
      throw new TypeError(`connect: invalid value ${shown(onThrow)} for onThrow: write "discard" or "send"`);
    }
    for (const [name, value] of Object.entries({ timeout, callTimeout })) {
      if (!(Number.isFinite(value) && value > 0 && value <= 2 ** 31 - 1)) {
        throw new TypeError(`connect: invalid value ${shown(value)} for ${name}: write milliseconds`);
      }
    }
    for (const [name, value] of Object.entries(limits)) {
      if (!(name in LIMITS)) throw new TypeError(`connect: unknown key limits.${name}: there is ${Object.keys(LIMITS).join(", ")}`);
      if (!(Number.isSafeInteger(value) && value >= 1)) {
        throw new TypeError(`connect: invalid value ${shown(value)} for limits.${name}: write a whole number`);
      }
    }
    this.#api = new Api({
      api: given.api ?? process.env.EGRESSD_API ?? "http://127.0.0.1:8700",
      token: given.token ?? process.env.EGRESSD_TOKEN,
      tenant: given.tenant,
      tls: given.tls,
    });
    this.#options = {
      onThrow,
      timeout,
      callTimeout,
      limits: { ...LIMITS, ...limits },
      development: given.development ?? process.env.NODE_ENV === "development",
      log: given.log ?? ((level, message) => console[level](message)),
    };
  }

  /** A run whose end the caller brings about: `begin`, its steps, then `end`. */
  begin({ execution = randomUUID(), workflow, context, respond } = {}) {
    return new Run(this.#api, { execution, workflow, context, respond }, this.#options);
  }

  /**
   * Runs `work`, then hands over what it sent. What `work` throws is thrown again, after its sends were discarded or
   * handed over as `onThrow` says; a failed hand-over then names it as its cause.
   *
   * @returns {Promise<{value: any, report: object}>}
   */
  async run(context, work) {
    const { signal, ...rest } = context;
    const run = this.begin(rest);
    let value;
    try {
      value = await work(run);
    } catch (error) {
      try {
        await run.end({ threw: true, signal });
      } catch (failure) {
        if (failure instanceof HandOverError) failure.cause = new AggregateError([error, failure.cause], error?.message);
        throw failure;
      }
      throw error;
    }
    return { value, report: await run.end({ signal }) };
  }

  /**
   * Runs a workflow's steps in order, as the platform does: each gets `{ steps, $ }`, and what it returns or exports is
   * `steps.NAME.$return_value` and `steps.NAME.KEY` to the next ones. `$.flow.exit` ends the workflow after its step;
   * what was sent until then is handed over.
   *
   * @param {{execution?: string, workflow?: string, event?: any, signal?: AbortSignal, context?: object,
   *          respond?: (response: object) => any,
   *          steps: {name: string, component: object | Function, props?: object, $?: object}[]}} workflow
   * @returns {Promise<{value: any, report: object, response: object | null, exit: object | null}>}
   */
  async runWorkflow({ steps: list, event, ...context }) {
    let run;
    const ended = await this.run(context, async (begun) => {
      run = begun;
      const steps = { trigger: { event, context: run.context } };
      for (const { name, component, props = {}, $: base } of list) {
        const { $, $send } = run.step(name, base);
        const call = typeof component === "function"
          ? () => component.call({ ...props }, event, steps)
          : () => component.run.call(bound(component, props), { steps, $ });
        const value = await current.run({ $send }, call);
        steps[name] = { ...steps[name], ...run.exports[name], $return_value: value };
        if (run.exit !== null) break;
      }
      await run.answer();
      return steps;
    });
    return { ...ended, response: run.response, exit: run.exit };
  }

  /** Goes on with a hand-over that failed: `resume` of its error, also after `JSON.stringify` and in another process. */
  async resume(plan, { signal } = {}) {
    if (plan?.version !== 1 || ![plan.calls, plan.accepted, plan.refused].every(Array.isArray)) {
      throw new TypeError("resume: this is not what a HandOverError's resume holds");
    }
    return handOver(this.#api, plan, { ...this.#options, signal });
  }

  /** Releases what an execution holds; safe to repeat. */
  finish(execution, { signal } = {}) {
    return this.#endExecution(execution, "finish", signal);
  }

  /** What an execution holds is never sent; safe to repeat. */
  discard(execution, { signal } = {}) {
    return this.#endExecution(execution, "discard", signal);
  }

  #endExecution(execution, how, signal) {
    const path = `/v1/executions/${segment(contextText("execution", execution))}/${how}`;
    return new Budget({ ...this.#options, signal }).call((signal) => this.#api.post(path, "", { signal }));
  }

  /** Idle connections are closed, so that the process can end. */
  close() {
    this.#api.close();
  }
}

/** A component as the platform's steps write it: the object itself. */
export function defineComponent(component) {
  return component;
}

/**
 * Puts `defineComponent` and the older `$send` into the global scope, where the platform's steps expect them.
 * `$send` is the one of the step whose code is running, however many runs go on at once.
 */
export function installGlobals(target = globalThis) {
  target.defineComponent = defineComponent;
  Object.defineProperty(target, "$send", {
    configurable: true,
    get() {
      const step = current.getStore();
      if (step === undefined) {
        throw new SendCallError("$send", [{ path: "", message: "used outside a step that runWorkflow runs" }]);
      }
      return step.$send;
    },
  });
}
