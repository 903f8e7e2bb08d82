// One run of a workflow: how many of its sends were delivered, and all of them in call order.

import { ask, session } from "./api.js";
import { copyButton, foreign, h, plainForeign, replace } from "./dom.js";
import { count, part } from "./format.js";
import { executionLink, link } from "./filters.js";
import { columnHeads, moved, rowHeight, sendRow } from "./sends.js";
import { VirtualList } from "./virtual.js";
import { outcomeOf } from "./words.js";

const PAGE = 200;
const LOOK_AGAIN = 2000;
/** As many sends as one execution may hold. */
const HELD_MOST = 10_000;

export class ExecutionView {
  /** All that are loaded, in call order. */
  sends = [];
  /** Those that are shown, in the order in which they are. */
  shownSends = [];
  selected = null;
  /** The one step that is shown; `null`: all of them. */
  step = null;
  grouped = false;

  constructor(execution, tenant) {
    this.execution = execution;
    this.tenant = tenant;
    this.title = `Execution ${plainForeign(execution, 90)}`;
    this.stopped = new AbortController();
    this.head = h("div", { class: "head" });
    this.list = new VirtualList({
      height: rowHeight,
      key: (record) => record.id,
      render: (record, at) => (record.group ? groupRow(record) : sendRow(record, { selected: record.id === this.selected, index: record.context?.index ?? at, onselect: (one) => this.select(one.id) })),
      onNearEnd: () => this.more(),
    });
    this.list.element.tabIndex = 0;
    this.list.element.setAttribute("role", "grid");
    this.list.element.setAttribute("aria-owns", "rows-head");
    this.list.element.setAttribute("aria-label", "Sends of this execution, in call order");
    this.empty = h("div", { class: "empty", hidden: true });
    this.element = h("section", { class: "view execution", "aria-label": "One execution" }, this.head,
      h("div", { class: "list-box" }, columnHeads("Call"), this.list.element, this.empty));
    this.load();
  }

  stop() {
    this.stopped.abort();
    clearTimeout(this.timer);
    this.list.stop();
  }

  shown() {
    this.list.draw();
    if (this.scroll !== undefined) this.list.element.scrollTop = this.scroll;
    this.list.draw();
    this.list.element.focus({ preventScroll: true });
  }

  hidden() {
    this.scroll = this.list.element.scrollTop;
  }

  #page(cursor, limit = PAGE) {
    const query = new URLSearchParams({ limit: String(limit) });
    if (cursor) query.set("cursor", cursor);
    return ask(`/v1/executions/${part(this.execution)}?${query}`, {
      signal: this.stopped.signal,
      // An execution belongs to one tenant: "all" names none.
      tenant: this.tenant ?? (session.tenant === "*" ? null : session.tenant),
    });
  }

  async load() {
    try {
      const page = await this.#page(null);
      this.next = page.next ?? null;
      this.#take(page, page.sends);
      this.#loadAll();
      this.#again();
    } catch (error) {
      if (error.name === "AbortError") return;
      this.empty.hidden = false;
      replace(this.empty, h("p", { class: "empty-title" }, error.status === 404 ? "There is no such execution" : "The execution could not be loaded"),
        h("p", {}, error.status === 404 ? "It is past its retention, belongs to another tenant, or never was." : foreign(error.message)));
      replace(this.head, this.#back());
    }
  }

  /** The next sends in call order. */
  async more() {
    if (!this.next || this.loading) return;
    this.loading = true;
    try {
      const page = await this.#page(this.next);
      this.next = page.next ?? null;
      this.#take(page, page.sends);
    } catch {
      // The next look says what is wrong.
      return;
    } finally {
      this.loading = false;
    }
    this.#loadAll();
  }

  /** While something is still to come, the pages that hold it are asked for again. */
  #again() {
    const done = this.page.state !== "open" && this.sends.length === this.page.total && this.sends.every((one) => one.state === "done");
    if (done) return;
    this.timer = setTimeout(async () => {
      try {
        let cursor = null;
        // From the start: outcomes change in place, and pages are small.
        for (let seen = 0; seen < Math.max(1, this.sends.length) && !this.stopped.signal.aborted; seen += PAGE) {
          const page = await this.#page(cursor);
          this.#take(page, page.sends);
          cursor = page.next ?? null;
          if (seen + PAGE >= this.sends.length) this.next = cursor;
          if (cursor === null) break;
        }
      } catch (error) {
        if (error.name === "AbortError") return;
      }
      if (!this.stopped.signal.aborted) this.#again();
    }, LOOK_AGAIN);
  }

  #take(page, sends) {
    this.page = page;
    const known = new Map(this.sends.map((one, at) => [one.id, at]));
    const all = [...this.sends];
    for (const one of sends) {
      const at = known.get(one.id);
      if (at === undefined) all.push(one);
      else if (outcomeOf(all[at]) !== outcomeOf(one)) {
        all[at] = one;
        this.list.update(one.id);
      }
    }
    all.sort((one, two) => (one.context?.index ?? 0) - (two.context?.index ?? 0));
    this.sends = all;
    this.#arrange();
  }

  /** Steps are known once all is loaded, or as much as one execution holds. */
  #loadAll() {
    if ((this.grouped || this.step !== null) && this.next && this.sends.length < HELD_MOST) this.more();
  }

  /** Shows the sends of one step alone, or of all. */
  only(step) {
    if (step === this.step) return;
    this.step = step;
    if (this.page) {
      this.list.element.scrollTop = 0;
      this.#arrange();
      this.#loadAll();
    }
  }

  #arrange() {
    const steps = this.#steps();
    const of = (step) => this.sends.filter((one) => stepOf(one) === step);
    const items = this.step !== null ? of(this.step)
      : this.grouped ? [...steps].flatMap(([step, counts]) => [{ group: true, id: `step-${step}`, step, href: this.#link(step), ...counts }, ...of(step)])
      : this.sends;
    this.shownSends = items.filter((one) => !one.group);
    for (const one of items) if (one.group) this.list.update(one.id);
    this.list.set(items);
    this.#drawHead();
  }

  /** Its steps in the order of their first sends, each with its counts. */
  #steps() {
    const steps = new Map();
    for (const one of this.sends) {
      const step = stepOf(one);
      const counts = steps.get(step) ?? { delivered: 0, total: 0 };
      counts.total += 1;
      counts.delivered += one.outcome === "delivered" ? 1 : 0;
      steps.set(step, counts);
    }
    return steps;
  }

  #link(step) {
    return executionLink(this, step === null ? {} : { step });
  }

  #back() {
    return h("div", { class: "head-line" }, h("a", { class: "button small", href: "#/executions" }, "← Executions"), h("span", { class: "grow" }),
      h("button", { type: "button", class: "button small", "aria-pressed": String(this.grouped), onclick: () => {
        this.grouped = !this.grouped;
        this.#arrange();
        this.#loadAll();
      } }, "By step"),
      copyButton("Copy link", () => location.href, { title: "A link to what is shown" }),
      h("a", { class: "button small", href: link({ execution: this.execution, tenant: this.tenant }) }, "As a list, newest first"));
  }

  #drawHead() {
    const { page } = this;
    const counts = new Map();
    for (const one of this.sends) counts.set(outcomeOf(one), (counts.get(outcomeOf(one)) ?? 0) + 1);
    const whole = page.total === 0 ? 0 : page.delivered / page.total;
    const by = page.finished_by === "hold_limit" ? " by the hold limit: nobody finished it in time" : page.finished_by === "call" ? " by its runner" : "";
    const states = { open: "Open: its sends are held until it finishes", finished: `Finished${by}`, discarded: "Discarded: its held sends were never sent" };
    replace(this.head, this.#back(),
      h("h1", {}, h("span", { class: "dim" }, "Execution "), h("span", { class: "address" }, foreign(this.execution))),
      h("div", { class: "ratio" },
        h("p", { class: "ratio-figure", "aria-label": `${page.delivered} of ${page.total} delivered` }, h("b", {}, count(page.delivered)), h("span", {}, `/${count(page.total)}`), h("small", {}, " delivered")),
        h("div", { class: "ratio-bar", "aria-hidden": true }, h("i", { style: { width: `${whole * 100}%` } })),
        h("p", { class: "head-sub" }, h("span", { class: `state-${page.state}` }, states[page.state] ?? foreign(page.state ?? "")),
          this.tenant ? h("span", {}, "tenant ", foreign(this.tenant)) : null,
          [...counts].filter(([name]) => name !== "delivered").map(([name, value]) => h("span", { class: `count plain tone-${name}` }, h("i", { "aria-hidden": true }), h("b", {}, count(value)), ` ${name}`)))));
    const steps = [...this.#steps()];
    if (steps.length > 1 || this.step !== null) {
      this.head.append(h("nav", { class: "steps", "aria-label": "Steps" },
        h("a", { class: `count${this.step === null ? " on" : ""}`, href: this.#link(null), "aria-current": this.step === null ? "true" : null }, "all steps"),
        steps.map(([step, counts]) => h("a", { class: `count tone-${counts.delivered === counts.total ? "delivered" : "failed"}${this.step === step ? " on" : ""}`, href: this.#link(step), "aria-current": this.step === step ? "true" : null },
          h("i", { "aria-hidden": true }), step === "" ? "no step" : foreign(step, { limit: 60 }), " ", h("b", {}, `${count(counts.delivered)}/${count(counts.total)}`))),
        this.next ? h("span", { class: "dim" }, `of the ${count(this.sends.length)} loaded`) : null));
    }
    this.empty.hidden = this.shownSends.length > 0;
    if (this.shownSends.length === 0) replace(this.empty, h("p", { class: "empty-title" }, this.step === null ? "It has no sends" : "It has no sends of this step"));
  }

  select(id) {
    const before = this.selected;
    this.selected = id;
    for (const one of [before, id]) {
      const row = one === null ? null : this.list.rowOf(one);
      row?.classList.toggle("selected", one === id);
      row?.setAttribute("aria-selected", String(one === id));
    }
    this.list.element.setAttribute("aria-activedescendant", `row-${id}`);
  }

  neighbour(id, by) {
    const at = this.shownSends.findIndex((one) => one.id === id);
    return at === -1 ? null : this.shownSends[at + by]?.id ?? null;
  }

  move(by) {
    if (this.shownSends.length === 0) return;
    const at = moved(this.shownSends.findIndex((one) => one.id === this.selected), by, this.shownSends.length);
    this.list.scrollTo(this.list.items.indexOf(this.shownSends[at]));
    this.select(this.shownSends[at].id);
  }

  key(event) {
    const by = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: this.list.page, PageUp: -this.list.page, Home: -Infinity, g: -Infinity, End: Infinity, G: Infinity }[event.key];
    if (by !== undefined) {
      this.move(by);
      return true;
    }
    if (event.key === "Enter" && this.selected !== null && event.target.closest("a, button") === null) {
      location.hash = `#/sends/${this.selected}`;
      return true;
    }
    if (event.key === "Escape") {
      location.hash = this.step === null ? "#/executions" : this.#link(null);
      return true;
    }
    return false;
  }
}

const stepOf = (record) => record.context?.step ?? "";

function groupRow({ id, step, href, delivered, total }) {
  return h("div", { class: "group-row", role: "row", id: `row-${id}` },
    h("span", { role: "gridcell" }, h("a", { href }, step === "" ? "no step" : foreign(step, { limit: 120 })), h("b", { class: delivered === total ? "good" : "bad" }, ` ${count(delivered)}/${count(total)}`), h("span", { class: "dim" }, " delivered")));
}
