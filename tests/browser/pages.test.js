// Overview, executions, a new send, and what is shown to operators alone, before a stand-in for the API.

import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";

import { browser, open, until } from "./browser.js";
import { mock } from "./mock.js";
import { BATCH, batch, record } from "./records.js";

let chrome;
let api;
before(async () => {
  chrome = await browser();
});
after(async () => {
  await chrome.close();
});
beforeEach(async () => {
  api = await mock({ count: 450, spacing: 60_000 });
});

function inspect(name, hash, work, options = {}) {
  test(name, async () => {
    const page = await open(chrome.context, api.url, typeof hash === "function" ? hash() : hash, options);
    try {
      await work(page);
      page.check();
    } finally {
      await page.close();
      await api.close();
    }
  });
}
const asked = (path) => api.calls.filter((call) => call.path.startsWith(path));
const queryOf = (call) => new URL(call.path, api.url).searchParams;
const hrefs = (locator) => locator.evaluateAll((links) => links.map((link) => link.getAttribute("href")));

/** A run of these steps, the last one undelivered. */
function run(execution, steps, { tenant = "acme" } = {}) {
  const made = steps.map((step, index) => {
    const one = record(700 + index, Date.now() - 30_000 + index, { end: index === steps.length - 1 ? ["failed", "timeout"] : ["delivered", 200] });
    return { ...one, context: { tenant, workflow: "order-paid", execution, step, index } };
  });
  api.sends.unshift(...made.reverse());
  return made;
}

inspect("the overview counts outcomes over time, and each of them leads to its sends", "#/overview", async (page) => {
  await page.locator(".chart a").first().waitFor();
  const done = api.sends.filter((one) => one.state === "done");
  assert.equal(Number((await page.locator(".figures dd").first().innerText()).replaceAll(",", "")), done.length);
  assert.match(await page.locator(".figures").innerText(), /Delivered\s+\d+(\.\d+)? %[^]*p50[^]*p95[^]*p99/);
  const bars = page.locator(".card[aria-label='Outcomes over time'] .chart a");
  assert.ok(await bars.count() >= 7, "450 minutes are eight hours");
  assert.match(await bars.first().getAttribute("aria-label"), /\d+ delivered/);
  assert.match(await bars.first().getAttribute("href"), /^#\/sends\?since=.+&until=.+/);
  assert.ok((await hrefs(page.locator(".legend a"))).some((href) => href.startsWith("#/sends?outcome=failed&since=")));
  const worst = page.getByRole("table", { name: "Host" });
  const losses = await worst.locator("tbody tr").evaluateAll((rows) => rows.map((row) => Number(row.cells[2].textContent.split(" ")[0])));
  assert.deepEqual(losses, [...losses].sort((one, two) => two - one));
  assert.match((await hrefs(worst.getByRole("link")))[0], /^#\/sends\?host=/);
  assert.match((await hrefs(page.getByRole("table", { name: "Tenants" }).getByRole("link")))[0], /^#\/sends\?tenant=/);
  await page.getByRole("link", { name: "1 hour" }).click();
  await until(page, () => document.querySelector(".ranges [aria-current]")?.textContent === "1 hour");
  assert.equal(queryOf(asked("/v1/stats").at(-1)).get("bucket"), "5m");
});

inspect("nothing that ended in a time says so", () => {
  api.sends.length = 0;
  return "#/overview";
}, async (page) => {
  await page.getByText("No send ended in this time").waitFor();
});

inspect("executions are listed with how many of their sends arrived", () => {
  run("the-run", ["a", "a", "b", "b"]);
  return "#/executions";
}, async (page) => {
  const row = page.getByRole("row").filter({ hasText: "the-run" });
  await row.waitFor();
  assert.match(await row.innerText(), /3\/4/);
  assert.equal(await row.locator(".dest.bad").getAttribute("title"), "3 of 4 delivered, 1 not");
  assert.match(await row.innerText(), /acme[^]*order-paid[^]*finished/);
  await row.getByRole("link", { name: "the-run" }).click();
  await page.locator(".ratio-figure").waitFor();
  assert.match(page.url(), /#\/executions\/the-run\?tenant=acme$/);
});

inspect("executions are filtered, and what is wrong with a filter leaves the list as it is", "#/executions", async (page) => {
  await page.getByRole("table", { name: "Executions" }).waitFor();
  await page.getByLabel("since", { exact: false }).fill("soon");
  await page.getByRole("button", { name: "Apply" }).click();
  await page.locator(".form-problem").filter({ hasText: "since must be an instant" }).waitFor();
  assert.ok(await page.getByRole("table", { name: "Executions" }).isVisible());
  await page.getByLabel("since", { exact: false }).fill("1d");
  await page.getByLabel("workflow").fill("order-paid");
  await page.getByRole("button", { name: "Apply" }).click();
  await until(page, () => location.hash === "#/executions?workflow=order-paid&since=1d");
  await until(page, () => document.querySelector(".table tbody") && [...document.querySelectorAll(".table tbody tr")].every((row) => row.textContent.includes("order-paid")));
  const last = queryOf(asked("/v1/executions?").at(-1));
  assert.ok(Date.now() - Date.parse(last.get("since")) >= 86_400_000);
}, { expected: /400/ });

inspect("older executions are loaded where they are asked for, each once", () => {
  api.sends.length = 0;
  for (let n = 0; n < 70; n += 1) run(`many-${n}`, ["a"]);
  return "#/executions";
}, async (page) => {
  await until(page, () => document.querySelectorAll(".table tbody tr").length === 50);
  await page.getByRole("button", { name: "Load older" }).click();
  await until(page, () => document.querySelectorAll(".table tbody tr").length === 70);
  const names = await page.locator(".table tbody th").allInnerTexts();
  assert.equal(new Set(names).size, names.length);
});

inspect("a batch shows where it goes and each of its tries, and is looked at again while it is not done", () => {
  api.batches.set(BATCH, batch(BATCH, Date.now(), { state: "gathering", outcome: null, finished_at: null, tried: 0, attempts: [], destination: { s3: { bucket: "acme-logs", prefix: "orders", key: null } } }));
  return `#/batches/${BATCH}`;
}, async (page) => {
  await page.getByText("It gathers events until it closes.").waitFor();
  assert.match(await page.locator(".page-box").innerText(), /gathering[^]*s3:\/\/acme-logs\/orders[^]*Events\s+4,200[^]*Closes/);
  api.batches.set(BATCH, batch(BATCH, Date.now()));
  const rows = page.getByRole("table", { name: "Tries" }).locator("tbody tr");
  await rows.nth(1).waitFor();
  const shown = await rows.allInnerTexts();
  assert.match(shown[0], /failed[^]*the bucket <b>did not answer<\/b> within 30 s[^]*203\.0\.113/, "told as text");
  assert.match(shown[1], /delivered[^]*HTTP\/1\.1 200/);
  assert.match(await page.locator(".page-box").innerText(), new RegExp(`Object\\s+orders/2026[^]*-${BATCH}\\.gz[^]*Closed[^]*Done`));
  assert.match(await page.title(), /Batch for s3:\/\/acme-logs\/orders, delivered/);
  assert.deepEqual(await hrefs(rows.first().getByRole("link")), ["#/sends?source_ip=203.0.113.10"]);
});

inspect("a batch that is not there is told as that", `#/batches/${"cd".repeat(32)}`, async (page) => {
  await page.getByText("no such batch").waitFor();
}, { expected: /404/ });

inspect("an event leads to its batch", () => {
  const one = record(900, Date.now(), { end: ["delivered", 200] });
  api.sends.unshift({ ...one, request: null, s3: { bucket: "acme-logs", prefix: "orders", payload: { a: 1 }, payload_bytes: 7 }, batch: { id: BATCH, closes_at: new Date().toISOString() } });
  return `#/sends/${one.id}`;
}, async (page) => {
  await page.getByRole("link", { name: BATCH }).click();
  await page.getByRole("table", { name: "Tries" }).waitFor();
  await page.keyboard.press("Escape");
  await until(page, () => location.hash.startsWith("#/sends/"));
});

inspect("tunnels are listed, those that are open first, with how each of them ended", "#/tunnels", async (page) => {
  const rows = page.getByRole("table", { name: "Tunnels" }).locator("tbody tr");
  await rows.first().waitFor();
  assert.match(await rows.first().innerText(), /api\.shop\.example:443[^]*open[^]*acme[^]*10\.0\.0\.7[^]*203\.0\.113\.10[^]*–[^]*–/);
  const refused = rows.filter({ hasText: "refused: policy_metadata" });
  assert.match(await refused.innerText(), /169\.254\.169\.254:80[^]*is a metadata service/);
  assert.match(await rows.filter({ hasText: "interrupted" }).innerText(), /reset: interrupted[^]*the appliance stopped[^]*–[^]*–[^]*–/);
  assert.match(await rows.filter({ hasText: "TLS names other.example.com" }).innerText(), /policy_sni/);
  assert.match(await rows.filter({ hasText: "[2001:db8::1]:443" }).innerText(), /closed[^]*1\.5 KiB[^]*4096\.00 MiB/);
  assert.equal(await refused.locator("th span").first().getAttribute("title"), "resolved to an internal address policy_metadata; lookup 1.5 ms");
  // Old ones where they are asked for, each once.
  assert.equal(await rows.count(), 50);
  await page.getByRole("button", { name: "Load older" }).click();
  await until(page, () => document.querySelectorAll(".table tbody tr").length === 70);
  await page.getByText("no older ones").waitFor();
  await rows.filter({ hasText: "refused: policy_metadata" }).getByRole("button", { name: "Suspend" }).click();
  await page.getByRole("dialog").getByText("169.254.169.254").first().waitFor();
});

inspect("tunnels are filtered, and what is wrong with a filter leaves the list as it is", "#/tunnels?end=refused", async (page) => {
  await page.getByRole("table", { name: "Tunnels" }).waitFor();
  assert.equal(await page.locator(".table tbody tr").count(), 2);
  await page.getByLabel("since", { exact: true }).fill("soon");
  await page.getByRole("button", { name: "Apply" }).click();
  await page.locator(".form-problem").filter({ hasText: "since must be an instant" }).waitFor();
  assert.ok(await page.getByRole("table", { name: "Tunnels" }).isVisible());
  await page.getByLabel("since", { exact: true }).fill("1d");
  await page.locator("#t-code").selectOption("policy_sni");
  await page.getByRole("button", { name: "Apply" }).click();
  await until(page, () => location.hash === "#/tunnels?end=refused&code=policy_sni&since=1d");
  await until(page, () => document.querySelectorAll(".table tbody tr").length === 1);
  const last = queryOf(asked("/v1/tunnels?").at(-1));
  assert.ok(Date.now() - Date.parse(last.get("since")) >= 86_400_000);
  await page.goto(`${api.url}/#/tunnels?host=nowhere.example`);
  await page.getByText("No tunnel matches").waitFor();
}, { expected: /400/ });

inspect("an execution by its steps, and a link for each that shows it alone", () => {
  run("the-run", ["a", "b", "a", "b"]);
  return "#/executions/the-run?tenant=acme";
}, async (page) => {
  const rows = () => page.locator(".rows .row").evaluateAll((all) => all.sort((one, two) => one.getAttribute("aria-rowindex") - two.getAttribute("aria-rowindex")).map((row) => row.querySelector("a").closest(".group-row") ? row.textContent : row.querySelector(".c-time").textContent));
  await page.locator("nav.steps").waitFor();
  assert.deepEqual(await rows(), ["#0", "#1", "#2", "#3"]);
  assert.deepEqual(await page.locator("nav.steps a").allTextContents(), ["all steps", "a 2/2", "b 1/2"]);
  await page.getByRole("button", { name: "By step" }).click();
  await page.locator(".group-row").first().waitFor();
  assert.deepEqual(await rows(), ["a 2/2 delivered", "#0", "#2", "b 1/2 delivered", "#1", "#3"]);
  // Keys pass over the headings.
  await page.keyboard.press("j");
  await page.keyboard.press("j");
  await page.keyboard.press("j");
  await page.locator(".row.selected").filter({ hasText: "#1" }).waitFor();
  await page.locator("nav.steps").getByRole("link", { name: "b 1/2" }).click();
  await until(page, () => location.hash === "#/executions/the-run?tenant=acme&step=b");
  await until(page, () => document.querySelectorAll(".rows .row").length === 2);
  assert.deepEqual(await rows(), ["#1", "#3"]);
});

inspect("what is embedded stands alone", () => {
  run("the-run", ["a", "b"]);
  return "?embed=1#/executions/the-run?tenant=acme&step=a";
}, async (page) => {
  await until(page, () => document.querySelectorAll(".rows .row").length === 1);
  assert.equal(await page.locator(".bar").isVisible(), false);
  assert.equal(await page.locator(".ratio-figure").isVisible(), true);
});

inspect("a new send is explained first, and sent as it was explained", "#/compose", async (page) => {
  await page.getByLabel("URL").fill("https://hooks.example.com/orders");
  await page.getByLabel("Payload").fill('{"n": 1.0,"n2":[ ]}');
  await page.getByText("Authentication").click();
  await page.getByLabel("Username").fill("luke");
  await page.getByLabel("Password").fill("x-wing");
  await page.locator("summary", { hasText: "Query" }).click();
  await page.locator("#n-query").fill("tag=x\ntag=y z\npage=2");
  await page.locator("summary", { hasText: "Headers" }).click();
  await page.locator("#n-headers").fill("X-Shop: north: 1");
  await page.getByRole("button", { name: "Explain" }).click();
  await page.getByText("It may be sent.").waitFor();
  assert.equal(asked("/v1/sends").filter((call) => call.method === "POST").length, 0, "nothing is sent yet");
  // What is changed is explained anew.
  await page.getByLabel("URL").fill("https://hooks.example.com/orders/7");
  await page.getByRole("button", { name: "Explain" }).click();
  await page.getByRole("button", { name: "Send it" }).click();
  await page.locator(".send h1").waitFor();
  const [call] = asked("/v1/sends").filter((one) => one.method === "POST");
  assert.ok(call.body.includes('"data":{"n": 1.0,"n2":[ ]}'), "the payload's own bytes");
  assert.equal(call.headers["egressd-tenant"], "default");
  assert.deepEqual(JSON.parse(call.body), { method: "POST", url: "https://hooks.example.com/orders/7", data: { n: 1, n2: [] }, auth: { username: "luke", password: "x-wing" }, params: { tag: ["x", "y z"], page: "2" }, headers: { "X-Shop": "north: 1" } });
});

inspect("a new send that would be blocked, or is none, says why", "#/compose", async (page) => {
  await page.getByLabel("URL").fill("http://169.254.169.254/");
  await page.getByRole("button", { name: "Explain" }).click();
  await page.getByText("The policy would block it", { exact: false }).waitFor();
  await page.getByText("is a metadata service", { exact: false }).waitFor();
  await page.getByRole("button", { name: "Send it all the same" }).waitFor();
  await page.getByLabel("URL").fill("hooks.example.com");
  await page.getByRole("button", { name: "Explain" }).click();
  await page.getByRole("button", { name: "Send it" }).click();
  await page.locator(".form-problem").filter({ hasText: "/url is no address" }).waitFor();
  await page.locator("summary", { hasText: "Headers" }).click();
  await page.locator("#n-headers").fill("X-Shop");
  await page.getByRole("button", { name: "Explain" }).click();
  await page.locator(".form-problem").filter({ hasText: "has no :" }).waitFor();
}, { expected: /400/ });

inspect("operators' pages stand in the bar for operators alone", "#/sends", async (page) => {
  await page.getByRole("link", { name: "Tenants" }).waitFor();
  api.operator = false;
  await page.reload();
  await page.locator(".rows .row").first().waitFor();
  await until(page, () => performance.getEntriesByType("resource").some((one) => one.name.endsWith("/v1/sources") && one.responseEnd > 0));
  assert.deepEqual(await page.locator("#nav a").allInnerTexts(), ["Overview", "Sends", "Executions", "Tunnels", "New send", "Sources"]);
}, { expected: /403/ });

inspect("several outcomes, classes of status and what a path begins with are filters", "#/sends", async (page) => {
  await page.locator(".rows .row").first().waitFor();
  await page.getByRole("button", { name: "Filters" }).click();
  await page.getByRole("checkbox", { name: "failed" }).check();
  await page.getByRole("checkbox", { name: "rejected" }).check();
  await page.locator("#filter-path").fill("/v2");
  assert.ok(await page.locator("#filter-workflow-seen option").count() > 0, "what was seen is offered");
  await page.locator("#filter-status").fill("oops");
  await page.getByRole("button", { name: "Apply" }).click();
  await page.locator("#filter-status-problem").filter({ hasText: "must be a status code" }).waitFor();
  assert.ok(await page.locator(".rows .row").count() > 10, "the list is as it was");
  await page.locator("#filter-status").fill("5xx");
  await page.getByRole("button", { name: "Apply" }).click();
  await until(page, () => location.hash === "#/sends?outcome=rejected&outcome=failed&status=5xx&path=%2Fv2");
  await until(page, () => document.querySelector(".list-status").textContent.includes("no older ones"));
  const query = queryOf(asked("/v1/sends?").at(-1));
  assert.deepEqual([query.getAll("outcome"), query.get("status"), query.get("path")], [["rejected", "failed"], "5xx", "/v2"]);
}, { expected: /400/ });

inspect("a search that egressd refuses is said under it, and the list stays", "#/sends", async (page) => {
  await page.locator(".rows .row").first().waitFor();
  await page.getByLabel("Search sends").fill("status:oops");
  await page.keyboard.press("Enter");
  await page.locator(".sends > .form-problem").filter({ hasText: "must be a status code" }).waitFor();
  assert.ok(await page.locator(".rows .row").count() > 10);
}, { expected: /400/ });

inspect("the list is sorted by duration, and by time again", "#/sends", async (page) => {
  await page.locator(".rows .row").first().waitFor();
  const newest = api.sends[0].id;
  await page.getByRole("button", { name: "Total" }).click();
  const longest = api.sends.slice(0, 200).reduce((one, two) => ((two.timings_ms.total ?? -1) > (one.timings_ms.total ?? -1) ? two : one));
  await until(page, (total) => document.querySelector(".list-status").textContent.includes("longest first") && document.querySelector(".row[aria-rowindex='2']") !== null, null);
  const first = await page.locator(".row[aria-rowindex='2']").getAttribute("id");
  assert.equal(api.sends.find((one) => `row-${one.id}` === first).timings_ms.total, longest.timings_ms.total);
  await page.getByRole("button", { name: "Total" }).click();
  await until(page, (id) => document.querySelector(".row[aria-rowindex='2']")?.id === `row-${id}`, newest);
});

inspect("a text in bodies is looked for by egressd, and the list says how far", () => {
  const one = api.sends[7];
  one.response = { ...record(1, 0, { end: ["delivered", 200] }).response, body: "the needle is here", body_encoding: "utf8" };
  const two = api.sends[150];
  two.request = { ...two.request, body: btoa("another Needle"), body_encoding: "base64" };
  return "#/sends?q=needle";
}, async (page) => {
  await until(page, () => document.querySelector(".list-status").textContent.match(/0 of \d+ sends match/) !== null);
  await page.getByRole("link", { name: "Look into bodies instead" }).click();
  await until(page, () => location.hash === "#/sends?text=needle");
  await page.locator(`#row-${api.sends[7].id}`).waitFor();
  await until(page, () => /bodies of 100 sends searched, back to \d/.test(document.querySelector(".list-status").textContent));
  assert.match(await page.locator(".list-status").textContent(), /not following/);
  assert.equal(await page.locator(".rows .row").count(), 1);
  const calls = asked("/v1/sends?").filter((call) => call.path.includes("text=")).length;
  await page.getByRole("button", { name: "Look further back" }).click();
  await page.locator(`#row-${api.sends[150].id}`).waitFor();
  await until(page, () => /bodies of 200 sends searched/.test(document.querySelector(".list-status").textContent));
  assert.equal(asked("/v1/sends?").filter((call) => call.path.includes("text=")).length, calls + 1, "as far as it was told to");
  assert.equal(await page.inputValue("#search"), "text:needle");
});
