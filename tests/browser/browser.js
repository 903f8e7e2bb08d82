// A real browser for the tests, and the watch that every test keeps on it.

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { chromium } from "playwright-core";

/** How long anything may take before a test gives up on it, in milliseconds: a busy machine is no failure. */
export const PATIENCE = 60_000;

// The last three keep it from asking for hosts of its maker's.
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

export async function browser() {
  const profile = await mkdtemp(join(tmpdir(), "egressd-browser-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    args: FLAGS,
    viewport: { width: 1280, height: 800 },
    acceptDownloads: true,
    timezoneId: "UTC",
  });
  context.setDefaultTimeout(PATIENCE);
  return {
    context,
    async close() {
      await context.close();
      await rm(profile, { recursive: true, force: true });
    },
  };
}

/**
 * A page on which anything unexpected is a failure: errors, policy violations, dialogs, requests to another origin.
 *
 * @param {{expected?: RegExp}} options  console errors that belong to the test, such as an answered 404
 */
export async function open(context, url, hash = "#/sends", { expected = /^$/ } = {}) {
  const page = await context.newPage();
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(`error: ${error.stack}`));
  page.on("console", (message) => {
    if (message.type() === "error" && !expected.test(message.text())) wrong.push(`console: ${message.text()}`);
  });
  page.on("dialog", (dialog) => {
    wrong.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on("request", (request) => {
    const { origin, protocol } = new URL(request.url());
    if (origin !== new URL(url).origin && protocol !== "blob:") wrong.push(`request: ${request.url()}`);
  });
  await page.goto(`${url}/${hash}`);
  page.check = () => assert.deepEqual(wrong, []);
  return page;
}

/** Waits until a condition holds in the page. */
export const until = (page, condition, argument) => page.waitForFunction(condition, argument, { timeout: PATIENCE });

/** The ids of the rows in sight, top to bottom. */
export const rowsInSight = (page) => page.evaluate(() => {
  const box = document.querySelector(".rows").getBoundingClientRect();
  return [...document.querySelectorAll(".rows .row")]
    .map((row) => ({ id: row.id.slice(4), top: row.getBoundingClientRect().top }))
    .filter(({ top }) => top >= box.top - 1 && top < box.bottom)
    .sort((one, two) => one.top - two.top)
    .map(({ id }) => id);
});
