// The README's four pictures of the inspector, made anew: `npm run shots`. `npm run shots all` makes every page at three
// widths in both themes, under target/shots, to be looked at. Fonts are those of the machine.

import { mkdir } from "node:fs/promises";

import { browser, open } from "./browser.js";
import { mock } from "./mock.js";
import { BATCH, record } from "./records.js";

const KEPT = new URL("./shots/", import.meta.url).pathname;
const ALL = new URL("../../target/shots/", import.meta.url).pathname;

const api = await mock({ count: 2000, spacing: 40_000 });
const steps = ["notify_shop", "notify_shop", "post_invoice", "update_crm", "post_invoice", "fan_out", "fan_out", "fan_out"];
const run = steps.map((step, index) => ({
  ...record(700 + index, Date.now() - 30_000 + index, { end: index % 3 === 2 ? ["failed", "timeout"] : ["delivered", 200] }),
  context: { tenant: "acme", workflow: "order-paid", execution: "run-7f3d2b", step, index },
}));
api.sends.unshift(...run.reverse());
const timeout = api.sends.find((one) => one.error?.code === "timeout");
const PAGES = {
  list: ["#/sends", ".rows .row"],
  filters: ["#/sends", ".rows .row", "Filters"],
  send: [`#/sends/${timeout.id}`, ".card[aria-label=Network] .tick"],
  overview: ["#/overview", ".chart a"],
  executions: ["#/executions", ".table tr"],
  execution: ["#/executions/run-7f3d2b?tenant=acme", ".steps", "By step"],
  tunnels: ["#/tunnels", ".table tr"],
  batch: [`#/batches/${BATCH}`, ".table tr"],
  compose: ["#/compose", ".compose form"],
  sources: ["#/sources", ".table tr"],
  tenants: ["#/tenants", ".table tr"],
  suspensions: ["#/suspensions", ".table tr"],
  nodes: ["#/nodes", ".table tr"],
};

const chrome = await browser();
async function shoot(name, colorScheme, width, height, path) {
  const [hash, ready, press] = PAGES[name];
  const page = await open(chrome.context, api.url, hash);
  await page.setViewportSize({ width, height });
  await page.emulateMedia({ colorScheme });
  await page.locator(ready).first().waitFor();
  if (press) await page.getByRole("button", { name: press }).click();
  await page.screenshot({ path });
  page.check();
  await page.close();
}

if (process.argv[2] === "all") {
  await mkdir(ALL, { recursive: true });
  for (const name of Object.keys(PAGES)) {
    for (const [width, height] of [[1440, 900], [1024, 768], [390, 844]]) {
      for (const theme of ["light", "dark"]) await shoot(name, theme, width, height, `${ALL}${name}-${width}-${theme}.png`);
    }
  }
} else {
  for (const [name, theme] of [["list", "dark"], ["send", "light"], ["overview", "light"], ["execution", "dark"]]) await shoot(name, theme, 1280, 800, `${KEPT}${name}-${theme}.png`);
}
await chrome.close();
await api.close();
