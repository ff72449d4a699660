// The tasks beyond those that the kernel sends: asked for once somebody wants to see them, and anew as the others change.
import { make, show, write } from "./dom.js";

/** How many more are shown at a time. */
const PAGE = 50;
/** How many more there may be of one kind: a table of thousands of rows is read by nobody, and slows the page down. */
const MOST = 450;
/** Milliseconds between two looks at them; at the latest after so many they are looked at though nothing else has changed. */
const EVERY = 1_000;
const AT_LATEST = 5_000;
const ASKED = {
  waiting: { order: "next" },
  ended: { order: "newest", states: ["completed", "failed", "cancelled", "timed_out", "interrupted"] },
};
const ORDER = { waiting: "the next to run first", ended: "the newest first" };

export class Pages {
  /** `changed()` is called when there are other rows than before. */
  constructor(runtime, say, changed) {
    this.runtime = runtime;
    this.say = say;
    this.changed = changed;
    this.wanted = { waiting: 0, ended: 0 };
    this.rows = { waiting: [], ended: [] };
    this.sent = { waiting: 0, ended: 0 };
    this.looked = 0;
  }

  get open() {
    return this.wanted.waiting + this.wanted.ended > 0;
  }

  /** Show so many of a kind beyond those that are sent. */
  want(kind, number) {
    this.wanted[kind] = Math.min(MOST, Math.max(0, number));
    this.rows[kind] = this.rows[kind].slice(0, this.wanted[kind]);
    this.changed();
    return this.look();
  }

  /** Time has passed, or (`stirred`) other tasks have changed. */
  tick(stirred = false) {
    if (this.open && Date.now() - this.looked >= (stirred ? EVERY : AT_LATEST)) this.look();
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
        for (const kind of Object.keys(ASKED)) {
          const limit = this.wanted[kind];
          const found = limit ? (await this.runtime.act("tasks", { ...ASKED[kind], offset: this.sent[kind], limit })).tasks : [];
          this.rows[kind] = found.slice(0, this.wanted[kind]);
        }
        this.changed();
      } while (this.again);
    } catch (problem) {
      this.say(`The other tasks can't be listed: ${problem.message}`);
    } finally {
      this.looking = false;
    }
  }
}

/** The row below the tasks of a kind that says how many there are, and shows more. */
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
