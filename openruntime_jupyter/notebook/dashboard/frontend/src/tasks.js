// The table of tasks: what each does, and what can be done about it.
import { Children, make, show, write } from "./dom.js";
import { bytes, clock, seconds, spaced } from "./format.js";

const SIGNS = {
  pending: "◌",
  running: "▶",
  completed: "✓",
  failed: "✗",
  cancelled: "⊘",
  timed_out: "⏱",
  interrupted: "⚡",
};
const LIVE = new Set(["pending", "running"]);

function button(label, title, act) {
  return make("button", { type: "button", class: "or-button", title, "aria-label": title, onclick: act }, label);
}

function how(task) {
  if (task.status === "pending") {
    const start = task.estimated_start ? `starts about ${clock(task.estimated_start)}` : "";
    return [task.position && `${task.position}. in line`, task.waiting_for && `waits for ${task.waiting_for}`, start].filter(Boolean).join(" · ");
  }
  const progress = task.progress;
  if (task.status === "running" && progress) {
    const done = progress.total ? `${Math.round((100 * progress.n) / progress.total)} %` : String(progress.n);
    const left = progress.remaining != null ? `${seconds(progress.remaining)} left` : "";
    return [done, progress.message, left].filter(Boolean).join(" · ");
  }
  return task.error ?? "";
}

class Row {
  constructor(task, table) {
    this.table = table;
    this.task = task;
    this.sign = make("span", { "aria-hidden": "true" });
    this.state = make("span");
    this.name = make("strong");
    this.id = make("code", { class: "or-dim" });
    this.how = make("div", { class: "or-dim or-how" });
    this.fill = make("div");
    this.bar = make("div", { class: "or-bar", role: "progressbar", "aria-label": "progress", "aria-valuemin": 0, "aria-valuemax": 100 }, this.fill);
    this.when = make("td", { class: "or-when" });
    this.ran = make("td", { class: "or-number" });
    this.memory = make("td", { class: "or-number or-wide" });
    this.device = make("td", { class: "or-wide" });
    this.who = make("td", { class: "or-wide" });
    this.priority = make("input", {
      type: "number",
      min: 1,
      max: 10,
      class: "or-priority",
      title: "Priority: 1 to 10, and 10 is the most urgent",
      "aria-label": `Priority of ${task.name ?? task.operation}`,
      onchange: () => this.act("priority", { priority: Number(this.priority.value) }),
    });
    this.level = make("span");
    this.more = button("▸", "Show output and details", () => this.open(!this.opened));
    this.more.setAttribute("aria-expanded", "false");
    this.cancel = button("Cancel", "Stop this task", () => this.act("cancel"));
    this.again = button("Again", "Run this task again, with the same parameters", () => this.act("again"));
    this.line = make(
      "tr",
      {},
      make("td", { class: "or-fold" }, this.more),
      make("td", { class: "or-status" }, this.sign, " ", this.state),
      make("td", { class: "or-what" }, this.name, " ", this.id, this.how, this.bar),
      this.when,
      this.ran,
      this.device,
      this.memory,
      make("td", { class: "or-number" }, this.priority, this.level),
      this.who,
      make("td", { class: "or-actions" }, this.cancel, this.again),
    );
    this.details = make("td", { colspan: 10 });
    this.below = make("tr", { class: "or-below", hidden: true }, this.details);
    this.element = make("tbody", {}, this.line, this.below);
    this.opened = false;
  }

  update(task) {
    this.task = task;
    const live = LIVE.has(task.status);
    write(this.sign, SIGNS[task.status]);
    write(this.state, spaced(task.status));
    this.line.dataset.state = task.status;
    write(this.name, task.name ?? task.operation);
    this.name.title = task.operation;
    write(this.id, task.task_id);
    write(this.how, how(task));
    show(this.how, how(task) !== "");
    const progress = task.status === "running" && task.progress?.total ? (100 * task.progress.n) / task.progress.total : null;
    show(this.bar, progress != null);
    if (progress != null) {
      this.fill.style.width = `${Math.min(100, progress)}%`;
      this.bar.setAttribute("aria-valuenow", Math.round(progress));
    }
    write(this.when, clock(task.submitted_at));
    write(this.ran, seconds(task.execution_time));
    const used = task.performance_metrics?.peak_memory_mb;
    write(this.memory, used == null ? "" : bytes(used * 1e6));
    write(this.device, this.table.device(task.device_used ?? task.device_preference));
    write(this.who, [task.owner, task.here ? "" : "another runtime"].filter(Boolean).join(", "));
    const waits = task.status === "pending" && task.here;
    show(this.priority, waits);
    show(this.level, !waits);
    write(this.level, String(task.priority));
    if (document.activeElement !== this.priority) this.priority.value = task.priority;
    show(this.cancel, live && task.here);
    show(this.again, !live);
    if (this.opened && this.shown !== task.status) this.fetch();
  }

  async act(name, said = {}) {
    for (const each of [this.cancel, this.again]) each.disabled = true;
    try {
      await this.table.runtime.act(name, { id: this.task.task_id, ...said });
      this.table.say("");
    } catch (problem) {
      this.table.say(`${spaced(name)}: ${problem.message}`);
      this.priority.value = this.task.priority;
    } finally {
      for (const each of [this.cancel, this.again]) each.disabled = false;
    }
  }

  open(opened) {
    this.opened = opened;
    this.below.hidden = !opened;
    write(this.more, opened ? "▾" : "▸");
    this.more.setAttribute("aria-expanded", String(opened));
    if (opened) this.fetch();
  }

  async fetch() {
    this.shown = this.task.status;
    const parts = [this.postMortem()];
    try {
      const output = await this.table.runtime.act("output", { id: this.task.task_id });
      const text = output.items.map((item) => item.text ?? [item.data?.["text/plain"] ?? ""].flat().join("") + "\n").join("");
      parts.push(text.trim() ? make("pre", { tabindex: 0, "aria-label": "Output" }, text.slice(-20_000)) : make("div", { class: "or-dim" }, "It has shown nothing."));
    } catch (problem) {
      parts.push(make("div", { class: "or-advice" }, problem.message));
    }
    this.details.replaceChildren(...parts.filter(Boolean));
  }

  postMortem() {
    const failure = this.task.failure;
    if (!failure) return null;
    const facts = [
      failure.signal != null && `signal ${failure.signal}`,
      failure.exit_code != null && `exit code ${failure.exit_code}`,
      failure.peak_memory != null && `peak memory ${bytes(failure.peak_memory)}`,
      this.task.cancel_stage && `ended by: ${this.task.cancel_stage}`,
      this.task.attempt > 1 && `attempt ${this.task.attempt}`,
    ].filter(Boolean);
    return make(
      "div",
      {},
      make("div", {}, failure.message),
      facts.length ? make("div", { class: "or-dim" }, facts.join(" · ")) : null,
      failure.traceback ? make("pre", { tabindex: 0, "aria-label": "Traceback" }, failure.traceback) : null,
    );
  }
}

export class Tasks {
  constructor(runtime, say) {
    this.runtime = runtime;
    this.say = say;
    this.names = new Map();
    this.tasks = [];
    const heads = ["", "state", "task", "submitted", "ran", "device", "memory", "priority", "who", ""];
    const kinds = ["", "", "", "or-when", "or-number", "or-wide", "or-number or-wide", "or-number", "or-wide", ""];
    const head = make("thead", {}, make("tr", {}, heads.map((text, index) => make("th", { scope: "col", class: kinds[index] }, text))));
    this.table = make("table", { class: "or-tasks" }, make("caption", {}, "Tasks"), head);
    this.caption = this.table.caption;
    this.empty = make("div", { class: "or-empty" }, "No tasks yet. Run a cell with %%openruntime on its first line, or an operation below.");
    this.element = make("section", { class: "or-scroll" }, this.table, this.empty);
    // Behind the head: each row is a tbody of its own, so that its details move along with it.
    this.children = new Children(this.table, (task) => task.task_id, (task) => new Row(task, this));
    this.fixed = [this.caption, head];
  }

  device(id) {
    return this.names.get(id) ?? id;
  }

  update(tasks, total, devices) {
    this.names = new Map((devices ?? []).map((device) => [device.id, device.name]));
    this.tasks = tasks;
    this.children.update(tasks);
    this.table.prepend(...this.fixed);
    write(this.caption, total > tasks.length ? `Tasks: the newest ${tasks.length} of ${total}` : "Tasks");
    show(this.empty, !tasks.length);
    show(this.table, tasks.length > 0);
  }

  /** What an event said of one task. */
  change(data) {
    const index = this.tasks.findIndex((task) => task.task_id === data.task_id);
    if (index < 0) return;
    const { n, total, message, remaining, ...rest } = data;
    const task = { ...this.tasks[index], ...rest };
    if (n !== undefined) task.progress = { n, total, message, remaining };
    this.tasks[index] = task;
    this.children.known.get(task.task_id)?.update(task);
  }
}
