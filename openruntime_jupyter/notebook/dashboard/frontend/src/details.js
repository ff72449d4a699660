// Details of a task: failure report, result, live output, and facts.
import { facts, make, show, write } from "./dom.js";
import { bytes, clock, figure, spaced } from "./format.js";
import { Screen } from "./screen.js";
import { end, live, memory, signal, stage } from "./words.js";

const MOST = 20_000;

function text(label, content) {
  return make("section", {}, make("h5", {}, label), make("pre", { tabindex: 0, "aria-label": label }, content));
}

function postMortem(task, output) {
  const failure = task.failure;
  if (!failure) return null;
  return make(
    "section",
    { class: "or-post-mortem" },
    make("h5", {}, "Post-mortem"),
    make("p", {}, failure.message),
    facts([
      ["cause", end(failure.kind)],
      ["signal", signal(failure.signal)],
      ["exit code", failure.exit_code],
      ["peak memory", bytes(failure.peak_memory)],
      ["stopped", stage(task.cancel_stage)],
      ["attempts", task.attempt > 1 ? `${task.attempt} of ${task.retries + 1}` : null],
    ]),
    failure.traceback ? text("Traceback", failure.traceback) : null,
    failure.last_output && !output.includes(failure.last_output.trim()) ? text("Last output of the worker", failure.last_output) : null,
  );
}

function shown(name, value) {
  if (typeof value === "number") return figure(/(^|_)seconds|_s$/.test(name) ? "seconds" : "", value);
  const parts = value && typeof value === "object" && !Array.isArray(value) ? Object.entries(value) : [];
  // For example the statistics of a duration: min, median, max.
  if (parts.length && parts.every(([, each]) => typeof each === "number")) return parts.map(([part, each]) => `${part} ${shown(name, each)}`).join(" · ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** The result, without values that are already in the output, such as the answer to a prompt. */
function result(task, output) {
  const found = task.result;
  if (!found) return null;
  const entries = Object.entries(found.output).filter(([, value]) => value != null && !["{}", "[]"].includes(JSON.stringify(value)) && !(typeof value === "string" && value.trim() !== "" && output.includes(value.trim())));
  const small = entries.filter(([name, value]) => shown(name, value).length <= 140);
  const large = entries.filter((entry) => !small.includes(entry));
  const arrays = found.arrays.map((each) => `${each.dtype} ${each.shape.join(" × ")}, ${bytes(each.bytes)}`);
  if (!entries.length && !arrays.length) return null;
  return make(
    "section",
    {},
    make("h5", {}, "Result"),
    facts([...small.map(([name, value]) => [spaced(name.replace(/_s$/, "")), shown(name, value)]), ["arrays", arrays.join("; ")]]),
    large.map(([name, value]) => text(spaced(name), (typeof value === "string" ? value : JSON.stringify(value, null, 1)).slice(0, MOST))),
  );
}

/** Parameters that are code, and those that say nothing about the work. */
const CODE = ["code", "sources"];
const NOT_SHOWN = ["isolate", "burst", "filename", "about", "world"];

function given(value) {
  if (Array.isArray(value) && value.every((each) => typeof each === "string")) return value.join(", ");
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** The code and the parameters. The runtime has described large values by their kind and size. */
function work(task) {
  const entries = Object.entries(task.parameters ?? {}).filter(([, value]) => value != null && !["", "[]", "{}"].includes(given(value)));
  if (!entries.length) return null;
  const code = entries.filter(([name]) => CODE.includes(name)).map(([, value]) => {
    const lines = value.trimEnd().split("\n").length;
    return make("details", {}, make("summary", {}, `Code (${lines} ${lines === 1 ? "line" : "lines"})`), make("pre", { tabindex: 0, "aria-label": "Code" }, value.trimEnd()));
  });
  const others = entries.filter(([name]) => !CODE.includes(name) && !NOT_SHOWN.includes(name)).map(([name, value]) => [spaced(name), given(value)]);
  const large = others.filter(([, value]) => value.length > 140);
  const small = others.filter((entry) => !large.includes(entry));
  return make("section", {}, make("h5", {}, "Work"), code, facts(small), large.map(([name, value]) => text(name, value.slice(0, MOST))));
}

/** The facts. `memory` is the element for the memory of a running task, which changes. */
function about(task, device, memory) {
  const metrics = task.performance_metrics ?? {};
  const megabytes = (value) => (value == null ? null : bytes(value * 1e6));
  return make(
    "section",
    {},
    make("h5", {}, "Task"),
    facts([
      ["id", make("code", {}, task.task_id)],
      ["operation", task.operation],
      ["notebook", task.notebook],
      ["session", task.session_name],
      ["submitted", clock(task.submitted_at)],
      ["started", clock(task.started_at)],
      ["ended", clock(task.finished_at)],
      ["device", device],
      ["worker's memory", live(task) ? memory : null],
      ["worker's peak memory", megabytes(metrics.peak_memory_mb)],
      ["MLX's memory", metrics.memory_used_mb ? megabytes(metrics.memory_used_mb) : null],
      ["priority", task.priority],
      ["owner", [task.owner, task.origin && `from ${task.origin}`].filter(Boolean).join(", ")],
    ]),
  );
}

export class Details {
  constructor(runtime) {
    this.runtime = runtime;
    this.since = 0;
    this.parts = []; // text { screen } or displays { id, words, picture }, in order
    this.text = "";
    this.busy = false;
    this.now = make("div", { class: "or-parts" });
    this.pre = make("pre", { tabindex: 0, "aria-label": "Output" });
    this.pictures = make("div");
    this.note = make("div", { class: "or-dim" }, "…");
    this.memory = make("span", {}, "–");
    const output = make("section", {}, make("h5", {}, "Output"), this.pre, this.pictures, this.note);
    this.element = make("div", { class: "or-details" }, this.now, output);
    show(this.pre, false);
  }

  /** Update the view to the current state of the task. */
  async update(task, device) {
    write(this.memory, bytes(memory(task)) || "–");
    if (this.busy) return;
    const again = this.ended !== task.status;
    if (!again && !live(task)) return;
    this.busy = true;
    try {
      await this.output(task);
      if (again) {
        const whole = await this.runtime.act("task", { id: task.task_id });
        this.now.replaceChildren(...[postMortem(whole, this.text), result(whole, this.text), work(whole), about(whole, device, this.memory)].filter(Boolean));
      }
      this.ended = task.status;
    } catch (problem) {
      write(this.note, problem.message);
      show(this.note, true);
    } finally {
      this.busy = false;
    }
  }

  async output(task) {
    const output = await this.runtime.act("output", { id: task.task_id, since: this.since });
    this.since = output.next;
    for (const item of output.items) this.add(item);
    if (output.items.length) this.fold();
    const low = this.pre.scrollHeight - this.pre.scrollTop - this.pre.clientHeight < 8;
    write(this.pre, this.text);
    show(this.pre, this.text.trim() !== "");
    if (low) this.pre.scrollTop = this.pre.scrollHeight;
    const nothing = this.text.trim() === "" && !this.pictures.childElementCount;
    write(this.note, output.truncated ? "Earlier output was discarded" : nothing ? (live(task) ? "No output yet" : "No output") : "");
    show(this.note, this.note.textContent !== "");
  }

  add(item) {
    if (item.output_type === "clear_output") {
      this.parts = [];
      return;
    }
    if (item.data == null) {
      if (!this.parts.at(-1)?.screen) this.parts.push({ screen: new Screen() });
      this.parts.at(-1).screen.write(item.text ?? "");
      return;
    }
    const words = [item.data["text/plain"] ?? ""].flat().join("");
    const data = item.data["image/png"];
    const picture = data && make("img", { src: `data:image/png;base64,${[data].flat().join("")}`, alt: words || "picture from the task" });
    const before = item.output_type === "update_display_data" ? this.parts.filter((part) => part.id && part.id === item.display_id) : [];
    if (!before.length) this.parts.push({ id: item.display_id, words, picture });
    for (const part of before) Object.assign(part, { words, picture: picture?.cloneNode() });
  }

  /** Update text and pictures, without the oldest text beyond the limit. */
  fold() {
    const text = (part) => (part.screen ? part.screen.toString() : part.picture ? "" : `${part.words}\n`);
    const texts = this.parts.map(text);
    let length = texts.reduce((sum, each) => sum + each.length, 0);
    this.parts = this.parts.filter((part, number) => {
      const surplus = !part.picture && length - texts[number].length > MOST;
      if (surplus) {
        length -= texts[number].length;
        texts[number] = "";
      }
      return !surplus;
    });
    this.text = texts.join("").slice(-MOST);
    const pictures = this.parts.flatMap((part) => part.picture ?? []);
    const same = pictures.length === this.pictures.childElementCount && pictures.every((each, number) => each === this.pictures.children[number]);
    if (!same) this.pictures.replaceChildren(...pictures);
  }
}
