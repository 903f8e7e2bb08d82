// The sends of one list, newest first: pages as they are loaded, and the tail as it comes.

import { ask, tail } from "./api.js";
import { haystack, matches, toApi } from "./filters.js";
import { asked } from "./words.js";

const PAGE = 200;
/** Rows kept; the oldest go first, and are loaded again when they are scrolled to. */
const KEPT = 20_000;
/** How often the newest page is asked for, for sends that are not done yet. */
const LOOK_AGAIN = 5000;

export class Feed {
  rows = [];
  /** The rows that the plain words match, or all. */
  view = [];
  counts = new Map();
  /** More to load below. */
  more = false;
  loading = false;
  problem = null;
  live = "waiting";
  paused = false;
  /** The longest first, in place of the newest. */
  byDuration = false;
  /** Records that came while paused. */
  waiting = [];

  /** Of how many sends egressd has searched the bodies for `text`, and how far back. */
  searched = { sends: 0, back_to: null };

  #byId = new Map();
  #stop = new AbortController();
  #next = null;
  #incoming = [];
  #flush = 0;
  #timer = 0;

  /** @param {object} filters  @param {(change: {above?: number, ids?: string[]}) => void} changed */
  constructor(filters, changed) {
    this.filters = filters;
    this.changed = changed;
  }

  async start() {
    const { signal } = this.#stop;
    const first = this.load();
    // What comes has no bodies to look into.
    if (this.filters.text) {
      this.live = "refused";
      return;
    }
    tail(toApi(this.filters), {
      signal,
      onSend: (record) => this.#arrived(record),
      onState: (state) => {
        this.live = state;
        this.changed({});
      },
    });
    await first;
    this.#timer = setInterval(() => {
      if (!document.hidden && !this.paused && this.problem === null) this.#lookAgain();
    }, LOOK_AGAIN);
  }

  stop() {
    this.#stop.abort();
    clearInterval(this.#timer);
    clearTimeout(this.#flush);
  }

  get(id) {
    return this.#byId.get(id) ?? null;
  }

  /** The next page, older than what is there. */
  async load() {
    if (this.loading || (this.rows.length > 0 && !this.more)) return;
    this.loading = true;
    this.changed({});
    try {
      const query = toApi(this.filters);
      query.set("limit", String(PAGE));
      if (this.#next !== null) query.set("cursor", this.#next);
      else if (this.rows.length > 0) {
        // The oldest rows were dropped, and their cursor with them: go on by time, which may repeat a row.
        query.set("until", new Date(Date.parse(this.rows.at(-1).created_at) + 1).toISOString());
      }
      let page;
      // A page that looked at many and found none says where to go on.
      do {
        page = await ask(`/v1/sends?${query}`, { signal: this.#stop.signal });
        this.#next = page.next ?? null;
        if (this.#next !== null) query.set("cursor", this.#next);
        if (page.searched) this.searched = { sends: this.searched.sends + page.searched.sends, back_to: page.searched.back_to ?? this.searched.back_to };
        // How far a search goes is for who looks at it to say.
      } while (page.sends.length === 0 && this.#next !== null && !this.filters.text);
      this.more = this.#next !== null;
      this.problem = null;
      this.#take(page.sends);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.problem = error;
    } finally {
      this.loading = false;
      this.changed({});
    }
  }

  async #lookAgain() {
    try {
      const query = toApi(this.filters);
      query.set("limit", "50");
      const page = await ask(`/v1/sends?${query}`, { signal: this.#stop.signal });
      if (!this.paused) this.#take(page.sends);
    } catch {
      // The tail's state says whether egressd answers.
    }
  }

  pause(paused) {
    this.paused = paused;
    if (!paused) {
      const waiting = this.waiting;
      this.waiting = [];
      this.#take(waiting);
    }
    this.changed({});
  }

  /** Events come in bursts: they are taken together, about once a frame. */
  #arrived(record) {
    this.#incoming.push(record);
    if (this.#flush !== 0) return;
    this.#flush = setTimeout(() => {
      this.#flush = 0;
      const records = this.#incoming;
      this.#incoming = [];
      if (this.paused) {
        this.waiting = this.waiting.concat(records).slice(-KEPT);
        this.changed({});
      } else this.#take(records);
    }, 60);
  }

  /** Puts records where their ids belong; ids sort by the time of acceptance. */
  #take(records) {
    const fresh = [];
    const changedIds = [];
    for (const record of records) {
      const known = this.#byId.get(record.id);
      if (known !== undefined) {
        // A page may be older than what the tail has told since.
        if (known.state === "done" || known.state === record.state) continue;
        this.#count(known, -1);
        this.#count(record, 1);
        Object.assign(known, light(record));
        changedIds.push(record.id);
        continue;
      }
      // Older than what is loaded: it comes with its page.
      if (this.more && this.rows.length > 0 && record.id < this.rows.at(-1).id && !this.loading) continue;
      const row = light(record);
      this.#byId.set(row.id, row);
      this.#count(row, 1);
      fresh.push(row);
    }
    if (fresh.length > 0) {
      fresh.sort((one, two) => (one.id < two.id ? 1 : -1));
      this.rows = merge(this.rows, fresh);
      if (this.rows.length > KEPT) this.#drop();
    }
    if (fresh.length === 0 && changedIds.length === 0) return;
    const top = this.view[0]?.id ?? null;
    this.#choose();
    const above = top === null || this.byDuration ? 0 : this.view.findIndex((row) => row.id === top);
    this.changed({ above: Math.max(0, above), ids: changedIds });
  }

  /** The plain words have changed; what is loaded has not. */
  refilter() {
    this.#choose();
    this.changed({});
  }

  #drop() {
    for (const row of this.rows.splice(KEPT)) {
      this.#byId.delete(row.id);
      this.#count(row, -1);
    }
    this.#next = null;
    this.more = true;
  }

  #count(row, by) {
    const key = row.outcome ?? row.state;
    this.counts.set(key, (this.counts.get(key) ?? 0) + by);
  }

  #choose() {
    const words = this.filters.q;
    this.view = words ? this.rows.filter((row) => matches(row.text, words)) : this.rows;
    if (this.byDuration) this.view = [...this.view].sort((one, two) => (two.timings_ms.total ?? -1) - (one.timings_ms.total ?? -1));
  }
}

/** What a list needs of a record; the rest is asked for when it is opened. */
function light(record) {
  const { id, state, outcome, error, resend_of, context, would_block, created_at, finished_at } = record;
  return {
    id, state, outcome, error, resend_of, context: context ?? {}, would_block, created_at, finished_at,
    request: asked(record),
    response: record.response ? { status: record.response.status } : null,
    node: record.node ?? null,
    connection: record.connection ? { public_ip: record.connection.public_ip, source_ip: record.connection.source_ip } : null,
    timings_ms: { total: record.timings_ms?.total ?? null },
    text: haystack(record),
  };
}

/** Two lists, both newest first, as one. */
function merge(rows, fresh) {
  if (rows.length === 0 || fresh.at(-1).id > rows[0].id) return fresh.concat(rows);
  if (fresh[0].id < rows.at(-1).id) return rows.concat(fresh);
  const out = [];
  let at = 0;
  for (const row of rows) {
    while (at < fresh.length && fresh[at].id > row.id) out.push(fresh[at++]);
    out.push(row);
  }
  return out.concat(fresh.slice(at));
}
