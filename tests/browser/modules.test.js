// The parts of the page that need no browser: JSON as it was written, commands for a shell, filters in their forms.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import { shareOfTime } from "../../src/inspector/assets/format.js";
import { hex } from "../../src/inspector/assets/body.js";
import { prettyJson, unescapedJson } from "../../src/inspector/assets/json.js";
import { curl } from "../../src/inspector/assets/curl.js";
import { events } from "../../src/inspector/assets/api.js";
import { fromQuery, fromText, toApi, toQuery, toText } from "../../src/inspector/assets/filters.js";
import { CODES, haystack, OUTCOMES } from "../../src/inspector/assets/filters.js";
import { missing, processed } from "../../src/inspector/assets/resend.js";
import { asked, explain } from "../../src/inspector/assets/words.js";
import { record } from "./records.js";
import { vendored } from "./vendor.js";

const pretty = (text) => prettyJson(text)?.map(([, piece]) => piece).join("") ?? null;

test("pretty JSON keeps every value's own text", () => {
  for (const [text, shown] of [
    ['{"a":1.0,"b":[1,2],"c":{}}', '{\n  "a": 1.0,\n  "b": [\n    1,\n    2\n  ],\n  "c": {}\n}'],
    ['[12345678901234567890, 1e400, -0]', "[\n  12345678901234567890,\n  1e400,\n  -0\n]"],
    ['{"a":1,"a":2}', '{\n  "a": 1,\n  "a": 2\n}'],
    ["[]", "[]"],
    ['"x"', '"x"'],
    ['{"a":"cut off', '{\n  "a": "cut off'],
    ["[1,2", "[\n  1,\n  2"],
    ["not json", null],
    ["<html>", null],
    ["{}{}", null],
    ["[1}", null],
    ["", null],
  ]) assert.equal(pretty(text), shown, text);
});

test("hex has sixteen bytes a line, and the text beside them", () => {
  assert.equal(hex(new TextEncoder().encode("hello, receiver!\n")),
    "00000000  68 65 6c 6c 6f 2c 20 72  65 63 65 69 76 65 72 21  hello, receiver!\n"
    + `00000010  0a ${"   ".repeat(7)} ${"   ".repeat(8)} .`);
});

/** The arguments that a shell gives to `curl`, and what it reads. */
function run(command) {
  const script = `curl() { if [[ " $* " == *" @- "* ]]; then stdin=$(base64 -w0); fi; for one in "$@"; do printf '%s\\0' "$one" | base64 -w0; echo; done; echo "stdin $stdin"; }\n${command}\n`;
  const lines = execFileSync("bash", ["--norc", "-c", script], { encoding: "utf8", stdio: ["ignore", "pipe", "inherit"], env: { PATH: process.env.PATH } }).trimEnd().split("\n");
  const stdin = Buffer.from(lines.pop().slice(6), "base64");
  return { args: lines.map((line) => Buffer.from(line, "base64").subarray(0, -1).toString()), stdin };
}

test("copied as curl, a shell hands over exactly the send, whatever it holds", () => {
  for (const nasty of ["plain", "it's", '"; touch /tmp/x; echo "', "$(touch /tmp/x)", "`id`", "a\\nb", "line\nbreak\r\ttab", "\u202Eturned", "-x", "é ☃", "a$'b'\\", "\u0007bell", "!!"]) {
    const one = record(5, 0, { end: ["delivered", 200] });
    one.request = { ...one.request, method: "POST", url: `https://h.example/?q=${nasty}`, headers: { "x-a": [nasty], "content-type": ["text/plain"], host: ["h.example"], "content-length": ["3"] }, body: nasty, body_bytes: nasty.length };
    const { args } = run(curl(one, 5000, { bound: true }));
    assert.ok(!run(curl(one, 5000)).args.includes("--interface"));
    assert.equal(args[args.indexOf("--url") + 1], one.request.url, nasty);
    assert.equal(args[args.indexOf("--data-binary") + 1], nasty, nasty);
    assert.ok(args.includes(`x-a: ${nasty}`), nasty);
    assert.equal(args[args.indexOf("--interface") + 1], one.connection.source_ip);
    assert.ok(!args.some((arg) => /^(host|content-length):/.test(arg)));
  }
});

test("copied as curl, bytes and file signs go through standard input", () => {
  const one = record(5, 0, { end: ["delivered", 200] });
  one.request = { ...one.request, method: "POST", body: "AAH/", body_encoding: "base64", body_bytes: 3 };
  assert.deepEqual([...run(curl(one, 5000)).stdin], [0, 1, 255]);
  one.request = { ...one.request, body: "@/etc/passwd", body_encoding: "utf8", body_bytes: 12 };
  assert.equal(run(curl(one, 5000)).stdin.toString(), "@/etc/passwd");
});

test("copied as curl, what is missing is said", () => {
  const one = record(5, 0, { end: ["blocked", "policy_address"] });
  one.request = { ...one.request, method: "POST", body: null, body_bytes: 9 };
  const command = curl(one, 5000, { bound: true });
  assert.match(command, /# no source address was chosen/);
  assert.match(command, /# the body of 9 bytes is not kept/);
  assert.match(command, /# put the secrets where \[redacted/);
});

test("filters keep their meaning between the box, the address and the call", () => {
  const filters = fromText('outcome:failed host:a.example workflow:"two words" since:15m some words');
  assert.deepEqual(filters, { outcome: "failed", host: "a.example", workflow: "two words", since: "15m", q: "some words" });
  assert.deepEqual(fromText(toText(filters)), filters);
  assert.deepEqual(fromQuery(new URLSearchParams(toQuery(filters))), filters);
  const query = toApi(filters, Date.UTC(2026, 10, 22, 12));
  assert.equal(query.get("since"), "2026-11-22T11:45:00.000Z");
  assert.equal(query.has("q"), false);
  // An address with colons and a URL are words, not filters.
  assert.deepEqual(fromText("https://x.example/a 2001:db8::1"), { q: "https://x.example/a 2001:db8::1" });
});

test("every outcome has its sentence, and a code adds none: its message is the record's", () => {
  for (const outcome of OUTCOMES) {
    const one = { state: "done", outcome, error: null, response: { status: outcome === "rejected" ? 418 : 200 }, timings_ms: { total: 5 } };
    assert.ok(explain(one).why.length > 10, outcome);
  }
  const said = new Set(CODES.map((code) => JSON.stringify(explain({ state: "done", outcome: "failed", error: { code, phase: "wait" }, timings_ms: { total: 12 } }))));
  assert.equal(said.size, 1);
});

test("a bar is as long as the logarithm of its time: what differs, differs for the eye", () => {
  const widths = [1, 10, 50, 100, 200, 1000, 5000].map((ms) => Math.round(shareOfTime(ms) * 48));
  for (let at = 1; at < widths.length; at += 1) assert.ok(widths[at] >= widths[at - 1] + 4, `${widths}`);
  assert.deepEqual([shareOfTime(5000), shareOfTime(60_000), shareOfTime(0)], [1, 1, 0.03]);
});

test("unescaped JSON is what its texts say, and is offered only where it differs", () => {
  const of = (text) => unescapedJson(prettyJson(text))?.map(([, piece]) => piece).join("") ?? null;
  assert.equal(of('{"caf\\u00e9":"a\\nb\\t\\"c\\" \\/ \\\\ \\ud83d\\ude00","n":1.0}'), '{\n  "café": "a\nb\t"c" / \\ 😀",\n  "n": 1.0\n}');
  assert.equal(of('{"body":"{\\"a\\":1}"}'), '{\n  "body": "{"a":1}"\n}');
  assert.equal(of('{"a":"é","b":[1,true]}'), null);
  assert.equal(of('["cut \\u00e9", "off \\u00'), '[\n  "cut é",\n  "off \\u00');
});

test("the decoders are what the pinned packages make", async () => {
  for (const [name, text] of await vendored()) assert.equal(await readFile(new URL(`../../src/inspector/assets/${name}`, import.meta.url), "utf8"), text, name);
});

test("events are read as they come, however they are cut", async () => {
  const text = ": hello\n\nid: 1\nevent: send\ndata: {\"a\":\ndata: 1}\n\nevent: send\r\nid: 2\r\ndata: é\r\n\r\nretry: 5\n\ndata: last\n\n: still here\nid: 3\n\n";
  const raw = new TextEncoder().encode(text);
  for (const size of [1, 3, 7, 1000]) {
    const stream = new ReadableStream({
      start(controller) {
        for (let at = 0; at < raw.length; at += size) controller.enqueue(raw.slice(at, at + size));
        controller.close();
      },
    });
    const seen = [];
    for await (const event of events(stream)) seen.push(event);
    assert.deepEqual(seen, [{ type: "send", data: '{"a":\n1}', id: "1" }, { type: "send", data: "é", id: "2" }, { type: "message", data: "last", id: "2" }, { type: "message", data: "", id: "3" }], `${size}`);
  }
});

test("a message is told by whom it went to, and asks for nothing that its record holds", () => {
  const email = { subject: "Order 7", text: "It has arrived.", html: null, include_collaborators: true, body_bytes: 70, body_truncated: false,
    headers: { to: ["owner@acme.example"], cc: ["a@acme.example, b@acme.example"] } };
  const one = { ...record(7, 1_790_000_000_000), outcome: "rejected", request: null, email, error: { code: null, phase: null, processed: "no", message: "why" },
    response: { status: 550, version: "SMTP", headers: { command: ["RCPT TO"] }, body: "5.1.1 unknown", body_encoding: "utf8", body_bytes: 13 } };
  assert.deepEqual(asked(one), { method: "EMAIL", url: "owner@acme.example, a@acme.example, b@acme.example" });
  assert.equal(asked({ ...one, email: { ...email, headers: {} } }).url, "the tenant's own address");
  assert.match(explain(one).why, /^The relay answered 550/);
  assert.ok(haystack(one).includes("owner@acme.example"));
  assert.equal(processed(one), "no");
  assert.equal(missing(one).email, false);
  assert.equal(missing({ ...one, email: { ...email, text: null } }).email, true);
  assert.equal(missing({ ...one, email: { ...email, subject: "[redacted hmac:01234567]" } }).email, true);
});
