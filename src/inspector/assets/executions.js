// The runs of workflows, the newest first: which went wrong, since when, and how much of each arrived.

import { ask, session } from "./api.js";
import { foreign, h, plainForeign, replace } from "./dom.js";
import { clock, count, instant, span } from "./format.js";
import { executionLink, instantOf } from "./filters.js";
import { Page, table } from "./pages.js";

const PAGE = 50;
const FILTERS = ["workflow", "state", "since", "tenant"];
const STATES = ["open", "finished", "discarded"];

export class ExecutionsPage extends Page {
  constructor(query) {
    super("Executions", h("p", { class: "lead" }, "The runs of workflows, by when their first send came. ", h("b", {}, "Dest"), " is how many of a run's sends were delivered."), { begin: false, again: 5000 });
    this.filters = Object.fromEntries(FILTERS.filter((key) => query.get(key)).map((key) => [key, query.get(key)]));
    this.older = [];
    this.problem = h("p", { class: "form-problem", role: "alert", hidden: true });
    this.form = this.#form();
    this.element.insertBefore(this.form, this.box);
    this.turn();
  }

  #query(cursor) {
    const query = new URLSearchParams({ limit: String(PAGE) });
    for (const [key, value] of Object.entries(this.filters)) query.set(key, key === "since" ? instantOf(value) : value);
    if (cursor) query.set("cursor", cursor);
    return query;
  }

  async look(signal) {
    // What is older than the newest page stays as it was loaded.
    const page = await ask(`/v1/executions?${this.#query(null)}`, { signal });
    if (this.older.length === 0) this.next = page.next;
    const known = new Set(page.executions.map(keyOf));
    const all = [...page.executions, ...this.older.filter((one) => !known.has(keyOf(one)))];
    const shown = JSON.stringify([all, this.next]);
    if (shown === this.drawn && !this.failed) return;
    this.drawn = shown;
    this.all = all;
    this.#draw();
  }

  async #more() {
    try {
      const page = await ask(`/v1/executions?${this.#query(this.next)}`, { signal: this.stopped.signal });
      this.next = page.next;
      this.all = [...this.all, ...page.executions];
      this.older = this.all.slice(PAGE);
      this.drawn = null;
      this.#draw();
    } catch (error) {
      if (error.name !== "AbortError") this.#say(error.message);
    }
  }

  #say(message) {
    this.problem.hidden = message === null;
    replace(this.problem, message === null ? null : foreign(message));
  }

  #draw() {
    const tenants = session.tenant === "*" && !this.filters.tenant;
    const heads = [["Execution"], ["Dest", "number"], ...(tenants ? [["Tenant"]] : []), ["Workflow"], ["State"], ["First send"], ["Took", "number"]];
    replace(this.box,
      this.all.length > 0
        ? table(heads, this.all.map((one) => h("tr", {},
          h("th", { scope: "row", class: "mono name" }, h("a", { href: executionLink(one), title: plainForeign(one.execution) }, foreign(one.execution, { limit: 80 }))),
          h("td", { class: "number" }, dest(one)),
          tenants ? h("td", {}, foreign(one.tenant, { limit: 60 })) : null,
          h("td", {}, one.workflow ? h("a", { href: `#/executions?${new URLSearchParams({ ...this.filters, workflow: one.workflow })}` }, foreign(one.workflow, { limit: 60 })) : h("span", { class: "dim" }, "–")),
          h("td", {}, state(one)),
          h("td", {}, h("span", { class: "mono", title: instant(one.created_at) }, clock(one.created_at))),
          h("td", { class: "number" }, one.ended_at ? span((Date.parse(one.ended_at) - Date.parse(one.created_at)) / 1000) : "–"))), "Executions")
        : h("div", { class: "empty still" }, h("p", { class: "empty-title" }, Object.keys(this.filters).length > 0 ? "No execution matches" : "No executions yet"),
          h("p", {}, Object.keys(this.filters).length > 0 ? h("a", { href: "#/executions" }, "Show all executions") : ["A send belongs to one that names it in its ", h("code", {}, "context"), ", or comes by ", h("code", {}, "POST /v1/executions/{execution}/sends"), "."])),
      h("p", { class: "foot" }, this.next ? h("button", { type: "button", class: "button", onclick: () => this.#more() }, "Load older") : h("span", { class: "dim" }, this.all.length > 0 ? "no older ones" : "")));
  }

  #form() {
    const field = (key, input) => h("label", { for: input.id }, h("span", {}, key), input);
    const input = (key) => h("input", { id: `e-${key}`, name: key, value: this.filters[key] ?? "", placeholder: key === "since" ? "15m, 2h, 7d, or an instant" : null, autocomplete: "off", spellcheck: "false" });
    const state = h("select", { id: "e-state", name: "state" }, h("option", { value: "" }, "any"), STATES.map((one) => h("option", { value: one, selected: one === this.filters.state }, one)));
    return h("form", { class: "filters", "aria-label": "Filters", onsubmit: async (event) => {
      event.preventDefault();
      const given = Object.fromEntries([...new FormData(event.target)].map(([key, value]) => [key, value.trim()]).filter(([, value]) => value !== ""));
      const before = this.filters;
      this.filters = given;
      try {
        // Asked first: what is wrong is said here, and the list stays.
        await ask(`/v1/executions?${this.#query(null)}`, { signal: this.stopped.signal });
        this.#say(null);
        location.hash = `#/executions${Object.keys(given).length > 0 ? `?${new URLSearchParams(given)}` : ""}`;
      } catch (error) {
        this.filters = before;
        if (error.name !== "AbortError") this.#say(error.message);
      }
    } }, field("workflow", input("workflow")), field("state", state), field("since", input("since")), session.tenant === "*" ? field("tenant", input("tenant")) : null,
    h("div", { class: "filters-end" }, h("button", { type: "submit", class: "button primary" }, "Apply"), h("a", { class: "button", href: "#/executions" }, "Clear")), this.problem);
  }
}

const keyOf = (one) => `${one.tenant}\n${one.execution}`;

/** `3/8`, and what that means: some are still to come, or some never arrive. */
function dest({ delivered, done, total }) {
  const lost = done - delivered;
  const tone = lost > 0 ? "bad" : done < total ? "waiting" : "good";
  const said = `${count(delivered)} of ${count(total)} delivered${lost > 0 ? `, ${count(lost)} not` : ""}${done < total ? `, ${count(total - done)} to come` : ""}`;
  return h("span", { class: `dest ${tone}`, title: said },
    h("span", { class: "dest-bar", "aria-hidden": true }, h("i", { class: "good", style: { width: `${(delivered / total) * 100}%` } }), h("i", { class: "bad", style: { width: `${(lost / total) * 100}%` } })),
    h("b", {}, `${count(delivered)}/${count(total)}`), h("span", { class: "offscreen" }, ` ${said}`));
}

function state({ state: now, finished_by: by }) {
  const tone = { open: "waiting", finished: by === "hold_limit" ? "warn" : "", discarded: "" }[now] ?? "";
  return h("span", { class: `chip ${tone}` }, by === "hold_limit" ? "finished by the hold limit" : now);
}
