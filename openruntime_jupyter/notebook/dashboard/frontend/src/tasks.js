// Task table: running tasks, waiting tasks in execution order, and finished tasks, newest first.
import { Children, make, show, write } from "./dom.js";
import { spaced } from "./format.js";
import { More, Pages } from "./pages.js";
import { Row } from "./row.js";
import { Search } from "./search.js";
import { called, live, ran } from "./words.js";

const COLUMNS = [
  ["fold", make("span", { class: "or-hidden" }, "details")],
  ["status", "state"],
  ["what", "task"],
  ["when", "submitted"],
  ["ran", "ran"],
  ["device", "device"],
  ["memory", "memory"],
  ["level", "priority"],
  ["who", "owner"],
  ["actions", make("span", { class: "or-hidden" }, "actions")],
];
/** Milliseconds for which rows do not move while the pointer is over a button, to prevent clicks on the wrong task. */
const AIM = 1500;

function kindOf(task) {
  return task.status === "pending" ? "waiting" : live(task) ? "running" : "ended";
}

/** Return the name of the host of a device, empty for the runtime's machine. */
function hostOf(id) {
  return id.slice(0, Math.max(0, id.lastIndexOf(".")));
}

export class Tasks {
  constructor(runtime, say, announce) {
    this.runtime = runtime;
    this.say = say;
    this.announce = announce;
    this.devices = [];
    this.tasks = [];
    this.sent = [];
    this.totals = {};
    this.pages = new Pages(runtime, say, () => this.draw(), (kind) => this.search.queryOf(kind));
    this.search = new Search(runtime, say, (anew) => {
      if (anew) this.pages.reset();
      this.aimed = 0;
      this.draw();
    });
    this.ahead = 0;
    this.set = null;
    this.stopped = null;
    this.aimed = 0;
    /** Id of a task whose row is to be opened. */
    this.wished = null;
    this.states = new Map();
    const heads = COLUMNS.map(([kind, label]) => make("th", { scope: "col", role: "columnheader", class: `or-${kind}` }, label.cloneNode ? label.cloneNode(true) : label));
    this.caption = make("caption", {}, "Tasks");
    const head = make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, heads));
    this.table = make(
      "table",
      {
        class: "or-tasks",
        role: "table",
        onpointermove: (event) => {
          if (event.target.closest("button")) this.aimed = Date.now() + AIM;
        },
        onclick: () => {
          this.aimed = 0;
        },
      },
      this.caption,
      head,
    );
    this.empty = make("div", { class: "or-empty" });
    this.element = make("section", { "aria-label": "Tasks" }, this.search.element, this.table, this.empty);
    // Each task is a separate tbody after the head, so that its details move with it.
    this.children = new Children(this.table, (item) => item.task_id ?? item.kind, (item) => (item.kind ? new More(item, this.pages) : new Row(item, this)), head);
  }

  /** Return the runtime's time in milliseconds, estimated from the page's clock. It stands still for stale data. */
  now() {
    return this.stopped ?? Date.now() - this.ahead;
  }

  clock(timestamp, stale) {
    this.stopped = stale && timestamp ? Date.parse(timestamp) : null;
    if (timestamp && timestamp !== this.set) this.ahead = Date.now() - Date.parse(timestamp);
    this.set = timestamp;
  }

  device(id) {
    const found = this.devices.find((device) => device.id === id);
    if (!found) return { short: id, long: id };
    const host = hostOf(id);
    const alone = this.devices.filter((device) => device.type === found.type && hostOf(device.id) === host).length === 1;
    const type = found.type.toUpperCase();
    const short = alone ? type : `${type} ${id.split("_").pop()}`;
    return host ? { short: `${host} ${short}`, long: `${found.name} on ${host}` } : { short, long: found.name };
  }

  /** The rows without those of `pages`, and the number of all tasks by kind. */
  get first() {
    return this.search.active ? this.search.tasks : this.sent;
  }

  get counts() {
    return this.search.active ? this.search.counts : this.totals;
  }

  update(tasks, counts, devices, notebook) {
    this.devices = devices ?? [];
    const stale = tasks !== this.sent || counts !== this.totals;
    [this.sent, this.totals] = [tasks, counts ?? {}];
    this.search.offer(tasks, notebook);
    this.draw();
    for (const task of tasks) this.tell(task);
    this.pages.tick(stale);
    this.search.tick(stale);
  }

  draw() {
    const { first } = this;
    const known = new Set(first.map((task) => task.task_id));
    const more = (kind) => this.pages.rows[kind].filter((task) => !known.has(task.task_id));
    const kinds = {
      running: first.filter((task) => task.status === "running"),
      waiting: first.filter((task) => task.status === "pending"),
      ended: first.filter((task) => !live(task)),
    };
    for (const kind of ["waiting", "ended"]) {
      this.pages.sent[kind] = kinds[kind].length;
      kinds[kind].push(...more(kind));
    }
    for (const task of more("selected")) {
      const others = kinds[kindOf(task)];
      if (!others.some((each) => each.task_id === task.task_id)) others.push(task);
    }
    const ordered = Object.values(kinds).flat();
    this.tasks = Date.now() < this.aimed ? this.still(ordered) : ordered;
    const last = new Map(this.tasks.map((task) => [kindOf(task), task]));
    this.children.update(this.tasks.flatMap((task) => [task, ...["waiting", "ended"].filter((kind) => last.get(kind) === task).flatMap((kind) => this.more(kind))]));
    const all = Object.values(this.counts).reduce((sum, count) => sum + count, 0);
    write(this.caption, all > this.tasks.length ? `Tasks · ${this.tasks.length.toLocaleString("en")} of ${all.toLocaleString("en")}` : "Tasks");
    write(this.empty, this.nothing());
    show(this.empty, !this.tasks.length);
    show(this.table, this.tasks.length > 0);
    show(this.search.element, this.tasks.length > 0 || this.search.active);
    this.reveal();
  }

  /** Show a task with its details, also if it is not among the listed ones. */
  select(id) {
    this.wished = id;
    this.aimed = 0;
    if (!this.tasks.some((task) => task.task_id === id)) this.pages.select(id);
    this.draw();
  }

  /** Open the row of the selected task, as soon as there is one. */
  reveal() {
    const row = this.children.known.get(this.wished);
    if (!row) return;
    this.wished = null;
    row.open(true);
    row.element.scrollIntoView({ block: "nearest" });
  }

  /** Return the text in place of an empty table. */
  nothing() {
    if (!this.search.active) return "No tasks yet. Run a cell that begins with %%openruntime, or an operation below.";
    return this.search.found ? "No task matches the search." : "Searching…";
  }

  /** Return the row with the "more" buttons if there are more tasks of a kind. */
  more(kind) {
    const shown = this.tasks.filter((task) => (kind === "waiting" ? task.status === "pending" : !live(task))).length;
    const all = this.counts[kind] ?? 0;
    return shown < all || this.pages.wanted[kind] ? [{ kind, shown, all: Math.max(all, shown) }] : [];
  }

  /** Return the rows in their current order on the page. */
  still(tasks) {
    const news = new Map(tasks.map((task) => [task.task_id, task]));
    return this.tasks.map((task) => news.get(task.task_id) ?? task);
  }

  /** Apply a change of one task from an event or a response. */
  change(data) {
    const is = (task) => task.task_id === data.task_id;
    const before = this.tasks.find(is);
    if (!before) return;
    const { n, total, message, remaining, ...rest } = data;
    const task = { ...before, ...Object.fromEntries(Object.entries(rest).filter(([, value]) => value != null)) };
    if (n !== undefined) task.progress = { n, total, message, remaining };
    // Update all lists, so that later redraws do not show the old state.
    for (const list of [this.tasks, this.sent, ...Object.values(this.pages.rows), ...Object.values(this.search.rows)]) {
      const index = list.findIndex(is);
      if (index >= 0) list[index] = task;
    }
    this.children.known.get(task.task_id)?.update(task);
    this.tell(task);
  }

  /** Remove a deleted task from all lists. */
  forget({ task_id }) {
    const others = (list) => list.filter((task) => task.task_id !== task_id);
    this.sent = others(this.sent);
    for (const rows of [this.pages.rows, this.search.rows]) for (const kind of Object.keys(rows)) rows[kind] = others(rows[kind]);
    this.aimed = 0;
    this.draw();
  }

  /** Announce the end of a task to screen readers. */
  tell(task) {
    const before = this.states.get(task.task_id);
    this.states.set(task.task_id, task.status);
    if (before && before !== task.status && !live(task)) this.announce(`${called(task)}: ${spaced(task.status)}`);
  }

  /** Update the run times, once a second. */
  tick() {
    for (const { task, ran: shown } of this.children.known.values()) if (task?.status === "running") write(shown, ran(task, this.now()));
    this.pages.tick();
    this.search.tick();
  }
}
