// One batch: where its events go, how many they are, and what came of each try.

import { ask } from "./api.js";
import { copyButton, foreign, h, plainForeign, replace } from "./dom.js";
import { bytes, count, instant, ms, part } from "./format.js";
import { link } from "./filters.js";
import { Page, table } from "./pages.js";
import { rows } from "./send.js";
import { badge } from "./sends.js";

/** Looked at again until it is done; then it is what it is. */
export class BatchPage extends Page {
  constructor(id) {
    super("Batch", h("p", { class: "lead mono wrap" }, foreign(id), " ", copyButton("Copy", id, { class: "link", "aria-label": "Copy the batch's id" })), { begin: false });
    this.id = id;
    this.turn();
  }

  async look(signal) {
    if (this.batch?.state === "done") return;
    const batch = await ask(`/v1/batches/${part(this.id)}`, { signal });
    const shown = JSON.stringify(batch);
    if (shown === this.drawn && !this.failed) return;
    this.drawn = shown;
    this.batch = batch;
    this.title = plainForeign(`Batch for ${place(batch)}`.slice(0, 90)) + `, ${batch.outcome ?? batch.state}`;
    this.ontitle?.();
    this.#draw();
  }

  #draw() {
    const { batch } = this;
    const { attempts, tried } = batch;
    replace(this.box,
      h("section", { class: "card", "aria-label": "What it is" },
        h("p", { class: "start-line" }, badge(batch.outcome ?? batch.state), " ", h("b", { class: "mono" }, foreign(place(batch)))),
        rows([
          ["Tenant", foreign(batch.tenant)],
          ["Object", batch.destination.s3?.key ? [h("span", { class: "mono small wrap" }, foreign(batch.destination.s3.key)), copyButton("Copy", batch.destination.s3.key, { class: "link", "aria-label": "Copy the object's key" })] : null],
          ["Events", [count(batch.sends), h("span", { class: "dim" }, ` of ${bytes(batch.bytes)}`)]],
          ["Opened", h("span", { class: "mono" }, instant(batch.opened_at))],
          [batch.state === "gathering" ? "Closes" : "Closed", h("span", { class: "mono" }, instant(batch.closes_at))],
          ["Done", batch.finished_at ? h("span", { class: "mono" }, instant(batch.finished_at)) : null],
        ])),
      h("h2", {}, "Tries"),
      attempts.length > 0
        ? table([["Began"], ["What came of it"], ["From"], ["Took", "number"]], attempts.map(row), "Tries")
        : h("div", { class: "empty still" }, h("p", { class: "empty-title" }, "Not tried"), h("p", {}, NOT_TRIED[batch.state] ?? NOT_TRIED.done)),
      tried > attempts.length && attempts.length > 0 ? h("p", { class: "foot dim" }, `${count(tried)} tries; ${count(attempts.length)} are kept.`) : null);
  }

  key(event) {
    if (event.key !== "Escape") return super.key(event);
    history.back();
    return true;
  }
}

const NOT_TRIED = {
  gathering: "It gathers events until it closes.",
  closed: "It waits for its turn.",
  done: "Nothing was sent.",
};

export function place({ destination: { s3, sql } }) {
  return s3 ? `s3://${s3.bucket}/${s3.prefix}` : `table ${sql.table}`;
}

function row({ outcome, error, response, connection, timings_ms: timings, started_at: began }) {
  const answer = response ? h("div", { class: "dim small" }, foreign(`${response.version ?? ""} ${response.status}`.trim(), { limit: 40 }), response.body && outcome !== "delivered" ? [" ", foreign(response.body, { limit: 300 })] : null) : null;
  return h("tr", {},
    h("td", {}, began ? h("span", { class: "mono" }, instant(began)) : h("span", { class: "dim" }, "not begun")),
    h("td", {}, badge(outcome), error ? h("div", { class: "small wrap" }, foreign(error.message, { limit: 500 })) : null, answer),
    h("td", { class: "mono" }, connection?.public_ip ? h("a", { href: link({ source_ip: connection.public_ip }), title: "The sends of this address" }, foreign(connection.public_ip)) : h("span", { class: "dim" }, "–")),
    h("td", { class: "number" }, timings.total === null || timings.total === undefined ? "–" : ms(timings.total)));
}
