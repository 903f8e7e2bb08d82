// Handing over: few calls, safe to repeat, bounded in time, never a quiet loss.

import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";

import { connect, HandOverError, SendCallError } from "../index.js";
import { mockApi } from "./mock-api.js";

const url = "https://receiver.test/";
let mock;
let said;
let execution;
let runs = 0;
const clients = [];
const client = (options = {}) => {
  const made = connect({ api: mock.api, development: false, log: (_, message) => said.push(message), ...options });
  clients.push(made);
  return made;
};
before(async () => {
  mock = await mockApi();
});
after(async () => {
  for (const made of clients) made.close();
  await mock.close();
});
beforeEach(() => {
  execution = `run-${(runs += 1)}`;
  mock.clear();
  said = [];
});

/** A run that has collected `count` sends, numbered from 0. */
function collected(count, options, data = (n) => ({ n })) {
  const run = client(options).begin({ execution });
  const { $ } = run.step("s");
  for (let n = 0; n < count; n += 1) $.send.http({ method: "POST", url, data: data(n) });
  return run;
}
const numbers = (name = execution) => mock.items(name).map((item) => item.data.n);
const range = (count) => Array.from({ length: count }, (_, at) => at);
const caught = async (promise) => {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  return assert.fail("nothing was thrown");
};

test("2,500 sends are three calls and one to finish, in call order", async () => {
  const report = await collected(2500).end();
  assert.equal(mock.calls.length, 4);
  assert.deepEqual(numbers(), range(2500));
  assert.equal(report.ids.length, 2500);
  assert.equal(report.released, 2500);
});

test("no call is larger than the API takes, and none smaller than it must be", async () => {
  await collected(40, {}, (n) => ({ n, fill: "é".repeat(500_000) })).end();
  const sizes = mock.calls.slice(0, -1).map((call) => Buffer.byteLength(call.body));
  assert.equal(sizes.length, 3, `${sizes}`);
  assert.ok(sizes.every((size) => size <= 16 * 1024 * 1024), `${sizes}`);
  assert.ok(sizes.slice(0, -1).every((size) => size + 1_000_100 > 16 * 1024 * 1024), `${sizes}`);
  assert.deepEqual(numbers(), range(40));
});

test("the token, the tenant and a key per call go with it", async () => {
  await collected(3, { token: "secret-token", tenant: "acme", limits: { sendsPerRequest: 2 } }).end();
  assert.deepEqual(mock.calls.map((call) => call.headers.authorization), Array(3).fill("Bearer secret-token"));
  assert.equal(mock.items(execution, "acme").length, 3);
  const keys = mock.calls.slice(0, 2).map((call) => call.headers["idempotency-key"]);
  assert.equal(new Set(keys).size, 2);
  assert.ok(keys.every((key) => key.length <= 255));
});

test("an answer that was lost is asked for again and doubles nothing", async () => {
  mock.tell({ after: "destroy" }, null, { after: "destroy" });
  const report = await collected(3, { limits: { sendsPerRequest: 2 } }).end();
  assert.deepEqual(numbers(), [0, 1, 2]);
  assert.equal(report.ids.length, 3);
  assert.equal(mock.execution(execution).state, "finished");
});

test("429 and 503 are tried again when the API says", async () => {
  mock.tell({ before: { status: 429, json: { code: "tenant_full", detail: "full" }, headers: { "retry-after": "0" } } },
    { before: { status: 503, json: { code: "draining", detail: "draining" } } });
  await collected(1).end();
  assert.deepEqual(mock.calls.map((call) => call.status), [429, 503, 202, 200]);
});

test("handing over twice, in another process too, is the same sends", async () => {
  const first = await collected(5).end();
  const second = await collected(5).end();
  assert.deepEqual(second.ids, first.ids);
  assert.deepEqual(numbers(), range(5));
});

test("ending a run twice makes its calls once", async () => {
  const run = collected(2);
  const [one, two] = await Promise.all([run.end(), run.end()]);
  assert.equal(one, two);
  assert.equal(mock.calls.length, 2);
});

test("another collection under the same execution is refused, and nothing of it is lost quietly", async () => {
  await collected(2).end();
  const error = await caught(collected(3).end());
  assert.ok(error instanceof HandOverError);
  assert.equal(error.code, "idempotency_mismatch");
  assert.equal(error.unsent.length, 3);
  assert.deepEqual(numbers(), [0, 1]);
});

test("a silent API costs no more than the time allowed, and the error holds every send", async () => {
  mock.tell({ before: "hang" }, { before: "hang" }, { before: "hang" }, { before: "hang" });
  const error = await caught(collected(2, { timeout: 400, callTimeout: 150 }).end());
  // It ended, and no call was begun after its time: more of them were to hang.
  assert.ok(mock.calls.length <= 4, `${mock.calls.length} calls`);
  assert.ok(error instanceof HandOverError);
  assert.match(error.message, /execution run-\d+: 2 of 2 sends were not handed over: POST .* no (answer in time|time left)/);
  assert.deepEqual(error.unsent.map((send) => send.data.n), [0, 1]);
  assert.equal(error.finished, false);
});

test("nobody listening: the error says where it asked and what is left", async () => {
  const error = await caught(collected(1, { api: "http://127.0.0.1:1", timeout: 300 }).end());
  assert.match(error.message, /POST http:\/\/127\.0\.0\.1:1\/v1\/executions\/run-\d+\/sends: .*ECONNREFUSED/);
  assert.equal(error.unsent.length, 1);
});

test("a hand-over cut in the middle goes on where it stopped", async () => {
  const run = collected(6, { limits: { sendsPerRequest: 2 }, timeout: 4000, callTimeout: 2000 });
  mock.tell(null, { before: "hang" }, { before: "hang" }, { before: "hang" });
  const error = await caught(run.end());
  assert.equal(error.accepted.length, 2);
  assert.deepEqual(error.unsent.map((send) => send.data.n), [2, 3, 4, 5]);
  assert.match(error.message, /4 of 6 sends were not handed over: .*\. 2 held by egressd leave when this is resumed/);
  assert.equal(mock.execution(execution).state, "open");
  mock.clear();
  // Kept on disk, and resumed by another process.
  const saved = JSON.parse(JSON.stringify(error.resume));
  const report = await client().resume(saved);
  assert.deepEqual(numbers(), range(6));
  assert.equal(report.ids.length, 6);
  assert.equal(mock.execution(execution).state, "finished");
  // The first run may end again as well: the same sends.
  assert.deepEqual((await run.end()).ids, report.ids);
  assert.deepEqual(numbers(), range(6));
});

test("handed over but not released says exactly that", async () => {
  const run = collected(2, { timeout: 4000, callTimeout: 2000 });
  mock.tell(null, { before: "hang" }, { before: "hang" }, { before: "hang" }, { before: "hang" });
  const error = await caught(run.end());
  assert.equal(error.unsent.length, 0);
  assert.equal(error.accepted.length, 2);
  assert.match(error.message, /handed over but not released/);
  mock.clear();
  assert.equal((await client().resume(error.resume)).released, 2);
});

test("one send that the API refuses does not stop the others, and is named", async () => {
  const run = client().begin({ execution });
  const { $ } = run.step("s");
  for (const n of [0, 1, 2]) $.send.http({ method: "POST", url: n === 1 ? "refuse:me" : url, data: { n } });
  const error = await caught(run.end());
  assert.deepEqual(numbers(), [0, 2]);
  assert.equal(mock.execution(execution).state, "finished");
  assert.equal(error.finished, true);
  assert.equal(error.resume, null);
  assert.deepEqual(error.unsent.map((send) => send.data.n), [1]);
  assert.match(error.refused[0].reason, /\/url: refused by this test \(write another\)/);
});

test("an execution that has ended takes nothing more, and says so", async () => {
  await client().finish(execution);
  const error = await caught(collected(1).end());
  assert.equal(error.status, 409);
  assert.match(error.message, /409 conflict/);
  assert.equal(error.unsent.length, 1);
  assert.equal(mock.calls.length, 2, "a refusal for good is not tried again");
});

test("the error prints no secret; its unsent sends have them for whoever asks", async () => {
  const run = client({ token: "hunter2-token", timeout: 200, api: "http://127.0.0.1:1" }).begin({ execution });
  run.step("s").$.send.http({ method: "GET", url, auth: { username: "a", password: "hunter2" } });
  const error = await caught(run.end());
  const { inspect } = await import("node:util");
  assert.ok(!inspect(error, { depth: 10 }).includes("hunter2"));
  assert.ok(!JSON.stringify(error).includes("hunter2"));
  assert.equal(error.unsent[0].auth.password, "hunter2");
});

test("something else than egressd answering is not taken for success", async () => {
  mock.tell({ raw: "<html>" });
  const error = await caught(collected(1).end());
  assert.match(error.message, /answered 200 without JSON; is this egressd's API\?/);
});

test("a run that throws: discard drops its sends and says so", async () => {
  const thrown = new Error("step failed");
  const error = await caught(client({ onThrow: "discard" }).run({ execution }, (run) => {
    run.step("s").$.send.http({ method: "GET", url });
    throw thrown;
  }));
  assert.equal(error, thrown);
  assert.equal(mock.calls.length, 0);
  assert.match(said[0], /threw: its 1 collected sends were discarded/);
});

test("a run that throws: send hands over what it had collected", async () => {
  const thrown = new Error("step failed");
  let run;
  const error = await caught(client({ onThrow: "send" }).run({ execution }, (one) => {
    run = one;
    one.step("s").$.send.http({ method: "POST", url, data: { n: 7 } });
    throw thrown;
  }));
  assert.equal(error, thrown);
  assert.deepEqual(numbers(), [7]);
  assert.equal(run.report.ids.length, 1);
});

test("a run that throws and cannot hand over tells of both", async () => {
  const error = await caught(client({ onThrow: "send", api: "http://127.0.0.1:1", timeout: 200 }).run({ execution }, (run) => {
    run.step("s").$.send.http({ method: "GET", url });
    throw new Error("step failed");
  }));
  assert.ok(error instanceof HandOverError);
  assert.equal(error.cause.errors[0].message, "step failed");
  assert.equal(error.unsent.length, 1);
});

test("a send after the run has ended throws: it would be lost", async () => {
  const run = collected(1);
  const { $ } = run.step("late");
  await run.end();
  assert.throws(() => $.send.http({ method: "GET", url }), (error) =>
    error instanceof SendCallError && /after the run of execution .* ended.*await the work/.test(error.message));
});

test("the caller's signal stops a hand-over, and nothing is lost quietly", async () => {
  mock.tell({ before: "hang" });
  const stop = new AbortController();
  const ending = collected(1, { timeout: 60_000 }).end({ signal: stop.signal });
  setImmediate(() => stop.abort(new Error("the node shuts down")));
  const error = await caught(ending);
  assert.match(error.message, /the node shuts down/);
  assert.equal(error.unsent.length, 1);
});

test("an execution's name is one segment of the path, whatever it holds", async () => {
  for (const name of ["a/b", "..", "a b?c#d%e", "é", "x".repeat(256)]) {
    const run = client().begin({ execution: name });
    run.step("s").$.send.http({ method: "GET", url });
    await run.end();
    assert.equal(mock.items(name).length, 1, name);
  }
  for (const name of ["", "x".repeat(257), 5, null]) assert.throws(() => client().begin({ execution: name }), /for execution/);
});

test("wrong options are refused, with what to write", () => {
  for (const [options, message] of [
    [{ url: "x" }, /unknown key url/],
    [{ api: "no" }, /for api/],
    [{ api: "http://u:p@h/" }, /holds a username or password/],
    [{ onThrow: "ignore" }, /invalid value ignore for onThrow: write "discard" or "send"/],
    [{ timeout: 0 }, /for timeout/],
    [{ limits: { sends: 1 } }, /limits\.sends/],
  ]) assert.throws(() => connect(options), message);
});
