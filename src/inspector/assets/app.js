// The page: which view the address names, what stands around it, and the keys.
//
// Views: #/overview[?range=]  #/sends[?filters]  #/sends/ID  #/executions[?filters]  #/executions/ID[?tenant=&step=]
// #/batches/ID  #/tunnels[?filters]  #/compose  #/sources  #/nodes  #/tenants  #/suspensions
//
// `?embed=1` after any of them shows it alone, for a frame on another page.

import { ask, session } from "./api.js";
import { foreign, h, replace } from "./dom.js";
import { BatchPage } from "./batch.js";
import { ComposePage } from "./compose.js";
import { ExecutionView } from "./execution.js";
import { ExecutionsPage } from "./executions.js";
import { facts } from "./facts.js";
import { executionLink, fromQuery, link } from "./filters.js";
import { OverviewPage } from "./overview.js";
import { NodesPage, SourcesPage, SuspensionsPage, TenantsPage } from "./pages.js";
import { SendView } from "./send.js";
import { icon, SendsView } from "./sends.js";
import { TunnelsPage } from "./tunnels.js";

const main = document.getElementById("main");
const PAGES = { overview: OverviewPage, executions: ExecutionsPage, tunnels: TunnelsPage, compose: ComposePage, sources: SourcesPage, nodes: NodesPage, tenants: TenantsPage, suspensions: SuspensionsPage };
const NAV = [["overview", "Overview"], ["sends", "Sends"], ["executions", "Executions"], ["tunnels", "Tunnels"], ["compose", "New send"], ["sources", "Sources"], ["tenants", "Tenants"], ["suspensions", "Suspensions"], ["nodes", "Nodes"]];
const OPERATORS = new Set(["tenants", "suspensions", "nodes"]);

let view = null;
/** The list stays alive, with its place, while one of its sends is looked at. */
let list = null;
/** Where a send was opened from: the list or an execution. */
let from = null;
/** It is known whose sends may be shown. */
let ready = false;
/** It is known that this session may do what operators do. */
let operator = false;
/** The view stands alone, in a frame of another page. */
let embedded = false;

function parseHash() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [name = "", ...rest] = path.split("/");
  let id = rest.length > 0 ? rest.join("/") : null;
  try {
    id = id === null ? null : decodeURIComponent(id);
  } catch {
    // A percent sign that starts nothing: the text as it stands.
  }
  return { name: name === "" ? "sends" : name, id: id === "" ? null : id, query: new URLSearchParams(query) };
}

function route() {
  if (!ready) return;
  document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
  const { name, id, query } = parseHash();
  embedded ||= query.get("embed") === "1" || new URLSearchParams(location.search).get("embed") === "1";
  document.documentElement.classList.toggle("embedded", embedded);
  if (name === "sends" && id === null) {
    const filters = fromQuery(query);
    if (list === null) list = new SendsView(filters);
    else list.open(filters);
    show(list);
  } else if (name === "sends") {
    if (view instanceof ExecutionView || view instanceof SendsView) {
      if (from instanceof ExecutionView && from !== view) from.stop();
      from = view;
    }
    const around = { neighbour: (one, by) => from?.neighbour(one, by) ?? null, back: backOf(from) };
    from?.select?.(id);
    show(new SendView(id, around));
  } else if (name === "executions" && id !== null) {
    const tenant = query.get("tenant");
    const one = [view, from].find((known) => known instanceof ExecutionView && known.execution === id && known.tenant === tenant) ?? new ExecutionView(id, tenant);
    one.only(query.get("step"));
    show(one);
  } else if (name === "batches" && id !== null) show(new BatchPage(id));
  else if (name in PAGES) show(new PAGES[name](query));
  else location.replace("#/sends");
}

function backOf(one) {
  if (one instanceof ExecutionView) return executionLink(one, one.step === null ? {} : { step: one.step });
  return one instanceof SendsView ? link(one.filters) : "#/sends";
}

function show(next) {
  if (next !== view) {
    view?.hidden?.();
    if (view !== list && view !== from) view?.stop();
    view = next;
    replace(main, view.element);
    view.shown?.();
  }
  view.ontitle = retitle;
  retitle();
  drawNav();
}

function retitle() {
  document.title = `${view.title} · egressd`;
}

function drawNav() {
  const { name } = parseHash();
  replace(document.getElementById("nav"), shownPages().map(([key, label]) =>
    h("a", { href: key === "sends" && list !== null ? link(list.filters) : `#/${key}`, "aria-current": name === key ? "page" : null }, label)));
}

/** What only operators may see is not shown to others. */
function shownPages() {
  return NAV.filter(([key]) => operator || !OPERATORS.has(key));
}

/** Everything from the start, after the token or the tenant has changed. */
function restart() {
  view?.stop();
  if (list !== view) list?.stop();
  if (from !== view && from !== list) from?.stop();
  view = list = from = null;
  ready = true;
  operator = false;
  drawBar();
  route();
  facts({ fresh: true }).then((found) => {
    operator = found.sources !== null;
    drawNav();
  });
}

function drawBar() {
  const theme = document.documentElement.dataset.theme ?? "system";
  replace(document.getElementById("bar-end"),
    tenantChooser(),
    h("button", { type: "button", class: "bar-button", title: `Theme: ${theme}`, "aria-label": `Theme: ${theme}. Change it`, onclick: nextTheme },
      theme === "dark" ? icon("M16 11.5A6.5 6.5 0 0 1 8.5 4 6.5 6.5 0 1 0 16 11.5Z") : theme === "light" ? icon("M10 6.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7ZM10 2v1.6M10 16.4V18M2 10h1.6M16.4 10H18M4.3 4.3l1.2 1.2M14.5 14.5l1.2 1.2M15.7 4.3l-1.2 1.2M5.5 14.5l-1.2 1.2") : icon("M10 3a7 7 0 1 0 0 14ZM10 3a7 7 0 0 1 0 14")),
    h("button", { type: "button", class: "bar-button help", title: "Keys (?)", "aria-label": "Keyboard help", onclick: help }, "?"),
    session.signedIn ? h("button", { type: "button", class: "bar-button wide", onclick: () => {
      session.signOut();
      start();
    } }, "Sign out") : null);
}

function tenantChooser() {
  const label = session.tenant === "*" ? "all tenants" : session.tenant ?? "own tenant";
  return h("button", { type: "button", class: "bar-button wide tenant", title: "Whose sends are shown", onclick: chooseTenant }, icon("M10 10.5a3 3 0 1 0 0-6 3 3 0 0 0 0 6ZM4.5 16.5c.7-3 2.8-4.2 5.5-4.2s4.8 1.2 5.5 4.2"), h("span", {}, foreign(label, { limit: 40 })));
}

function chooseTenant() {
  const input = h("input", { name: "tenant", value: session.tenant === "*" ? "" : session.tenant ?? "", placeholder: "all tenants", autocomplete: "off", spellcheck: "false", id: "tenant-input" });
  const dialog = h("dialog", { class: "dialog", "aria-labelledby": "tenant-title", onclose: () => dialog.remove() },
    h("form", { method: "dialog", onsubmit: () => {
      const given = input.value.trim();
      session.chooseTenant(given === "" ? "*" : given);
      restart();
    } },
      h("h2", { id: "tenant-title" }, "Whose sends"),
      h("label", { class: "field", for: "tenant-input" }, h("span", {}, "Tenant"), input, h("small", {}, "Empty: all tenants, where your token may see them.")),
      h("div", { class: "dialog-end" }, h("button", { type: "submit", class: "button primary" }, "Show"))));
  document.body.append(dialog);
  dialog.showModal();
}

function nextTheme() {
  const root = document.documentElement;
  const next = { undefined: "light", light: "dark", dark: undefined }[root.dataset.theme];
  if (next === undefined) delete root.dataset.theme;
  else root.dataset.theme = next;
  try {
    if (next === undefined) localStorage.removeItem("egressd-theme");
    else localStorage.setItem("egressd-theme", next);
  } catch {
    // The choice then holds for this page only.
  }
  drawBar();
}

const KEYS = [
  ["j, k or ↓, ↑", "next and previous row, or send"], ["Enter", "open the selected send"], ["Esc", "back; close; clear"],
  ["/", "search"], ["f", "filters"], ["p", "pause or resume the list"], ["g, G", "first and last row"],
  ["c", "copy the send as curl"], ["r", "send again"], ["n", "new send"], ["1 to 9", "the pages, as they stand above"], ["?", "this help"],
];

function help() {
  const dialog = h("dialog", { class: "dialog", "aria-labelledby": "help-title", onclose: () => dialog.remove() },
    h("h2", { id: "help-title" }, "Keys"),
    h("dl", { class: "keys" }, KEYS.map(([keys, does]) => h("div", {}, h("dt", {}, keys.split(/(, | or | to )/).map((part, at) => (at % 2 === 0 ? h("kbd", {}, part) : part))), h("dd", {}, does)))),
    h("p", { class: "dim" }, "In the search: ", h("code", {}, "host: outcome: code: status: state: method: path: workflow: execution: step: source_ip: tenant: since: until:"), " ask egressd; plain words look through what is loaded; an id opens its send."),
    h("form", { method: "dialog", class: "dialog-end" }, h("button", { class: "button" }, "Close")));
  document.body.append(dialog);
  dialog.showModal();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input, textarea, select")) {
    if (event.key === "Escape") document.activeElement.blur();
    return;
  }
  if (event.target.closest("[role=tab]") && event.key.startsWith("Arrow")) return;
  // A region that scrolls by itself keeps its own arrow keys.
  if (event.target.closest(".body-pane") && /^(Arrow|Page|Home|End)/.test(event.key)) return;
  const page = shownPages()[Number(event.key) - 1]?.[0];
  if (event.key === "?") help();
  else if (page !== undefined) location.hash = `#/${page}`;
  else if (event.key === "n") location.hash = "#/compose";
  else if (event.key === "/" && view !== list) location.hash = "#/sends";
  else if (!view?.key?.(event)) return;
  event.preventDefault();
});
addEventListener("hashchange", route);

/** Which tenants this session may see: all, else its own; where a token is needed, it is asked for. */
async function start() {
  ready = false;
  drawBar();
  try {
    await ask("/v1/sends?limit=1");
  } catch (error) {
    if (error.status === 401) return signIn(session.signedIn ? "egressd does not know this token." : null);
    if (error.status === 403 && session.tenant === "*") {
      session.chooseTenant(null);
      return start();
    }
    if (error.status === 400 && session.tenant === null) return askTenant(error.message);
    if (error.status === 403 && session.signedIn) return signIn(error.message);
    // Anything else the list shows, and tries again.
  }
  restart();
}

function signIn(problem) {
  const input = h("input", { type: "password", name: "token", id: "token", autocomplete: "off", spellcheck: "false", required: true });
  gate("Sign in", "This egressd asks for a token. It stays in this tab and is forgotten when the tab closes.", h("label", { class: "field", for: "token" }, h("span", {}, "Token"), input), problem, () => {
    session.signIn(input.value.trim());
    start();
  });
}

function askTenant(problem) {
  const input = h("input", { name: "tenant", id: "tenant", autocomplete: "off", spellcheck: "false", required: true });
  gate("Which tenant?", "This token may see any tenant, one at a time.", h("label", { class: "field", for: "tenant" }, h("span", {}, "Tenant"), input), problem, () => {
    session.chooseTenant(input.value.trim());
    start();
  });
}

function gate(title, lead, field, problem, go) {
  view?.stop();
  if (list !== view) list?.stop();
  view = list = from = null;
  document.title = `${title} · egressd`;
  replace(main, h("section", { class: "gate" }, h("form", { class: "card", onsubmit: (event) => {
    event.preventDefault();
    go();
  } }, h("h1", {}, title), h("p", { class: "dim" }, lead), field,
    problem ? h("p", { class: "form-problem", role: "alert" }, foreign(problem)) : null,
    h("div", { class: "dialog-end" }, h("button", { type: "submit", class: "button primary" }, "Continue")))));
  main.querySelector("input").focus();
}

start();
