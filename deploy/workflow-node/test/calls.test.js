// A wrong call throws at once, in the step that made it; a right one is taken as it was at that moment.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { connect, SendCallError } from "../index.js";
import { mockApi } from "./mock-api.js";

let mock;
let egress;
before(async () => {
  mock = await mockApi();
  egress = connect({ api: mock.api, development: false });
});
after(async () => {
  egress.close();
  await mock.close();
});

const url = "https://receiver.test/";
const cyclic = { name: "x", child: { list: [] } };
cyclic.child.list.push(cyclic);
const deep = (() => {
  let value = {};
  for (let level = 0; level < 200_000; level += 1) value = { value };
  return value;
})();

const WRONG = [
  [{ method: "post", url }, "$.send.http: invalid value post for method: write POST"],
  [{ url }, "$.send.http: invalid value undefined for method: write one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"],
  [{ method: "TRACE", url }, "$.send.http: invalid value TRACE for method: TRACE is never sent"],
  [{ method: "CONNECT", url }, "$.send.http: invalid value CONNECT for method: CONNECT is never sent"],
  [{ method: 7, url }, /invalid value 7 for method/],
  [{ method: "POST" }, "$.send.http: invalid value undefined for url: write the address as a string"],
  [{ method: "POST", url: 5 }, /invalid value 5 for url/],
  [{ method: "POST", url, body: {} }, "$.send.http: unknown key body: write data"],
  [{ method: "POST", url, json: {} }, /unknown key json: write data/],
  [{ method: "POST", url, query: {} }, /unknown key query: write params/],
  [{ method: "POST", url, timeout: 3 }, /unknown key timeout: every send has the same deadline/],
  [{ method: "POST", url, context: {} }, /unknown key context: the runner sets it/],
  [{ method: "POST", url, responseType: "json" }, /unknown key responseType: there is method, url, data/],
  [{ method: "POST", url, data: { n: [1, 2n] } }, /invalid value 2n for data\.n\[1\]: JSON has no BigInt/],
  [{ method: "POST", url, data: cyclic }, /invalid value \[cyclic\] for data\.child\.list\[0\]: it contains itself \(it is also data\)/],
  [{ method: "POST", url, data: { "on click": () => 1 } }, /invalid value function on click for data\["on click"\]: a function/],
  [{ method: "POST", url, data: () => 1 }, /invalid value function data for data/],
  [{ method: "POST", url, data: { s: Symbol("s") } }, /invalid value Symbol\(s\) for data\.s/],
  [{ method: "POST", url, data: { m: new Map([[1, 2]]) } }, /for data\.m: it would become \{\}; write Object\.fromEntries/],
  [{ method: "POST", url, data: { p: Promise.resolve(1) } }, /for data\.p: await it first/],
  [{ method: "POST", url, data: deep }, /for data: nested too deep/],
  [{ method: "POST", url, data: "x".repeat(1024 * 1024 + 1) }, /invalid value \[1048577 bytes\] for data: at most 1048576/],
  [{ method: "POST", url, data: { x: "é".repeat(600_000) } }, /invalid value \[1200008 bytes of JSON\] for data/],
  [{ method: "POST", url, data: { get boom() { throw new Error("boom"); } } }, /invalid value for data: boom/],
  [{ method: "POST", url, data: 1, data_base64: "AA==" }, /data and data_base64 were both given/],
  [{ method: "POST", url, data_base64: "A" }, /invalid value A for data_base64/],
  [{ method: "HEAD", url, data: {} }, /data was given with HEAD/],
  [{ method: "POST", url, headers: [] }, /invalid value \[\] for headers/],
  [{ method: "POST", url, headers: { "a b": "c" } }, /invalid value a b for headers\["a b"\]: this is no header name/],
  [{ method: "POST", url, headers: { A: true } }, /invalid value true for headers\.A/],
  [{ method: "POST", url, headers: { A: ["x", 1] } }, /for headers\.A: write a string/],
  [{ method: "POST", url, headers: { "X-A": "a\r\nb" } }, /invalid value a\\u000d\\u000ab for headers\["X-A"\]/],
  [{ method: "POST", url, headers: { X: NaN } }, /invalid value NaN for headers\.X/],
  [{ method: "POST", url, headers: Object.fromEntries(Array.from({ length: 101 }, (_, at) => [`h${at}`, "v"])) }, /101 lines/],
  [{ method: "POST", url, params: { a: { b: 1 } } }, /invalid value \{"b":1\} for params\.a/],
  [{ method: "POST", url, params: "a=b" }, /invalid value a=b for params/],
  [{ method: "POST", url, auth: { username: "a" } }, "$.send.http: invalid value undefined for auth.password: write a string"],
  [{ method: "POST", url, auth: "a:b" }, /invalid value \[string\] for auth/],
  [{ method: "POST", url, auth: { username: "a", password: "b", token: "c" } }, /unknown key auth\.token/],
  [{ method: "POST", url, expires_in: 0.5 }, /invalid value 0\.5 for expires_in/],
  [{ method: "POST", url, expires_in: "60" }, /invalid value 60 for expires_in/],
  [
    { method: "POST", url, headers: { "content-type": "application/x-www-form-urlencoded" }, data: { a: { b: 1 } } },
    /invalid value \{"b":1\} for data\.a: a form has no nested values/,
  ],
  [
    { method: "POST", url, headers: { "content-type": "application/x-www-form-urlencoded" }, data: { a: [1] } },
    /invalid value \[1\] for data\.a: a form has no nested values/,
  ],
  [
    { method: "POST", url, headers: { "content-type": "application/x-www-form-urlencoded" }, data: [1] },
    /invalid value \[1\] for data: a form has no list/,
  ],
  [undefined, /invalid argument undefined: give one object/],
  ["https://receiver.test/", /invalid argument https:\/\/receiver\.test\/: give one object/],
  [[], /invalid argument \[\]/],
];

for (const [at, [argument, message]] of WRONG.entries()) {
  test(`wrong call ${at}: ${message}`, () => {
    const run = egress.begin();
    const { $ } = run.step("wrong");
    assert.throws(() => $.send.http(argument), (error) => {
      assert.ok(error instanceof SendCallError && error instanceof TypeError);
      if (typeof message === "string") assert.equal(error.message, message);
      else assert.match(error.message, message);
      return true;
    });
    assert.equal(run.collected, 0);
  });
}

test("every problem of a call is named at once", () => {
  const { $send } = egress.begin().step("wrong");
  assert.throws(() => $send.http({ method: "get", url: 1, body: 2 }), (error) => {
    assert.deepEqual(error.problems.map((problem) => problem.path).sort(), ["body", "method", "url"]);
    assert.match(error.message, /^\$send\.http: /);
    return true;
  });
});

test("a secret never stands in a message", () => {
  const { $ } = egress.begin().step("wrong");
  for (const argument of [
    { method: "POST", url, auth: { username: "hunter2:x", password: 1 } },
    { method: "POST", url, auth: "hunter2" },
    { method: "POST", url, headers: { Authorization: "hunter2\n" } },
  ]) {
    assert.throws(() => $.send.http(argument), (error) => !error.message.includes("hunter2"));
  }
});

test("the other senders throw at once, naming what is supported", () => {
  const { $, $send } = egress.begin().step("wrong");
  for (const name of ["snowflake", "slack"]) {
    assert.throws(() => $.send[name]({}), { message: `$.send.${name}: not supported: the senders here are $.send.http, $.send.email, $.send.s3, $.send.sql` });
    assert.throws(() => $send[name]({}), { message: `$send.${name}: not supported: the senders here are $send.http, $send.email, $send.s3, $send.sql` });
  }
});

test("the platform's own senders say that they are, and name the call that makes them", () => {
  const run = egress.begin();
  const { $, $send } = run.step("own");
  for (const [root, senders] of [["$.send", $.send], ["$send", $send]]) {
    for (const name of ["emit", "sse"]) {
      assert.throws(() => senders[name]({ event: 1 }, "channel"), (error) => {
        assert.ok(error instanceof SendCallError && error instanceof TypeError);
        assert.ok(error.message.startsWith(`${root}.${name}: ${root}.${name} is the platform's own`), error.message);
        assert.match(error.message, /POST \/v1\/sends to its own trigger/);
        return true;
      });
    }
  }
  assert.equal(run.collected, 0);
});

test("a message is handed over beside requests, in call order, as it was at the call", async () => {
  const run = egress.begin({ execution: "mail" });
  const { $, $send } = run.step("tell");
  const message = { subject: "Order 7", text: "It has arrived.\n.\n", html: null, include_collaborators: true };
  assert.equal($.send.email(message), undefined);
  message.text = "changed";
  $.send.http({ method: "POST", url });
  $send.email({ html: "<b>\u{1f980}</b>", expires_in: 60 });
  const report = await run.end();
  assert.equal(report.released, 3);
  const context = { execution: "mail", step: "tell" };
  assert.deepEqual(mock.items("mail"), [
    { email: { subject: "Order 7", text: "It has arrived.\n.\n", include_collaborators: true }, context },
    { method: "POST", url, context },
    { email: { html: "<b>\u{1f980}</b>" }, expires_in: 60, context },
  ]);
});

const WRONG_MAIL = [
  [undefined, /invalid argument undefined: give one object/],
  [[], /invalid argument \[\]/],
  [{}, /there is neither text nor html/],
  [{ subject: "S" }, /there is neither text nor html/],
  [{ text: 1 }, "$.send.email: invalid value 1 for text: write a string"],
  [{ text: "a\0b" }, /mail cannot carry the character U\+0000/],
  [{ text: "x", subject: "a\r\nBcc: victim@example.org" }, /for subject: a subject is one line/],
  [{ text: "x", subject: "x".repeat(501) }, /\[501 characters\] for subject: at most 500/],
  [{ text: "x", to: "victim@example.org" }, /unknown key to: mail goes to the tenant's own address/],
  [{ text: "x", from: "a@b" }, /unknown key from: the operator has configured the sender/],
  [{ text: "x", attachments: [] }, /unknown key attachments/],
  [{ text: "x", constructor: 1 }, /unknown key constructor: there is subject, text/],
  [{ text: "x", include_collaborators: "yes" }, /for include_collaborators: write true or false/],
  [{ text: "x", expires_in: 0 }, /for expires_in: write whole seconds/],
  [{ text: "x".repeat(1024 * 1024) }, /the message takes \d+ bytes of JSON/],
];

for (const [at, [argument, message]] of WRONG_MAIL.entries()) {
  test(`wrong message ${at}: ${message}`, () => {
    const run = egress.begin();
    const { $ } = run.step("wrong");
    assert.throws(() => $.send.email(argument), (error) => {
      assert.ok(error instanceof SendCallError);
      if (typeof message === "string") assert.equal(error.message, message);
      else assert.match(error.message, message);
      return true;
    });
    assert.equal(run.collected, 0);
  });
}

test("events are handed over beside requests, in call order, as they were at the call", async () => {
  const run = egress.begin({ execution: "events" });
  const { $, $send } = run.step("store");
  const payload = { n: 1, at: new Date(0) };
  assert.equal($.send.s3({ bucket: "logs", prefix: "orders/", payload }), undefined);
  payload.n = 2;
  $.send.http({ method: "POST", url });
  $send.sql({ table: "orders", payload: [1, "two"], expires_in: 60 });
  $.send.s3({ bucket: "logs", prefix: "", payload: "a line" });
  assert.equal((await run.end()).released, 4);
  const context = { execution: "events", step: "store" };
  assert.deepEqual(mock.items("events"), [
    { s3: { bucket: "logs", prefix: "orders/", payload: { n: 1, at: "1970-01-01T00:00:00.000Z" } }, context },
    { method: "POST", url, context },
    { sql: { table: "orders", payload: [1, "two"] }, expires_in: 60, context },
    { s3: { bucket: "logs", prefix: "", payload: "a line" }, context },
  ]);
});

const WRONG_EVENTS = [
  ["s3", undefined, /invalid argument undefined: give one object, such as \{ bucket, prefix, payload \}/],
  ["s3", { bucket: "logs", prefix: "a" }, "$.send.s3: invalid value undefined for payload: write an object, an array or a string"],
  ["s3", { bucket: "logs", prefix: "a", payload: 1 }, /for payload: write an object/],
  ["s3", { bucket: "logs", prefix: "a", payload: { n: 1n } }, /2?1n for payload.n: JSON has no BigInt/],
  ["s3", { bucket: "Logs", prefix: "a", payload: {} }, /for bucket: 3 to 63/],
  ["s3", { bucket: "logs", prefix: "a\nb", payload: {} }, /for prefix: at most 512 bytes/],
  ["s3", { bucket: "logs", prefix: "a", payload: {}, region: "eu" }, /unknown key region: the operator has configured the store/],
  ["s3", { bucket: "logs", prefix: "a", payload: "x".repeat(1024 * 1024) }, /the payload takes \d+ bytes/],
  ["sql", { table: "a b", payload: {} }, /for table: a letter or a digit/],
  ["sql", { payload: {} }, /for table: write a string/],
  ["sql", { table: "t", data: {} }, /unknown key data: write payload/],
  ["sql", { table: "t", payload: {}, expires_in: 0 }, /for expires_in: write whole seconds/],
];

for (const [at, [sender, argument, message]] of WRONG_EVENTS.entries()) {
  test(`wrong event ${at}: ${message}`, () => {
    const run = egress.begin();
    const { $ } = run.step("wrong");
    assert.throws(() => $.send[sender](argument), (error) => {
      assert.ok(error instanceof SendCallError);
      if (typeof message === "string") assert.equal(error.message, message);
      else assert.match(error.message, message);
      return true;
    });
    assert.equal(run.collected, 0);
  });
}

test("what is sent is what the object was at the call", async () => {
  const run = egress.begin({ execution: "snapshot" });
  const { $ } = run.step("a");
  const data = { n: 1, list: [1] };
  const headers = { "X-A": "1" };
  $.send.http({ method: "POST", url, data, headers });
  data.n = 2;
  data.list.push(2);
  headers["X-A"] = "2";
  $.send.http({ method: "POST", url, data, headers });
  await run.end();
  assert.deepEqual(mock.items("snapshot").map(({ data, headers }) => ({ data, headers })), [
    { data: { n: 1, list: [1] }, headers: { "X-A": "1" } },
    { data: { n: 2, list: [1, 2] }, headers: { "X-A": "2" } },
  ]);
});

test("the body's JSON is the text that JSON.stringify gave the author", async () => {
  const run = egress.begin({ execution: "text" });
  const { $ } = run.step("a");
  const data = { z: 1, a: [1e21, -0, 0.1, "é\u2028\ud800"], at: new Date(0), gone: undefined, "10": 1 };
  $.send.http({ method: "POST", url, data });
  await run.end();
  assert.ok(mock.calls.find((call) => call.path.includes("/text/sends")).body.includes(`"data":${JSON.stringify(data)}`));
});

test("values that JSON has no word for keep their meaning", async () => {
  const run = egress.begin({ execution: "kinds" });
  const { $ } = run.step("a");
  for (const data of [Buffer.from([0, 255]), new Uint16Array([1]), new URLSearchParams({ a: "b c" }), "text", 5, true, null, undefined, ""]) {
    $.send.http({ method: "POST", url: new URL(url), data });
  }
  $.send.http({ method: "GET", url, params: new URLSearchParams("a=1&a=2&b=3"), headers: new Headers({ "X-A": "1" }) });
  await run.end();
  const items = mock.items("kinds").map(({ data, data_base64, headers, params }) => ({ data, data_base64, headers, params }));
  const form = { "content-type": "application/x-www-form-urlencoded" };
  assert.deepEqual(JSON.parse(JSON.stringify(items)), [
    { data_base64: "AP8=" },
    { data_base64: "AQA=" },
    { data: "a=b+c", headers: form },
    { data: "text" },
    { data: 5 },
    { data: true },
    {},
    {},
    { data: "" },
    { params: { a: ["1", "2"], b: ["3"] }, headers: { "x-a": "1" } },
  ]);
});

test("await gives undefined, with a hint in development, once per step", async () => {
  for (const [development, hints] of [[false, 0], [true, 1]]) {
    const said = [];
    const client = connect({ api: mock.api, development, log: (_, message) => said.push(message) });
    const run = client.begin({ execution: `await-${development}` });
    const { $ } = run.step("impatient");
    for (let turn = 0; turn < 3; turn += 1) assert.equal(await $.send.http({ method: "GET", url }), undefined);
    assert.equal(said.length, hints);
    if (development) assert.match(said[0], /\$\.send\.http in step impatient: await has no effect.*asynchronous.*after the workflow finishes/);
    const { $: quiet } = run.step("patient");
    quiet.send.http({ method: "GET", url });
    assert.equal(said.length, hints, "no await, no hint");
    assert.equal((await run.end()).ids.length, 4);
    client.close();
  }
  const { $ } = egress.begin().step("a");
  assert.equal($.send.http({ method: "GET", url }), undefined);
});

test("what one run may collect is bounded, and the call that goes past it throws", () => {
  const client = connect({ api: mock.api, limits: { sendsPerExecution: 2, collectedBytes: 400 } });
  const { $ } = client.begin({ execution: "full" }).step("a");
  $.send.http({ method: "GET", url });
  assert.throws(() => $.send.http({ method: "POST", url, data: "x".repeat(400) }), /400 may be collected/);
  $.send.http({ method: "GET", url });
  assert.throws(() => $.send.http({ method: "GET", url }), /this run has 2 sends already, and an execution may have 2/);
  client.close();
});
