// Table row of a task, with its buttons and details.
import { ConfirmButton } from "./confirm.js";
import { button, id, make, show, write } from "./dom.js";
import { Details } from "./details.js";
import { bytes, clock, fileName } from "./format.js";
import { called, how, live, memory, ran, SIGNS, state } from "./words.js";

/** Create a cell. `label` is the column name for narrow pages. */
function cell(role, label, ...content) {
  return make("td", { class: `or-${role}`, role: "cell", "data-label": label }, ...content);
}

export class Row {
  constructor(task, table) {
    this.table = table;
    this.task = task;
    this.opened = false;
    const name = called(task);
    this.sign = make("span", { "aria-hidden": "true" });
    this.state = make("span");
    this.name = make("strong");
    this.kind = make("span", { class: "or-dim" });
    this.how = make("div", { class: "or-how" });
    this.fill = make("div");
    this.bar = make("div", { class: "or-bar", role: "progressbar", "aria-label": `Progress of ${name}`, "aria-valuemin": 0, "aria-valuemax": 100 }, this.fill);
    this.when = make("span");
    this.ran = make("span");
    this.memory = make("span");
    this.device = make("span");
    this.who = make("span");
    this.priority = make("input", {
      type: "number",
      min: 1,
      max: 10,
      class: "or-number",
      title: "Priority: 1 to 10, where 10 is the most urgent",
      "aria-label": `Priority of ${name}: 1 to 10, where 10 is the most urgent`,
      onchange: () => this.act("priority", { priority: Number(this.priority.value) }),
    });
    this.level = make("span");
    this.cancel = button("Cancel", `Cancel ${name}`, () => this.act("cancel"));
    this.again = button("Again", `Run ${name} again`, () => this.act("again"));
    this.remove = new ConfirmButton("Delete", () => this.act("delete"));
    this.remove.update(`Delete ${name}`, "its record, output and result are deleted");
    this.more = button("▸", `Details of ${name}`, () => this.open(!this.opened), "or-plain");
    this.below = make("tr", { class: "or-below", id: id("details"), role: "row", hidden: true });
    this.more.setAttribute("aria-expanded", "false");
    this.more.setAttribute("aria-controls", this.below.id);
    this.line = make(
      "tr",
      { class: "or-line", role: "row" },
      cell("fold", null, this.more),
      cell("status", null, this.sign, " ", this.state),
      cell("what", null, make("div", { class: "or-name" }, this.name, " ", this.kind), this.how, this.bar),
      cell("when", "submitted", this.when),
      cell("ran", "ran", this.ran),
      cell("device", "device", this.device),
      cell("memory", "memory", this.memory),
      cell("level", "priority", this.priority, this.level),
      cell("who", "owner", this.who),
      cell("actions", null, this.cancel, this.again),
    );
    this.element = make("tbody", { role: "rowgroup", onkeydown: (event) => this.key(event) }, this.line, this.below);
  }

  update(task) {
    this.task = task;
    this.line.dataset.state = task.status;
    write(this.sign, SIGNS[task.status]);
    write(this.state, state(task.status));
    write(this.name, called(task));
    this.name.title = called(task);
    const operation = task.name && task.name !== task.operation && task.operation;
    const source = task.notebook && `from ${fileName(task.notebook)}`;
    write(this.kind, [operation, task.session_name && `in session ${task.session_name}`, source].filter(Boolean).join(" "));
    this.kind.title = task.notebook ?? "";
    write(this.how, how(task));
    this.how.title = this.how.textContent;
    show(this.how, this.how.textContent !== "");
    this.progress(task);
    write(this.when, clock(task.submitted_at));
    write(this.ran, ran(task, this.table.now()));
    write(this.memory, bytes(memory(task)));
    this.memory.title = task.status === "running" ? "Memory of the worker now" : "Peak memory of the worker";
    const device = this.table.device(task.device_used ?? task.device_preference);
    write(this.device, device.short);
    this.device.title = device.long;
    write(this.who, [task.owner, task.here === false && "another runtime"].filter(Boolean).join(", "));
    this.controls(task);
    if (this.opened) this.details.update(task, device.long);
  }

  progress(task) {
    const done = task.status === "running" && task.progress?.total ? (100 * task.progress.n) / task.progress.total : null;
    show(this.bar, done != null);
    if (done == null) return;
    this.fill.style.width = `${Math.min(100, done)}%`;
    this.bar.setAttribute("aria-valuenow", Math.round(done));
  }

  controls(task) {
    const here = task.here !== false;
    const waits = task.status === "pending" && here;
    show(this.priority, waits);
    show(this.level, !waits);
    write(this.level, String(task.priority));
    if (this.priority.getRootNode().activeElement !== this.priority) this.priority.value = task.priority;
    const failed = !live(task) && task.status !== "completed";
    // A state change hides the pressed button, so move the focus to its replacement.
    const held = [this.cancel, this.again].includes(this.cancel.getRootNode().activeElement);
    show(this.cancel, live(task) && here);
    show(this.again, !live(task));
    show(this.remove.element, !live(task) && here);
    if (held && this.cancel.hidden && !this.again.hidden) this.again.focus({ preventScroll: true });
    write(this.again, failed ? "Retry" : "Run again");
    const name = called(task);
    this.again.title = failed ? `Retry ${name}: run it again with the same parameters` : `Run ${name} again with the same parameters`;
    this.again.setAttribute("aria-label", failed ? `Retry ${name}` : `Run ${name} again`);
    this.more.title = task.failure ? `Post-mortem and output of ${name}` : `Details and output of ${name}`;
    this.more.setAttribute("aria-label", this.more.title);
  }

  async act(name, args = {}) {
    for (const each of [this.cancel, this.again]) each.disabled = true;
    try {
      const answer = await this.table.runtime.act(name, { id: this.task.task_id, ...args });
      this.table.say("");
      if (name === "again") this.table.announce(`${called(this.task)} is queued again`);
      else if (name === "delete") this.table.forget(this.task);
      else this.table.change(answer);
      this.table.pages.tick(true);
    } catch (problem) {
      this.table.say(`${called(this.task)}: ${problem.message}`);
      this.priority.value = this.task.priority;
    } finally {
      for (const each of [this.cancel, this.again]) each.disabled = false;
    }
  }

  key(event) {
    if (event.key !== "Escape" || !this.opened) return;
    event.stopPropagation();
    this.open(false);
    this.more.focus();
  }

  open(opened) {
    this.opened = opened;
    if (opened && !this.details) {
      this.details = new Details(this.table.runtime);
      this.below.append(make("td", { colspan: 10, role: "cell" }, this.details.element, this.remove.element));
    }
    this.below.hidden = !opened;
    write(this.more, opened ? "▾" : "▸");
    this.more.setAttribute("aria-expanded", String(opened));
    if (opened) this.update(this.task);
  }
}
