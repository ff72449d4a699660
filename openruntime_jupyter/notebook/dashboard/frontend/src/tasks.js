// The table of tasks: what runs, what waits in the order in which it is next, and what has ended, the newest first.
import { Children, make, show, write } from "./dom.js";
import { spaced } from "./format.js";
import { Row } from "./row.js";
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
  ["who", "who"],
  ["actions", make("span", { class: "or-hidden" }, "actions")],
];
/** Milliseconds for which rows stay where they are while the pointer is on a button: who aims must not hit another task. */
const AIM = 1500;

export class Tasks {
  constructor(runtime, say, announce) {
    this.runtime = runtime;
    this.say = say;
    this.announce = announce;
    this.devices = [];
    this.tasks = [];
    this.ahead = 0;
    this.aimed = 0;
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
    this.empty = make("div", { class: "or-empty" }, "No tasks yet. Run a cell that begins with %%openruntime, or an operation below.");
    this.element = make("section", { "aria-label": "Tasks" }, this.table, this.empty);
    // Behind the head: each row is a tbody of its own, so that its details move along with it.
    this.children = new Children(this.table, (task) => task.task_id, (task) => new Row(task, this), head);
  }

  /** The runtime's time in milliseconds, by this page's clock. */
  now() {
    return Date.now() - this.ahead;
  }

  clock(timestamp) {
    if (timestamp) this.ahead = Date.now() - Date.parse(timestamp);
  }

  device(id) {
    const found = this.devices.find((device) => device.id === id);
    if (!found) return { short: id, long: id };
    const alone = this.devices.filter((device) => device.type === found.type).length === 1;
    return { short: alone ? found.type.toUpperCase() : `${found.type.toUpperCase()} ${found.id.split("_").pop()}`, long: found.name };
  }

  update(tasks, total, devices) {
    this.devices = devices ?? [];
    this.tasks = Date.now() < this.aimed ? this.still(tasks) : tasks;
    this.children.update(this.tasks);
    for (const task of tasks) this.tell(task);
    write(this.caption, total > tasks.length ? `Tasks · ${tasks.length} of ${total}` : "Tasks");
    show(this.empty, !tasks.length);
    show(this.table, tasks.length > 0);
  }

  /** The same rows in the order that is on the page. */
  still(tasks) {
    const news = new Map(tasks.map((task) => [task.task_id, task]));
    return this.tasks.map((task) => news.get(task.task_id) ?? task);
  }

  /** What an event, or the answer to a button, said of one task. */
  change(data) {
    const index = this.tasks.findIndex((task) => task.task_id === data.task_id);
    if (index < 0) return;
    const { n, total, message, remaining, ...rest } = data;
    const task = { ...this.tasks[index], ...Object.fromEntries(Object.entries(rest).filter(([, value]) => value != null)) };
    if (n !== undefined) task.progress = { n, total, message, remaining };
    this.tasks[index] = task;
    this.children.known.get(task.task_id)?.update(task);
    this.tell(task);
  }

  /** Who does not see the table hears how a task ended. */
  tell(task) {
    const before = this.states.get(task.task_id);
    this.states.set(task.task_id, task.status);
    if (before && before !== task.status && !live(task)) this.announce(`${called(task)}: ${spaced(task.status)}`);
  }

  /** A second has passed. */
  tick() {
    for (const { task, ran: shown } of this.children.known.values()) if (task.status === "running") write(shown, ran(task, this.now()));
  }
}
