// The inspector in a real browser, before a stand-in for the API.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, beforeEach, test } from "node:test";

import { browser, open, rowsInSight, until } from "./browser.js";
import { mock, place } from "./mock.js";
import { BATCH, record } from "./records.js";

let chrome;
let api;
before(async () => {
  chrome = await browser();
});
after(async () => {
  await chrome.close();
});
// Each test has an API of its own: it may change records.
beforeEach(async (t) => {
  api = await mock({ count: 450 });
  const mine = api;
  t.after?.(() => mine.close());
});

/** A test with a page on this view, checked at its end for anything unexpected. */
function inspect(name, hash, work, options = {}) {
  test(name, async () => {
    const where = typeof hash === "function" ? hash() : hash;
    const page = await open(chrome.context, api.url, where, options);
    try {
      await work(page);
      page.check();
    } finally {
      await page.close();
      await api.close();
    }
  });
}
const find = (outcome, what) => api.sends.find((one) => one.outcome === outcome && (what === undefined || one.response?.status === what || one.error?.code === what));
const of = (outcome, what) => () => `#/sends/${find(outcome, what).id}`;
const text = (page, selector) => page.locator(selector).innerText();
const asked = (path) => api.calls.filter((call) => call.path.startsWith(path));
const loaded = (page) => until(page, () => document.querySelectorAll(".rows .row").length > 10);

inspect("the list shows the newest sends first, with counts by outcome", "#/sends", async (page) => {
  await loaded(page);
  assert.deepEqual((await rowsInSight(page)).slice(0, 5), api.sends.slice(0, 5).map((one) => one.id));
  const delivered = api.sends.filter((one) => one.outcome === "delivered").length;
  const ended = api.sends.filter((one) => one.state === "done").length;
  // Of all, not of those that are loaded.
  await until(page, (ended) => document.querySelector(".counts").textContent.startsWith(`${ended} ended in 24h`), ended);
  assert.match(await text(page, ".counts"), new RegExp(`${delivered}\\s+delivered`));
  assert.match(await text(page, ".list-status"), /live/);
});

inspect("whose a send is stands in its row while all tenants are shown", "#/sends", async (page) => {
  await loaded(page);
  await page.getByRole("columnheader", { name: "Tenant" }).waitFor();
  const tenants = new Map(api.sends.map((one) => [one.id, one.context.tenant]));
  const shown = () => page.locator(".row").evaluateAll((rows) => rows.map((row) => [row.id.slice(4), row.querySelector(".c-tenant").innerText]));
  for (const [id, tenant] of await shown()) assert.equal(tenant, tenants.get(id));
  await page.goto(`${api.url}/#/sends?tenant=globex`);
  await until(page, () => document.querySelector(".list-status").textContent.includes("no older ones"));
  assert.equal(await page.getByRole("columnheader", { name: "Tenant" }).count(), 0);
});

inspect("an error's code comes before a status, and a complete answer is its status", "#/sends", async (page) => {
  await loaded(page);
  const late = record(950, Date.now() + 9000, { end: ["failed", "timeout"] });
  late.response = { ...record(951, 0, { end: ["delivered", 200] }).response };
  api.finish(late);
  const answers = [[late, "timeout 200"], [find("rejected", 422), "422"], [find("failed", "connection_refused"), "connection_refused"], [find("rejected", 302), "302"]];
  for (const [one, said] of answers) {
    if (one !== late) await page.evaluate(() => (document.querySelector(".rows").scrollTop = 0));
    await page.goto(`${api.url}/#/sends?outcome=${one.outcome}`);
    await page.locator(`#row-${one.id}`).waitFor();
    assert.equal(await page.locator(`#row-${one.id} .c-answer`).innerText(), said);
  }
});

for (const width of [1440, 1280, 1024]) {
  inspect(`at ${width}, dates fit, and workflow and step are whole while the address has a path to give`, "#/sends", async (page) => {
    await page.setViewportSize({ width, height: 800 });
    for (let n = 0; n < 3; n += 1) api.finish({ ...record(960 + n, Date.now() - 90_000_000 + n), id: record(960 + n, Date.now() + 9000 + n).id });
    await page.reload();
    await loaded(page);
    const cut = await page.evaluate(() => {
      const over = (one) => one.scrollWidth > one.clientWidth;
      const rows = [...document.querySelectorAll(".row")];
      return {
        dates: rows.filter((row) => row.querySelector(".c-time").innerText.includes("-")).length,
        times: rows.filter((row) => over(row.querySelector(".c-time"))).length,
        codes: rows.filter((row) => over(row.querySelector(".c-answer"))).length,
        // An address cut within its path leaves the host whole.
        steps: rows.filter((row) => over(row.querySelector(".c-where")) && row.querySelector(".c-url").clientWidth > row.querySelector(".host").offsetWidth + 24).map((row) => row.innerText),
      };
    });
    assert.deepEqual(cut, { dates: 3, times: 0, codes: 0, steps: [] });
  });
}

for (const key of ["g", "Home", "k", "ArrowUp", "PageUp", "j", "ArrowDown"]) {
  inspect(`${key} from nothing selects the first row`, "#/sends", async (page) => {
    await loaded(page);
    await page.keyboard.press(key);
    assert.equal(await page.locator(".row.selected").getAttribute("id"), `row-${api.sends[0].id}`);
  });
}

inspect("a finished send appears by itself, in its place by acceptance", "#/sends", async (page) => {
  await loaded(page);
  await until(page, () => document.querySelector(".follow.live") !== null);
  const newest = record(900, Date.now() + 5000, { end: ["rejected", 500] });
  const late = record(901, Date.parse(api.sends[3].created_at) + 1);
  api.finish(newest);
  api.finish(late);
  await page.locator(`#row-${newest.id}`).waitFor();
  await page.locator(`#row-${late.id}`).waitFor();
  const rows = await rowsInSight(page);
  assert.equal(rows[0], newest.id);
  assert.equal(rows.indexOf(late.id), 4);
});

inspect("paused, the list stands still and says what is waiting", "#/sends", async (page) => {
  await loaded(page);
  await until(page, () => document.querySelector(".follow.live") !== null);
  await page.getByRole("button", { name: "Pause" }).click();
  const fresh = record(900, Date.now() + 5000);
  api.finish(fresh);
  await page.getByRole("button", { name: "Resume (1 new)" }).waitFor();
  assert.equal(await page.locator(`#row-${fresh.id}`).count(), 0);
  await page.getByRole("button", { name: "Resume" }).click();
  await page.locator(`#row-${fresh.id}`).waitFor();
});

inspect("the tail begins again where it broke off", "#/sends", async (page) => {
  await loaded(page);
  await until(page, () => document.querySelector(".follow.live") !== null);
  api.finish(record(900, Date.now() + 5000));
  await page.locator(`#row-${api.sends[0].id}`).waitFor();
  for (const { response } of api.followers) response.destroy();
  await until(page, () => document.querySelector(".follow.waiting") !== null);
  await until(page, () => document.querySelector(".follow.live") !== null);
  assert.equal(asked("/v1/tail").at(-1).headers["last-event-id"], place(1));
}, { expected: /ERR_INCOMPLETE_CHUNKED_ENCODING|Failed to load resource/ });

inspect("what is in sight stays where it is while new sends arrive above", "#/sends", async (page) => {
  await loaded(page);
  await until(page, () => document.querySelector(".follow.live") !== null);
  await page.evaluate(() => (document.querySelector(".rows").scrollTop = 1500));
  await until(page, () => document.querySelector(".rows").scrollTop === 1500);
  // The rows follow the scroll in the next frame.
  await until(page, () => {
    const { top, bottom } = document.querySelector(".rows").getBoundingClientRect();
    const tops = [...document.querySelectorAll(".rows .row")].map((row) => row.getBoundingClientRect().top);
    return tops.filter((one) => one >= top - 1 && one < bottom).length >= 10;
  });
  const before = await rowsInSight(page);
  for (let n = 0; n < 30; n += 1) api.finish(record(900 + n, Date.now() + 5000 + n));
  await page.getByRole("button", { name: "↑ 30 new" }).waitFor();
  assert.deepEqual(await rowsInSight(page), before);
  await page.getByRole("button", { name: "↑ 30 new" }).click();
  await until(page, () => document.querySelector(".rows").scrollTop === 0);
});

inspect("older sends are loaded as they are scrolled to, each once", "#/sends", async (page) => {
  await loaded(page);
  await until(page, () => {
    document.querySelector(".rows").scrollTop = 1e6;
    return document.querySelector(".list-status").textContent.includes("450 sends");
  });
  // The rows follow the scroll in the next frame.
  await page.locator(`#row-${api.sends.at(-1).id}`).waitFor();
  assert.equal((await rowsInSight(page)).at(-1), api.sends.at(-1).id);
  assert.match(await text(page, ".list-status"), /no older ones/);
  const cursors = asked("/v1/sends?").filter((call) => call.path.includes("cursor="));
  assert.equal(new Set(cursors.map((call) => call.path)).size, 2);
});

inspect("an outcome is a filter, in the address and in the call", "#/sends", async (page) => {
  await loaded(page);
  await page.getByRole("link", { name: / failed: show/ }).click();
  // The address changes before the rows do.
  await until(page, () => location.hash === "#/sends?outcome=failed" && document.querySelectorAll(".row .badge.tone-failed").length > 5 && document.querySelector(".row .badge:not(.tone-failed)") === null);
  assert.ok(asked("/v1/sends?outcome=failed").length > 0);
  assert.ok(asked("/v1/tail?outcome=failed").length > 0);
  assert.equal(await page.inputValue("#search"), "outcome:failed");
  await page.goBack();
  await until(page, () => document.querySelectorAll(".row .badge.tone-delivered").length > 5);
});

inspect("a link holds the whole view", "#/sends?host=crm.example.com&outcome=delivered&since=2h&q=contacts", async (page) => {
  await until(page, () => document.querySelectorAll(".row").length > 0);
  assert.equal(await page.inputValue("#search"), "outcome:delivered host:crm.example.com since:2h contacts");
  const since = new URL(asked("/v1/sends?").at(-1).path, api.url).searchParams.get("since");
  assert.ok(Math.abs(Date.now() - Date.parse(since) - 7_200_000) < 60_000, since);
  const urls = await page.locator(".row .c-url").allInnerTexts();
  assert.ok(urls.every((one) => one === "crm.example.com/contacts/88213/notes"), urls.join());
});

inspect("the search takes filters, words and ids", "#/sends", async (page) => {
  await loaded(page);
  await page.keyboard.press("/");
  await page.keyboard.type("status:422 workflow:order-paid");
  await page.keyboard.press("Enter");
  await until(page, () => location.hash === "#/sends?status=422&workflow=order-paid");
  await page.fill("#search", api.sends[7].id);
  await page.press("#search", "Enter");
  await page.locator(".send h1").waitFor();
  assert.ok((await page.url()).endsWith(`#/sends/${api.sends[7].id}`));
});

inspect("words look through what is loaded, as they are typed", "#/sends", async (page) => {
  await loaded(page);
  const calls = asked("/v1/sends?").length;
  await page.fill("#search", "warehouse");
  await until(page, () => [...document.querySelectorAll(".row .c-url")].every((one) => one.textContent.includes("warehouse")));
  assert.match(await text(page, ".list-status"), /of \d+ sends match/);
  assert.ok(asked("/v1/sends?").slice(calls).every((call) => !call.path.includes("warehouse")));
});

inspect("the filter form asks for what it says", "#/sends", async (page) => {
  await loaded(page);
  await page.getByRole("button", { name: "Filters" }).click();
  await page.getByLabel("code").selectOption("timeout");
  await page.getByLabel("source address").fill("203.0.113.11");
  await page.getByRole("button", { name: "Apply" }).click();
  await until(page, () => location.hash === "#/sends?code=timeout&source_ip=203.0.113.11");
  const call = asked("/v1/sends?").at(-1).path;
  assert.ok(call.includes("code=timeout") && call.includes("source_ip=203.0.113.11"), call);
});

inspect("nothing that matches says so, and how to get back", "#/sends?host=nowhere.example", async (page) => {
  await page.getByText("No send matches").waitFor();
  await page.getByRole("link", { name: "Show all sends" }).click();
  await loaded(page);
});

inspect("keys move, open, go on and come back to the same place", "#/sends", async (page) => {
  await loaded(page);
  for (let turn = 0; turn < 40; turn += 1) await page.keyboard.press("j");
  await page.keyboard.press("k");
  const scroll = await page.evaluate(() => document.querySelector(".rows").scrollTop);
  assert.ok(scroll > 300);
  assert.equal(await page.locator(".row.selected").getAttribute("id"), `row-${api.sends[38].id}`);
  await page.keyboard.press("Enter");
  await page.locator(".send h1").waitFor();
  assert.ok((await page.url()).endsWith(api.sends[38].id));
  await page.keyboard.press("j");
  await until(page, (id) => location.hash.endsWith(id) && document.querySelector(".send .id")?.textContent.startsWith(id), api.sends[39].id);
  await page.keyboard.press("Escape");
  await page.locator(`#row-${api.sends[39].id}.selected`).waitFor();
  assert.equal(await page.evaluate(() => document.querySelector(".rows").scrollTop), scroll);
  await page.keyboard.press("?");
  await page.getByRole("dialog", { name: "Keys" }).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("link", { name: "Tenants" }).waitFor();
  await page.keyboard.press("7");
  await page.getByRole("heading", { name: "Tenants" }).waitFor();
});

/** Where cards stand. They are drawn anew when what stands beside them arrives, so a box may be missing for a moment. */
async function boxesOf(...cards) {
  for (;;) {
    for (const card of cards) await card.waitFor();
    const boxes = await Promise.all(cards.map((card) => card.boundingBox()));
    if (boxes.every((box) => box !== null)) return boxes;
  }
}

inspect("a send shows what was sent and what came back side by side", of("rejected", 422), async (page) => {
  const one = find("rejected", 422);
  const [sent, received] = [page.locator(".card[aria-label=Sent]"), page.locator(".card[aria-label=Received]")];
  const boxes = await boxesOf(sent, received);
  assert.equal(boxes[0].y, boxes[1].y);
  assert.ok(boxes[0].x + boxes[0].width <= boxes[1].x);
  assert.match(await sent.innerText(), /authorization\s*\[redacted hmac:5f3a9c01\]/);
  assert.match(await received.innerText(), /HTTP\/1\.1 422 Unprocessable Content/);
  assert.match(await text(page, ".said"), /answered 422 in .*its answer usually says which/);
  assert.match(await received.locator("pre").innerText(), /"fields": \{\n {4}"total": "must be a string"/);
  await received.getByRole("tab", { name: "Raw" }).click();
  assert.equal(await received.locator("pre").innerText(), one.response.body);
  await received.getByRole("tab", { name: "Hex" }).click();
  assert.match(await received.locator("pre").innerText(), /^00000000 {2}7b 22 65 72 72 6f 72 22 {2}3a 22 75 6e 70 72 6f 63 {2}\{"error":"unproc/);
  const network = await text(page, ".card[aria-label=Network]");
  assert.match(network, /✓ published/);
  assert.match(network, /192\.0\.2\.80:443/);
  assert.match(network, /2001:db8::80\s+allowed/);
  assert.match(network, /TLSv1\.3/);
  assert.match(network, /\d+ days left|expired \d+ days ago/);
});

/** A day, so many from now. */
const day = (days) => new Date(Date.now() + days * 86_400_000).toISOString();
const REFUSED = { version: null, cipher: null, alpn: null };
for (const [name, tls, certificate, says, never] of [
  ["its names, dates, issuer and key", {}, {}, /CN=\S+\s+for (\S+\.\S+), \*\.\1\s+by CN=R11, O=Let's Encrypt, C=US\s+.* from 2026-10-22 until 2027-01-20\s+key: ECDSA P-256\s+c3ab8ff1/s, /refused|failed/],
  ["one that was refused", REFUSED, { names: ["other.example.org"], key: "RSA 1024" }, /TLS\s+the handshake failed\s+Certificate\s+CN=\S+ refused\s+for other\.example\.org\s+.*key: RSA 1024/s, /TLSv1/],
  ["one for no host", REFUSED, { names: [] }, /refused\s+for no host: it has no subjectAltName/, /for other/],
  ["one that is over", REFUSED, { not_before: day(-90), not_after: day(-2.5) }, /expired 3 days ago from \S+ until \S+/, /days left/],
  ["one of tomorrow", REFUSED, { not_before: day(1.5), not_after: day(90) }, /not valid yet from \S+ until \S+/, /days left/],
  ["one that ends soon", {}, { not_before: day(-90), not_after: day(1.5) }, /1 day left from/, /not valid/],
  ["one of an older record", {}, { names: [], not_before: null, key: null }, /Encrypt, C=US\s+\d+ days left until 2027-01-20|expired \d+ days ago until 2027-01-20/, /for no host|from|key/],
]) {
  inspect(`a certificate: ${name}`, of("delivered", 200), async (page) => {
    const network = page.locator(".card[aria-label=Network]");
    await network.waitFor();
    const shown = find("delivered", 200).connection.tls;
    Object.assign(shown, tls);
    Object.assign(shown.certificate, certificate);
    await page.reload();
    await network.locator(".tick").first().waitFor();
    const said = await network.innerText();
    assert.match(said, says);
    assert.doesNotMatch(said.slice(said.indexOf("TLS")), never);
  });
}

inspect("a timeout shows the budget used up, the phase it failed in, and why", of("failed", "timeout"), async (page) => {
  const time = page.locator(".card[aria-label=Time]");
  await time.waitFor();
  assert.match(await time.innerText(), /5\.00 s – all of the budget/);
  assert.match(await time.locator(".phase.failed").innerText(), /Wait[^]*failed here/);
  assert.equal(await time.locator(".phase.failed").count(), 1);
  assert.equal(await time.locator(".budget-line").count(), 1);
  assert.match(await text(page, ".said"), /failed while waiting for the answer to begin, after 5\.00 s\.\s+no answer from [^]*Have the receiver answer sooner\s+timeout\s+wait\s+the receiver may have processed it/);
});

// Why and what next is the record's own message, as it stands; the page adds nothing for a code.
for (const [outcome, what, says] of [
  ["rejected", 302, /answered 302 in .*points to https:\/\/api\.shop\.example/s],
  ["rejected", 422, /answered 422 in .*its answer usually says which/s],
  ["failed", "connection_refused", /failed while connecting.*nothing of it was processed/s],
  ["failed", "tls_certificate", /failed while the TLS handshake/],
  ["failed", "dns_not_found", /failed while looking the name up/],
  ["blocked", "policy_address", /acceptable-use policy stopped it/],
  ["expired", "expired", /not started before it expired/],
  ["discarded", "discarded", /never sent/],
  ["interrupted", "interrupted", /went down.*the receiver may have processed it/s],
]) {
  inspect(`why and what next: ${what}`, of(outcome, what), async (page) => {
    await page.locator(".said").waitFor();
    assert.match(await text(page, ".said"), says);
    const { error } = find(outcome, what);
    if (error !== null) assert.ok((await text(page, ".said")).includes(error.message));
  });
}

inspect("an address that is not published (any more) is marked", of("delivered", 200), async (page) => {
  await page.locator(".card[aria-label=Network]").waitFor();
  find("delivered", 200).connection.public_ip = "198.51.100.77";
  await page.reload();
  await page.getByText("✗ not in the published list").waitFor();
});

inspect("a cut body says how much there was", of("delivered", 200), async (page) => {
  Object.assign(find("delivered", 200).response, { body: `{"rows": [${"1234567, ".repeat(400)}`, body_bytes: 1_048_576, body_declared: 9_000_000, body_truncated: true });
  await page.reload();
  await page.locator(".cut").waitFor();
  assert.match(await text(page, ".cut"), /Cut: 3\.5 KiB of 1\.00 MiB \(1,048,576 bytes\) are kept\. Its Content-Length said 8\.58 MiB/);
});

inspect("bytes that are no text are shown as hex alone", of("delivered", 200), async (page) => {
  Object.assign(find("delivered", 200).response, { body: "/9j/4AAQSkY=", body_encoding: "base64", body_bytes: 8, body_declared: 8 });
  await page.reload();
  const received = page.locator(".card[aria-label=Received]");
  await received.waitFor();
  assert.deepEqual(await received.getByRole("tab").allInnerTexts(), ["Hex"]);
  assert.match(await received.locator("pre").innerText(), /ff d8 ff e0/);
});

inspect("copied as curl it runs anywhere; bound to the source address only where an operator asks", of("delivered", 200), async (page) => {
  await chrome.context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: api.url });
  const one = find("delivered", 200);
  const copied = async (name) => {
    const button = page.getByTitle(name === "Copy curl" ? /from wherever/ : /--interface/);
    assert.equal(await button.innerText(), name);
    await button.click();
    await until(page, () => [...document.querySelectorAll(".head-line button")].some((one) => one.textContent === "Copied"));
    return page.evaluate(() => navigator.clipboard.readText());
  };
  const plain = await copied("Copy curl");
  assert.ok(!plain.includes("--interface"), plain);
  assert.ok(plain.includes(`--url ${one.request.url}`) || plain.includes(`--url '${one.request.url}'`), plain);
  assert.ok((await copied("… from its source")).includes(`--interface ${one.connection.source_ip}`));
  api.operator = false;
  await page.reload();
  await page.locator(".card[aria-label=Network] .tick").first().waitFor();
  assert.equal(await page.getByRole("button", { name: "… from its source" }).count(), 0);
}, { expected: /403/ });

inspect("under the title stands where it came from, each a way to its like", of("rejected", 422), async (page) => {
  const { tenant, workflow, execution, step } = find("rejected", 422).context;
  const trail = page.getByRole("navigation", { name: "Where it came from" });
  await trail.waitFor();
  assert.deepEqual(await trail.getByRole("link").evaluateAll((links) => links.map((link) => [link.textContent, link.getAttribute("href")])), [
    [tenant, `#/sends?tenant=${tenant}`], [workflow, `#/sends?workflow=${workflow}&tenant=${tenant}`],
    [execution, `#/executions/${execution}?tenant=${tenant}`], [step, `#/sends?workflow=${workflow}&step=${step}&tenant=${tenant}`],
  ]);
  await trail.getByRole("link", { name: step }).click();
  await until(page, ({ step, workflow }) => [...document.querySelectorAll(".row .c-where")].length > 2 && [...document.querySelectorAll(".row .c-where")].every((one) => one.textContent === `${workflow} › ${step}`), { step, workflow });
});

inspect("an operator suspends from a send: its workflow, its tenant or its host", of("rejected", 422), async (page) => {
  const { context, request } = find("rejected", 422);
  const host = new URL(request.url).hostname;
  // Notices go away by themselves.
  await page.evaluate(() => {
    window.said = [];
    new MutationObserver((all) => all.forEach((one) => one.addedNodes.forEach((node) => window.said.push(node.textContent)))).observe(document.getElementById("notes"), { childList: true });
  });
  for (const [label, call] of [
    [`workflow ${context.workflow} of tenant ${context.tenant}`, { tenant: context.tenant, workflow: context.workflow }],
    [`tenant ${context.tenant}`, { tenant: context.tenant }],
    [`every tenant's sends to ${host}`, { host }],
  ]) {
    await page.getByRole("button", { name: "Suspend …" }).click();
    const dialog = page.getByRole("dialog", { name: "Suspend" });
    await dialog.getByLabel(label, { exact: true }).check();
    await dialog.getByLabel("Reason").fill("report 4711");
    await dialog.getByRole("button", { name: "Suspend" }).click();
    await until(page, () => document.querySelector("dialog") === null);
    assert.deepEqual(JSON.parse(asked("/v1/suspensions").at(-1).body), { ...call, reason: "report 4711" });
  }
  assert.deepEqual(await page.evaluate(() => window.said), Array(3).fill("Suspended: 1,204 waiting sends ended."));
  api.operator = false;
  await page.reload();
  await page.locator(".card[aria-label=Network] .tick").first().waitFor();
  assert.equal(await page.getByRole("button", { name: "Suspend …" }).count(), 0);
}, { expected: /403/ });

inspect("an operator suspends from a tenant's row", "#/tenants", async (page) => {
  await page.getByRole("button", { name: "Suspend globex …" }).click();
  const dialog = page.getByRole("dialog", { name: "Suspend" });
  await dialog.getByLabel("Reason").fill("a flood");
  await dialog.getByRole("button", { name: "Suspend" }).click();
  await page.getByRole("row", { name: /tenant globex a flood/ }).waitFor();
});

inspect("a HAR is downloaded", of("delivered", 200), async (page) => {
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "HAR" }).click()]);
  assert.equal(download.suggestedFilename(), `egressd-${find("delivered", 200).id}.har`);
  assert.equal(JSON.parse(await readFile(await download.path(), "utf8")).log.version, "1.2");
});

inspect("resend: an interrupted one warns, asks for its secrets, and leads to the new send", of("interrupted"), async (page) => {
  const old = find("interrupted");
  api.resendMissing = ["/auth"];
  await page.getByRole("button", { name: "Resend …" }).click();
  const dialog = page.getByRole("dialog", { name: "Send again" });
  assert.match(await dialog.innerText(), /may have this request[^]*done twice/);
  await dialog.getByRole("button", { name: "Send again" }).click();
  await dialog.getByText("was redacted: supply it").waitFor();
  await dialog.getByLabel("Username").fill("luke");
  await dialog.getByLabel("Password").fill("t65");
  await dialog.getByRole("button", { name: "Send again" }).click();
  await until(page, (id) => !location.hash.endsWith(id) && document.querySelector(".send .id") !== null, old.id);
  const call = asked(`/v1/sends/${old.id}/resend`).at(-1);
  assert.deepEqual(JSON.parse(call.body), { auth: { username: "luke", password: "t65" } });
  assert.equal(call.headers["egressd-tenant"], old.context.tenant);
  await page.getByRole("link", { name: old.id }).waitFor();
  assert.equal(await page.evaluate(() => document.querySelectorAll("dialog").length), 0);
}, { expected: /409/ });

// Freely where nothing was processed, with a warning where something may have been, with a strong one where it was.
for (const [outcome, what, level] of [
  ["failed", "connection_refused", "no"], ["blocked", "policy_address", "no"], ["expired", "expired", "no"],
  ["failed", "timeout", "maybe"], ["interrupted", "interrupted", "maybe"], ["rejected", 500, "maybe"],
  ["delivered", 200, "yes"], ["rejected", 302, "yes"],
]) {
  inspect(`resend of ${what}: ${level}`, of(outcome, what), async (page) => {
    const one = find(outcome, what);
    one.request.headers = { host: ["h.example"] };
    await page.reload();
    const open = page.getByRole("button", { name: "Resend …" });
    await open.click();
    const dialog = page.getByRole("dialog", { name: "Send again" });
    const warned = { no: 0, maybe: 1, yes: 1 }[level];
    assert.equal(await dialog.getByRole("alert").filter({ visible: true }).count(), warned);
    assert.equal(await dialog.locator(".warning.strong").count(), level === "yes" ? 1 : 0);
    // The main button of the page only where it does no harm.
    assert.equal(await page.locator(".head-line .primary").count(), level === "no" ? 1 : 0);
    await dialog.getByRole("button", { name: "Send again" }).click();
    if (level === "yes") {
      assert.equal(asked(`/v1/sends/${one.id}/resend`).length, 0);
      await dialog.getByLabel("Send it all the same").check();
      await dialog.getByRole("button", { name: "Send again" }).click();
    }
    await until(page, (id) => !location.hash.endsWith(id), one.id);
    assert.equal(asked(`/v1/sends/${one.id}/resend`).length, 1);
  });
}

inspect("resend: a body that is no longer kept is asked for, and goes as its own text", of("rejected", 500), async (page) => {
  Object.assign(find("rejected", 500).request, { body: null, body_sha256: null, body_bytes: 27 });
  await page.reload();
  await page.getByRole("button", { name: "Resend …" }).click();
  const dialog = page.getByRole("dialog", { name: "Send again" });
  await dialog.getByLabel("Body").fill('{"n": 1.0, "big": 12345678901234567890}');
  await dialog.getByLabel("authorization", { exact: true }).fill("Bearer abc");
  await dialog.getByRole("button", { name: "Send again" }).click();
  await until(page, () => document.querySelector("dialog") === null);
  assert.equal(asked("/v1/sends/").filter((call) => call.method === "POST").at(-1).body, '{"headers":{"authorization":"Bearer abc"},"data":{"n": 1.0, "big": 12345678901234567890}}');
});

inspect("an execution shows delivered of total and its sends in call order", () => `#/executions/${api.sends[8].context.execution}?tenant=acme`, async (page) => {
  const { execution } = api.sends[8].context;
  const own = api.sends.filter((one) => one.context.execution === execution).sort((one, two) => one.context.index - two.context.index);
  await until(page, (count) => document.querySelectorAll(".rows .row").length === count, own.length);
  const delivered = own.filter((one) => one.outcome === "delivered").length;
  assert.equal((await text(page, ".ratio-figure")).replace(/\s+/g, " "), `${delivered}/${own.length} delivered`);
  assert.deepEqual(await rowsInSight(page), own.map((one) => one.id));
  assert.deepEqual(await page.locator(".row .c-time").allInnerTexts().then((all) => all.sort()), own.map((_, at) => `#${at}`));
  assert.equal(asked("/v1/executions/").at(-1).headers["egressd-tenant"], "acme");
  await page.keyboard.press("j");
  await page.keyboard.press("Enter");
  await page.locator(".send h1").waitFor();
  await page.keyboard.press("j");
  await until(page, (id) => location.hash.endsWith(id), own[1].id);
  await page.keyboard.press("Escape");
  await page.locator(".execution .row.selected").waitFor();
});

inspect("an open execution is followed until it is done", () => `#/executions/live-run?tenant=acme`, async (page) => {
  await page.getByText("There is no such execution").waitFor();
  const held = [0, 1, 2].map((n) => {
    const one = record(700 + n, Date.now() + n, { end: ["delivered", 200] });
    return { ...one, state: "held", outcome: null, response: null, connection: null, context: { ...one.context, execution: "live-run", index: n } };
  });
  api.sends.unshift(...held);
  api.executions.set("live-run", { state: "open", finished_by: null });
  await page.reload();
  await until(page, () => document.querySelector(".ratio-figure")?.textContent.includes("0/3"));
  assert.match(await text(page, ".head-sub"), /Open: its sends are held/);
  api.executions.set("live-run", { state: "finished", finished_by: "hold_limit" });
  for (const one of held) Object.assign(one, { state: "done", outcome: "delivered", response: { status: 200 } });
  await until(page, () => document.querySelector(".ratio-figure")?.textContent.includes("3/3"));
  assert.match(await text(page, ".head-sub"), /by the hold limit/);
}, { expected: /404/ });

inspect("sources: state, dates, ports, verification", "#/sources", async (page) => {
  await page.getByRole("table", { name: "Sources" }).waitFor();
  const table = await text(page, "table");
  assert.match(table, /203\.0\.113\.10\s+bound to 10\.0\.0\.10[^]*active[^]*2026-09-08[^]*412[^]*31 %[^]*seen as published/);
  assert.match(table, /not usable: the reflectors see another address[^]*seen as another/);
  assert.match(table, /retiring[^]*2026-12-01/);
  assert.match(table, /203\.0\.113\.14[^]*announced/);
  assert.match(table, /2001:db8:7::10/);
});

inspect("sources: without the scope, the published list alone", "#/sends", async (page) => {
  api.operator = false;
  await page.goto(`${api.url}/#/sources`);
  await page.getByRole("table", { name: "Sources" }).waitFor();
  assert.match(await text(page, ".page-box"), /203\.0\.113\.10[^]*active/);
  assert.doesNotMatch(await text(page, "table"), /In flight/);
  await page.goto(`${api.url}/#/tenants`);
  await page.getByText("This page is for operators").waitFor();
}, { expected: /403/ });

inspect("nodes: whose lease is late, and what each sends from", "#/sends", async (page) => {
  assert.match(await page.locator(".rows .c-source[title]").first().getAttribute("title"), /^node /);
  await page.goto(`${api.url}/#/nodes`);
  const table = page.getByRole("table", { name: "Nodes" });
  await table.waitFor();
  assert.deepEqual(await table.locator("tbody th").allInnerTexts(), ["egress-1 (answers here)", "egress-2", "egress-3"]);
  assert.match(await table.locator("tbody tr").nth(1).innerText(), /renewed 2 s ago, of 15 s[^]*203\.0\.113[^]*40[^]*200/);
  assert.match(await table.locator(".chip").nth(2).getAttribute("class"), /warn/);
  assert.match(await text(page, ".page-box"), /81,238 queued and 15 held in all/);
});

inspect("tenants: the noisiest first", "#/tenants", async (page) => {
  await page.getByRole("table", { name: "Tenants" }).waitFor();
  assert.deepEqual(await page.locator("tbody th").allInnerTexts(), ["globex", "acme", "initech", "quiet"]);
  assert.match(await page.locator("tbody tr").first().innerText(), /81,234[^]*200[^]*1 min 3\d s[^]*17,820\s+failed/);
  await page.getByRole("link", { name: /17,820 failed/ }).click();
  await until(page, () => location.hash === "#/sends?outcome=failed&tenant=globex&since=1h");
});

inspect("suspensions: made with a question, lifted with a question", "#/suspensions", async (page) => {
  await page.getByRole("table", { name: "Suspensions in force" }).waitFor();
  assert.match(await text(page, ".page-box"), /tenant globex, workflow nightly-sync[^]*floods a receiver[^]*ops-anna[^]*Lifted[^]*host old\.partner\.example/);
  await page.getByLabel("What").selectOption("host");
  await page.getByLabel("Host", { exact: true }).fill("victim.example");
  await page.getByLabel("Reason").fill("report 4711");
  await page.getByRole("button", { name: "Suspend …" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Cancel" }).click();
  assert.equal(asked("/v1/suspensions").filter((call) => call.method === "POST").length, 0);
  await page.getByRole("button", { name: "Suspend …" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Suspend" }).click();
  await page.getByText("host victim.example").waitFor();
  assert.deepEqual(JSON.parse(asked("/v1/suspensions").find((call) => call.method === "POST").body), { host: "victim.example", reason: "report 4711" });
  await page.getByRole("row", { name: /victim\.example/ }).getByRole("button", { name: "Lift …" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Lift" }).click();
  await page.getByRole("table", { name: "Lifted suspensions" }).getByText("victim.example").waitFor();
});

test("a token is asked for, kept for the tab alone, and forgotten at sign-out", async () => {
  await api.close();
  api = await mock({ token: "secret-token" });
  const page = await open(chrome.context, api.url, "#/sends", { expected: /401/ });
  await page.getByLabel("Token").fill("wrong");
  await page.getByRole("button", { name: "Continue" }).click();
  await page.getByText("does not know this token").waitFor();
  await page.getByLabel("Token").fill("secret-token");
  await page.getByRole("button", { name: "Continue" }).click();
  await loaded(page);
  assert.ok(api.calls.every((call) => !call.path.includes("secret")));
  assert.ok(!(await page.url()).includes("secret"));
  assert.equal(asked("/v1/tail").at(-1).headers.authorization, "Bearer secret-token");
  assert.equal(await page.evaluate(() => JSON.stringify(localStorage).includes("secret") || document.cookie.includes("secret")), false);
  await page.reload();
  await loaded(page);
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Token").waitFor();
  assert.equal(await page.evaluate(() => JSON.stringify(sessionStorage).includes("secret")), false);
  page.check();
  await page.close();
  await api.close();
});

inspect("the theme follows the system, until one is chosen", "#/sends", async (page) => {
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.emulateMedia({ colorScheme: "light" });
  const light = await ground();
  await page.emulateMedia({ colorScheme: "dark" });
  const dark = await ground();
  assert.notEqual(light, dark);
  await page.getByRole("button", { name: /^Theme: system/ }).click();
  assert.equal(await ground(), light);
  await page.reload();
  assert.equal(await ground(), light);
  await page.getByRole("button", { name: /^Theme: light/ }).click();
  await page.getByRole("button", { name: /^Theme: dark/ }).click();
  assert.equal(await ground(), dark);
});

const VIEWS = () => [["#/sends", ".rows .row"], [of("failed", "timeout")(), ".send h1"], [`#/executions/${api.sends[8].context.execution}?tenant=acme`, ".ratio"], ["#/overview", ".chart a"], ["#/executions", "table"], ["#/tunnels", "table"], [`#/batches/${BATCH}`, "table"], ["#/compose", ".compose form"], ["#/sources", "table"], ["#/tenants", "table"], ["#/suspensions", "table"]];

inspect("on a narrow screen nothing runs over its edge", "#/sends", async (page) => {
  await page.setViewportSize({ width: 360, height: 740 });
  for (const [hash, ready] of VIEWS()) {
    await page.goto(`${api.url}/${hash}`);
    await page.locator(ready).first().waitFor();
    const over = await page.evaluate(() => {
      const scroller = document.querySelector(".send, .page, .rows") ?? document.documentElement;
      return [document.documentElement.scrollWidth - innerWidth, scroller.scrollWidth - scroller.clientWidth];
    });
    assert.deepEqual(over, [0, 0], hash);
  }
});

inspect("everything that can be operated has a name", "#/sends", async (page) => {
  const client = await chrome.context.newCDPSession(page);
  for (const [hash, ready] of VIEWS()) {
    await page.goto(`${api.url}/${hash}`);
    await page.locator(ready).first().waitFor();
    const { nodes } = await client.send("Accessibility.getFullAXTree");
    const operated = nodes.filter((node) => !node.ignored && ["button", "link", "textbox", "searchbox", "combobox", "tab", "grid", "table", "dialog"].includes(node.role?.value));
    assert.ok(operated.length > 5, hash);
    assert.deepEqual(operated.filter((node) => !node.name?.value?.trim()).map((node) => node.role.value), [], hash);
  }
});

inspect("axe finds nothing, in either theme, wide and narrow", "#/sends", async (page) => {
  const axe = await readFile(new URL("./node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
  const found = new Map();
  const dialogs = [[of("delivered", 200)(), "Resend …"], [of("delivered", 200)(), "Suspend …"], ["#/sends", "Keyboard help"], ["#/sends", "Filters"], ["#/suspensions", "Lift …"]];
  for (const [width, colorScheme] of [[1280, "light"], [1280, "dark"], [390, "light"], [390, "dark"]]) {
    await page.setViewportSize({ width, height: 800 });
    await page.emulateMedia({ colorScheme });
    for (const [hash, ready, press] of [...VIEWS(), ...dialogs.map(([hash, press]) => [hash, hash === "#/sends" ? ".rows .row" : hash === "#/suspensions" ? "table" : ".trail .link", press])]) {
      if (press === "Keyboard help" && width < 760) continue;
      await page.goto("about:blank");
      await page.goto(`${api.url}/${hash}`);
      await page.locator(ready).first().waitFor();
      if (press) await page.getByRole("button", { name: press }).first().click();
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
      for (const { id, nodes } of violations) for (const node of nodes) found.set(`${id}: ${node.target.join(" ")}: ${node.html.slice(0, 200)} ${node.failureSummary}`, `${hash} ${press ?? ""} ${width} ${colorScheme}`);
    }
  }
  assert.deepEqual([...found].map(([what, where]) => `${where}: ${what}`), []);
});
