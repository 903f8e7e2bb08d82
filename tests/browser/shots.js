// The README's two pictures of the inspector, made anew: `npm run shots`. Fonts are those of the machine.

import { browser, open } from "./browser.js";
import { mock } from "./mock.js";

const api = await mock({ count: 2000, spacing: 1800 });
const chrome = await browser();
const timeout = api.sends.find((one) => one.error?.code === "timeout");
for (const [name, hash, colorScheme, ready] of [
  ["list-dark", "#/sends", "dark", ".rows .row"],
  ["send-light", `#/sends/${timeout.id}`, "light", ".card[aria-label=Network] .tick"],
]) {
  const page = await open(chrome.context, api.url, hash);
  await page.emulateMedia({ colorScheme });
  await page.locator(ready).first().waitFor();
  await page.screenshot({ path: new URL(`./shots/${name}.png`, import.meta.url).pathname });
  page.check();
  await page.close();
}
await chrome.close();
await api.close();
