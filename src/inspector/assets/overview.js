// How sends ended over time: outcomes, success, latency, and who has most to do with what went wrong.

import { ask, session } from "./api.js";
import { foreign, h, plainForeign, replace, s } from "./dom.js";
import { clock, count, ms } from "./format.js";
import { link, OUTCOMES } from "./filters.js";
import { Page } from "./pages.js";

const RANGES = { "1h": ["1 hour", 3600, "5m"], "24h": ["24 hours", 86_400, "1h"], "7d": ["7 days", 604_800, "6h"], "30d": ["30 days", 2_592_000, "1d"] };
const SECONDS = { "5m": 300, "15m": 900, "1h": 3600, "6h": 21_600, "1d": 86_400 };
const WIDTH = 960;
const HEIGHT = 180;
const WORST = 8;

export class OverviewPage extends Page {
  constructor(query) {
    const range = query.get("range") in RANGES ? query.get("range") : "24h";
    super("Overview", h("nav", { class: "ranges", "aria-label": "Time" }, Object.entries(RANGES).map(([key, [label]]) =>
      h("a", { class: "button small", href: `#/overview?range=${key}`, "aria-current": key === range ? "true" : null }, label))), { begin: false, again: 15_000 });
    this.range = range;
    this.turn();
  }

  async look(signal) {
    const [, seconds, bucket] = RANGES[this.range];
    const since = new Date(Date.now() - seconds * 1000).toISOString();
    const of = (by) => ask(`/v1/stats?${new URLSearchParams({ since, bucket, by })}`, { signal });
    const all = session.tenant === "*";
    const [outcomes, hosts, tenants, sources] = await Promise.all([of("outcome"), of("host"), all ? of("tenant") : null, of("source")]);
    if (signal.aborted) return;
    const shown = JSON.stringify([outcomes, hosts, tenants, sources]);
    if (shown === this.drawn && !this.failed) return;
    this.drawn = shown;
    const { total } = outcomes;
    if (total.count === 0) {
      replace(this.box, h("div", { class: "empty still" }, h("p", { class: "empty-title" }, "No send ended in this time"), h("p", {}, h("a", { href: "#/sends" }, "Show the sends"))));
      return;
    }
    replace(this.box,
      h("dl", { class: "figures" },
        figure("Sends ended", count(total.count)),
        figure("Delivered", percent(total.success_rate), total.success_rate < 0.95 ? "bad" : total.success_rate < 0.99 ? "warn" : "good"),
        figure("p50", ms(total.latency_ms?.p50)), figure("p95", ms(total.latency_ms?.p95)), figure("p99", ms(total.latency_ms?.p99))),
      card("Outcomes over time", outcomesChart(outcomes), legend(outcomes, since)),
      card("Latency of outcomes over time, p95", latencyChart(outcomes)),
      h("div", { class: "cards two" },
        card("Destinations with most sends that were not delivered", worst("Host", hosts, (name) => ({ host: name, since: this.range }))),
        tenants === null ? null : card("Tenants with most sends", noisiest(tenants, this.range)),
        card("Source addresses", worst("Address", sources, (name) => ({ source_ip: name, since: this.range }), { every: true }))));
  }
}

function card(title, ...content) {
  return h("section", { class: "card", "aria-label": title }, h("h2", {}, title), content);
}

function figure(name, value, tone = null) {
  return h("div", {}, h("dt", {}, name), h("dd", { class: tone }, value));
}

function percent(share) {
  if (share === null || share === undefined) return "–";
  // What is not all does not read as all.
  return `${Math.min(share === 1 ? 100 : 99.99, Math.floor(share * 10_000) / 100)} %`;
}

/** Every bucket of the answer's time, with what each group has in it. */
function timeline(stats) {
  const step = SECONDS[stats.bucket] * 1000;
  const first = Date.parse(stats.since);
  const buckets = Math.max(1, Math.round((Date.parse(stats.until) - first) / step));
  const groups = new Map(stats.groups.map((group) => [group.name, new Map(group.buckets.map((one) => [Math.round((Date.parse(one.at) - first) / step), one]))]));
  return { step, first, buckets, groups };
}

function outcomesChart(stats) {
  const { step, first, buckets, groups } = timeline(stats);
  const sum = (at) => [...groups.values()].reduce((all, group) => all + (group.get(at)?.count ?? 0), 0);
  const most = Math.max(1, ...Array.from({ length: buckets }, (_, at) => sum(at)));
  const wide = WIDTH / buckets;
  const bars = [];
  for (let at = 0; at < buckets; at += 1) {
    let top = HEIGHT;
    const told = [];
    const pieces = [];
    for (const name of OUTCOMES) {
      const value = groups.get(name)?.get(at)?.count ?? 0;
      if (value === 0) continue;
      const tall = Math.max(1.5, (value / most) * HEIGHT);
      top -= tall;
      pieces.push(s("rect", { class: `tone-${name}`, x: at * wide + 0.5, y: Math.max(0, top), width: Math.max(1, wide - 1.5), height: tall }));
      told.push(`${count(value)} ${name}`);
    }
    if (pieces.length === 0) continue;
    const since = new Date(first + at * step).toISOString();
    const until = new Date(first + (at + 1) * step).toISOString();
    const said = `${clock(since)}: ${told.join(", ")}`;
    bars.push(s("a", { href: link({ since, until }), "aria-label": said }, s("title", {}, said),
      s("rect", { class: "hit", x: at * wide, y: 0, width: wide, height: HEIGHT }), pieces));
  }
  return chart(stats, count(most), bars, "Sends that ended, by outcome, in each bucket of time");
}

function latencyChart(stats) {
  const { buckets, groups } = timeline(stats);
  const wide = WIDTH / buckets;
  const points = OUTCOMES.filter((name) => groups.has(name)).map((name) => [name, [...groups.get(name)].filter(([, one]) => one.latency_ms !== null)]);
  const most = Math.max(1, ...points.flatMap(([, all]) => all.map(([, one]) => one.latency_ms.p95)));
  const y = (value) => HEIGHT - (Math.log1p(value) / Math.log1p(most)) * (HEIGHT - 6) - 3;
  const lines = points.filter(([, all]) => all.length > 0).map(([name, all]) => s("g", { class: `tone-${name}` },
    s("polyline", { points: all.map(([at, one]) => `${(at + 0.5) * wide},${y(one.latency_ms.p95)}`).join(" ") }),
    all.map(([at, one]) => s("circle", { cx: (at + 0.5) * wide, cy: y(one.latency_ms.p95), r: 2.5 }, s("title", {}, `${name}, ${clock(one.at)}: p50 ${ms(one.latency_ms.p50)}, p95 ${ms(one.latency_ms.p95)}, p99 ${ms(one.latency_ms.p99)}`)))));
  return chart(stats, ms(most), lines, "The 95th percentile of how long deliveries took, by outcome, by its logarithm");
}

/** The frame of a chart: what stands in it, and words at its edges. */
function chart(stats, most, content, label) {
  return h("div", { class: "chart" },
    h("div", { class: "chart-most", "aria-hidden": true }, most),
    s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "group", "aria-label": label },
      s("line", { class: "grid", x1: 0, y1: 0.5, x2: WIDTH, y2: 0.5 }), s("line", { class: "grid", x1: 0, y1: HEIGHT / 2, x2: WIDTH, y2: HEIGHT / 2 }), s("line", { class: "grid", x1: 0, y1: HEIGHT - 0.5, x2: WIDTH, y2: HEIGHT - 0.5 }), content),
    h("div", { class: "chart-ends", "aria-hidden": true }, h("span", {}, clock(stats.since)), h("span", {}, clock(stats.until))));
}

function legend(stats, since) {
  return h("div", { class: "legend" }, OUTCOMES.map((name) => stats.groups.find((group) => group.name === name)).filter(Boolean).map((group) =>
    h("a", { class: `count tone-${group.name}`, href: link({ outcome: group.name, since }) }, h("i", { "aria-hidden": true }), h("b", {}, count(group.count)), ` ${group.name}`)));
}

function worst(head, stats, filters, { every = false } = {}) {
  const lost = (group) => group.count - group.delivered;
  const named = stats.groups.filter((group) => group.name !== null && (every || lost(group) > 0)).sort((one, two) => (every ? two.count - one.count : lost(two) - lost(one))).slice(0, WORST);
  if (named.length === 0) return h("p", { class: "dim" }, every ? "None yet." : "All of it was delivered.");
  return ranking([head, "Sends", "Not delivered", "p95"], named.map((group) => [
    h("a", { href: link(filters(group.name)), title: plainForeign(group.name) }, foreign(group.name, { limit: 60 })),
    count(group.count),
    lost(group) === 0 ? h("span", { class: "dim" }, "0") : h("span", { class: "bad" }, `${count(lost(group))} (${(100 - Math.floor((group.success_rate ?? 0) * 1000) / 10).toFixed(1)} %)`),
    ms(group.latency_ms?.p95)]), head);
}

function noisiest(stats, since) {
  const named = stats.groups.filter((group) => group.name !== null).slice(0, WORST);
  return ranking(["Tenant", "Sends", "Delivered", "p95"], named.map((group) => [
    h("a", { href: link({ tenant: group.name, since }), title: plainForeign(group.name) }, foreign(group.name, { limit: 60 })),
    count(group.count), percent(group.success_rate), ms(group.latency_ms?.p95)]), "Tenants");
}

function ranking(heads, rows, label) {
  return h("table", { class: "ranking", "aria-label": label },
    h("thead", {}, h("tr", {}, heads.map((name, at) => h("th", { scope: "col", class: at > 0 ? "number" : null }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, at) => (at === 0 ? h("th", { scope: "row" }, cell) : h("td", { class: "number" }, cell)))))));
}

