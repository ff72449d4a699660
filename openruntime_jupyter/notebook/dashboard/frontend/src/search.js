// Search for tasks by name, code and parameters, and the choice of states and of a notebook. While one of them is set, the page fetches the matching tasks itself.
import { make } from "./dom.js";
import { fileName } from "./format.js";
import { QUERIES } from "./pages.js";

/** Number of tasks of each kind. */
const LIMITS = { running: 50, waiting: 20, ended: 20 };
/** Choices of states: the label, and the states of each kind that is shown. */
const STATES = {
  active: ["running and waiting", { running: ["running"], waiting: ["pending"] }],
  completed: ["completed", { ended: ["completed"] }],
  failed: ["failed", { ended: ["failed", "timed_out", "interrupted"] }],
  cancelled: ["cancelled", { ended: ["cancelled"] }],
};
/** Milliseconds after the last key until the search begins. */
const PAUSE = 250;
/** Minimum and maximum update interval, in milliseconds. The maximum applies when no other task changes. */
const EVERY = 1_000;
const AT_LATEST = 5_000;

export class Search {
  /** `changed(anew)` is called when the rows have changed; `anew` is true if what is searched for has changed. */
  constructor(runtime, say, changed) {
    this.runtime = runtime;
    this.say = say;
    this.changed = changed;
    this.rows = { running: [], waiting: [], ended: [] };
    this.counts = {};
    /** The filters, without those that are not set. */
    this.query = {};
    this.looked = 0;
    this.known = [];
    this.text = make("input", { type: "search", placeholder: "Search tasks", title: "Name, code or parameters", "aria-label": "Search tasks by name, code or parameters", maxlength: 200, oninput: () => this.typed() });
    const states = Object.entries(STATES).map(([value, [label]]) => make("option", { value }, label));
    this.state = make("select", { "aria-label": "Only tasks in this state", onchange: () => this.start() }, make("option", { value: "" }, "all states"), states);
    this.notebook = make("select", { "aria-label": "Only tasks of this notebook", onchange: () => this.start() });
    this.element = make("div", { class: "or-search" }, this.text, this.state, this.notebook);
    this.offer([]);
  }

  get active() {
    return Object.keys(this.query).length > 0;
  }

  get tasks() {
    return Object.values(this.rows).flat();
  }

  /** Add the notebooks of tasks to the choice. */
  offer(tasks, own = null) {
    const names = [...new Set([own, ...this.known, ...tasks.map((task) => task.notebook)])].filter(Boolean).sort();
    if (this.notebook.options.length && names.join("\n") === this.known.join("\n")) return;
    this.known = names;
    const chosen = this.notebook.value;
    const label = (name) => (names.filter((each) => fileName(each) === fileName(name)).length > 1 ? name : fileName(name));
    const options = names.map((name) => make("option", { value: name, title: name }, name === own ? `${label(name)} (this notebook)` : label(name)));
    this.notebook.replaceChildren(make("option", { value: "" }, "all notebooks"), ...options);
    this.notebook.value = chosen;
    this.notebook.hidden = names.length === 0;
  }

  /** Return the query of the tasks of a kind; null if the chosen states exclude it. */
  queryOf(kind) {
    const { state, ...filters } = this.query;
    const states = state && STATES[state][1][kind];
    if (state && !states) return null;
    return { ...QUERIES[kind], ...(kind === "ended" && states ? { states } : {}), ...filters };
  }

  typed() {
    clearTimeout(this.wait);
    this.wait = setTimeout(() => this.start(), PAUSE);
  }

  /** Begin a search, or end it if nothing is searched for. */
  start() {
    clearTimeout(this.wait);
    const filters = { search: this.text.value.trim(), state: this.state.value, notebook: this.notebook.value };
    this.query = Object.fromEntries(Object.entries(filters).filter(([, value]) => value));
    this.rows = { running: [], waiting: [], ended: [] };
    this.counts = {};
    this.found = false;
    this.changed(true);
    return this.look();
  }

  tick(stale = false) {
    if (this.active && Date.now() - this.looked >= (stale ? EVERY : AT_LATEST)) this.look();
  }

  async look() {
    this.looked = Date.now();
    const { query } = this;
    if (!this.active) return;
    const rows = {};
    const counts = {};
    try {
      for (const [kind, limit] of Object.entries(LIMITS)) {
        const wanted = this.queryOf(kind);
        const page = wanted ? await this.runtime.act("tasks", { ...wanted, offset: 0, limit }) : { tasks: [], total_count: 0 };
        [rows[kind], counts[kind]] = [page.tasks, page.total_count];
      }
    } catch (problem) {
      this.say(`Cannot search for tasks: ${problem.message}`);
      return;
    }
    if (query !== this.query) return;
    [this.rows, this.counts, this.found] = [rows, counts, true];
    this.changed(false);
  }
}
