// The authors' steps against the real thing: the binary that EGRESSD_BIN names, as `egressd demo` runs it, with its
// request bins as receivers.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";

import { connect, HandOverError, installGlobals, sendDestination } from "../index.js";

installGlobals();
const SOURCES = new Set(["127.0.0.11", "127.0.0.12", "127.0.0.13"]);

let demo;
let api;
let receiver;
let egress;
before(async () => {
  assert.ok(process.env.EGRESSD_BIN, "EGRESSD_BIN must name the egressd binary");
  demo = spawn(process.env.EGRESSD_BIN, ["demo"], { stdio: ["ignore", "pipe", "inherit"] });
  for await (const line of createInterface({ input: demo.stdout })) {
    receiver ??= /receivers\s+(http:\/\/[^ ,]+)/.exec(line)?.[1];
    api ??= /inspector\s+(http:\/\/[^ ]+?)\/?\s*$/.exec(line)?.[1];
    if (api && receiver) break;
  }
  assert.ok(api && receiver, "the demo prints where it listens");
  demo.stdout.resume();
  egress = connect({ api, development: false });
});
after(async () => {
  egress?.close();
  demo?.kill("SIGTERM");
  if (demo && demo.exitCode === null) await new Promise((resolve) => demo.on("exit", resolve));
});

/** A step's own text, sending to the demo's receiver; one path for each test, so that requests can be told apart. */
async function load(name, path) {
  const source = await readFile(new URL(`./steps/${name}.js`, import.meta.url), "utf8");
  const sent = source.replaceAll(/https:\/\/receiver\.test[^"?]*/g, `${receiver}${path}`);
  return (await import(`data:text/javascript,${encodeURIComponent(sent)}`)).default;
}

const get = async (path) => (await fetch(`${api}${path}`)).json();
async function done(ids) {
  return Promise.all(ids.map((id) => get(`/v1/sends/${id}?wait=30`)));
}
/** What the receiver saw on this path, in the order it came. */
async function seen(path) {
  const requests = await (await fetch(`${receiver}/_requests`)).json();
  const here = requests.filter((request) => request.target.split("?")[0] === path);
  for (const { peer } of here) assert.ok(SOURCES.has(peer.slice(0, peer.lastIndexOf(":"))), `a request came from ${peer}`);
  return here;
}

for (const [name, count] of [["post", 1], ["for-each", 4], ["for-of", 4], ["older", 4], ["action", 1], ["everything", 1], ["summary", 2]]) {
  test(`the step ${name} is delivered, each send once, from a source address`, async () => {
    const path = `/real/${name}`;
    const { report } = await egress.runWorkflow({ workflow: "real", event: { n: 1, body: { orders: [{ id: 1 }, { id: 2 }] } }, steps: [{ name, component: await load(name, path) }] });
    assert.equal(report.ids.length, count);
    assert.equal(report.released, count);
    for (const record of await done(report.ids)) {
      assert.equal(record.outcome, "delivered", JSON.stringify(record.error));
      assert.ok(SOURCES.has(record.connection.public_ip));
      assert.deepEqual([record.context.workflow, record.context.execution, record.context.step], ["real", report.execution, name]);
    }
    assert.equal((await seen(path)).length, count);
    const execution = await get(`/v1/executions/${report.execution}`);
    assert.deepEqual([execution.delivered, execution.total, execution.state, execution.finished_by], [count, count, "finished", "call"]);
    assert.deepEqual(execution.sends.map((send) => send.id), report.ids, "in call order");
  });
}

test("the body that arrives is the text that JSON.stringify made", async () => {
  const data = { z: 1, a: [1e21, 0.1, "é\u2028"], at: new Date(0), "10": 1 };
  const { report } = await egress.run({}, (run) => run.step("s").$.send.http({ method: "POST", url: `${receiver}/real/exact`, data }));
  await done(report.ids);
  const [request] = await seen("/real/exact");
  assert.equal(request.body, JSON.stringify(data));
});

test("handing over again doubles nothing", async () => {
  const execution = `again-${process.pid}`;
  const collect = () => {
    const run = egress.begin({ execution });
    for (const n of [0, 1, 2]) run.step("s").$.send.http({ method: "POST", url: `${receiver}/real/again`, data: { n } });
    return run;
  };
  const first = await collect().end();
  const second = await collect().end();
  assert.deepEqual(second.ids, first.ids);
  await done(first.ids);
  assert.equal((await seen("/real/again")).length, 3);
  // Another collection under the same execution is refused, and says what was not handed over.
  const other = egress.begin({ execution });
  other.step("s").$.send.http({ method: "POST", url: `${receiver}/real/again`, data: { n: 9 } });
  await assert.rejects(other.end(), (error) => error instanceof HandOverError && error.code === "idempotency_mismatch" && error.unsent.length === 1);
});

test("what a run sends in 2,500 calls is all delivered", async () => {
  const { report } = await egress.run({}, (run) => {
    const { $ } = run.step("s");
    for (let n = 0; n < 2500; n += 1) $.send.http({ method: "POST", url: `${receiver}/real/many`, data: { n } });
  });
  assert.equal(new Set(report.ids).size, 2500);
  assert.equal(report.released, 2500);
  for (const id of report.ids) await get(`/v1/sends/${id}?wait=30`);
  const { delivered } = await get(`/v1/executions/${report.execution}?limit=1`);
  assert.equal(delivered, 2500);
});

test("a send that the policy blocks is accepted beside the others, and its record says why", async () => {
  const { report } = await egress.run({}, (run) => {
    const { $ } = run.step("s");
    $.send.http({ method: "GET", url: "http://169.254.169.254/latest/meta-data/" });
    $.send.http({ method: "GET", url: "not a url" });
  });
  const records = await done(report.ids);
  assert.deepEqual(records.map((record) => [record.outcome, record.error.code]), [["blocked", "policy_metadata"], ["blocked", "policy_url"]]);
});

test("a send that only the API refuses is named, and the others leave", async () => {
  const error = await egress.run({}, (run) => {
    const { $ } = run.step("s");
    $.send.http({ method: "POST", url: `${receiver}/real/refused`, data: { n: 0 } });
    // Half a surrogate pair is a JavaScript string, and no text that could be sent.
    $.send.http({ method: "POST", url: `${receiver}/real/refused`, data: "\ud800" });
    $.send.http({ method: "POST", url: `${receiver}/real/refused`, data: { n: 2 } });
  }).then(() => assert.fail("nothing was thrown"), (error) => error);
  assert.ok(error instanceof HandOverError, error.stack);
  assert.equal(error.unsent.length, 1, error.message);
  assert.equal(error.finished, true);
  await done(error.accepted.map((send) => send.id));
  assert.equal((await seen("/real/refused")).length, 2);
});

test("a destination by configuration", async () => {
  const component = sendDestination({ endpoint: `${receiver}/real/{{ $event.name }}`, payload: "$event.body" });
  const { report } = await egress.runWorkflow({ event: { name: "hook", body: { n: 1 } }, steps: [{ name: "out", component }] });
  assert.equal((await done(report.ids))[0].outcome, "delivered");
  assert.equal((await seen("/real/hook")).length, 1);
});

test("what an execution holds can be discarded", async () => {
  const execution = `dropped-${process.pid}`;
  const held = await (await fetch(`${api}/v1/executions/${execution}/sends`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ method: "GET", url: `${receiver}/real/never` }),
  })).json();
  assert.deepEqual(await egress.discard(execution), { discarded: 1 });
  assert.equal((await get(`/v1/sends/${held.id}?wait=30`)).outcome, "discarded");
  assert.equal((await seen("/real/never")).length, 0);
});
