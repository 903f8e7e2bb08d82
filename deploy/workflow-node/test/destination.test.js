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

test("url is the endpoint's other name", async () => {
  assert.equal((await deliver({ url: "https://receiver.test/{{ $event.body.n }}" }))[0].url, "https://receiver.test/1");
  assert.equal((await deliver({ url: "{{ new URL($event.callback) }}" }))[0].url, event.callback);
});

// Every place in which an author writes {{ }}, alone and within a text, and values of each type.
for (const [configuration, sent] of [
  [{ headers: { "X-Id": "{{ $event.id }}", "X-Text": "id {{ $event.id }}, n {{ $event.body.n }}", "X-N": "{{ $event.body.n }}", "X-Fixed": "1" } },
    { headers: { "X-Id": "a/b", "X-Text": "id a/b, n 1", "X-N": 1, "X-Fixed": "1" } }],
  [{ headers: { "X-Tags": ["{{ $event.body.tags[0] }}", "y"], "X-None": "{{ $event.none }}" } }, { headers: { "X-Tags": ["x", "y"] } }],
  [{ headers: "{{ ({ 'X-Id': $event.id }) }}" }, { headers: { "X-Id": "a/b" } }],
  [{ params: { n: "{{ $event.body.n }}", tags: "{{ $event.body.tags }}", q: "n={{ $event.body.n }}" } }, { params: { n: 1, tags: ["x"], q: "n=1" } }],
  [{ auth: { username: "{{ $event.id }}", password: "p-{{ $event.body.n }}" } }, { auth: { username: "a/b", password: "p-1" } }],
  [{ method: "{{ $event.body.n ? 'PUT' : 'POST' }}" }, { method: "PUT" }],
  [{ payload: "{{ $event.body }}" }, { data: event.body }],
  [{ payload: " {{ { a: { b: $event.body.n } } }} " }, { data: { a: { b: 1 } } }],
  [{ payload: "order {{ $event.id }} of {{ { a: { n: $event.body.n } }.a.n }}" }, { data: "order a/b of 1" }],
  [{ payload: { id: "{{ $event.id }}", text: "n is {{ $event.body.n }}", deep: [{ body: "{{ $event.body }}" }, 2, null, true] } },
    { data: { id: "a/b", text: "n is 1", deep: [{ body: event.body }, 2, null, true] } }],
]) {
  test(`values of the event in ${JSON.stringify(configuration)}`, async () => {
    assert.deepEqual(await deliver({ endpoint, payload: "1", ...configuration }), [{ method: "POST", url: endpoint, data: 1, ...sent }]);
  });
}

test("nothing leaves with {{ still in it: what is not evaluated is refused", async () => {
  for (const [configuration, message] of [
    [{ headers: { "X-{{ $event.id }}": "1" } }, /a name is not evaluated, and X-\{\{ \$event\.id \}\} in headers has \{\{/],
    [{ params: { "{{ a }}": 1 } }, /in params has/],
    [{ payload: { a: { "{{ b }}": 1 } } }, /in payload\.a has/],
    [{ headers: { "X-A": "{{ $event.id" } }, /headers\["X-A"\] .* has \{\{ without its \}\}/],
    [{ auth: { username: "{{ }}", password: "p" } }, /auth\.username .* is no expression/],
    [{ payload: "{ id: {{ $event.id }} }" }, /mixes an expression and \{\{ \}\}/],
    [{ headers: "X-A: {{ $event.id }}" }, /for headers: write an object, or one \{\{ expression \}\}/],
    [{ auth: "user:{{ 1 }}" }, /invalid value \[string\] for auth/],
  ]) assert.throws(() => sendDestination({ endpoint, ...configuration }), message);
  await assert.rejects(deliver({ endpoint, headers: { "X-A": "a {{ $event.none }}" } }), /invalid value undefined in headers\["X-A"\]/);
  await assert.rejects(deliver({ endpoint, params: { a: "{{ Promise.resolve(1) }}" } }), /params\.a .* gave a promise/);
});

test("what an event holds is never evaluated", async () => {
  const given = { a: "{{ process.exit(1) }}" };
  const [sent] = await deliver({ endpoint, payload: "{{ $event.a }}", headers: { "X-A": "{{ $event.a }}" } }, given);
  assert.deepEqual([sent.data, sent.headers["X-A"]], [given.a, given.a]);
});

test("method, headers, params and auth go with it", async () => {
  const more = { method: "PUT", headers: { "X-A": "1" }, params: { p: 1 }, auth: { username: "u", password: "p" } };
  assert.deepEqual(await deliver({ endpoint, payload: "1", ...more }), [{ ...more, url: endpoint, data: 1 }]);
  assert.deepEqual(await deliver({ endpoint, method: "GET" }), [{ method: "GET", url: endpoint }]);
});

test("a wrong configuration is refused before any event", () => {
  for (const [configuration, message] of [
    [{}, /invalid value undefined for url: write an address/],
    [{ endpoint: 5 }, /invalid value 5 for endpoint/],
    [{ endpoint, url: endpoint }, /url and endpoint are one thing/],
    [{ endpoint, method: "post" }, /invalid value post for method/],
    [{ endpoint, payload: "$event." }, /send destination: payload \$event\. is no expression/],
    [{ endpoint, payload: "return $event" }, /is no expression/],
    [{ endpoint, payload: "const x = 1" }, /is no expression/],
    [{ endpoint, payload: 5 }, /for payload: write an expression as a string/],
    [{ endpoint: "https://x/{{ ) }}" }, /endpoint .* is no expression/],
    [{ endpoint, uri: "x" }, /unknown key uri/],
  ]) assert.throws(() => sendDestination(configuration), message);
});

test("an expression that fails says which, and why", async () => {
  await assert.rejects(deliver({ endpoint, payload: "$event.a.b" }), /send destination: payload \$event\.a\.b: Cannot read properties of undefined/);
  await assert.rejects(deliver({ endpoint, payload: "Promise.resolve(1)" }), /gave a promise/);
  await assert.rejects(deliver({ endpoint, payload: "(() => { for (;;); })()", timeout: 50 }), /took longer than 50 ms/);
  await assert.rejects(deliver({ endpoint: "https://x/{{ $event.body }}" }), /in endpoint: an expression within a text must give a string or a number/);
  await assert.rejects(deliver({ endpoint: "{{ $event.none }}" }), /invalid value undefined for endpoint/);
});
