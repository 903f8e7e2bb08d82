// One send: what was asked, what came back, over which connection, and in what time.

import { ask, Problem } from "./api.js";
import { bodyView } from "./body.js";
import { curl } from "./curl.js";
import { copyButton, download, foreign, h, note, plainForeign, replace } from "./dom.js";
import { ago, bytes, daysUntil, instant, ms, part } from "./format.js";
import { executionLink, link } from "./filters.js";
import { facts, isPublished } from "./facts.js";
import { headersView, headerValue } from "./headers.js";
import { openResend, processed } from "./resend.js";
import { badge } from "./sends.js";
import { openSuspend } from "./suspend.js";
import { waterfall } from "./waterfall.js";
import { asked, explain, PROCESSED, REASONS } from "./words.js";

export class SendView {
  title = "Send";

  /** @param {{neighbour: (id: string, by: number) => string | null, back: string}} around  the list it was opened from */
  constructor(id, around) {
    this.id = id;
    this.around = around;
    this.stopped = new AbortController();
    this.element = h("section", { class: "view send", "aria-label": "One send" }, h("p", { class: "loading" }, "Loading …"));
    this.load();
  }

  stop() {
    this.stopped.abort();
  }

  async load() {
    const { signal } = this.stopped;
    try {
      const path = `/v1/sends/${part(this.id)}`;
      this.show(await ask(path, { signal }));
      while (this.record.state !== "done" && !signal.aborted) {
        const started = performance.now();
        this.show(await ask(`${path}?wait=25`, { signal }));
        // An answer that comes at once, not done, must not turn this into a storm.
        if (performance.now() - started < 1000) await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      replace(this.element, this.#head(null), h("div", { class: "empty" },
        h("p", { class: "empty-title" }, error.status === 404 ? "There is no such send" : "The send could not be loaded"),
        h("p", {}, error.status === 404 ? "It is past its retention, belongs to another tenant, or never was." : foreign(error.message))));
    }
  }

  async show(record) {
    this.record = record;
    const { method, url } = asked(record);
    this.title = plainForeign(`${method} ${url}`.slice(0, 90)) + `, ${record.outcome ?? record.state}`;
    this.ontitle?.();
    this.#draw(null);
    const found = await facts();
    if (this.record === record && !this.stopped.signal.aborted) this.#draw(found);
  }

  #draw(found) {
    const { record } = this;
    const deadline = record.email ? found?.mailDeadline ?? 15000 : found?.deadline ?? 5000;
    this.deadline = deadline;
    // Only an operator may ask for the sources.
    this.operator = Array.isArray(found?.sources);
    const said = explain(record);
    replace(this.element,
      this.#head(record),
      h("div", { class: `said tone-${said.tone}` },
        h("p", { class: "said-why" }, h("b", {}, said.why), said.next ? [" ", said.next] : null),
        record.error ? [
          h("p", { class: "said-message" }, foreign(record.error.message ?? "")),
          h("p", { class: "said-facts" }, [record.error.code, record.error.phase].filter(Boolean).map((one) => h("code", {}, foreign(one))),
            record.error.processed ? h("span", {}, PROCESSED[record.error.processed] ?? foreign(record.error.processed)) : null)] : null,
        record.would_block ? h("p", { class: "said-message" }, h("code", {}, foreign(record.would_block)), "The policy is in report mode: enforced, it would have blocked this.") : null),
      h("div", { class: "cards two-one" },
        card("Time", waterfall(record, deadline)),
        card("Network", network(record, found))),
      h("div", { class: "cards two" },
        card("Sent", sent(record), { class: "wire" }),
        card("Received", received(record), { class: "wire" })),
      card("Life", life(record)));
  }

  #head(record) {
    const back = h("a", { class: "button small", href: this.around.back, "aria-label": "Back to the list" }, "← List");
    const step = (by, label) => {
      const id = this.around.neighbour(this.id, by);
      return h("a", { class: `button small${id === null ? " off" : ""}`, href: id === null ? null : `#/sends/${id}`, "aria-label": by < 0 ? "Newer send" : "Older send", "aria-disabled": id === null ? "true" : null }, label);
    };
    if (record === null) return h("div", { class: "head" }, h("div", { class: "head-line" }, back));
    const { method, url } = asked(record);
    const http = record.request;
    return h("div", { class: "head" },
      h("div", { class: "head-line" }, back, step(-1, "↑"), step(1, "↓"),
        h("span", { class: "grow" }),
        !http ? null : copyButton("Copy curl", () => curl(record, this.deadline ?? 5000), { title: "Copy as curl: the same request, from wherever it is run" }),
        http && this.operator && record.connection?.source_ip ? copyButton("… from its source", () => curl(record, this.deadline ?? 5000, { bound: true }), { class: "button small bound", title: "Copy as curl with --interface: the same request from the same address, for the appliance's host" }) : null,
        http ? h("button", { type: "button", class: "button small", onclick: () => this.har() }, "HAR") : null,
        h("button", { type: "button", class: `button small${processed(record) === "no" ? " primary" : ""}`, onclick: () => openResend(record), disabled: record.state !== "done" }, "Resend …")),
      h("h1", {}, badge(record.outcome ?? record.state), h("span", { class: "method" }, foreign(method)), h("span", { class: "address" }, foreign(url))),
      this.#trail(record),
      h("p", { class: "head-sub" },
        h("span", { title: instant(record.created_at) }, `${instant(record.created_at)} · ${ago(record.created_at)}`),
        h("span", { class: "id" }, record.id, copyButton("Copy", record.id, { class: "link", "aria-label": "Copy the id" })),
        record.resend_of ? h("span", {}, "resend of ", h("a", { href: `#/sends/${part(record.resend_of)}`, class: "mono" }, foreign(record.resend_of))) : null));
  }

  /** Where it came from: tenant › workflow › execution › step, each a way to its like. */
  #trail({ context = {}, request }) {
    const { tenant, workflow, execution, step, index } = context;
    const { host } = target(request?.url);
    const parts = [
      ["Tenant", tenant, link({ tenant })],
      ["Workflow", workflow, link({ tenant, workflow })],
      ["Execution", execution, execution ? executionLink(context) : null],
      ["Step", step, link({ tenant, workflow, step })],
    ].filter(([, value]) => value);
    if (parts.length === 0) return null;
    const choices = [...(tenant && workflow ? [{ tenant, workflow }] : []), ...(tenant ? [{ tenant }] : []), ...(host ? [{ host: host.hostname }] : [])];
    return h("nav", { class: "trail", "aria-label": "Where it came from" },
      h("ol", {}, parts.map(([name, value, href]) => h("li", {}, h("a", { href, title: `${name}: ${plainForeign(value, 280)}` }, foreign(value, { limit: 120 })),
        name === "Execution" && Number.isInteger(index) ? h("span", { class: "dim" }, ` #${index}`) : null))),
      this.operator && choices.length > 0 ? h("button", { type: "button", class: "link", onclick: () => openSuspend(choices) }, "Suspend …") : null);
  }

  async har() {
    try {
      const text = await ask(`/v1/sends/${part(this.id)}/har`, { as: "text" });
      download(`egressd-${this.id}.har`, text, "application/json");
    } catch (error) {
      note(error instanceof Problem ? `No HAR: ${error.message}` : String(error), "bad");
    }
  }

  key(event) {
    const by = { j: 1, k: -1 }[event.key];
    if (by !== undefined) {
      const id = this.around.neighbour(this.id, by);
      if (id !== null) location.replace(`#/sends/${id}`);
      return true;
    }
    if (event.key === "Escape") {
      location.hash = this.around.back;
      return true;
    }
    if (this.record?.request && event.key === "c") {
      this.element.querySelector(".head-line button")?.click();
      return true;
    }
    if (this.record?.state === "done" && event.key === "r") {
      openResend(this.record);
      return true;
    }
    return false;
  }
}

export function card(title, content, properties = {}) {
  return h("section", { ...properties, class: `card ${properties.class ?? ""}`, "aria-label": title }, h("h2", {}, title), content);
}

/** `name → value` rows; a value of `null` leaves its row out. */
export function rows(pairs) {
  return h("dl", { class: "pairs" }, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function target(url) {
  try {
    const { pathname, search, hostname } = new URL(url);
    return { path: pathname + search, host: { hostname: hostname.replace(/^\[(.*)\]$/, "$1") } };
  } catch {
    return { path: url, host: null };
  }
}

function sent(record) {
  if (record.email) return letter(record);
  if (record.s3 || record.sql) return event(record);
  const { request } = record;
  const left = record.connection?.remote_ip !== null && record.connection?.remote_ip !== undefined;
  const version = record.response?.version ?? "HTTP/1.1";
  const dropped = request.dropped_headers ?? [];
  return [
    h("p", { class: "start-line" }, h("b", {}, foreign(request.method ?? "")), " ", foreign(target(request.url).path), " ", h("span", { class: "dim" }, left ? foreign(version) : "not sent")),
    headersView(request.headers),
    dropped.length === 0 ? null : h("p", { class: "dropped" }, "Given and not sent: ", dropped.map((name, at) => [at > 0 ? ", " : "", h("code", {}, foreign(name))])),
    bodyView(request, "sent"),
  ];
}

/** A message, as text whatever it is. */
function letter({ email }) {
  const left = Object.keys(email.headers ?? {}).length > 0;
  const kept = email.text !== null || email.html !== null;
  const part = (name, text, type) => (text === null ? null : [
    h("h3", {}, name),
    bodyView({ body: text, body_encoding: "utf8", body_bytes: new TextEncoder().encode(text).length, headers: { "content-type": [type] } }, name),
  ]);
  return [
    h("p", { class: "start-line" }, h("b", {}, foreign(email.subject ?? "")), " ", h("span", { class: "dim" }, left ? "SMTP" : "not sent")),
    headersView(email.headers ?? {}),
    email.include_collaborators ? h("p", { class: "dim" }, "To the collaborators, too.") : null,
    kept ? null : h("p", { class: "no-body" }, `The message of ${bytes(email.body_bytes)} is not kept, or is past its retention.`),
    part("Text", email.text, "text/plain"),
    part("HTML", email.html, "text/html"),
  ];
}

/** An event, and the batch that carries it. */
function event(record) {
  const { batch, outcome } = record;
  const { payload, payload_bytes } = record.s3 ?? record.sql;
  const text = payload === null ? null : JSON.stringify(payload);
  return [
    h("p", { class: "start-line" }, h("b", {}, foreign(asked(record).url)), " ", h("span", { class: "dim" }, outcome === "delivered" ? "in its batch" : "not there")),
    batch ? rows([
      ["Batch", [h("a", { class: "mono small wrap", href: `#/batches/${part(batch.id)}`, title: "The batch, and each of its tries" }, foreign(batch.id)), copyButton("Copy", batch.id, { class: "link", "aria-label": "Copy the batch's id" })]],
      ["Closes", h("span", { class: "mono" }, instant(batch.closes_at))],
    ]) : null,
    text === null
      ? h("p", { class: "no-body" }, `The payload of ${bytes(payload_bytes)} is not kept, or is past its retention.`)
      : bodyView({ body: text, body_encoding: "utf8", body_bytes: payload_bytes, headers: { "content-type": ["application/json"] } }, "payload"),
  ];
}

function received(record) {
  const { response } = record;
  if (!response) {
    const why = record.state !== "done" ? "Nothing yet." : record.outcome === "blocked" ? "Nothing was sent, so nothing came back." : "No complete answer came back.";
    return h("p", { class: "no-body" }, why);
  }
  return [
    h("p", { class: "start-line" }, h("span", { class: "dim" }, foreign(response.version ?? "")), " ",
      h("b", { class: `status-${Math.floor(response.status / 100)}` }, String(response.status)), " ", record.email || record.sql ? "" : REASONS[response.status] ?? ""),
    headersView(response.headers),
    bodyView(response, "received", { bodiless: record.request?.method === "HEAD" || response.status === 204 || response.status === 304 }),
  ];
}

function network(record, found) {
  const { connection } = record;
  if (!connection) return h("p", { class: "dim" }, record.state === "done" ? "No connection was tried." : "Not started yet.");
  const { tls } = connection;
  const address = connection.public_ip ?? connection.source_ip;
  const published = address ? isPublished(found, address) : null;
  const tick = published === null ? null : published
    ? h("span", { class: "tick good", title: "This address stands in /public-ips.json" }, "✓ published")
    : h("span", { class: "tick bad", title: "This address does not stand in /public-ips.json (any more)" }, "✗ not in the published list");
  const other = connection.source_ip && connection.source_ip !== connection.public_ip ? connection.source_ip : null;
  return rows([
    ["From", address ? [h("a", { class: "mono", href: link({ source_ip: address }) }, foreign(address)), connection.source_port ? h("span", { class: "mono dim" }, `:${connection.source_port}`) : null, " ", tick] : "no address chosen"],
    ["Bound to", other ? h("span", { class: "mono" }, foreign(other)) : null],
    ["To", connection.remote_ip ? h("span", { class: "mono" }, foreign(hostPort(connection.remote_ip, connection.remote_port))) : "not connected"],
    ["Connection", connection.remote_ip ? (connection.reused ? "reused, already open" : "new") : null],
    ["Resolved", connection.resolved?.length > 0 ? h("ul", { class: "resolved" }, connection.resolved.map(({ ip, verdict }) =>
      h("li", {}, ip === null ? h("span", { class: "dim" }, "address withheld") : h("span", { class: "mono" }, foreign(ip)),
        " ", h("span", { class: verdict === "allowed" ? "verdict good" : "verdict bad" }, foreign(verdict)),
        ip !== null && ip === connection.remote_ip ? h("span", { class: "dim" }, " used") : null))) : null],
    ["TLS", tls ? agreed(tls) : connection.remote_ip && /^http:/.test(record.request?.url) ? h("span", { class: "dim" }, "none (plain http)") : null],
    ["Certificate", tls?.certificate ? certificate(tls.certificate, tls.version === null) : null],
  ]);
}

function hostPort(ip, port) {
  return port === null || port === undefined ? ip : ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`;
}

/** A handshake that did not come to its end has agreed on nothing. */
function agreed({ version, cipher, alpn }) {
  if (version === null) return h("span", { class: "bad" }, "the handshake failed");
  return [foreign(version), alpn ? [" · ", foreign(alpn)] : null, h("div", { class: "dim mono small" }, foreign(cipher ?? ""))];
}

function certificate(one, refused) {
  const days = daysUntil(one.not_after);
  const early = daysUntil(one.not_before) ?? -1;
  const tone = days === null ? "" : days < 0 || early >= 0 ? "bad" : days < 14 ? "warn" : "good";
  const left = days === null ? "" : days < 0 ? `expired ${-days} days ago` : early >= 0 ? "not valid yet" : days === 1 ? "1 day left" : `${days} days left`;
  const day = (text) => h("span", { title: instant(text) }, foreign(String(text).slice(0, 10)));
  return [
    h("div", {}, foreign(one.subject ?? ""), refused ? [" ", h("span", { class: "tick bad" }, "refused")] : null),
    forNames(one),
    h("div", { class: "dim" }, "by ", foreign(one.issuer ?? "")),
    h("div", {}, h("span", { class: `tick ${tone}` }, left), " ",
      h("span", { class: "dim" }, one.not_before ? ["from ", day(one.not_before), " "] : null, one.not_after ? ["until ", day(one.not_after)] : null)),
    one.key ? h("div", { class: "dim" }, "key: ", foreign(one.key)) : null,
    one.sha256 ? h("div", { class: "mono small dim wrap" }, foreign(one.sha256)) : null,
  ];
}

/** A record from before names were kept has none, and no key. */
function forNames({ names = [], key }) {
  if (names.length > 0) return h("div", { class: "wrap" }, "for ", names.map((name, place) => [place > 0 ? ", " : null, foreign(name)]));
  return key ? h("div", { class: "bad" }, "for no host: it has no subjectAltName") : null;
}

function life(record) {
  const { timings_ms: timings = {} } = record;
  const at = (text, from) => (text ? [h("span", { class: "mono" }, instant(text)), from !== null && from !== undefined ? h("span", { class: "dim" }, ` ${from}`) : null] : null);
  const what = record.request ?? record.email ?? { body_bytes: (record.s3 ?? record.sql)?.payload_bytes ?? 0 };
  const type = record.request ? headerValue(what.headers, "content-type") : null;
  return h("div", { class: "life" },
    rows([
      ["Node", record.node ? foreign(record.node) : null],
      [record.request ? "Body" : record.s3 || record.sql ? "Payload" : "Message", what.body_bytes > 0 ? [bytes(what.body_bytes), type ? [" of ", foreign(type)] : null] : null],
      ["SHA-256", what.body_sha256 ? h("span", { class: "mono small wrap" }, foreign(what.body_sha256)) : null],
    ]),
    rows([
      ["Accepted", at(record.created_at)],
      ["Released", at(record.released_at, timings.held ? `after ${ms(timings.held)} held` : null)],
      ["Started", at(record.started_at, timings.queued !== null && timings.queued !== undefined ? `after ${ms(timings.queued)} queued` : null)],
      ["Finished", at(record.finished_at, timings.total !== null && timings.total !== undefined ? `after ${ms(timings.total)}` : null)],
    ]));
}
