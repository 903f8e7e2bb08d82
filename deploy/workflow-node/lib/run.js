// One run of a workflow: what its steps send is collected, and handed over once, when the run ends.

import { SendCallError } from "./errors.js";
import { emailText, eventText, sendText } from "./call.js";
import { dollar, Said } from "./dollar.js";
import { handOver, plan } from "./handover.js";
import { CONTEXT_CHARS } from "./limits.js";
import { shown } from "./snapshot.js";

/** Senders that the platform has and this tier has not. */
const OTHER_SENDERS = ["snowflake"];

const SENDERS = { http: sendText, email: emailText, s3: eventText("s3"), sql: eventText("sql") };

/** Senders that are the platform's own, with what each reaches. */
const PLATFORM_SENDERS = { emit: "the workflows that listen to this one", sse: "the platform's own event streams" };

const AWAIT_HINT = "await has no effect here, and there is no response to read: delivery is asynchronous, "
  + "it is made after the workflow finishes. Its record shows what came back.";

export class Run {
  #api;
  #options;
  #texts = [];
  #bytes = 0;
  #state = "collecting";
  #ending = null;
  #plan = null;
  #hinted = new Set();
  #said = new Said();
  #respond;

  constructor(api, { execution, workflow, context = {}, respond }, options) {
    this.#api = api;
    this.#options = options;
    this.execution = contextText("execution", execution);
    this.workflow = workflow === undefined || workflow === null ? null : contextText("workflow", workflow);
    if (respond !== undefined && typeof respond !== "function") {
      throw new TypeError(`invalid value ${shown(respond)} for respond: write a function that answers the workflow's caller`);
    }
    this.#respond = respond;
    /** What `$.context` shows: the run's own, and what the runner adds. */
    this.context = {
      id: this.execution, trace_id: this.execution, workflow_id: this.workflow, workflow_name: this.workflow,
      ts: new Date().toISOString(), test: false, replay: false, ...context,
    };
    /** What the end of the run did; `null` before. */
    this.report = null;
  }

  /** How many sends were collected so far. */
  get collected() {
    return this.#texts.length;
  }

  /** What the steps exported, by step: `{ notify: { $summary: "…" } }`. */
  get exports() {
    return this.#said.exports;
  }

  /** What a step answered the workflow's caller with, or `null`. */
  get response() {
    return this.#said.response;
  }

  /** Which step ended the workflow early, and its reason, or `null`. */
  get exit() {
    return this.#said.exit;
  }

  /**
   * `$` and `$send` for one step.
   *
   * @param {string} name
   * @param {object} base  the runner's own `$`: its members win, and `send` is put on top of it
   */
  step(name, base = {}) {
    const step = contextText("step", name);
    const $ = Object.create(base, { send: { value: this.#senders("$.send", step), enumerable: true } });
    const ours = dollar(this.#said, step, this.context, { log: this.#options.log, respond: () => this.#answer() });
    for (const [member, value] of Object.entries(ours)) {
      if (!(member in base)) Object.defineProperty($, member, { value, enumerable: true, writable: true });
    }
    return { $, $send: this.#senders("$send", step) };
  }

  /** The steps are done: an answer that was not to go out at once goes out now. */
  async answer() {
    if (this.response !== null && !this.response.immediate) await this.#answer();
  }

  /** A caller that has gone away must not cost the run its sends. */
  async #answer() {
    try {
      await this.#respond?.(this.response);
    } catch (error) {
      this.#options.log("warn", `execution ${this.execution}: its caller could not be answered: ${error?.message ?? error}`);
    }
  }

  #senders(root, step) {
    const known = {};
    for (const [name, text] of Object.entries(SENDERS)) known[name] = (argument) => this.#collect(text, `${root}.${name}`, argument, step);
    for (const [name, reaches] of Object.entries(PLATFORM_SENDERS)) known[name] = platformsOwn(root, name, reaches);
    for (const name of OTHER_SENDERS) known[name] = unsupported(root, name);
    return new Proxy(Object.freeze(known), {
      // An unknown sender gets a message about senders, not "is not a function". Names that JavaScript itself looks
      // for (`then`, `toJSON`, symbols) stay absent.
      get: (target, name) => {
        if (typeof name === "symbol" || Object.hasOwn(target, name)) return target[name];
        return name in Object.prototype || name === "then" || name === "toJSON" ? target[name] : unsupported(root, name);
      },
    });
  }

  #collect(write, caller, argument, step) {
    const refuse = (message) => {
      throw new SendCallError(caller, [{ path: "", message }]);
    };
    if (this.#state !== "collecting") {
      refuse(`called after the run of execution ${this.execution} ended, so it cannot be sent: await the work that calls it`);
    }
    const { limits } = this.#options;
    const context = { execution: this.execution, step };
    if (this.workflow !== null) context.workflow = this.workflow;
    const text = write(caller, argument, context, limits);
    // Reading the argument may have run the author's code (getters, toJSON), which may have sent something itself.
    if (this.#texts.length >= limits.sendsPerExecution) {
      refuse(`this run has ${this.#texts.length} sends already, and an execution may have ${limits.sendsPerExecution}`);
    }
    const bytes = Buffer.byteLength(text);
    if (this.#bytes + bytes > limits.collectedBytes) {
      refuse(`this run's sends would take ${this.#bytes + bytes} bytes, and ${limits.collectedBytes} may be collected`);
    }
    this.#texts.push(text);
    this.#bytes += bytes;
    return this.#options.development ? this.#hinting(caller, step) : undefined;
  }

  /** Awaited it gives `undefined`, as outside development, and says once per step that waiting is no use. */
  #hinting(caller, step) {
    return {
      then: (resolve) => {
        if (!this.#hinted.has(step)) {
          this.#hinted.add(step);
          this.#options.log("warn", `${caller} in step ${step}: ${AWAIT_HINT}`);
        }
        resolve(undefined);
      },
    };
  }

  /**
   * Ends the run: hands over what it collected, or, where it threw and `onThrow` is "discard", drops it and says so.
   * Called again it answers the same; after a failed hand-over it goes on where that stopped.
   *
   * @param {{threw?: boolean, signal?: AbortSignal}} how
   */
  end({ threw = false, signal } = {}) {
    if (this.#ending !== null) return this.#ending;
    this.#state = "ended";
    this.#ending = this.#end(threw, signal).catch((error) => {
      this.#ending = null;
      throw error;
    });
    return this.#ending;
  }

  async #end(threw, signal) {
    const { onThrow, limits, log } = this.#options;
    const base = { execution: this.execution, ids: [], sends: [], released: 0, discarded: 0 };
    if (this.#plan === null && threw && onThrow === "discard") {
      const discarded = this.#texts.length;
      this.#texts = [];
      if (discarded > 0) log("warn", `execution ${this.execution} threw: its ${discarded} collected sends were discarded`);
      return (this.report = { ...base, discarded });
    }
    if (this.#plan === null) {
      this.#plan = plan(this.execution, this.#texts, limits);
      this.#texts = [];
    }
    if (this.#plan.calls.length === 0 && this.#plan.accepted.length === 0) return (this.report = base);
    try {
      this.report = { ...base, ...await handOver(this.#api, this.#plan, { ...this.#options, signal }) };
    } catch (error) {
      if (error?.resume) this.#plan = error.resume;
      throw error;
    }
    return this.report;
  }
}

function unsupported(root, name) {
  return () => {
    throw new SendCallError(`${root}.${name}`, [{ path: "", message: `not supported: the senders here are ${Object.keys(SENDERS).map((one) => `${root}.${one}`).join(", ")}` }]);
  };
}

function platformsOwn(root, name, reaches) {
  return () => {
    throw new SendCallError(`${root}.${name}`, [{
      path: "",
      message: `${root}.${name} is the platform's own, as it reaches ${reaches}: egressd has no part in it. A platform makes it `
        + `with POST /v1/sends to its own trigger, { method: "POST", url: TRIGGER, data: event }, or puts its own in place of this`,
    }]);
  };
}

/** A text of a send's context, which the API bounds. */
export function contextText(name, value) {
  if (typeof value !== "string" || value === "" || [...value].length > CONTEXT_CHARS) {
    throw new TypeError(`invalid value ${shown(value)} for ${name}: write a string of 1 to ${CONTEXT_CHARS} characters`);
  }
  return value;
}
