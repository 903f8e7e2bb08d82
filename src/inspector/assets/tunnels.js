// The tunnels of the forward proxy: those that are open, then those that were, the newest first. Of what went through them
// nothing is kept.

import { ask, session } from "./api.js";
import { foreign, h, plainForeign, replace } from "./dom.js";
import { facts } from "./facts.js";
import { bytes, clock, instant, ms, span } from "./format.js";
import { CODES, instantOf, link } from "./filters.js";
import { openSuspend } from "./suspend.js";
import { Page, table } from "./pages.js";

const PAGE = 50;
const FILTERS = ["host", "source_ip", "end", "code", "since", "until", "tenant"];
export const ENDS = ["closed", "reset", "idle", "lifetime", "refused", "drained"];
const HINTS = { host: "api.example.com, *.example.com", since: "15m, 2h, 7d, or an instant", until: "the same" };
const TONES = { closed: "good", reset: "warn", refused: "bad" };

export class TunnelsPage extends Page {
  constructor(query) {
    super("Tunnels", h("p", { class: "lead" }, "What code with its own HTTP client opened through the proxy: from where, to where, and how it ended. Those that are open stand first."), { begin: false, again: 5000 });
    this.filters = Object.fromEntries(FILTERS.filter((key) => query.get(key)).map((key) => [key, query.get(key)]));
    this.older = [];
    this.problem = h("p", { class: "form-problem", role: "alert", hidden: true });
    this.form = this.#form();
    this.element.insertBefore(this.form, this.box);
    this.turn();
  }

  #query(cursor) {
    const query = new URLSearchParams({ limit: String(PAGE) });
    for (const [key, value] of Object.entries(this.filters)) query.set(key, key === "since" || key === "until" ? instantOf(value) : value);
    if (cursor) query.set("cursor", cursor);
    return query;
  }

  async look(signal) {
    // What is older than the newest page stays as it was loaded.
    const [page, found] = await Promise.all([ask(`/v1/tunnels?${this.#query(null)}`, { signal }), facts()]);
    // Only an operator may ask for the sources, and suspend.
    this.operator = Array.isArray(found?.sources);
    if (this.older.length === 0) this.next = page.next;
    const known = new Set(page.tunnels.map((one) => one.id));
    const all = [...page.tunnels, ...this.older.filter((one) => !known.has(one.id))];
    const shown = JSON.stringify([all, this.next]);
    if (shown === this.drawn && !this.failed) return;
    this.drawn = shown;
    this.all = all;
    this.#draw();
  }

  async #more() {
    try {
      const page = await ask(`/v1/tunnels?${this.#query(this.next)}`, { signal: this.stopped.signal });
      const known = new Set(this.all.map((one) => one.id));
      this.next = page.next;
      this.all = [...this.all, ...page.tunnels.filter((one) => !known.has(one.id))];
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
    const filtered = Object.keys(this.filters).length > 0;
    const heads = [["To"], ["End"], ...(tenants ? [["Tenant"]] : []), ["Client"], ["From"], ["Up", "number"], ["Down", "number"], ["Began"], ["Lasted", "number"], ...(this.operator ? [[""]] : [])];
    replace(this.box,
      this.all.length > 0
        ? table(heads, this.all.map((one) => h("tr", {},
          h("th", { scope: "row", class: "mono name" }, h("span", { title: plainForeign(resolution(one)) }, foreign(target(one), { limit: 120 })), named(one)),
          h("td", {}, end(one)),
          tenants ? h("td", {}, foreign(one.tenant, { limit: 60 })) : null,
          h("td", { class: "mono" }, foreign(one.client_ip ?? "–")),
          h("td", { class: "mono" }, one.public_ip ? h("a", { href: link({ source_ip: one.public_ip }), title: "The sends of this address" }, foreign(one.public_ip)) : h("span", { class: "dim" }, "–")),
          h("td", { class: "number" }, bytes(one.bytes_up)),
          h("td", { class: "number" }, bytes(one.bytes_down)),
          h("td", {}, h("span", { class: "mono", title: instant(one.begun_at) }, clock(one.begun_at))),
          h("td", { class: "number" }, lasted(one)),
          !this.operator ? null : h("td", {}, h("button", { type: "button", class: "button small", "aria-label": plainForeign(`Suspend tenant ${one.tenant} or host ${one.host}`), onclick: () => openSuspend([{ tenant: one.tenant }, { host: one.host }], () => this.turn()) }, "Suspend …")))), "Tunnels")
        : h("div", { class: "empty still" }, h("p", { class: "empty-title" }, filtered ? "No tunnel matches" : "No tunnels yet"),
          h("p", {}, filtered ? h("a", { href: "#/tunnels" }, "Show all tunnels") : ["They are opened by clients that are given the proxy's address, where ", h("code", {}, "[proxy]"), " is configured."])),
      h("p", { class: "foot" }, this.next ? h("button", { type: "button", class: "button", onclick: () => this.#more() }, "Load older") : h("span", { class: "dim" }, this.all.length > 0 ? "no older ones" : "")));
  }

  #form() {
    const field = (key, input) => h("label", { for: input.id }, h("span", {}, key), input);
    const input = (key) => h("input", { id: `t-${key}`, name: key, value: this.filters[key] ?? "", placeholder: HINTS[key] ?? null, autocomplete: "off", spellcheck: "false" });
    const select = (key, all) => h("select", { id: `t-${key}`, name: key }, h("option", { value: "" }, "any"), all.map((one) => h("option", { value: one, selected: one === this.filters[key] }, one)));
    return h("form", { class: "filters", "aria-label": "Filters", onsubmit: async (event) => {
      event.preventDefault();
      const given = Object.fromEntries([...new FormData(event.target)].map(([key, value]) => [key, value.trim()]).filter(([, value]) => value !== ""));
      const before = this.filters;
      this.filters = given;
      try {
        // Asked first: what is wrong is said here, and the list stays.
        await ask(`/v1/tunnels?${this.#query(null)}`, { signal: this.stopped.signal });
        this.#say(null);
        location.hash = `#/tunnels${Object.keys(given).length > 0 ? `?${new URLSearchParams(given)}` : ""}`;
      } catch (error) {
        this.filters = before;
        if (error.name !== "AbortError") this.#say(error.message);
      }
    } }, field("host", input("host")), field("source_ip", input("source_ip")), field("end", select("end", ENDS)), field("code", select("code", CODES)),
    field("since", input("since")), field("until", input("until")), session.tenant === "*" ? field("tenant", input("tenant")) : null,
    h("div", { class: "filters-end" }, h("button", { type: "submit", class: "button primary" }, "Apply"), h("a", { class: "button", href: "#/tunnels" }, "Clear")), this.problem);
  }
}

function target({ host, port }) {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** What the name came to, and how long that took. */
function resolution({ resolved, remote_ip: remote, dns_ms: dns, connect_ms: connect }) {
  const all = resolved.map(({ ip, verdict }) => `${ip ?? "an internal address"} ${verdict}`).join(", ");
  const times = [["lookup", dns], ["connect", connect]].filter(([, time]) => time !== null).map(([what, time]) => `${what} ${ms(time)}`).join(", ");
  return [all && `resolved to ${all}`, remote && `connected to ${remote}`, times].filter(Boolean).join("; ") || "not resolved";
}

/** The server that a TLS client named, where that says more than the host does. */
function named({ server_name: name, host }) {
  return name && name !== host ? h("div", { class: "dim small" }, "TLS names ", foreign(name, { limit: 80 })) : null;
}

function end({ end: how, code, message }) {
  if (how === null) return h("span", { class: "chip waiting" }, "open");
  return [h("span", { class: `chip ${TONES[how] ?? ""}` }, foreign(code ? `${how}: ${code}` : how, { limit: 80 })),
    message ? h("div", { class: "dim small" }, foreign(message, { limit: 300 })) : null];
}

/** Of one that nobody saw the end of it is not known. */
function lasted({ begun_at: begun, ended_at: ended, code }) {
  if (code === "interrupted") return "–";
  const seconds = ((ended === null ? Date.now() : Date.parse(ended)) - Date.parse(begun)) / 1000;
  return seconds < 60 ? ms(Math.max(0, seconds) * 1000) : span(seconds);
}
