// Components as they are really written, and the one that this package brings.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { connect, installGlobals, sendHttpRequest } from "../index.js";
import { mockApi } from "./mock-api.js";

installGlobals();
const announce = (await import("./steps/summary.js")).default;

let mock;
let egress;
let said;
let runs = 0;
before(async () => {
  mock = await mockApi();
  egress = connect({ api: mock.api, development: false, log: (_, message) => said.push(message) });
});
after(async () => {
  egress.close();
  await mock.close();
});

/** Runs steps in a run of its own; what came of it, and what was sent. */
async function workflow(steps, more = {}) {
  said = [];
  const execution = `c-${(runs += 1)}`;
  const ended = await egress.runWorkflow({ execution, workflow: "shop", steps, ...more });
  return { ...ended, execution, sent: mock.items(execution).map(({ context, ...item }) => item) };
}
const step = (run, name = "s", more = {}) => ({ name, component: { run, ...more } });

test("an action with props, an app, an export and an answer loses nothing", async () => {
  const event = { body: { orders: [{ id: 7 }, { id: 8 }] } };
  const steps = [
    step(() => "from before", "previous"),
    { name: "announce", component: announce, props: { shop: { $auth: { name: "acme" } } } },
    step(({ steps }) => [steps.announce.$return_value, steps.announce.$summary], "after"),
  ];
  const { value, sent, response, exit, execution } = await workflow(steps, { event });
  const data = { channel: "orders", tags: ["new", "2"], run: execution, previous: "from before" };
  assert.deepEqual(sent, [7, 8].map((id) => ({ method: "POST", url: "https://receiver.test/announce", data: { ...data, line: `acme: ${id}` } })));
  assert.deepEqual(value.after.$return_value, [2, "Announced 2 orders"]);
  assert.deepEqual(response, { status: 202, headers: { "x-orders": 2 }, body: { accepted: true }, immediate: false });
  assert.equal(exit, null);
});

test("a default is every run's own, and what is given goes before it", async () => {
  const event = { body: { orders: [{ id: 1 }] } };
  for (let turn = 0; turn < 2; turn += 1) {
    const { sent } = await workflow([{ name: "a", component: announce, props: { channel: "vip", url: undefined } }], { event });
    assert.deepEqual([sent[0].data.tags, sent[0].data.channel, sent[0].url], [["new", "1"], "vip", "https://receiver.test/announce"]);
  }
  assert.deepEqual(announce.props.tags.default, ["new"]);
});

test("$.flow.exit ends the workflow, and what was sent until then is sent", async () => {
  const send = ({ $ }) => {
    $.send.http({ method: "GET", url: "https://receiver.test/" });
    return $.flow.exit("enough");
  };
  const { sent, exit, value } = await workflow([step(send, "first"), step(send, "second")]);
  assert.equal(sent.length, 1);
  assert.deepEqual(exit, { step: "first", reason: "enough" });
  assert.equal("second" in value, false);
  assert.deepEqual((await workflow([{ name: "a", component: announce }], { event: { body: {} } })).exit, { step: "a", reason: "no orders" });
});

test("the caller is answered once: at once, or when the steps are done", async () => {
  const order = [];
  const respond = (response) => order.push(`answered ${response.status}`);
  const steps = [
    step(async ({ $ }) => {
      await $.respond({ status: 200, immediate: true, body: "early" });
      order.push("first done");
    }, "first"),
    step(({ $ }) => $.respond({ status: 500 }), "second"),
  ];
  assert.equal((await workflow(steps, { respond })).response.body, "early");
  assert.deepEqual(order, ["answered 200", "first done"]);
  assert.match(said[0], /\$\.respond in step second: this run has answered already, with 200/);
  order.length = 0;
  await workflow([step(async ({ $ }) => {
    await $.respond({ body: "late" });
    order.push("first done");
  })], { respond });
  assert.deepEqual(order, ["first done", "answered 200"]);
});

test("a caller that has gone away costs no send", async () => {
  for (const immediate of [true, false]) {
    const { sent } = await workflow([step(async ({ $ }) => {
      $.send.http({ method: "GET", url: "https://receiver.test/" });
      await $.respond({ immediate });
    })], { respond: () => Promise.reject(new Error("gone")) });
    assert.equal(sent.length, 1);
    assert.match(said[0], /its caller could not be answered: gone/);
  }
});

test("$.context says which run this is, with what the runner adds", async () => {
  const { value, execution } = await workflow([step(({ steps, $ }) => [$.context, steps.trigger.context])], { context: { owner_id: "o_1", test: true } });
  const [here, trigger] = value.s.$return_value;
  assert.deepEqual(here, trigger);
  const { ts, ...rest } = here;
  assert.ok(Math.abs(Date.now() - Date.parse(ts)) < 60_000);
  assert.deepEqual(rest, { id: execution, trace_id: execution, workflow_id: "shop", workflow_name: "shop", test: true, replay: false, owner_id: "o_1" });
});

test("the runner's own members win, one by one", async () => {
  const mine = [];
  const { value } = await workflow([{ ...step(({ $ }) => {
    $.export("a", 1);
    return typeof $.flow.exit + typeof $.respond;
  }), $: { export: (...given) => mine.push(given) } }]);
  assert.deepEqual(mine, [["a", 1]]);
  assert.equal(value.s.$return_value, "functionfunction");
  assert.equal("a" in value.s, false);
});

test("a runner with steps of its own finds the same on its run", async () => {
  const run = egress.begin({ execution: `c-${(runs += 1)}` });
  const { $ } = run.step("mine");
  $.export("__proto__", "a name like any other");
  await $.respond({ status: 204 });
  $.flow.exit();
  assert.deepEqual(Object.entries(run.exports.mine), [["__proto__", "a name like any other"]]);
  assert.equal({}.polluted, undefined);
  assert.deepEqual([run.response.status, run.exit], [204, { step: "mine", reason: null }]);
});

test("wrong calls say what to write", async () => {
  const { $ } = egress.begin().step("s");
  assert.throws(() => $.export(5, 1), /\$\.export in step s: invalid value 5 for the name: write a string/);
  await assert.rejects($.respond("ok"), /\$\.respond in step s: invalid argument ok: give one object/);
  await assert.rejects($.respond({ status: "ok" }), /for status: write a number from 200 to 599/);
  for (const name of ["delay", "suspend", "rerun"]) assert.throws(() => $.flow[name](5), new RegExp(`\\$\\.flow\\.${name} in step s: not supported here`));
  assert.throws(() => egress.begin({ respond: 5 }), /invalid value 5 for respond/);
});

test("Send HTTP Request: address and payload first, the rest as sections that may stay closed", async () => {
  const names = Object.keys(sendHttpRequest.props);
  assert.deepEqual(names, ["url", "payload", "method", "auth", "query", "headers"]);
  for (const name of names) assert.equal(sendHttpRequest.props[name].optional === true, name !== "url", name);
  const url = "https://receiver.test/a";
  for (const [props, sent] of [
    [{ url }, { method: "POST", url }],
    [{ url, payload: { n: 1 } }, { method: "POST", url, data: { n: 1 } }],
    [{ url, payload: "", query: {}, headers: {}, auth: {} }, { method: "POST", url }],
    [{ url, payload: false }, { method: "POST", url, data: false }],
    [{ url, payload: [], method: "PUT", auth: { username: "u", password: "p" }, query: { a: ["b", "c"] }, headers: { "X-A": "1" } },
      { method: "PUT", url, data: [], auth: { username: "u", password: "p" }, params: { a: ["b", "c"] }, headers: { "X-A": "1" } }],
    [{ url, method: "GET" }, { method: "GET", url }],
  ]) {
    const { sent: items, value } = await workflow([{ name: "send", component: sendHttpRequest, props }]);
    assert.deepEqual(items, [sent]);
    assert.equal(value.send.$summary, `Handed over: ${sent.method} receiver.test, sent when the workflow finishes`);
  }
  await assert.rejects(workflow([{ name: "send", component: sendHttpRequest, props: {} }]), /\$\.send\.http: invalid value undefined for url/);
});

test("the install line of the README works, far from this tree", async () => {
  const home = await mkdtemp(join(tmpdir(), "egressd-install-"));
  try {
    const run = (script) => execFileSync("bash", ["-ec", script], { cwd: home, encoding: "utf8", env: { ...process.env, EGRESSD: fileURLToPath(new URL("../../..", import.meta.url)), npm_config_offline: "true" } });
    run('npm init -y >/dev/null; npm install --silent --no-audit --no-fund "$(npm pack --silent "$EGRESSD/deploy/workflow-node")"');
    const script = 'import { connect, sendDestination } from "egressd-workflow-node"; import action from "egressd-workflow-node/send-http-request"; console.log(typeof connect, typeof sendDestination, action.name)';
    assert.equal(run(`node --input-type=module -e '${script}'`).trim(), "function function Send HTTP Request");
  } finally {
    await rm(home, { recursive: true });
  }
});
