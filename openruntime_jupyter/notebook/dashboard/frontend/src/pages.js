// Tasks beyond those that the kernel sends: fetched when the user requests them, and updated when other tasks change.
import { make, show, write } from "./dom.js";
import { live } from "./words.js";

/** Number of tasks added per click. */
const PAGE = 50;
/** Maximum number of additional tasks of one kind, to keep the page responsive. */
const MOST = 450;
/** Minimum and maximum update interval, in milliseconds. The maximum applies when no other task changes. */
const EVERY = 1_000;
const AT_LATEST = 5_000;
/** Queries of the tasks of each kind. */
export const QUERIES = {
  running: { order: "newest", states: ["running"] },
  waiting: { order: "next" },
  ended: { order: "newest", states: ["completed", "failed", "cancelled", "timed_out", "interrupted"] },
};
const ORDER = { waiting: "next to run first", ended: "newest first" };

export class Pages {
  /** `changed()` is called when the rows have changed. `queryOf(kind)` returns the query of the tasks of a kind, null for none. */
  constructor(runtime, say, changed, queryOf) {
    this.queryOf = queryOf;
    this.runtime = runtime;
    this.say = say;
    this.changed = changed;
    this.wanted = { waiting: 0, ended: 0 };
    this.rows = { waiting: [], ended: [], selected: [] };
    /** Id of a task that is shown wherever it is in the order. */
    this.selected = null;
    this.sent = { waiting: 0, ended: 0 };
    this.looked = 0;
  }

  get open() {
    return this.selected !== null || this.wanted.waiting + this.wanted.ended > 0;
  }

  /** Show no additional tasks. */
  reset() {
    this.wanted = { waiting: 0, ended: 0 };
    this.rows = { waiting: [], ended: [], selected: [] };
    this.selected = null;
  }

  /** Show a task too, wherever it is in the order. */
  select(id) {
    this.selected = id;
    return this.look();
  }

  /** Set the number of additional tasks of a kind. */
  want(kind, number) {
    this.wanted[kind] = Math.min(MOST, Math.max(0, number));
    this.rows[kind] = this.rows[kind].slice(0, this.wanted[kind]);
    this.changed();
    return this.look();
  }

  /** Update the rows if they are old, or older than the minimum interval when other tasks have changed (`stale`). */
  tick(stale = false) {
    if (this.open && Date.now() - this.looked >= (stale ? EVERY : AT_LATEST)) this.look();
  }

  async look() {
    if (this.looking) {
      this.again = true;
      return;
    }
    this.looking = true;
    try {
      do {
        this.again = false;
        this.looked = Date.now();
        for (const kind of Object.keys(this.wanted)) {
          const limit = this.wanted[kind];
          const query = limit ? this.queryOf(kind) : null;
          const found = query ? (await this.runtime.act("tasks", { ...query, offset: this.sent[kind], limit })).tasks : [];
          this.rows[kind] = found.slice(0, this.wanted[kind]);
        }
        await this.lookSelected();
        this.changed();
      } while (this.again);
    } catch (problem) {
      this.say(`Cannot list more tasks: ${problem.message}`);
    } finally {
      this.looking = false;
    }
  }

  /** Fetch the selected task; a finished one only once. */
  async lookSelected() {
    const id = this.selected;
    const [known] = this.rows.selected;
    if (!id || (known?.task_id === id && !live(known))) return;
    try {
      const task = await this.runtime.act("task", { id });
      if (this.selected === id) this.rows.selected = [task];
    } catch (problem) {
      this.say(`Cannot show the task ${id}: ${problem.message}`);
      if (this.selected === id) this.selected = null;
    }
  }
}

/** Row below the tasks of a kind, with their number and buttons to show more. */
export class More {
  constructor({ kind }, pages) {
    this.kind = kind;
    this.text = make("span", { class: "or-dim" });
    const press = (label, steps) => make("button", { type: "button", class: "or-button", onclick: () => pages.want(kind, steps && pages.wanted[kind] + steps) }, label);
    this.more = press(`Show ${PAGE} more`, PAGE);
    this.fewer = press("Show fewer", 0);
    const cell = make("td", { colspan: 10, role: "cell" }, make("div", { class: "or-pager" }, this.text, this.more, this.fewer));
    this.element = make("tbody", { role: "rowgroup", class: "or-more" }, make("tr", { role: "row" }, cell));
    this.pages = pages;
  }

  update({ shown, all }) {
    const { kind, pages } = this;
    write(this.text, shown < all ? `${shown.toLocaleString("en")} of ${all.toLocaleString("en")} ${kind}, ${ORDER[kind]}` : `all ${all.toLocaleString("en")} ${kind}`);
    show(this.more, shown < all && pages.wanted[kind] < MOST);
    show(this.fewer, pages.wanted[kind] > 0);
  }
}
