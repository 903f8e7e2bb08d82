// Steps as workflow authors write them run unchanged.

import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";

import { connect, installGlobals } from "../index.js";
import { mockApi } from "./mock-api.js";

installGlobals();
const load = async (name) => (await import(`./steps/${name}.js`)).default;
const NAMES = ["Luke", "Han", "Leia", "Obi Wan"].map((name) => ({ name }));

let mock;
let egress;
let execution;
let runs = 0;
before(async () => {
  mock = await mockApi();
  egress = connect({ api: mock.api, development: false });
});
after(async () => {
  egress.close();
  await mock.close();
});
beforeEach(() => {
  execution = `run-${(runs += 1)}`;
  mock.clear();
});

const runOne = async (name, more = {}) =>
  egress.runWorkflow({ execution, workflow: "jedi", steps: [{ name, component: await load(name) }], ...more });

test("a step that sends one object", async () => {
  const { report } = await runOne("post");
  assert.deepEqual(mock.items(execution), [{
    method: "POST",
    url: "https://receiver.test/jedi",
    data: { name: "Luke Skywalker" },
    context: { workflow: "jedi", execution, step: "post" },
  }]);
  assert.deepEqual(mock.calls.map((call) => call.path), [`/v1/executions/${execution}/sends`, `/v1/executions/${execution}/finish`]);
  assert.equal(mock.execution(execution).state, "finished");
  assert.deepEqual(report.ids, mock.execution(execution).sends.map((send) => send.id));
  assert.equal(report.released, 1);
});

for (const name of ["for-each", "for-of", "older"]) {
  test(`the loop over four names: ${name}`, async () => {
    const { report } = await runOne(name);
    assert.deepEqual(mock.items(execution).map((item) => item.data), NAMES);
    assert.equal(mock.calls.length, 2, "one call for the sends, one to finish");
    assert.equal(report.ids.length, 4);
  });
}

test("a component action that only calls $.send.http", async () => {
  await runOne("action");
  assert.deepEqual(mock.items(execution).map(({ method, url, data }) => ({ method, url, data })), [
    { method: "GET", url: "https://receiver.test/", data: undefined },
  ]);
});

test("every field goes as it was written, and a step's value goes to the next", async () => {
  const { value } = await runOne("everything", { event: { body: { n: 1 } } });
  assert.deepEqual(mock.items(execution)[0], {
    method: "PUT",
    url: "https://receiver.test/items?page=1",
    data: { event: { body: { n: 1 } }, price: 12.5 },
    headers: { "Content-Type": "application/json", "X-Tries": 3, "X-Tags": ["a", "b"] },
    params: { page: 2, tag: ["x", "y z"], dry: false },
    auth: { username: "luke", password: "t65-xwing" },
    context: { workflow: "jedi", execution, step: "everything" },
  });
  assert.equal(value.everything.$return_value, "done");
});

test("sends of several steps go in call order, each with its step", async () => {
  const steps = [];
  for (const name of ["post", "for-each", "action"]) steps.push({ name, component: await load(name) });
  const { report } = await egress.runWorkflow({ execution, steps });
  assert.deepEqual(mock.items(execution).map((item) => item.context.step), ["post", ...Array(4).fill("for-each"), "action"]);
  assert.deepEqual(report.sends.map((send) => send.step), ["post", ...Array(4).fill("for-each"), "action"]);
  assert.equal(mock.calls.length, 2);
});

test("the older $send belongs to the run it is called in, however many go on at once", async () => {
  const component = async () => {
    for (let turn = 0; turn < 5; turn += 1) {
      $send.http({ method: "GET", url: "https://receiver.test/" });
      await new Promise(setImmediate);
    }
  };
  const names = Array.from({ length: 20 }, (_, at) => `${execution}-${at}`);
  await Promise.all(names.map((name) => egress.runWorkflow({ execution: name, steps: [{ name: "older", component }] })));
  for (const name of names) {
    assert.equal(mock.items(name).length, 5, name);
    assert.ok(mock.items(name).every((item) => item.context.execution === name));
  }
  assert.throws(() => globalThis.$send, /outside a step/);
});

test("a run that sends nothing makes no call", async () => {
  const { report } = await egress.run({ execution }, () => {});
  assert.equal(mock.calls.length, 0);
  assert.deepEqual(report, { execution, ids: [], sends: [], released: 0, discarded: 0 });
});

test("the runner's own $ is still there, under send", async () => {
  const { $ } = egress.begin().step("a", { export: () => "exported", flow: { exit: 1 } });
  assert.equal($.export(), "exported");
  assert.equal(typeof $.send.http, "function");
});
