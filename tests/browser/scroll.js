// A long list scrolled from its one end to the other while new sends arrive: what the test counts and the bench times.

import { PATIENCE } from "./browser.js";
import { record } from "./records.js";

/** To the end, page by page, as somebody who holds the End key would. */
export async function allLoaded(page, count) {
  await page.waitForFunction((wanted) => {
    const rows = document.querySelector(".rows");
    if (rows === null) return false;
    rows.scrollTop = 1e9;
    return document.querySelector(".list-status").textContent.includes(wanted);
  }, `${count.toLocaleString("en")} sends`, { timeout: PATIENCE, polling: 50 });
}

/** New sends, a hundred a second, until it is stopped, which says how many they were. */
export function streamInto(api) {
  let sent = 0;
  const stream = setInterval(() => {
    for (let n = 0; n < 5; n += 1) api.finish(record(20_000 + (sent += 1), Date.now() + sent));
  }, 50);
  return {
    stop() {
      clearInterval(stream);
      return sent;
    },
  };
}

/**
 * Scrolls by 40 rows at a time, for two frames each, from the list's start again where it ends: the most rows on the
 * page at once, the rows that were drawn, and the steps after which there was none under the pointer.
 */
export const scrolledThrough = (page) => page.evaluate(async () => {
  const rows = document.querySelector(".rows");
  const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
  let [most, blank, drawn] = [0, 0, 0];
  const watch = new MutationObserver((changes) => {
    for (const { addedNodes } of changes) drawn += addedNodes.length;
  });
  watch.observe(rows.querySelector(".rows-body"), { childList: true });
  const [total, by] = [240, 40 * rows.querySelector(".row").getBoundingClientRect().height];
  for (let step = 0; step < total; step += 1) {
    rows.scrollTop = (step * by) % (rows.scrollHeight - rows.clientHeight);
    await frame();
    await frame();
    most = Math.max(most, document.querySelectorAll(".rows .row").length);
    const box = rows.getBoundingClientRect();
    const at = document.elementFromPoint(box.left + 200, box.top + box.height / 2);
    if (at?.closest(".row") === null) blank += 1;
  }
  watch.disconnect();
  return { total, most, blank, drawn };
});
