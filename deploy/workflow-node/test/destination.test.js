// A `send` destination by configuration: endpoint and payload expression, evaluated for every event.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { connect, sendDestination } from "../index.js";
import { mockApi } from "./mock-api.js";

let mock;
let egress;
before(async () => {
  mock = await mockApi();
  egress = connect({ api: mock.api });
});
after(async () => {
  egress.close();
  await mock.close();
});

const endpoint = "https://receiver.test/hook";
const event = { id: "a/b", body: { n: 1, tags: ["x"] }, callback: "https://other.test/path?q=1" };

async function deliver(configuration, given = event) {
  const execution = `d-${Math.random()}`;
  const steps = [{ name: "out", component: sendDestination(configuration) }];
  await egress.runWorkflow({ execution, event: given, steps });
  return mock.items(execution).map(({ context, ...item }) => item);
}

for (const [payload, data] of [
  ["$event", event],
  ["$event.body", event.body],
  ["$event.body.n + 1", 2],
  ["({ n: $event.body.n, at: steps.trigger.event.id })", { n: 1, at: "a/b" }],
  ["{ n: $event.body.n }", { n: 1 }],
  ["$event.body.tags.map((tag) => tag.toUpperCase())", ["X"]],
  ["`id=${$event.id}`", "id=a/b"],
  ["$event.body.n // a comment", 1],
]) {
  test(`payload ${payload}`, async () => {
    assert.deepEqual(await deliver({ endpoint, payload }), [{ method: "POST", url: endpoint, data }]);
  });
}

test("the payload is $event when none is configured", async () => {
  assert.deepEqual((await deliver({ endpoint }))[0].data, event);
});

test("undefined sends nothing; null and false are values", async () => {
  assert.deepEqual(await deliver({ endpoint, payload: "$event.nothing" }), []);
  assert.deepEqual(await deliver({ endpoint, payload: "$event.body.n > 1 ? $event : undefined" }), []);
  assert.equal((await deliver({ endpoint, payload: "false" }))[0].data, false);
  assert.deepEqual(await deliver({ endpoint, payload: "null" }), [{ method: "POST", url: endpoint }]);
});

test("an endpoint takes values of the event, percent-encoded, or is one", async () => {
  assert.equal((await deliver({ endpoint: "https://receiver.test/{{ $event.id }}?n={{$event.body.n}}" }))[0].url,
    "https://receiver.test/a%2Fb?n=1");
  assert.equal((await deliver({ endpoint: "{{ $event.callback }}" }))[0].url, event.callback);
});

test("method, headers, params and auth go with it", async () => {
  const more = { method: "PUT", headers: { "X-A": "1" }, params: { p: 1 }, auth: { username: "u", password: "p" } };
  assert.deepEqual(await deliver({ endpoint, payload: "1", ...more }), [{ ...more, url: endpoint, data: 1 }]);
  assert.deepEqual(await deliver({ endpoint, method: "GET" }), [{ method: "GET", url: endpoint }]);
});

test("a wrong configuration is refused before any event", () => {
  for (const [configuration, message] of [
    [{}, /invalid value undefined for endpoint/],
    [{ endpoint, payload: "$event." }, /send destination: payload \$event\. is no expression/],
    [{ endpoint, payload: "return $event" }, /is no expression/],
    [{ endpoint, payload: "const x = 1" }, /is no expression/],
    [{ endpoint, payload: { a: 1 } }, /for payload: write an expression as a string/],
    [{ endpoint: "https://x/{{ ) }}" }, /endpoint .* is no expression/],
    [{ endpoint, url: "x" }, /unknown key url/],
  ]) assert.throws(() => sendDestination(configuration), message);
});

test("an expression that fails says which, and why", async () => {
  await assert.rejects(deliver({ endpoint, payload: "$event.a.b" }), /send destination: payload \$event\.a\.b: Cannot read properties of undefined/);
  await assert.rejects(deliver({ endpoint, payload: "Promise.resolve(1)" }), /gave a promise/);
  await assert.rejects(deliver({ endpoint, payload: "(() => { for (;;); })()", timeout: 50 }), /took longer than 50 ms/);
  await assert.rejects(deliver({ endpoint: "https://x/{{ $event.body }}" }), /in endpoint: an expression there must give a string or a number/);
  await assert.rejects(deliver({ endpoint: "{{ $event.none }}" }), /invalid value undefined for endpoint/);
});
