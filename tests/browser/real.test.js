// The inspector as the real binary serves it: EGRESSD_BIN names it (it runs as `egressd demo`), or EGRESSD_URL the
// inspector of a demo that runs already.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";

import { browser, open, until } from "./browser.js";

let chrome;
let demo;
let url;
let receiver;
before(async () => {
  url = process.env.EGRESSD_URL?.replace(/\/$/, "");
  if (url === undefined) {
    assert.ok(process.env.EGRESSD_BIN, "EGRESSD_BIN must name the egressd binary, or EGRESSD_URL a running demo's inspector");
    demo = spawn(process.env.EGRESSD_BIN, ["demo"], { stdio: ["ignore", "pipe", "inherit"] });
    const lines = createInterface({ input: demo.stdout });
    for await (const line of lines) {
      url ??= /inspector\s+(http:\/\/[^ ]+?)\/?\s*$/.exec(line)?.[1];
      // The demo's own sends are done.
      if (/The receiver saw/.test(line)) break;
    }
    demo.stdout.resume();
  }
  chrome = await browser();
  const { sends } = await list();
  const own = sends.find((one) => one.context.workflow === "demo" && one.outcome === "delivered" && one.request.method === "POST");
  receiver = new URL(own.request.url).origin;
});
after(async () => {
  await chrome?.close();
  demo?.kill("SIGTERM");
  if (demo && demo.exitCode === null) await new Promise((resolve) => demo.on("exit", resolve));
});

const list = async (query = "") => (await fetch(`${url}/v1/sends?limit=200${query}`)).json();
const submit = async (send) => (await fetch(`${url}/v1/sends`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(send) })).json();
const find = async (what) => (await list()).sends.find((one) => one.context.workflow === "demo" && (one.outcome === what || one.error?.code === what));
// Asked for where it may be missing; the page does without.
const expected = /404|Failed to load resource/;

async function view(hash, work) {
  const page = await open(chrome.context, url, hash, { expected });
  try {
    await work(page);
    page.check();
  } finally {
    await page.close();
  }
}

test("the page is served under a policy that admits nothing but itself", async () => {
  const answer = await fetch(`${url}/`);
  const policy = answer.headers.get("content-security-policy");
  for (const part of ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"]) {
    assert.ok(policy.includes(part), policy);
  }
  assert.equal(answer.headers.get("x-content-type-options"), "nosniff");
  const html = await answer.text();
  for (const [, path] of html.matchAll(/(?:src|href)="(inspector\/[^"]+)"/g)) {
    const asset = await fetch(`${url}/${path}`);
    assert.equal(asset.status, 200, path);
    assert.match(asset.headers.get("content-type"), /javascript|css|svg/, path);
  }
});

test("the demo's sends are in the list, and one that finishes now appears", () => view("#/sends", async (page) => {
  await until(page, () => document.querySelectorAll(".rows .row").length >= 11);
  for (const outcome of ["delivered", "rejected", "failed", "blocked"]) await page.getByRole("link", { name: new RegExp(` ${outcome}: show`) }).waitFor();
  await until(page, () => document.querySelector(".follow.live") !== null);
  const made = await submit({ method: "POST", url: `${receiver}/live`, data: { now: true }, context: { workflow: "browser" } });
  await page.locator(`#row-${made.id} .tone-delivered`).waitFor();
}));

test("filters of the address reach the API", () => view("#/sends?outcome=blocked&workflow=demo&since=1h", async (page) => {
  await until(page, () => document.querySelectorAll(".rows .row").length > 0);
  assert.equal(await page.locator(".row .badge.tone-blocked").count(), await page.locator(".row").count());
}));

test("a wrong filter is said in the API's words", () => view("#/sends?status=abc", async (page) => {
  await page.getByText("The list could not be loaded").waitFor();
  assert.match(await page.locator(".empty").innerText(), /status/);
}));

test("a timeout: the budget, the phase, the published source", async () => {
  const { id } = await find("timeout");
  await view(`#/sends/${id}`, async (page) => {
    await page.getByText("all of the budget").waitFor();
    assert.match(await page.locator(".phase.failed").innerText(), /Wait/);
    await page.getByText("✓ published").waitFor();
    await page.getByText("No complete answer came back.").waitFor();
  });
});

test("a rejected send: what was sent beside what came back, its execution, its HAR", async () => {
  const { id, context } = await find("rejected");
  await view(`#/sends/${id}`, async (page) => {
    assert.match(await page.locator(".card[aria-label=Received]").innerText(), /500 Internal Server Error/);
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "HAR" }).click()]);
    assert.equal(JSON.parse(await readFile(await download.path(), "utf8")).log.entries.length, 1);
    await page.getByRole("link", { name: context.execution }).click();
    await until(page, () => /^\d+\/11/.test(document.querySelector(".ratio-figure")?.textContent ?? ""));
    const calls = await page.locator(".row").evaluateAll((rows) => rows.map((row) => [Number(/translateY\((\d+)/.exec(row.style.transform)[1]), row.querySelector(".c-time").textContent]).sort((one, two) => one[0] - two[0]).map(([, call]) => call));
    assert.deepEqual(calls, Array.from({ length: 11 }, (_, at) => `#${at}`));
  });
});

test("a blocked send says why, and what to do", async () => {
  const { id } = await find("blocked");
  await view(`#/sends/${id}`, async (page) => {
    assert.match(await page.locator(".said").innerText(), /metadata or platform service/);
    await page.getByText("Nothing was sent, so nothing came back.").waitFor();
  });
});

test("resend makes a new send, with the secret given again", async () => {
  const made = await submit({ method: "POST", url: `${receiver}/secret`, data: { n: 1 }, auth: { username: "luke", password: "t65" } });
  await fetch(`${url}/v1/sends/${made.id}?wait=30`);
  await view(`#/sends/${made.id}`, async (page) => {
    assert.match(await page.locator(".card[aria-label=Sent]").innerText(), /authorization\s*\[redacted hmac:[0-9a-f]{8}\]/);
    await page.getByRole("button", { name: "Resend …" }).click();
    const dialog = page.getByRole("dialog", { name: "Send again" });
    // The receiver has it: that is not done by one press.
    await dialog.getByLabel("Send it all the same").check();
    await dialog.getByRole("button", { name: "Send again" }).click();
    await dialog.getByText("was redacted").first().waitFor();
    await dialog.getByLabel("Username").fill("luke");
    await dialog.getByLabel("Password").fill("t65");
    await dialog.getByRole("button", { name: "Send again" }).click();
    await page.getByRole("link", { name: made.id }).waitFor();
    await page.getByText("The receiver answered 200").waitFor();
  });
  const seen = await (await fetch(`${receiver}/_requests`)).json();
  const both = seen.filter((request) => request.target === "/secret");
  assert.equal(both.length, 2);
  assert.deepEqual(both[0].headers.find(([name]) => name === "authorization"), both[1].headers.find(([name]) => name === "authorization"));
});

test("a receiver's hostile answer is text", async () => {
  const made = await submit({ method: "POST", url: `${receiver}/%3Cscript%3Ealert(1)%3C/script%3E`, data: "<img src=x onerror=alert(1)>\u202e", context: { workflow: "<script>alert(2)</script>\u202e", step: "<b>" } });
  await fetch(`${url}/v1/sends/${made.id}?wait=30`);
  await view(`#/sends/${made.id}`, async (page) => {
    await page.getByText("The receiver answered").waitFor();
    assert.match(await page.locator(".card[aria-label=Sent]").innerText(), /<img src=x onerror=alert\(1\)>U\+202E/);
    assert.equal(await page.locator("main img, main script, main b b").count(), 0);
  });
});

test("executions and statistics are the API's", async () => {
  for (const [index, path] of ["taken", "taken", "status/500"].entries()) {
    await submit({ method: "POST", url: `${receiver}/${path}`, data: { index }, context: { workflow: "inspected", execution: "inspected-1", step: `step-${index}` } });
  }
  await view("#/executions?workflow=inspected", async (page) => {
    const row = page.getByRole("row").filter({ hasText: "inspected-1" });
    await row.waitFor();
    await until(page, () => document.querySelector(".dest")?.title.includes("to come") === false);
    const { delivered, done, total } = (await (await fetch(`${url}/v1/executions?workflow=inspected`)).json()).executions[0];
    assert.deepEqual([done, total], [3, 3]);
    assert.match(await row.innerText(), new RegExp(`${delivered}/3`));
    await page.goto(`${url}/#/overview?range=1h`);
    await page.locator(".chart a").first().waitFor();
    const { sends } = await list();
    const shown = Number((await page.locator(".figures dd").first().innerText()).replaceAll(",", ""));
    assert.ok(shown >= 3 && shown <= sends.length, `${shown} of ${sends.length}`);
  });
});

test("sources, tenants and suspensions", () => view("#/sources", async (page) => {
  await page.getByText("127.0.0.11").first().waitFor();
  await page.getByRole("link", { name: "Tenants" }).click();
  await page.getByRole("rowheader", { name: "default" }).waitFor();
  await page.getByRole("link", { name: "Suspensions" }).click();
  await page.getByLabel("Tenant", { exact: true }).fill("noisy");
  await page.getByLabel("Reason").fill("a test of this page");
  await page.getByRole("button", { name: "Suspend …" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Suspend" }).click();
  await page.getByRole("row", { name: /tenant noisy/ }).waitFor();
  const refused = await fetch(`${url}/v1/sends`, { method: "POST", headers: { "content-type": "application/json", "egressd-tenant": "noisy" }, body: JSON.stringify({ method: "GET", url: receiver }) });
  assert.equal((await refused.json()).code, "suspended");
  await page.getByRole("row", { name: /tenant noisy/ }).getByRole("button", { name: "Lift …" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Lift" }).click();
  await page.getByRole("table", { name: "Lifted suspensions" }).getByText("noisy").waitFor();
}));
