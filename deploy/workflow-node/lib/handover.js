// Handing over: what a run collected becomes as few API calls as the limits allow, held under the execution, then
// released together.
//
// Safe to repeat: a call's idempotency key depends on the execution and on its place among the calls alone, so the
// same collection handed over again is the same sends. Never quiet: what was not handed over is in the error.

import { createHash } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { ApiError, HandOverError } from "./errors.js";

/** First and longest pause before a call is made again, in milliseconds. */
const PAUSE_FIRST = 100;
const PAUSE_LONGEST = 2000;

/**
 * The calls that hand these sends over. Plain data: it survives `JSON.stringify`, so a runner can keep it on disk.
 *
 * @param {string} execution
 * @param {string[]} texts  JSON text of each send, in call order
 */
export function plan(execution, texts, limits) {
  const calls = [];
  let sends = [];
  let bytes = 2;
  for (const text of texts) {
    const size = Buffer.byteLength(text) + 1;
    if (sends.length > 0 && (sends.length === limits.sendsPerRequest || bytes + size > limits.apiRequestBytes)) {
      calls.push(sends);
      sends = [];
      bytes = 2;
    }
    sends.push(text);
    bytes += size;
  }
  if (sends.length > 0) calls.push(sends);
  const name = createHash("sha256").update(execution).digest("hex").slice(0, 32);
  return {
    version: 1,
    execution,
    calls: calls.map((texts, place) => ({ key: `workflow-node-${name}-${place}`, sends: texts })),
    accepted: [],
    refused: [],
  };
}

/**
 * Hands a plan over and releases it.
 *
 * @param {Api} api
 * @param {ReturnType<typeof plan>} plan
 * @param {{timeout: number, callTimeout: number, signal?: AbortSignal}} bounds  milliseconds
 * @returns {Promise<{execution: string, ids: string[], sends: {id: string, step: string|null}[], released: number}>}
 * @throws {HandOverError}
 */
export async function handOver(api, plan, bounds) {
  const budget = new Budget(bounds);
  const path = `/v1/executions/${segment(plan.execution)}`;
  const accepted = [...plan.accepted];
  const refused = [...plan.refused];
  const total = accepted.length + refused.length + plan.calls.reduce((sum, call) => sum + call.sends.length, 0);
  const left = [...plan.calls];
  let cause;
  try {
    while (left.length > 0) {
      const [call] = left;
      await hold(call);
      left.shift();
    }
    const { released } = await budget.call((signal) => api.post(`${path}/finish`, "", { signal }));
    if (refused.length > 0) {
      throw failure(
        `${refused.length} of ${total} sends were refused: ${refused[0].reason}. The others were released.`,
        { finished: true, released, cause },
      );
    }
    return { execution: plan.execution, ids: accepted.map((send) => send.id), sends: accepted, released };
  } catch (error) {
    if (error instanceof HandOverError || !(error instanceof ApiError)) throw error;
    const waiting = left.reduce((sum, call) => sum + call.sends.length, 0);
    const held = accepted.length === 0 ? "" : ` ${accepted.length} held by egressd leave when this is resumed, or at its hold limit.`;
    const first = waiting > 0
      ? `${waiting} of ${total} sends were not handed over: ${error.message}.`
      : `its sends were handed over but not released: ${error.message}.`;
    throw failure(`${first}${held}`, { finished: false, released: null, cause: error });
  }

  /** One call; items that the API refuses by name are taken out, so that one wrong send does not stop the others. */
  async function hold(call) {
    let { key, sends } = call;
    const out = [];
    for (;;) {
      let answer;
      try {
        answer = await budget.call((signal) => api.post(`${path}/sends`, `[${sends.join(",")}]`, { key, signal }));
      } catch (error) {
        const wrong = error.status === 400 || error.status === 413 ? refusedItems(error, sends.length) : null;
        if (wrong === null) throw error;
        cause = error;
        const reasons = wrong === "all" ? new Map(sends.map((_, at) => [at, error.message])) : wrong;
        for (const [at, reason] of reasons) out.push({ send: JSON.parse(sends[at]), reason });
        sends = sends.filter((_, at) => !reasons.has(at));
        if (sends.length === 0) break;
        key = `${key}-r`;
        continue;
      }
      if (!Array.isArray(answer.sends) || answer.sends.length !== sends.length) {
        throw new ApiError(`POST ${api.address(`${path}/sends`)}: the answer does not name ${sends.length} sends; is this egressd's API?`);
      }
      answer.sends.forEach((record, at) => {
        accepted.push({ id: record.id, step: JSON.parse(sends[at]).context.step ?? null });
      });
      break;
    }
    refused.push(...out);
  }

  function failure(said, { finished, released, cause }) {
    const waiting = left.flatMap((call) => call.sends).map((text) => JSON.parse(text));
    return new HandOverError(`execution ${plan.execution}: ${said}`, {
      cause,
      execution: plan.execution,
      accepted,
      unsent: [...refused.map(({ send }) => send), ...waiting],
      refused,
      released,
      finished,
      // A refused send is refused again: only what may still be handed over can be resumed.
      resume: finished ? null : { ...plan, calls: left, accepted, refused },
      status: cause?.status ?? null,
      code: cause?.code ?? null,
    });
  }
}

/** Which items a refusal names, each with what is wrong; "all" where it names none of them. */
function refusedItems(error, length) {
  const items = new Map();
  for (const { pointer, detail, hint } of error.errors) {
    const at = /^\/(\d+)(?:\/|$)/.exec(pointer ?? "")?.[1];
    if (at === undefined || Number(at) >= length) return "all";
    const said = `${pointer.slice(at.length + 1) || "/"}: ${detail}${hint ? ` (${hint})` : ""}`;
    items.set(Number(at), items.has(Number(at)) ? `${items.get(Number(at))}; ${said}` : said);
  }
  return items.size === 0 ? "all" : items;
}

/** An execution's name as one segment of a path. */
export function segment(name) {
  return encodeURIComponent(name).replace(/^\.+$/, (dots) => "%2E".repeat(dots.length));
}

/** The time that all calls of one hand-over share. */
export class Budget {
  constructor({ timeout, callTimeout, signal }) {
    this.ends = performance.now() + timeout;
    this.timeout = timeout;
    this.callTimeout = callTimeout;
    this.signal = signal;
  }

  /** Makes a call that may be repeated, until it succeeds, is refused for good, or the time is used up. */
  async call(make) {
    for (let attempt = 0; ; attempt += 1) {
      const left = this.ends - performance.now();
      if (left <= 0) throw new ApiError(`no time left of ${this.timeout} ms`, { again: true });
      const limit = AbortSignal.timeout(Math.max(1, Math.ceil(Math.min(left, this.callTimeout))));
      const signal = this.signal === undefined ? limit : AbortSignal.any([limit, this.signal]);
      try {
        return await make(signal);
      } catch (error) {
        if (!(error instanceof ApiError) || !error.again || this.signal?.aborted) throw error;
        const backoff = Math.min(PAUSE_FIRST * 2 ** attempt, PAUSE_LONGEST) * (0.5 + Math.random() / 2);
        const pause = error.retryAfter === null ? backoff : error.retryAfter * 1000;
        // Waiting past the end would only hide what the last answer said.
        if (performance.now() + pause >= this.ends) {
          error.message += ` (tried ${attempt + 1} ${attempt === 0 ? "time" : "times"} within ${this.timeout} ms)`;
          throw error;
        }
        try {
          await sleep(pause, undefined, { signal: this.signal });
        } catch {
          throw error;
        }
      }
    }
  }
}
