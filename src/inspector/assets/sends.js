// The list of sends: live, filtered, paged as it is scrolled.

import { ask, session } from "./api.js";
import { foreign, h, plainForeign, replace } from "./dom.js";
import { Feed } from "./feed.js";
import { addressParts, clock, count, instant, ms, part, shareOfTime } from "./format.js";
import { CODES, fromText, KEYS, link, METHODS, OUTCOMES, several, STATES as ALL_STATES, toApi, toQuery, toText } from "./filters.js";
import { VirtualList } from "./virtual.js";
import { answer, asked, outcomeOf, PLACES } from "./words.js";

/** With plain words in the search, this many rows are loaded to look through without being asked. */
const LOOK_THROUGH = 2000;
/** No more than these, and egressd has counted what they let through. */
const COUNTED = new Set(["tenant", "since", "until", "outcome", "state", "q"]);
/** As long back where no time is given. */
const USUAL = "24h";
const COUNT_AGAIN = 5000;
/** So many values that were seen are offered in a field. */
const SUGGESTED = 100;
const STATES = ["held", "queued", "sending"];
const narrow = matchMedia("(max-width: 760px)");
const ID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** One row of a list of sends; the list of an execution shows the same. */
export function sendRow(record, { selected, index = null, tenant = false, onselect }) {
  const outcome = outcomeOf(record);
  // Rows of a feed are light, and say the same.
  const { method, url } = record.email || record.s3 || record.sql ? asked(record) : record.request;
  const { host, rest } = PLACES.includes(method) ? { host: url, rest: "" } : addressParts(url);
  const said = answer(record);
  const total = record.timings_ms.total;
  const where = [record.context.workflow, record.context.step].filter(Boolean).join(" › ");
  const cells = [
    h("span", { class: "c-time", role: "gridcell", title: instant(record.created_at) },
      index === null ? when(record.created_at) : `#${index}`),
    h("span", { class: "c-outcome", role: "gridcell" }, badge(outcome, record.would_block)),
    tenant ? h("span", { class: "c-tenant", role: "gridcell", title: plainForeign(record.context.tenant ?? "") }, foreign(record.context.tenant ?? "", { limit: 60 })) : null,
    h("span", { class: "c-method", role: "gridcell" }, foreign(method ?? "", { limit: 12 })),
    // The address and where it came from share their room: a long path gives way first.
    h("span", { class: "c-main", role: "none" },
      h("span", { class: "c-url", role: "gridcell", title: plainForeign(url), style: { "min-width": `min(50%, ${Math.min(200, host.length)}ch)` } },
        h("a", { href: `#/sends/${part(record.id)}`, tabindex: -1 },
          h("span", { class: "host" }, foreign(host.slice(0, 200))), h("span", { class: "path" }, foreign(rest.slice(0, 300), { limit: 300 })))),
      h("span", { class: "c-where", role: "gridcell", title: plainForeign(where) }, where === "" ? "" : foreign(where.slice(0, 120)))),
    h("span", { class: "c-answer", role: "gridcell", title: plainForeign(said.join(" ")) }, said.map((one, at) => [at > 0 ? " " : null, h("span", {}, foreign(one, { limit: 40 }))])),
    h("span", { class: "c-total", role: "gridcell" }, total === null ? "" : [
      h("span", { class: "spark", "aria-hidden": true }, h("i", { style: { width: `${shareOfTime(total) * 100}%` } })),
      h("span", {}, ms(total)),
    ]),
    h("span", { class: "c-source", role: "gridcell", title: record.node ? `node ${plainForeign(record.node)}` : null }, foreign(record.connection?.public_ip ?? "", { limit: 45 })),
  ];
  return h("div", {
    class: `send-row tone-${outcome}${selected ? " selected" : ""}`,
    role: "row",
    id: `row-${record.id}`,
    "aria-selected": selected ? "true" : "false",
    onclick: (event) => {
      onselect?.(record);
      // A click on the link itself follows it, in a new tab too.
      if (event.target.closest("a") === null && getSelection().isCollapsed) location.hash = `#/sends/${part(record.id)}`;
    },
  }, cells);
}

export function badge(outcome, wouldBlock = null) {
  return h("span", { class: `badge tone-${outcome}` }, h("i", { "aria-hidden": true }), outcome,
    wouldBlock ? h("abbr", { class: "would", title: `Report mode: the policy would have blocked this (${wouldBlock})` }, "!") : null);
}

/** The clock time; where the date stands before it, a narrow list leaves the seconds out. */
function when(text) {
  const shown = clock(text);
  return shown.length <= 8 ? shown : [shown.slice(0, -3), h("span", { class: "seconds" }, shown.slice(-3))];
}

/** @param {HTMLElement} [total]  what stands over the column of durations */
export function columnHeads(first = "Time", total = "Total") {
  const head = (name, label) => h("span", { class: name, role: "columnheader" }, label);
  return h("div", { class: "rows-head", role: "row", id: "rows-head", "aria-rowindex": "1" },
    head("c-time", first), head("c-outcome", "Outcome"), first === "Time" ? head("c-tenant", "Tenant") : null, head("c-method", "Method"),
    h("span", { class: "c-main", role: "none" }, head("c-url", "URL"), head("c-where", "Workflow › step")),
    head("c-answer", "Answer"), head("c-total", total), head("c-source", "From"));
}

/** Where a key leads from a row, or from none (-1): every key but the one for the last row begins at the first. */
export function moved(from, by, count) {
  if (from === -1) return by === Infinity ? count - 1 : 0;
  return Math.min(count - 1, Math.max(0, from + by));
}

export const rowHeight = () => (narrow.matches ? 58 : 30);

export class SendsView {
  title = "Sends";
  selected = null;
  /** How all sends ended, by outcome, not only those that are loaded; `null`: that is not known. */
  totals = null;

  constructor(filters) {
    this.filters = filters;
    this.search = h("input", {
      type: "search", id: "search", placeholder: "Search, or host:… outcome:failed status:500 since:1h",
      "aria-label": "Search sends", autocomplete: "off", spellcheck: "false", autocapitalize: "off",
      onkeydown: (event) => this.#searchKey(event), oninput: () => this.#typed(),
    });
    this.pauseButton = h("button", { type: "button", class: "button", onclick: () => this.togglePause() });
    this.filterButton = h("button", {
      type: "button", class: "button", "aria-expanded": "false", "aria-controls": "filters", onclick: () => this.#toggleFilters(),
    }, icon("M3 5h14M6 10h8M8.5 15h3"), "Filters");
    this.sortButton = h("button", { type: "button", class: "sort", title: "Longest first, of those loaded", "aria-pressed": "false", onclick: () => this.#sort() }, "Total");
    this.panel = h("form", { class: "filters", id: "filters", hidden: true, onsubmit: (event) => {
      event.preventDefault();
      this.#fromPanel();
    } });
    this.searchProblem = h("p", { class: "form-problem", role: "alert", hidden: true });
    this.countsBox = h("div", { class: "counts", role: "group", "aria-label": "Outcomes of the sends loaded" });
    this.status = h("div", { class: "list-status" });
    this.arrivals = h("button", { type: "button", class: "arrivals", hidden: true, onclick: () => this.#toTop() });
    this.list = new VirtualList({
      height: rowHeight,
      key: (record) => record.id,
      render: (record) => sendRow(record, { selected: record.id === this.selected, tenant: this.allTenants, onselect: (one) => this.select(one.id) }),
      onNearEnd: () => this.#nearEnd(),
    });
    this.list.element.tabIndex = 0;
    this.list.element.setAttribute("role", "grid");
    this.list.element.setAttribute("aria-owns", "rows-head");
    this.list.element.setAttribute("aria-label", "Sends, newest first");
    this.empty = h("div", { class: "empty", hidden: true });
    this.element = h("section", { class: "view sends", "aria-label": "Sends" },
      h("h1", { class: "offscreen" }, "Sends"),
      h("div", { class: "toolbar" },
        h("div", { class: "search" }, icon("M9 3.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11ZM13 13l4 4"), this.search),
        this.filterButton, this.pauseButton),
      this.searchProblem, this.panel, this.countsBox,
      this.box = h("div", { class: "list-box" }, columnHeads("Time", this.sortButton), this.list.element, this.empty, this.arrivals),
      this.status);
    this.open(filters);
  }

  /** Shows another set of filters. */
  open(filters) {
    this.searchProblem.hidden = true;
    const server = (one) => toQuery({ ...one, q: undefined });
    const same = this.feed && server(filters) === server(this.filters);
    this.filters = filters;
    if (document.activeElement !== this.search) this.search.value = toText(filters);
    if (same) {
      this.feed.filters = filters;
      this.feed.refilter();
      return;
    }
    this.feed?.stop();
    this.newAbove = 0;
    this.totals = null;
    this.#count();
    this.box.classList.toggle("all-tenants", this.allTenants);
    this.list.set([]);
    this.list.element.scrollTop = 0;
    this.feed = new Feed(filters, (change) => this.#changed(change));
    this.feed.start();
    if (!this.panel.hidden) this.#fillPanel();
  }

  /** Rows may be of different tenants, so that each says whose it is. */
  get allTenants() {
    return session.tenant === "*" && !this.filters.tenant;
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.counting);
    this.feed.stop();
    this.list.stop();
  }

  /** The view is on the page again. */
  shown() {
    this.list.draw();
    if (this.scroll !== undefined) this.list.element.scrollTop = this.scroll;
    this.list.draw();
    this.list.element.focus({ preventScroll: true });
  }

  /** The view is about to leave the page. */
  hidden() {
    this.scroll = this.list.element.scrollTop;
  }

  #changed({ above = 0, ids = [] }) {
    for (const id of ids) this.list.update(id);
    if (this.feed.view !== this.list.items || above > 0 || ids.length > 0) {
      const atTop = this.list.atTop || !this.list.element.isConnected;
      this.list.set(this.feed.view, { above });
      // Away from the page an element has no scroll position: it is put back when it is shown.
      if (!this.list.element.isConnected && this.scroll > 0) this.scroll += above * rowHeight();
      this.newAbove = atTop ? 0 : this.newAbove + above;
    }
    this.#drawCounts();
    this.#drawStatus();
  }

  /** What egressd counts of all that ended, where the filters are no finer than that; what is loaded is counted here. */
  async #count() {
    clearTimeout(this.counting);
    const { filters } = this;
    if (Object.keys(filters).some((key) => filters[key] && !COUNTED.has(key))) return;
    const query = toApi({ since: filters.since ?? USUAL, until: filters.until, tenant: filters.tenant });
    query.set("by", "outcome");
    try {
      const { groups } = await ask(`/v1/stats?${query}`);
      if (filters === this.filters) this.totals = new Map(groups.map(({ name, count: all }) => [name, all]));
    } catch {
      // Then what is loaded is all that is known.
      this.totals = null;
    }
    if (filters !== this.filters || this.stopped) return;
    this.#drawCounts();
    this.counting = setTimeout(() => this.#count(), COUNT_AGAIN);
  }

  #drawCounts() {
    const counts = new Map([...this.feed.counts, ...(this.totals === null ? [] : OUTCOMES.map((name) => [name, this.totals.get(name) ?? 0]))]);
    const chosen = new Set([...several(this.filters.outcome), this.filters.state]);
    const names = [...OUTCOMES, ...STATES].filter((name) => counts.get(name) > 0 || chosen.has(name));
    const key = names.map((name) => `${name}${counts.get(name)}`).join() + [...chosen].join() + (this.totals === null);
    if (key === this.countsKey) return;
    this.countsKey = key;
    const sum = (of) => [...of.values()].reduce((all, one) => all + one, 0);
    const all = this.totals === null ? sum(this.feed.counts) : sum(this.totals);
    const of = this.totals === null ? " loaded" : ` ended ${this.filters.since || this.filters.until ? "in this time" : `in ${USUAL}`}`;
    replace(this.countsBox,
      h("span", { class: "count-all" }, `${count(all)}`, h("small", {}, of)),
      names.map((name) => {
        const on = chosen.has(name);
        const label = [h("i", { "aria-hidden": true }), h("b", {}, count(counts.get(name) ?? 0)), ` ${name}`];
        return h("a", {
          class: `count tone-${name}${on ? " on" : ""}`,
          href: link({ ...this.filters, code: undefined, ...(STATES.includes(name)
            ? { outcome: undefined, state: on ? undefined : name }
            : { state: undefined, outcome: on ? undefined : name }) }),
          "aria-label": `${count(counts.get(name) ?? 0)} ${name}: ${on ? "show all of them" : "show only these"}`,
        }, label);
      }));
  }

  #drawStatus() {
    const { feed } = this;
    replace(this.pauseButton,
      feed.paused ? icon("M7 4.5v11l8.5-5.5Z", true) : icon("M7 5v10M13 5v10"),
      feed.paused ? `Resume${feed.waiting.length > 0 ? ` (${count(feed.waiting.length)} new)` : ""}` : "Pause");
    this.pauseButton.setAttribute("aria-pressed", String(feed.paused));
    this.sortButton.setAttribute("aria-pressed", String(feed.byDuration));
    this.sortButton.textContent = feed.byDuration ? "Total ↓" : "Total";
    const states = { live: "live", waiting: "connecting …", refused: "not following" };
    const rows = feed.view.length === feed.rows.length ? `${count(feed.rows.length)} sends` : `${count(feed.view.length)} of ${count(feed.rows.length)} sends match`;
    const sorted = feed.byDuration ? ", longest first" : "";
    const more = feed.loading ? "loading …" : feed.more ? null : "no older ones";
    replace(this.status,
      h("span", { class: `follow ${feed.paused ? "paused" : feed.live}` }, h("i", { "aria-hidden": true }), feed.paused ? "paused" : states[feed.live]),
      h("span", {}, rows, sorted),
      more === null
        ? h("button", { type: "button", class: "link", onclick: () => this.feed.load() }, this.filters.q || this.filters.text ? "Look further back" : "Load older")
        : h("span", { class: "dim" }, more),
      this.#bodies(),
      feed.problem ? h("span", { class: "bad", role: "alert" }, feed.problem.message) : null);
    this.arrivals.hidden = this.newAbove === 0;
    this.arrivals.textContent = `↑ ${count(this.newAbove)} new`;
    const nothing = feed.rows.length > 0 ? feed.view.length === 0 : !feed.loading;
    this.empty.hidden = !nothing;
    if (nothing && this.emptyFor !== feed.problem?.message + toQuery(this.filters) + feed.rows.length) {
      this.emptyFor = feed.problem?.message + toQuery(this.filters) + feed.rows.length;
      const filtered = toQuery(this.filters) !== "";
      replace(this.empty,
        h("p", { class: "empty-title" }, feed.problem ? "The list could not be loaded" : filtered ? "No send matches" : "No sends yet"),
        feed.problem ? h("p", {}, foreign(feed.problem.message))
          : filtered ? h("p", {}, h("a", { href: "#/sends" }, "Show all sends"))
          : h("p", {}, "Sends appear here as they finish. Try ", h("code", {}, "egressd send POST https://example.com/ -d '{\"hello\": 1}' --wait")));
    }
  }

  /** How far bodies were searched, or the way to have that done. */
  #bodies() {
    const { q, text } = this.filters;
    if (text) {
      const { sends, back_to } = this.feed.searched;
      return sends === 0 ? null : h("span", {}, `bodies of ${count(sends)} sends searched, back to ${instant(back_to)}`);
    }
    return q ? h("a", { href: link({ ...this.filters, q: undefined, text: q }) }, "Look into bodies instead") : null;
  }

  #nearEnd() {
    const { feed } = this;
    if (!feed || feed.loading || !feed.more || feed.problem || this.filters.text) return;
    if (this.filters.q && feed.rows.length >= LOOK_THROUGH) return;
    feed.load();
  }

  #toTop() {
    this.list.element.scrollTop = 0;
    this.newAbove = 0;
    this.list.draw();
    this.#drawStatus();
  }

  /** The longest first, or the newest again. What arrives is put in its place either way. */
  #sort() {
    this.feed.byDuration = !this.feed.byDuration;
    this.list.element.scrollTop = 0;
    this.newAbove = 0;
    this.feed.refilter();
  }

  togglePause() {
    this.feed.pause(!this.feed.paused);
  }

  #typed() {
    clearTimeout(this.typing);
    // Plain words look through what is loaded, as they are typed; filters of the API wait for Enter.
    const filters = fromText(this.search.value);
    const server = (one) => toQuery({ ...one, q: undefined });
    if (server(filters) === server(this.filters)) {
      this.typing = setTimeout(() => history.replaceState(null, "", link(filters)) ?? this.open(filters), 120);
    }
  }

  #searchKey(event) {
    if (event.key === "Enter") {
      clearTimeout(this.typing);
      const text = this.search.value.trim();
      if (ID.test(text)) location.hash = `#/sends/${text.toLowerCase()}`;
      else this.#searched(fromText(text));
    } else if (event.key === "Escape") {
      event.stopPropagation();
      if (this.search.value === "") this.list.element.focus();
      else {
        this.search.value = "";
        location.hash = "#/sends";
      }
    }
  }

  /** A filter that egressd refuses is said under the search, and the list stays as it is. */
  async #searched(filters) {
    const problems = await problemsOf(filters);
    this.searchProblem.hidden = problems.length === 0;
    replace(this.searchProblem, problems.map(({ key, message }) => h("span", {}, foreign(`${key} ${message}`), " ")));
    if (problems.length > 0) return;
    location.hash = link(filters);
    this.list.element.focus();
  }

  #toggleFilters() {
    this.panel.hidden = !this.panel.hidden;
    this.filterButton.setAttribute("aria-expanded", String(!this.panel.hidden));
    if (!this.panel.hidden) {
      this.#fillPanel();
      this.panel.querySelector("select, input").focus();
    }
  }

  #fillPanel() {
    const hints = { status: "503 or 5xx; several: 500,5xx", host: "a name, *.name or an address", path: "what it begins with", since: "15m, 2h, 7d, or an instant", until: "as since", text: "in a body" };
    const options = { code: CODES, state: ALL_STATES, method: METHODS };
    // What was seen is offered: of the rows that are loaded.
    const seen = { workflow: (row) => row.context.workflow, step: (row) => row.context.step, execution: (row) => row.context.execution, tenant: (row) => row.context.tenant, host: (row) => (PLACES.includes(row.request.method) ? null : addressParts(row.request.url).host), source_ip: (row) => row.connection?.public_ip };
    const fields = KEYS.filter((key) => key !== "outcome").map((key) => {
      const id = `filter-${key}`;
      const value = this.filters[key] ?? "";
      const values = key in seen ? [...new Set(this.feed.rows.slice(0, LOOK_THROUGH).map(seen[key]).filter(Boolean))].sort().slice(0, SUGGESTED) : [];
      const input = options[key]
        ? h("select", { id, name: key }, h("option", { value: "" }, "any"), several(value).length > 1 ? h("option", { value, selected: true }, value) : null, options[key].map((one) => h("option", { value: one, selected: one === value }, one)))
        : h("input", { id, name: key, value, autocomplete: "off", spellcheck: "false", placeholder: hints[key] ?? null, list: values.length > 0 ? `${id}-seen` : null, "aria-describedby": `${id}-problem` });
      return h("label", { for: id }, h("span", {}, key === "source_ip" ? "source address" : key), input,
        values.length > 0 ? h("datalist", { id: `${id}-seen` }, values.map((one) => h("option", { value: one }))) : null,
        h("small", { class: "bad", id: `${id}-problem`, "data-for": key, hidden: true }));
    });
    const chosen = new Set(several(this.filters.outcome));
    const outcomes = h("fieldset", { class: "outcome-choices" }, h("legend", {}, "outcome, any of"), OUTCOMES.map((one) =>
      h("label", { class: `count tone-${one}` }, h("input", { type: "checkbox", name: "outcome", value: one, checked: chosen.has(one) }), h("i", { "aria-hidden": true }), one)));
    replace(this.panel, outcomes, fields, h("div", { class: "filters-end" },
      h("button", { type: "submit", class: "button primary" }, "Apply"),
      h("button", { type: "button", class: "button", onclick: () => (location.hash = "#/sends") }, "Clear")),
    h("p", { class: "form-problem", "data-for": "", role: "alert", hidden: true }));
  }

  async #fromPanel() {
    const filters = { q: this.filters.q };
    const given = new FormData(this.panel);
    for (const key of KEYS) {
      const value = given.getAll(key).map((one) => one.trim()).filter((one) => one !== "").join(",");
      if (value !== "") filters[key] = value;
    }
    const problems = await problemsOf(filters);
    for (const place of this.panel.querySelectorAll("[data-for]")) {
      const told = problems.filter(({ key }) => key === place.dataset.for || (place.dataset.for === "" && this.panel.querySelector(`[data-for="${key}"]`) === null));
      place.hidden = told.length === 0;
      replace(place, told.map(({ message }) => foreign(message)));
    }
    // What is wrong is said beside its field, and the list stays as it is.
    if (problems.length === 0) location.hash = link(filters);
    else this.panel.querySelector(`#filter-${problems[0].key}`)?.focus();
  }

  select(id) {
    const before = this.selected;
    this.selected = id;
    for (const one of [before, id]) {
      const row = one === null ? null : this.list.rowOf(one);
      if (row === null) continue;
      row.classList.toggle("selected", one === id);
      row.setAttribute("aria-selected", String(one === id));
    }
    if (id !== null) this.list.element.setAttribute("aria-activedescendant", `row-${id}`);
  }

  /** The send `by` places below this one in the list. */
  neighbour(id, by) {
    const at = this.feed.view.findIndex((row) => row.id === id);
    return at === -1 ? null : this.feed.view[at + by]?.id ?? null;
  }

  move(by) {
    const { view } = this.feed;
    if (view.length === 0) return;
    const at = moved(view.findIndex((row) => row.id === this.selected), by, view.length);
    this.list.scrollTo(at);
    this.select(view[at].id);
  }

  key(event) {
    switch (event.key) {
      case "j": case "ArrowDown": this.move(1); return true;
      case "k": case "ArrowUp": this.move(-1); return true;
      case "PageDown": this.move(this.list.page); return true;
      case "PageUp": this.move(-this.list.page); return true;
      case "Home": case "g": this.move(-Infinity); this.#toTop(); return true;
      case "End": case "G": this.move(Infinity); return true;
      case "p": this.togglePause(); return true;
      case "f": this.#toggleFilters(); return true;
      case "/": this.search.focus(); this.search.select(); return true;
      case "Enter":
        if (this.selected === null || event.target.closest("a, button, input, select")) return false;
        location.hash = `#/sends/${this.selected}`;
        return true;
      case "Escape":
        if (!this.panel.hidden) this.#toggleFilters();
        else if (this.selected !== null) this.select(null);
        else if (toQuery(this.filters) !== "") location.hash = "#/sends";
        return true;
      default: return false;
    }
  }
}

/** What egressd says is wrong with these filters, each with the name that it is about. */
async function problemsOf(filters) {
  // Not to search bodies for an answer that nobody looks at.
  const query = toApi({ ...filters, text: filters.text && filters.text.length > 256 ? filters.text : undefined });
  query.set("limit", "1");
  try {
    await ask(`/v1/sends?${query}`);
    return [];
  } catch (error) {
    if (error.status !== 400) return [];
    return error.message.split("; ").map((message) => {
      const [, key = "", said = message] = /^the parameter (\S+) ([\s\S]*)$/.exec(message) ?? [];
      return { key, message: said };
    });
  }
}

/** A small line drawing. */
export function icon(path, filled = false) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("class", filled ? "icon filled" : "icon");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}
