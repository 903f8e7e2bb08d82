// What a step of scrolling costs the page's thread, in a list of ten thousand sends and in one of five hundred, in
// turns and under the same stream of new ones: the ratio says whether the list's length is felt. Figures, no verdict.
//
//   npm run bench [ROUNDS]

import { browser, open } from "./browser.js";
import { mock } from "./mock.js";
import { allLoaded, scrolledThrough, streamInto } from "./scroll.js";

const rounds = Number(process.argv[2] ?? 3);
const chrome = await browser();

/** Milliseconds of the thread's own processor time for each step. */
async function each(count) {
  const api = await mock({ count });
  const page = await open(chrome.context, api.url, "#/sends");
  try {
    await allLoaded(page, count);
    const client = await chrome.context.newCDPSession(page);
    await client.send("Performance.enable", { timeDomain: "threadTicks" });
    const worked = async () => {
      const { metrics } = await client.send("Performance.getMetrics");
      return metrics.find((one) => one.name === "TaskDuration").value * 1000;
    };
    const sent = streamInto(api);
    const before = await worked();
    const { total } = await scrolledThrough(page);
    const spent = await worked() - before;
    sent.stop();
    return spent / total;
  } finally {
    await page.close();
    await api.close();
  }
}

try {
  const ratios = [];
  for (let round = 0; round < rounds; round += 1) {
    const [short, long] = [await each(500), await each(10_000)];
    ratios.push(long / short);
    console.log(`a step: ${short.toFixed(1)} ms among 500 sends, ${long.toFixed(1)} ms among 10,000: ${(long / short).toFixed(2)} times as much`);
  }
  console.log(`median ratio: ${ratios.sort((one, two) => one - two)[Math.floor(rounds / 2)].toFixed(2)}`);
} finally {
  await chrome.close();
}
