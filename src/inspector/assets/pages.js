// The operator's pages: sources, nodes, tenants, suspensions.

import { ask, Problem, session } from "./api.js";
import { foreign, h, note, plainForeign, replace } from "./dom.js";
import { addressOf, facts } from "./facts.js";
import { ago, count, instant, part, span } from "./format.js";
import { link, OUTCOMES } from "./filters.js";
import { openSuspend, refusalOf, suspend } from "./suspend.js";

const LOOK_AGAIN = 3000;

/** A page that asks again and again while it is shown. */
export class Page {
  /** @param {{begin?: boolean, again?: number}} options  `begin: false`: its first turn is its own to take */
  constructor(title, lead, { begin = true, again = LOOK_AGAIN } = {}) {
    this.again = again;
    this.title = title;
    this.box = h("div", { class: "page-box" }, h("p", { class: "loading" }, "Loading …"));
    this.element = h("section", { class: "view page", "aria-label": title }, h("div", { class: "page-head" }, h("h1", {}, title), lead), this.box);
    this.stopped = new AbortController();
    if (begin) this.turn();
  }

  async turn() {
    try {
      await this.look(this.stopped.signal);
      this.failed = false;
    } catch (error) {
      if (error.name === "AbortError") return;
      this.failed = true;
      replace(this.box, refusal(error));
    }
    if (!this.stopped.signal.aborted) this.timer = setTimeout(() => (document.hidden ? this.wait() : this.turn()), this.again);
  }

  wait() {
    document.addEventListener("visibilitychange", () => this.turn(), { once: true, signal: this.stopped.signal });
  }

  stop() {
    this.stopped.abort();
    clearTimeout(this.timer);
  }

  key(event) {
    if (event.key === "Escape") {
      location.hash = "#/sends";
      return true;
    }
    return false;
  }
}

function refusal(error) {
  const scope = error.status === 403;
  return h("div", { class: "empty" },
    h("p", { class: "empty-title" }, scope ? "This page is for operators" : "This could not be loaded"),
    h("p", {}, scope ? "It needs a token with the scope operate." : foreign(error.message)));
}

export function table(heads, body, label) {
  // On a narrow screen each row stands alone, so that its cells need their names.
  for (const row of body) [...row.cells].forEach((cell, at) => (cell.dataset.label = heads[at][0]));
  return h("div", { class: "table-box" }, h("table", { class: "table", "aria-label": label },
    h("thead", {}, h("tr", {}, heads.map(([name, kind]) => h("th", { scope: "col", class: kind ?? null }, name === "" ? h("span", { class: "offscreen" }, "Actions") : name)))),
    h("tbody", {}, body)));
}

export class SourcesPage extends Page {
  constructor() {
    super("Sources", h("p", { class: "lead" }, "Every send leaves from one of these addresses. For a firewall: ",
      h("a", { href: "/public-ips.txt" }, "/public-ips.txt"), " or ", h("a", { href: "/public-ips.json" }, "/public-ips.json"), "."));
  }

  async look() {
    const { list, prefixes, sources } = await facts({ fresh: true });
    if (this.stopped.signal.aborted) return;
    if (prefixes === null && sources === null) throw new Problem({ status: 0, detail: "Neither the published list nor the sources could be asked for." });
    const known = new Map((sources ?? []).map((source) => [source.public_ip, source]));
    const merged = (prefixes ?? []).map((prefix) => ({ ...known.get(addressOf(prefix)), ...prefix, public_ip: addressOf(prefix), published: true }));
    for (const source of sources ?? []) {
      if (!merged.some((one) => one.public_ip === source.public_ip)) merged.push({ ...source, published: false });
    }
    const full = sources !== null;
    const heads = [["Address"], ["State"], ["Announced"], ["Active"], ["Retires"],
      ...(full ? [["Pool"], ["In flight", "number"], ["Ports used", "number"], ["Verified"]] : []), ["Sends"]];
    const date = (text) => (text ? h("span", { class: "mono" }, foreign(String(text).slice(0, 10))) : h("span", { class: "dim" }, "–"));
    replace(this.box,
      table(heads, merged.map((one) => h("tr", {},
        h("th", { scope: "row", class: "mono" }, foreign(one.public_ip), one.bind_ip && one.bind_ip !== one.public_ip ? h("div", { class: "dim small" }, "bound to ", foreign(one.bind_ip)) : null),
        h("td", {}, h("span", {}, sourceState(one, full))),
        h("td", {}, date(one.announced)), h("td", {}, date(one.active)), h("td", {}, date(one.retires)),
        full ? [
          h("td", {}, one.pool ? foreign(one.pool) : "–"),
          h("td", { class: "number" }, one.in_flight === undefined ? "–" : count(one.in_flight)),
          h("td", { class: "number" }, one.ports_used_ratio === undefined ? "–" : meter(one.ports_used_ratio)),
          h("td", {}, verification(one)),
        ] : null,
        h("td", {}, h("a", { href: link({ source_ip: one.public_ip }) }, "show"))) ), "Sources"),
      merged.length === 0 ? h("p", { class: "dim" }, "No address is published.") : null,
      h("p", { class: "foot dim" }, list?.creationTime ? ["The list last changed ", h("span", { title: instant(list.creationTime) }, ago(list.creationTime)), list.syncToken ? [" (syncToken ", foreign(String(list.syncToken)), ")"] : null, ". "] : null,
        full ? null : "In-flight counts, ports and verification are shown to operators."));
  }
}

function sourceState(one, full) {
  if (!one.published) return chip("not published", "bad");
  const tones = { announced: "waiting", active: "good", retiring: "warn" };
  const chips = [chip(one.status ?? "active", tones[one.status] ?? "")];
  if (full && one.usable === false) chips.push(" ", chip(`not usable: ${one.reason}`, one.status === "announced" ? "" : "bad"));
  if (full && one.usable === undefined) chips.push(" ", chip("no source on this node", ""));
  return chips;
}

function chip(text, tone) {
  return h("span", { class: `chip ${tone}` }, foreign(text, { limit: 120 }));
}

function meter(ratio) {
  const percent = Math.round(ratio * 100);
  const tone = ratio > 0.8 ? "bad" : ratio > 0.5 ? "warn" : "good";
  return h("span", { class: "meter" }, h("span", { class: "meter-track", "aria-hidden": true }, h("i", { class: tone, style: { width: `${Math.min(100, percent)}%` } })), `${percent} %`);
}

function verification({ verified }) {
  const shown = { verified: ["seen as published", "good"], unverified: ["reflectors unreachable", "warn"], drift: ["seen as another", "bad"] }[verified];
  return shown === undefined ? h("span", { class: "dim" }, "not checked") : chip(shown[0], shown[1]);
}

export class NodesPage extends Page {
  constructor() {
    super("Nodes", h("p", { class: "lead" }, "Who sends. Nodes that share a database are one tier: where one's lease runs out, the others take over what it had queued."));
  }

  async look(signal) {
    const { nodes, queued, held } = await ask("/v1/nodes", { signal, tenant: session.tenant });
    const number = (value) => h("td", { class: "number" }, value === undefined || value === null ? "–" : count(value));
    replace(this.box, table([["Node"], ["Version"], ["Lease"], ["Sources"], ["Queued here", "number"], ["In flight", "number"], ["Sends"]],
      nodes.map((one) => h("tr", {},
        h("th", { scope: "row" }, foreign(one.node, { limit: 128 }), one.this ? h("span", { class: "dim" }, " (answers here)") : null),
        h("td", {}, foreign(one.version)),
        h("td", {}, lease(one)),
        h("td", { class: "mono" }, one.sources.length === 0 ? "none" : one.sources.map((source, at) => [at > 0 ? ", " : null, foreign(source)])),
        number(one.queued), number(one.in_flight),
        h("td", {}, one.sources.map((source, at) => [at > 0 ? ", " : null, h("a", { href: link({ source_ip: source }) }, one.sources.length > 1 ? foreign(source) : "show")])))), "Nodes"),
      h("p", { class: "foot dim" }, `${count(queued)} queued and ${count(held)} held in all.`));
  }
}

/** A lease is renewed many times before it runs out. */
function lease(one) {
  if (one.lease_age_ms === null || one.lease_age_ms === undefined) return h("span", { class: "dim" }, "alone on its store");
  const ratio = one.lease_age_ms / one.lease_ms;
  return chip(`renewed ${span(one.lease_age_ms / 1000)} ago, of ${span(one.lease_ms / 1000)}`, ratio >= 1 ? "bad" : ratio > 0.5 ? "warn" : "good");
}

export class TenantsPage extends Page {
  constructor() {
    super("Tenants", h("p", { class: "lead" }, "Who has sends waiting, and how the last hour's ended. The busiest come first."));
  }

  async look(signal) {
    const answer = await ask("/v1/tenants", { signal, tenant: session.tenant === "*" ? "*" : session.tenant });
    const tenants = [...(answer.tenants ?? [])].sort((one, two) =>
      (two.queued + two.in_flight + two.held) - (one.queued + one.in_flight + one.held) || finishedOf(two) - finishedOf(one));
    const most = Math.max(1, ...tenants.map(finishedOf));
    const waiting = Math.max(1, ...tenants.map((one) => one.queued));
    replace(this.box, table([["Tenant"], ["Held", "number"], ["Queued", "number"], ["In flight", "number"], ["Oldest queued", "number"], ["Finished in the last hour"], [""]],
      tenants.map((one) => h("tr", {},
        h("th", { scope: "row" }, h("a", { href: link({ tenant: one.tenant }) }, foreign(one.tenant, { limit: 128 }))),
        h("td", { class: "number" }, count(one.held)),
        h("td", { class: "number" }, h("span", { class: "with-bar" }, h("i", { "aria-hidden": true, style: { width: `${(one.queued / waiting) * 100}%` } }), h("span", {}, count(one.queued)))),
        h("td", { class: "number" }, count(one.in_flight)),
        h("td", { class: "number" }, oldest(one)),
        h("td", { class: "wide" }, outcomes(one, most)),
        h("td", { class: "number" }, h("button", { type: "button", class: "button small", "aria-label": `Suspend ${plainForeign(one.tenant)} …`, onclick: () => openSuspend([{ tenant: one.tenant }], () => (location.hash = "#/suspensions")) }, "Suspend …")))), "Tenants"),
    tenants.length === 0 ? h("p", { class: "dim" }, "No tenant has sent anything in the last hour.") : null);
  }
}

function oldest(one) {
  const seconds = one.oldest_queued_seconds ?? (one.oldest_queued ? (Date.now() - Date.parse(one.oldest_queued)) / 1000 : null);
  if (seconds === null) return h("span", { class: "dim" }, "–");
  return h("span", { class: seconds > 60 ? "bad" : seconds > 5 ? "warn" : null }, seconds < 1 ? "< 1 s" : span(seconds));
}

function finishedOf(one) {
  return Object.values(one.finished ?? {}).reduce((sum, value) => sum + value, 0);
}

function outcomes(one, most) {
  const finished = one.finished ?? {};
  const total = finishedOf(one);
  if (total === 0) return h("span", { class: "dim" }, "none");
  const present = OUTCOMES.filter((name) => finished[name] > 0);
  const text = present.map((name) => `${count(finished[name])} ${name}`).join(", ");
  return h("div", { class: "outcomes", title: text },
    h("div", { class: "outcomes-bar", "aria-hidden": true, style: { width: `${Math.max(4, (total / most) * 100)}%` } },
      present.map((name) => h("i", { class: `tone-${name}`, style: { "flex-grow": String(finished[name]) } }))),
    h("div", { class: "outcomes-text" }, present.map((name) =>
      h("a", { class: `count plain tone-${name}`, href: link({ tenant: one.tenant, outcome: name, since: "1h" }) }, h("i", { "aria-hidden": true }), h("b", {}, count(finished[name])), ` ${name}`))));
}

export class SuspensionsPage extends Page {
  constructor() {
    super("Suspensions", h("p", { class: "lead" }, "Stop a tenant, one workflow of it, or everyone's sends to one host. What is queued or held ends ", h("code", {}, "blocked"), " at once; nothing of it is sent later."));
    this.form = this.#form();
    this.element.insertBefore(this.form, this.box);
  }

  async look(signal) {
    const answer = await ask("/v1/suspensions", { signal, tenant: session.tenant === "*" ? "*" : session.tenant });
    const all = answer.suspensions ?? [];
    const force = all.filter((one) => !one.lifted_at);
    const lifted = all.filter((one) => one.lifted_at);
    const shown = JSON.stringify(all);
    // Drawn anew only when something changed: a button under the pointer stays where it is.
    if (shown === this.drawn && !this.failed) return;
    this.drawn = shown;
    const scope = (one) => (one.host
      ? [h("span", { class: "dim" }, "host "), foreign(one.host)]
      : [h("span", { class: "dim" }, "tenant "), foreign(one.tenant ?? ""), one.workflow ? [h("span", { class: "dim" }, ", workflow "), foreign(one.workflow)] : null]);
    const by = (at, who) => [h("span", { title: instant(at) }, ago(at)), who ? [h("span", { class: "dim" }, " by "), foreign(who)] : null];
    replace(this.box,
      h("h2", {}, force.length === 0 ? "Nothing is suspended" : "In force"),
      force.length === 0 ? null : table([["What"], ["Why"], ["Since"], [""]], force.map((one) => h("tr", {},
        h("th", { scope: "row" }, scope(one)), h("td", {}, foreign(one.reason ?? "")), h("td", {}, h("span", {}, by(one.created_at ?? one.at, one.by))),
        h("td", { class: "number" }, h("button", { type: "button", class: "button small", onclick: () => this.#lift(one) }, "Lift …")))), "Suspensions in force"),
      lifted.length === 0 ? null : [h("h2", {}, "Lifted"), table([["What"], ["Why"], ["Since"], ["Lifted"]], lifted.map((one) => h("tr", { class: "past" },
        h("th", { scope: "row" }, scope(one)), h("td", {}, foreign(one.reason ?? "")), h("td", {}, h("span", {}, by(one.created_at ?? one.at, one.by))), h("td", {}, h("span", {}, by(one.lifted_at, one.lifted_by))))), "Lifted suspensions")]);
  }

  #form() {
    const kind = h("select", { name: "kind", id: "s-kind", onchange: () => choose() }, h("option", { value: "tenant" }, "Tenant"), h("option", { value: "workflow" }, "One workflow"), h("option", { value: "host" }, "Host"));
    const input = (name, placeholder) => h("input", { name, id: `s-${name}`, placeholder, autocomplete: "off", spellcheck: "false" });
    const tenant = input("tenant", "acme");
    const workflow = input("workflow", "orders");
    const host = input("host", "api.example.com");
    const reason = input("reason", "What happened, and who asked");
    const wrap = (label, field) => h("label", { for: field.id }, h("span", {}, label), field);
    const wraps = { tenant: wrap("Tenant", tenant), workflow: wrap("Workflow", workflow), host: wrap("Host", host) };
    const problem = h("p", { class: "form-problem", role: "alert", hidden: true });
    const choose = () => {
      const wanted = { tenant: ["tenant"], workflow: ["tenant", "workflow"], host: ["host"] }[kind.value];
      for (const [name, element] of Object.entries(wraps)) {
        element.hidden = !wanted.includes(name);
        element.querySelector("input").required = wanted.includes(name);
      }
    };
    reason.required = true;
    const form = h("form", { class: "filters suspend", onsubmit: async (event) => {
      event.preventDefault();
      const call = kind.value === "host" ? { host: host.value.trim() } : { tenant: tenant.value.trim() };
      if (kind.value === "workflow") call.workflow = workflow.value.trim();
      call.reason = reason.value.trim();
      const what = call.host ? `every tenant's sends to ${call.host}` : call.workflow ? `workflow ${call.workflow} of tenant ${call.tenant}` : `tenant ${call.tenant}`;
      if (!await confirmed("Suspend", `Suspend ${what}? What is queued or held ends blocked at once and is never sent.`)) return;
      problem.hidden = true;
      try {
        await suspend(call);
        form.reset();
        choose();
        this.#now();
      } catch (error) {
        problem.hidden = false;
        replace(problem, refusalOf(error));
      }
    } }, wrap("What", kind), Object.values(wraps), wrap("Reason", reason), h("div", { class: "filters-end" }, h("button", { type: "submit", class: "button primary" }, "Suspend …")), problem);
    choose();
    return form;
  }

  async #lift(one) {
    if (!await confirmed("Lift", "Lift this suspension? New sends are taken again; what it ended stays ended.")) return;
    try {
      await ask(`/v1/suspensions/${part(one.id)}`, { method: "DELETE", as: "text", tenant: null });
      note("Lifted.", "good");
      this.#now();
    } catch (error) {
      note(error.message, "bad");
    }
  }

  #now() {
    clearTimeout(this.timer);
    this.turn();
  }
}

/** Asks before something that cannot be taken back. */
function confirmed(verb, question) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { class: "dialog", "aria-label": verb, onclose: () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    } }, h("form", { method: "dialog" }, h("p", {}, foreign(question)), h("div", { class: "dialog-end" },
      h("button", { class: "button", value: "no" }, "Cancel"), h("button", { class: "button primary", value: "yes" }, verb))));
    document.body.append(dialog);
    dialog.showModal();
  });
}
