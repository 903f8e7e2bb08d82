// A new send: the address and what to send; the rest where it is wanted. What would become of it is said first.

import { ask, Problem, session } from "./api.js";
import { foreign, h, note, replace } from "./dom.js";
import { part } from "./format.js";

const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

export class ComposePage {
  title = "New send";

  constructor() {
    const input = (name, more = {}) => h("input", { name, id: `n-${name}`, autocomplete: "off", spellcheck: "false", ...more });
    this.url = input("url", { placeholder: "https://hooks.example.com/orders", required: true });
    this.payload = h("textarea", { name: "payload", id: "n-payload", rows: 8, spellcheck: "false", placeholder: '{"order": 7}' });
    this.method = h("select", { name: "method", id: "n-method" }, METHODS.map((one) => h("option", { value: one, selected: one === "POST" }, one)));
    this.username = input("username");
    this.password = input("password", { type: "password" });
    this.query = h("textarea", { name: "query", id: "n-query", rows: 3, spellcheck: "false", placeholder: "page=2\ntag=x" });
    this.headers = h("textarea", { name: "headers", id: "n-headers", rows: 3, spellcheck: "false", placeholder: "X-Shop: north" });
    this.tenant = session.tenant === "*" ? input("tenant", { value: "default", required: true }) : null;
    this.said = h("div", { class: "explained", role: "status" });
    this.problem = h("div", { class: "form-problem", role: "alert", hidden: true });
    this.go = h("button", { type: "submit", class: "button primary" }, "Explain");
    const field = (label, element, hint) => h("label", { class: "field", for: element.id }, h("span", {}, label), element, hint ? h("small", {}, hint) : null);
    const section = (title, ...content) => h("details", {}, h("summary", {}, title), content);
    // What was explained is what is sent: a change asks anew.
    const changed = () => this.#forget();
    this.element = h("section", { class: "view page compose", "aria-label": "New send" }, h("div", { class: "page-head" }, h("h1", {}, "New send"),
      h("p", { class: "lead" }, "One request, made once, from a published address. First you are told what would become of it; nothing is sent before you say so.")),
      h("form", { class: "card", oninput: changed, onsubmit: (event) => {
        event.preventDefault();
        if (this.explained) this.#send();
        else this.#explain();
      } },
        field("URL", this.url), field("Payload", this.payload, "An object or array of JSON goes byte for byte as it stands here; any other text as it is. Empty: no body."),
        section("Method", field("Method", this.method)),
        section("Authentication", field("Username (HTTP Basic)", this.username), field("Password", this.password, "Never shown again, and forgotten when the send is done.")),
        section("Query", field("Query", this.query, "One name=value a line; it is percent-encoded.")),
        section("Headers", field("Headers", this.headers, "One Name: value a line.")),
        this.tenant ? field("Tenant", this.tenant) : null,
        this.said, this.problem, h("div", { class: "dialog-end" }, this.go)));
  }

  stop() {}

  key(event) {
    if (event.key !== "Escape") return false;
    location.hash = "#/sends";
    return true;
  }

  #forget() {
    this.explained = false;
    this.go.textContent = "Explain";
    replace(this.said);
    this.problem.hidden = true;
  }

  #refuse(error) {
    if (!(error instanceof Problem)) throw error;
    this.problem.hidden = false;
    replace(this.problem, foreign(error.message), error.errors.length === 0 ? null
      : h("ul", {}, error.errors.map((one) => h("li", {}, h("code", {}, foreign(one.pointer ?? "")), " ", foreign(one.detail ?? ""), one.hint ? [" (", foreign(one.hint), ")"] : null))));
  }

  get #of() {
    return { tenant: this.tenant === null ? session.tenant : this.tenant.value.trim() };
  }

  async #explain() {
    this.problem.hidden = true;
    let body;
    try {
      body = this.#body();
      const answer = await ask("/v1/explain", { method: "POST", body: JSON.stringify({ method: this.method.value, url: this.url.value.trim() }), ...this.#of });
      replace(this.said, explanation(answer));
      this.explained = true;
      this.body = body;
      this.go.textContent = answer.verdict === "allowed" ? "Send it" : "Send it all the same";
    } catch (error) {
      this.#refuse(error);
    }
  }

  async #send() {
    this.go.disabled = true;
    try {
      const made = await ask("/v1/sends", { method: "POST", body: this.body, ...this.#of });
      note("Accepted.", "good");
      location.hash = `#/sends/${part(made.id)}`;
    } catch (error) {
      this.#refuse(error);
    } finally {
      this.go.disabled = false;
    }
  }

  /** The call's body as JSON text: a payload of JSON keeps its own bytes. */
  #body() {
    const members = [`"method":${JSON.stringify(this.method.value)}`, `"url":${JSON.stringify(this.url.value.trim())}`];
    const text = this.payload.value;
    if (text.trim() !== "") members.push(`"data":${isJson(text) ? text : JSON.stringify(text)}`);
    if (this.username.value !== "" || this.password.value !== "") members.push(`"auth":${JSON.stringify({ username: this.username.value, password: this.password.value })}`);
    for (const [name, element, sign] of [["params", this.query, "="], ["headers", this.headers, ":"]]) {
      const given = pairs(element.value, sign, name);
      if (given !== null) members.push(`"${name}":${JSON.stringify(given)}`);
    }
    return `{${members.join(",")}}`;
  }
}

function isJson(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object";
  } catch {
    return false;
  }
}

/** Lines of a name and a value; a name that comes again has several. */
function pairs(text, sign, field) {
  const lines = text.split("\n").map((line) => line.trim()).filter((line) => line !== "");
  if (lines.length === 0) return null;
  const out = new Map();
  for (const line of lines) {
    const at = line.indexOf(sign);
    if (at < 1) throw new Problem({ status: 400, detail: `${field}: “${line.slice(0, 80)}” has no ${sign}` });
    const name = line.slice(0, at).trim();
    out.set(name, [...(out.get(name) ?? []), line.slice(at + 1).trim()]);
  }
  return Object.fromEntries([...out].map(([name, values]) => [name, values.length === 1 ? values[0] : values]));
}

function explanation(answer) {
  const tone = { allowed: "delivered", blocked: "blocked", failed: "failed" }[answer.verdict] ?? "quiet";
  const says = { allowed: "It may be sent.", blocked: "The policy would block it: it would be accepted, not sent, and its record would say why.", failed: "It could not be delivered as things stand." }[answer.verdict] ?? answer.verdict;
  const addresses = answer.resolved ?? [];
  return h("div", { class: `said tone-${tone}` },
    h("p", { class: "said-why" }, h("b", {}, foreign(says))),
    answer.message ? h("p", { class: "said-message" }, foreign(answer.message)) : null,
    answer.code ? h("p", { class: "said-facts" }, h("code", {}, foreign(answer.code))) : null,
    addresses.length > 0 ? h("p", { class: "said-facts" }, "Resolves to ", addresses.map((one, at) => [at > 0 ? ", " : null, h("code", {}, foreign(one.ip ?? "hidden"))])) : null);
}
