// A body as what it is meant to be: inflated within a bound, read in its charset, drawn where it is an image of a known
// kind. And hostile ones: bombs, broken codings, images that lie about their type and size, documents that pose as images.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { brotliCompressSync, deflateRawSync, deflateSync, gzipSync } from "node:zlib";

import { codingsOf, imageOf, inflate, INFLATED_BYTES, textOf } from "../../src/inspector/assets/decode.js";
import { browser, open, until } from "./browser.js";
import { mock } from "./mock.js";
import { record } from "./records.js";

const JSON_TEXT = '{"café":"inflated","n":[1,2,3]}';
const bytes = (text) => Buffer.from(text);
/** 200,000 bytes of `{"row": 12345678}` and a line end, and `{"caf\u00e9":"zstd","n":[1,2,3]}`, by zstd's own tool. */
const ZSTD_ROWS = Buffer.from("KLUv/aRADQMA1AAAkHsicm93IjogMTIzNDU2Nzh9CgEA1v8rn2FNAAAINwEAPA05EAKuUzNz", "base64");
const ZSTD_JSON = Buffer.from("KLUv/SQgAQEAeyJjYWZcdTAwZTkiOiJ6c3RkIiwibiI6WzEsMiwzXX06I1xZ", "base64");

/** A zstd frame of `count` blocks that each say "128 KiB of this byte". */
function zstdBomb(count, window = 0x38) {
  const size = 128 * 1024;
  const block = (last) => [(size << 3 & 0xff) | 1 << 1 | last, size >> 5 & 0xff, size >> 13, 0x41];
  return Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, window, ...Array.from({ length: count }, (_, at) => block(at === count - 1 ? 1 : 0)).flat()]);
}

const zeros = Buffer.alloc(64 * 1024 * 1024);

test("codings are undone in their order, as far as they are known", async () => {
  const text = bytes(JSON_TEXT);
  for (const [coding, sent, shown] of [
    [["gzip"], gzipSync(text)], [["X-GZIP"], gzipSync(text)], [["deflate"], deflateSync(text)], [["deflate"], deflateRawSync(text)],
    [["br"], brotliCompressSync(text)], [["zstd"], ZSTD_JSON, '{"caf\\u00e9":"zstd","n":[1,2,3]}'],
    [["gzip, br"], brotliCompressSync(gzipSync(text))], [["gzip", "identity", "br"], brotliCompressSync(gzipSync(text))],
    [["identity"], text],
  ]) {
    const found = await inflate(new Uint8Array(sent), codingsOf({ "content-encoding": coding }));
    assert.equal(found.problem, null, coding.join());
    assert.equal(Buffer.from(found.bytes).toString(), shown ?? JSON_TEXT, coding.join());
  }
  const rows = await inflate(new Uint8Array(ZSTD_ROWS), ["zstd"]);
  assert.deepEqual([rows.bytes.length, rows.problem], [200_000, null]);
  assert.equal(new Set(Buffer.from(rows.bytes).toString().split("\n").slice(0, -1)).size, 1);
});

test("a bomb costs no more than its bound", async () => {
  for (const [coding, sent] of [
    ["gzip", gzipSync(zeros)], ["deflate", deflateSync(zeros)], ["br", brotliCompressSync(zeros)], ["zstd", zstdBomb(60_000)],
    ["gzip", gzipSync(gzipSync(zeros))],
  ]) {
    const nested = coding === "gzip" && sent.length < 20_000;
    const before = process.memoryUsage().arrayBuffers;
    const found = await inflate(new Uint8Array(sent), nested ? ["gzip", "gzip"] : [coding]);
    assert.deepEqual([found.bytes.length, found.problem, found.at], [INFLATED_BYTES, "limit", coding]);
    assert.ok(process.memoryUsage().arrayBuffers - before < 48 * INFLATED_BYTES, `${coding} held ${process.memoryUsage().arrayBuffers - before} bytes`);
  }
});

test("what is broken, cut or unknown shows what there is, and says so", async () => {
  const long = bytes(Array.from({ length: 3000 }, (_, n) => `line ${n * 7919}`).join("\n"));
  const cut = await inflate(new Uint8Array(gzipSync(long).subarray(0, 6000)), ["gzip"]);
  assert.equal(cut.problem, "broken");
  assert.ok(cut.bytes.length > 4000 && long.toString().startsWith(Buffer.from(cut.bytes).toString()));
  const after = await inflate(new Uint8Array(Buffer.concat([gzipSync(long), bytes("and more")])), ["gzip"]);
  assert.ok(after.bytes.length > 4000 && long.toString().startsWith(Buffer.from(after.bytes).toString()));
  for (const [codings, sent, problem] of [
    [["br"], brotliCompressSync(long).subarray(0, 900), "broken"], [["gzip"], bytes("no gzip"), "broken"], [["deflate"], bytes("no deflate"), "broken"],
    [["br"], bytes("no brotli at all"), "broken"], [["zstd"], bytes("no zstd at all"), "broken"], [["zstd"], ZSTD_ROWS.subarray(0, 20), "broken"],
    [["zstd"], zstdBomb(2, 0xa8), "broken"], [["gzip"], Buffer.alloc(0), "broken"],
    [["compress"], bytes("x"), "unknown"], [["constructor"], bytes("x"), "unknown"], [["gzip", "gzip", "gzip", "gzip"], gzipSync(long), "unknown"],
    [["br"], Buffer.alloc(300_000, 1), "broken"],
  ]) {
    const found = await inflate(new Uint8Array(sent), codings);
    assert.equal(found.problem, problem, codings.join());
    assert.equal(Buffer.compare(Buffer.from(found.bytes), sent), 0, codings.join());
  }
});

test("no bytes make a decoder throw, hang or give more than its bound", async () => {
  let seed = 7;
  const random = () => (seed = Math.imul(seed, 1103515245) + 12345 >>> 1) / 2 ** 31;
  const source = bytes(Array.from({ length: 400 }, (_, n) => `{"n":${n},"text":"row ${n % 7}"}`).join("\n"));
  const seeds = { br: brotliCompressSync(source), zstd: ZSTD_ROWS, gzip: gzipSync(source) };
  for (const [coding, whole] of Object.entries(seeds)) {
    for (let turn = 0; turn < 120; turn += 1) {
      const sent = new Uint8Array(whole);
      for (let change = 0; change < 1 + turn % 4; change += 1) sent[Math.floor(random() * sent.length)] = Math.floor(random() * 256);
      const found = await inflate(sent, [coding]);
      assert.ok(found.bytes.length <= INFLATED_BYTES);
    }
  }
});

test("text is read by its mark, its label, its own declaration, else as UTF-8 or latin-1", () => {
  const utf16 = (text, big) => {
    const out = Buffer.from(text, "utf16le");
    return big ? out.swap16() : out;
  };
  for (const [sent, type, text, charset] of [
    [bytes("é"), "text/plain", "é", "utf-8"],
    [bytes("é"), "text/plain; charset=utf-8", "é", "utf-8"],
    [Buffer.from("e9", "hex"), "text/plain", "é", "windows-1252"],
    [Buffer.from("e9", "hex"), "text/plain; charset=ISO-8859-1", "é", "windows-1252"],
    [Buffer.from("e9", "hex"), "application/problem+json", "é", "windows-1252"],
    [Buffer.from("a4", "hex"), 'text/plain; charset="iso-8859-15"', "€", "iso-8859-15"],
    [Buffer.from("cff0e8e2e5f2", "hex"), "text/html;charset=windows-1251", "Привет", "windows-1251"],
    [Buffer.from("93fa967b8cea", "hex"), "text/plain; charset=Shift_JIS", "日本語", "shift_jis"],
    [Buffer.from("c4e3bac3", "hex"), "text/plain; charset=gb2312", "你好", "gbk"],
    [Buffer.from("bec8b3e7", "hex"), "text/plain; format=flowed; charset=euc-kr", "안녕", "euc-kr"],
    // A mark goes before a label that says otherwise.
    [Buffer.concat([Buffer.from("fffe", "hex"), utf16("héllo", false)]), "text/plain; charset=utf-8", "héllo", "utf-16le"],
    [Buffer.concat([Buffer.from("feff", "hex"), utf16("héllo", true)]), "application/xml", "héllo", "utf-16be"],
    [Buffer.concat([Buffer.from("efbbbf", "hex"), bytes("é")]), "text/plain; charset=latin1", "é", "utf-8"],
    [utf16("héllo", true), "text/plain; charset=utf-16be", "héllo", "utf-16be"],
    [Buffer.from("3c3f786d6c2076657273696f6e3d22312e302220656e636f64696e673d2269736f2d383835392d35223f3eb0", "hex"), "text/xml", '<?xml version="1.0" encoding="iso-8859-5"?>А', "iso-8859-5"],
    [Buffer.concat([bytes("<html><meta charset=koi8-r>"), Buffer.from("f0d2c9", "hex")]), "text/html", "<html><meta charset=koi8-r>При", "koi8-r"],
    // Labels that are none, or that are wrong, do not hide the text.
    [bytes("é"), "text/plain; charset=utf-7", "é", "utf-8"],
    [bytes("é"), "text/plain; charset=../../x", "é", "utf-8"],
    [bytes("é"), "text/plain; charset=iso-2022-kr", "é", "utf-8"],
    [Buffer.from("e9", "hex"), "text/plain; charset=utf-8", "é", "windows-1252"],
    [Buffer.from("e9", "hex"), "", "é", "windows-1252"],
  ]) assert.deepEqual(textOf(new Uint8Array(sent), type), { text, charset }, `${type} ${sent.toString("hex")}`);
  for (const [sent, type] of [["ffd8ffe000104a46", "image/jpeg"], ["ffd8ffe000104a46", "application/json"], ["80818283", "application/octet-stream"], ["c328", "application/pdf"]]) {
    assert.equal(textOf(new Uint8Array(Buffer.from(sent, "hex")), type), null, type);
  }
  // Cut within a character.
  assert.equal(textOf(new Uint8Array(bytes("né").subarray(0, 2)), "application/json", { cut: true }).text, "n");
  assert.equal(textOf(new Uint8Array(Buffer.from("93fa96", "hex")), "text/plain; charset=shift_jis", { cut: true }).text, "日");
});

/** A PNG of one red pixel, and the heads of others. */
const PNG = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==", "base64");
const GIF = Buffer.from("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7", "base64");
const SVG = bytes("<svg xmlns='http://www.w3.org/2000/svg' onload='pwned(1)'><script>pwned(2)</script><foreignObject><img src='x' onerror='pwned(3)'/></foreignObject></svg>");
function pngOf(width, height) {
  const head = Buffer.from(PNG);
  head.writeUInt32BE(width, 16);
  head.writeUInt32BE(height, 20);
  return head;
}

test("an image is one of a few kinds, by its type and by its bytes, with its size", () => {
  const jpeg = Buffer.from("ffd8ffe000104a46494600010100000100010000ffc0001108012c01900301110002110103110100", "hex");
  const webp = (kind, hex) => Buffer.concat([bytes("RIFF\0\0\0\0WEBP"), bytes(kind), Buffer.from(hex, "hex")]);
  const largeGif = Buffer.from(GIF);
  largeGif.writeUInt16LE(65_535, 32);
  largeGif.writeUInt16LE(65_535, 34);
  for (const [sent, type, found] of [
    [PNG, "image/png", ["image/png", 1, 1]], [PNG, "IMAGE/PNG; x=y", ["image/png", 1, 1]], [GIF, "image/gif", ["image/gif", 1, 1]],
    [jpeg, "image/jpeg", ["image/jpeg", 400, 300]], [jpeg, "image/jpg", ["image/jpeg", 400, 300]],
    [webp("VP8X", "0a000000000000008f01002b0100"), "image/webp", ["image/webp", 400, 300]],
    [webp("VP8L", "000000002f8fc14a00"), "image/webp", ["image/webp", 400, 300]],
    [pngOf(50_000, 50_000), "image/png", ["image/png", 50_000, 50_000]],
    // A browser draws the first picture where it is larger than the screen.
    [largeGif, "image/gif", ["image/gif", 65_535, 65_535]],
    [PNG, "image/svg+xml", null], [SVG, "image/svg+xml", null], [SVG, "image/png", null], [SVG, "image/jpeg", null], [PNG, "text/html", null],
    [PNG, "application/octet-stream", null], [PNG, "constructor", null], [PNG, "image/gif", null], [PNG.subarray(0, 18), "image/png", null],
    [jpeg.subarray(0, 18), "image/jpeg", null], [GIF.subarray(0, 20), "image/gif", null], [Buffer.alloc(0), "image/png", null], [pngOf(0, 5), "image/png", null],
  ]) {
    const image = imageOf(new Uint8Array(sent), type);
    assert.deepEqual(image && [image.type, image.width, image.height], found, `${type} ${sent.subarray(0, 8).toString("hex")}`);
  }
});

// ── on the page ──

let chrome;
let api;
before(async () => {
  chrome = await browser();
  api = await mock({ count: 30 });
});
after(async () => {
  await chrome.close();
  await api.close();
});

/** A send whose answer is these bytes, opened. */
async function received(sent, headers, work, { over = {}, response = {} } = {}) {
  const one = record(9100, Date.now(), { end: ["delivered", 200], ...over });
  Object.assign(one.response, { headers, body: Buffer.from(sent).toString("base64"), body_encoding: "base64", body_bytes: sent.length, body_declared: sent.length }, response);
  api.sends.unshift(one);
  const page = await open(chrome.context, api.url, `#/sends/${one.id}`);
  try {
    await page.evaluate(() => (window.pwned = (by) => (window.pwnedBy = by)));
    const card = page.locator(".card[aria-label=Received]");
    await card.waitFor();
    await until(page, () => document.querySelector(".card[aria-label=Network] .tick") !== null);
    await work(card, page);
    assert.equal(await page.evaluate(() => window.pwnedBy ?? null), null);
    assert.equal(await page.locator("main img, main svg svg, main script, main iframe, main object, main embed").count(), 0);
    page.check();
  } finally {
    await page.close();
    api.sends.shift();
  }
}
const tabs = (card) => card.getByRole("tab").allInnerTexts();

for (const [coding, sent] of [["gzip", gzipSync(JSON_TEXT)], ["br", brotliCompressSync(JSON_TEXT)], ["zstd", ZSTD_JSON], ["deflate", deflateRawSync(JSON_TEXT)]]) {
  test(`an answer in ${coding} is shown inflated, and as it was sent`, () => received(sent, { "content-type": ["application/json"], "content-encoding": [coding] }, async (card) => {
    await card.getByRole("tab", { name: "Pretty" }).waitFor();
    assert.match(await card.locator("pre").innerText(), /"n": \[\n {4}1,/);
    assert.match(await card.locator(".body-bar").innerText(), new RegExp(`${coding}, \\d+ B inflated`));
    await card.getByRole("tab", { name: "As sent" }).click();
    assert.ok((await card.locator("pre").innerText()).startsWith(`00000000  ${sent.subarray(0, 4).toString("hex").match(/../g).join(" ")}`));
  }));
}

for (const [coding, sent] of [["gzip", gzipSync(zeros)], ["br", brotliCompressSync(zeros)], ["zstd", zstdBomb(60_000)]]) {
  test(`a bomb in ${coding} is stopped at the bound, and said`, () => received(sent, { "content-type": ["text/plain"], "content-encoding": [coding] }, async (card) => {
    await card.getByText("inflates to more than 1.00 MiB").waitFor();
  }));
}

test("a coding that is not known, or broken, leaves the bytes", async () => {
  await received(bytes("abc"), { "content-type": ["text/plain"], "content-encoding": ["<b>x"] }, async (card) => {
    await card.getByText("Its coding, <b>x, is not one that is undone here.").waitFor();
    assert.deepEqual(await tabs(card), ["Hex"]);
  });
  await received(bytes("abc"), { "content-type": ["text/plain"], "content-encoding": ["gzip"] }, async (card) => {
    await card.getByText("Its gzip is broken or unfinished").waitFor();
    assert.match(await card.locator("pre").innerText(), /61 62 63/);
  });
});

test("an answer in another charset is text, with its charset named, and what cannot be seen in it too", async () => {
  await received(Buffer.from("93fa967b8cea", "hex"), { "content-type": ["text/plain; charset=Shift_JIS"] }, async (card) => {
    assert.equal(await card.locator("pre").innerText(), "日本語");
    assert.match(await card.locator(".body-bar").innerText(), /6 B · shift_jis/);
    assert.deepEqual(await tabs(card), ["Raw", "Hex"]);
  });
  await received(Buffer.concat([Buffer.from("fffe", "hex"), Buffer.from("<img src=x onerror=pwned(1)>\u202egnp", "utf16le")]), { "content-type": ["text/html; charset=utf-8"] }, async (card) => {
    assert.equal(await card.locator("pre").innerText(), "<img src=x onerror=pwned(1)>U+202Egnp");
  });
});

test("an image is drawn as pixels", async () => {
  await received(PNG, { "content-type": ["image/png"] }, async (card, page) => {
    await card.getByRole("img", { name: "image/png, 1 × 1 pixels" }).waitFor();
    assert.deepEqual(await tabs(card), ["Image", "Hex"]);
    const pixel = await page.evaluate(() => [...document.querySelector("main canvas").getContext("2d").getImageData(0, 0, 1, 1).data]);
    assert.equal(pixel.length, 4);
  });
  await received(gzipSync(PNG), { "content-type": ["image/png"], "content-encoding": ["gzip"] }, (card) => card.getByRole("img", { name: /1 × 1/ }).waitFor());
});

test("an image that is none, or too large, is not drawn; an SVG is text", async () => {
  await received(pngOf(50_000, 50_000), { "content-type": ["image/png"] }, (card) => card.getByText("An image of 50,000 × 50,000 pixels is not drawn.").waitFor());
  await received(Buffer.concat([PNG.subarray(0, 40), bytes("nonsense")]), { "content-type": ["image/png"] }, (card) => card.getByText("These bytes do not make an image.").waitFor());
  for (const type of ["image/svg+xml", "image/png", "text/html", "application/xhtml+xml"]) {
    await received(SVG, { "content-type": [type] }, async (card) => {
      assert.deepEqual(await tabs(card), ["Raw", "Hex"], type);
      assert.ok((await card.locator("pre").innerText()).startsWith("<svg xmlns="));
    });
  }
});

test("JSON can be read unescaped", () => received(bytes('{"caf\\u00e9":"two\\nlines \\u202e<b>"}'), { "content-type": ["application/json"] }, async (card) => {
  assert.match(await card.locator("pre").innerText(), /"caf\\u00e9": "two\\nlines \\u202e<b>"/);
  await card.getByRole("tab", { name: "Unescaped" }).click();
  assert.match(await card.locator("pre").innerText(), /"café": "two\nlines U\+202E<b>"/);
}));

test("odd lengths are explained, not alarmed about", async () => {
  const type = { "content-type": ["text/plain"] };
  const empty = { body: "", body_encoding: "utf8", body_bytes: 0 };
  for (const [sent, response, method, status, says] of [
    [bytes(""), { ...empty, body_declared: 5000 }, "HEAD", 200, /Its Content-Length said 4\.9 KiB \(5,000 bytes\): that of the body which it would have otherwise/],
    [bytes(""), { ...empty, body_declared: 300 }, "GET", 304, /Its Content-Length said 300 B: that of the body/],
    [bytes(""), { ...empty, body_declared: 0 }, "POST", 200, /Empty body\.$/],
    [bytes(""), { ...empty, body_declared: 12 }, "POST", 200, /Empty body\.\s+Its Content-Length said 12 B; 0 B came\./],
    [bytes("ab"), { body_declared: 18446744073709552000 }, "POST", 200, /said 17592186044416\.00 MiB .*; 2 B came/],
    [bytes("ab"), { body_declared: null }, "POST", 200, /2 B/],
    [bytes("ab"), { body: null, body_bytes: 2, body_declared: 2 }, "POST", 200, /is not kept, or is past its retention\.$/],
  ]) {
    await received(sent, type, async (card) => assert.match((await card.innerText()).trim(), says), { response: { ...response, status }, over: { record: { request: { ...record(9100, 0).request, method } } } });
  }
});
