// Whatever a receiver, an author or an attacker wrote into a record is text on the page, and reads as what it is.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { browser, open, until } from "./browser.js";
import { mock } from "./mock.js";
import { record } from "./records.js";
import { allLoaded, scrolledThrough, streamInto } from "./scroll.js";

const SCRIPT = "<script>pwned(1)</script><img src=x onerror=pwned(2)><svg onload=pwned(3)>\"'`--><iframe srcdoc='<script>parent.pwned(4)</script>'></iframe>javascript:pwned(5)";
const TURNED = "safe\u202Egnp.exe\u2066\u200b\u0000\u001b[31m\r\nx: y\u{e0041}\ud800";
const HUGE = "A".repeat(400_000);

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

/** Puts the text into every string of a record that an outsider can reach, keys of headers included. */
function poisoned(n, text) {
  const one = record(n, Date.now() - 1000 + n, { end: ["rejected", 500] });
  const url = `https://evil.example/${text}`;
  return {
    ...one,
    error: { code: text, phase: text, message: text },
    would_block: text,
    context: { tenant: text, workflow: text, execution: text, step: text, index: 0 },
    request: { ...one.request, method: text, url, headers: { [text]: [text, text], host: [text] }, dropped_headers: [text], body: text, body_bytes: text.length, body_sha256: text },
    response: { ...one.response, version: text, headers: { [text]: [text], location: [`javascript:${text}`], "content-type": ["text/html"] }, body: text, body_bytes: text.length, body_declared: text.length },
    connection: { ...one.connection, source_ip: text, public_ip: text, remote_ip: text, resolved: [{ ip: text, verdict: text }], tls: { version: text, cipher: text, alpn: text, certificate: { subject: text, issuer: text, names: [text, text], not_before: text, not_after: text, key: text, sha256: text } } },
    node: text,
    created_at: one.created_at,
  };
}

async function harmless(page, { longest = false } = {}) {
  const found = await page.evaluate(() => {
    const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
    const texts = [document.title];
    while (walker.nextNode()) texts.push(walker.currentNode.data);
    return {
      pwned: window.pwnedBy ?? null,
      // Elements that the page itself never makes inside its views.
      foreign: document.querySelectorAll("main script, main img, main iframe, main svg[onload], main object, main embed, main [onerror], main [onload]").length,
      links: [...document.querySelectorAll("main a[href]")].map((link) => link.getAttribute("href")).filter((href) => !href.startsWith("#/") && !href.startsWith("/public-ips.")),
      unseen: texts.filter((text) => /[\u202a-\u202e\u2066-\u2069\u200b\u0000-\u0008\u000b\u000c\u000e-\u001f]/.test(text)).map((text) => JSON.stringify(text.slice(0, 80))),
      // A body as hex is the longest thing on the page.
      longest: Math.max(...texts.map((text) => text.length)) > 350_000,
      width: document.documentElement.scrollWidth - innerWidth,
    };
  });
  assert.deepEqual(found, { pwned: null, foreign: 0, links: [], unseen: [], longest, width: 0 });
}

for (const [name, text, n] of [["markup", SCRIPT, 9001], ["text that turns, hides and breaks", TURNED, 9002], ["values without end", HUGE, 9003]]) {
  test(`hostile content in every field of a record: ${name}`, async () => {
    const one = poisoned(n, text);
    api.sends.unshift(one);
    const page = await open(chrome.context, api.url, "#/sends");
    await page.evaluate(() => (window.pwned = (by) => (window.pwnedBy = by)));
    await page.locator(`#row-${one.id}`).waitFor();
    await harmless(page);
    await page.locator(`#row-${one.id}`).click();
    await page.locator(".send h1").waitFor();
    await until(page, () => document.querySelector(".card[aria-label=Network] .tick") !== null);
    await harmless(page);
    for (const tab of await page.getByRole("tab").all()) {
      await tab.click();
      await harmless(page);
    }
    if (text === SCRIPT) {
      assert.ok((await page.locator(".card[aria-label=Received]").innerText()).includes("<script>pwned(1)</script>"));
    }
    if (text === TURNED) {
      const shown = await page.locator("h1").innerText();
      assert.match(shown, /safeU\+202Egnp\.exeU\+2066U\+200BNULESC\[31mCRLFx: yU\+E0041U\+D800/);
    }
    if (text === HUGE) {
      assert.ok(await page.evaluate(() => document.querySelector("main").textContent.length) < 1_000_000);
      await page.locator("h1 .address .more").click();
      assert.ok((await page.locator("h1 .address").innerText()).length > 400_000);
    }
    // Copying it into a shell must not run it either; the command's own test looks closer.
    await page.getByRole("button", { name: "Resend …" }).click();
    await page.getByRole("dialog", { name: "Send again" }).waitFor();
    await harmless(page, { longest: text === HUGE });
    await page.keyboard.press("Escape");
    page.check();
    await page.close();
    api.sends.shift();
  });
}

test("hostile content in the address bar, the problem details, tenants and suspensions", async () => {
  const page = await open(chrome.context, api.url, `#/sends?host=${encodeURIComponent(SCRIPT)}&q=${encodeURIComponent(TURNED.toWellFormed())}`, { expected: /404/ });
  await page.evaluate(() => (window.pwned = (by) => (window.pwnedBy = by)));
  await page.getByText("No send matches").waitFor();
  await harmless(page);
  for (const [hash, shown] of [
    [`#/executions/${encodeURIComponent(SCRIPT)}?tenant=${encodeURIComponent("x")}`, ".view.execution .empty-title"],
    [`#/sends/${encodeURIComponent(SCRIPT)}`, ".view.send .empty-title"],
    [`#/${encodeURIComponent(SCRIPT)}`, ".view.sends .row"],
    ["#/sends/%", ".view.send .empty-title"],
  ]) {
    await page.goto(`${api.url}/${hash}`);
    await page.locator(shown).first().waitFor();
    await harmless(page);
  }
  api.suspensions.unshift({ id: "1", host: SCRIPT, reason: TURNED, by: SCRIPT, at: TURNED });
  await page.goto(`${api.url}/#/suspensions`);
  await page.getByText("pwned(1)").first().waitFor();
  await harmless(page);
  page.check();
  await page.close();
});

// What that costs in time is the bench's: bench.js.
test("ten thousand records cost what those in sight do, under a stream of new ones", async () => {
  const many = await mock({ count: 10_000 });
  const page = await open(chrome.context, many.url, "#/sends");
  try {
    await allLoaded(page, 10_000);
    const sent = streamInto(many);
    const steps = await scrolledThrough(page);
    const arrived = sent.stop();
    assert.ok(arrived > 0);
    assert.ok(steps.most < 120, `${steps.most} rows on the page at once`);
    assert.equal(steps.blank, 0, "a row stands under the pointer after every step");
    // A step draws no row twice, and a new send draws no row but its own.
    assert.ok(steps.drawn <= steps.total * steps.most + arrived, `${steps.drawn} rows drawn in ${steps.total} steps of ${steps.most} while ${arrived} sends arrived`);
    page.check();
  } finally {
    await page.close();
    await many.close();
  }
});
