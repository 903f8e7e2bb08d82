// A list that keeps only the rows in sight on the page, so that ten thousand cost what forty do.
//
// Rows all have one height. What is above the rows in sight may grow: they stay where they are.

import { h } from "./dom.js";

/** Rows kept beyond each edge of what is in sight. */
const BEYOND = 12;

export class VirtualList {
  #items = [];
  #rows = new Map();
  #frame = 0;
  #height;

  /**
   * @param {{height: () => number, key: (item) => string, render: (item, at: number) => HTMLElement,
   *          onNearEnd?: () => void, label: string, columns: number}} options
   */
  constructor(options) {
    this.options = options;
    this.#height = options.height();
    this.body = h("div", { class: "rows-body", role: "rowgroup" });
    this.element = h("div", { class: "rows", onscroll: () => this.#soon() }, this.body);
    this.resized = new ResizeObserver(() => {
      const height = options.height();
      if (height !== this.#height) {
        const top = this.element.scrollTop / this.#height;
        this.#height = height;
        this.refresh();
        this.element.scrollTop = top * height;
      }
      this.#soon();
    });
    this.resized.observe(this.element);
  }

  get items() {
    return this.#items;
  }

  /** At the top, where new rows are followed. */
  get atTop() {
    return this.element.scrollTop < this.#height / 2;
  }

  /** Shows these items; `above` of them are new and stand above what is in sight. */
  set(items, { above = 0 } = {}) {
    const keep = !this.atTop && above > 0;
    this.#items = items;
    this.body.style.height = `${items.length * this.#height}px`;
    if (keep) this.element.scrollTop += above * this.#height;
    this.draw();
  }

  /** Draws every row in sight anew. */
  refresh() {
    for (const row of this.#rows.values()) row.element.remove();
    this.#rows.clear();
    this.body.style.height = `${this.#items.length * this.#height}px`;
    this.draw();
  }

  /** Draws one row anew, where it is in sight. */
  update(key) {
    const row = this.#rows.get(key);
    if (row === undefined) return;
    row.element.remove();
    this.#rows.delete(key);
    this.#soon();
  }

  scrollTo(at) {
    const top = at * this.#height;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + this.#height > scrollTop + clientHeight) this.element.scrollTop = top + this.#height - clientHeight;
    this.draw();
  }

  /** How many rows are in sight. */
  get page() {
    return Math.max(1, Math.floor(this.element.clientHeight / this.#height) - 1);
  }

  rowOf(key) {
    return this.#rows.get(key)?.element ?? null;
  }

  #soon() {
    if (this.#frame !== 0) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.draw();
    });
  }

  draw() {
    const { scrollTop, clientHeight } = this.element;
    const first = Math.max(0, Math.floor(scrollTop / this.#height) - BEYOND);
    const last = Math.min(this.#items.length, Math.ceil((scrollTop + clientHeight) / this.#height) + BEYOND);
    const wanted = new Set();
    for (let at = first; at < last; at += 1) {
      const item = this.#items[at];
      const key = this.options.key(item);
      wanted.add(key);
      let row = this.#rows.get(key);
      if (row === undefined) {
        const element = this.options.render(item, at);
        element.classList.add("row");
        this.body.append(element);
        row = { element, at: -1 };
        this.#rows.set(key, row);
      }
      if (row.at !== at) {
        row.at = at;
        row.element.style.transform = `translateY(${at * this.#height}px)`;
        row.element.setAttribute("aria-rowindex", String(at + 2));
      }
    }
    for (const [key, row] of this.#rows) {
      if (!wanted.has(key)) {
        row.element.remove();
        this.#rows.delete(key);
      }
    }
    if (this.#items.length - last < 60) this.options.onNearEnd?.();
  }

  stop() {
    this.resized.disconnect();
    cancelAnimationFrame(this.#frame);
  }
}
