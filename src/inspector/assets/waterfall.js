// Where a delivery's time went, against the one budget it had.

import { h } from "./dom.js";
import { ms } from "./format.js";

export const PHASES = ["dns", "connect", "tls", "write", "wait", "read"];
const LABELS = { dns: "DNS", connect: "Connect", tls: "TLS", write: "Write", wait: "Wait", read: "Read" };

export function waterfall(record, deadline) {
  const timings = record.timings_ms ?? {};
  const total = timings.total;
  const failed = record.error?.phase ?? null;
  const before = [["held", timings.held], ["queued", timings.queued]].filter(([, value]) => value !== null && value !== undefined);
  const waits = before.length === 0 ? null : h("p", { class: "waits" }, "Before its delivery: ",
    before.map(([name, value], at) => [at > 0 ? ", " : "", name, " ", h("b", {}, ms(value))]));
  if (total === null || total === undefined) {
    return h("div", { class: "waterfall" }, h("p", { class: "dim" }, record.state === "done" ? "It was never started, so no time of its budget was spent." : "Not started yet."), waits);
  }
  const out = total >= deadline || record.error?.code === "timeout";
  // The budget as a whole, to scale: what was spent of it, and the line it may not cross.
  const share = Math.min(100, (total / deadline) * 100);
  const budget = h("div", { class: "budget", role: "img", "aria-label": `${ms(total)} of the ${ms(deadline)} budget` },
    h("div", { class: "budget-track" },
      h("div", { class: `budget-spent${out ? " out" : ""}`, style: { width: `max(3px, ${share}%)` } }),
      h("div", { class: "budget-line" })),
    h("div", { class: "budget-text" },
      h("span", {}, h("b", {}, ms(total)), out ? " – all of the budget" : ` of ${ms(deadline)}`),
      h("span", { class: "dim" }, `deadline ${ms(deadline)}`)));

  // The phases, on a scale of their own where the whole is short, with the deadline where it is in sight.
  const scale = total > deadline / 3 ? Math.max(deadline, total) * 1.02 : total;
  let start = 0;
  const rows = PHASES.map((name) => {
    const spent = timings[name];
    const happened = spent !== null && spent !== undefined;
    const from = start;
    if (happened) start += spent;
    const broke = failed === name;
    const left = (from / scale) * 100;
    return h("div", { class: `phase${broke ? " failed" : ""}${happened ? "" : " none"}` },
      h("span", { class: "phase-name" }, LABELS[name]),
      h("span", { class: "phase-track" },
        happened ? h("i", { class: `bar-${name}`, style: { left: `${Math.min(left, 99.5)}%`, width: `max(2px, ${Math.min((spent / scale) * 100, 100 - left)}%)` } }) : null,
        scale >= deadline ? h("s", { style: { left: `${(deadline / scale) * 100}%` } }) : null),
      h("span", { class: "phase-time" }, happened ? ms(spent) : broke ? "" : "–"),
      h("span", { class: "phase-mark" }, broke ? "failed here" : ""));
  });
  return h("div", { class: "waterfall" }, budget, h("div", { class: `phases${failed ? " broken" : ""}`, role: "group", "aria-label": "Phases" }, rows), waits);
}
