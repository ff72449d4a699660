// Form for an operation, generated from the JSON schema of its parameters.
import { id, make, show, write } from "./dom.js";
import { Field, resolved } from "./fields.js";
import { called, how, state } from "./words.js";

/** Operations that need a pickled function. */
const NOT_BY_HAND = new Set(["call"]);
const OPTIONS = {
  name: { type: "string", maxLength: 200, description: "Task name." },
  priority: { type: "integer", minimum: 1, maximum: 10, default: 5, description: "10 is the most urgent." },
  timeout: { type: "number", exclusiveMinimum: 0, maximum: 31_536_000, description: "Maximum run time in seconds; no limit by default." },
};

/** Return whether a parameter is structured and has no default, so that it belongs in the details. */
function rare(given, root) {
  const { type, items } = resolved(given, root);
  const plain = ["string", "integer", "number", "boolean"].includes(type) || resolved(given, root).enum || items?.enum;
  return !plain && (given.default == null || Object.keys(given.default).length === 0);
}

export class Form {
  constructor(runtime) {
    this.runtime = runtime;
    this.operations = [];
    this.devices = "";
    const choice = id("operation");
    this.choice = make("select", { id: choice, onchange: () => this.draw() });
    this.about = make("p", { class: "or-dim" });
    this.fields = make("div", { class: "or-fields" });
    this.rare = make("div", { class: "or-fields" });
    this.more = make("details", {}, make("summary", {}, "More parameters"), this.rare);
    this.submit = make("button", { type: "submit", class: "or-button or-strong" }, "Run");
    this.done = make("span", { role: "status" });
    this.error = make("div", { class: "or-wrong", role: "alert", hidden: true });
    this.form = make(
      "form",
      { novalidate: true, onsubmit: (event) => this.run(event) },
      make("div", { class: "or-line" }, make("label", { class: "or-label", for: choice }, "Operation"), this.choice),
      this.about,
      this.fields,
      this.more,
      make("h5", {}, "Options"),
      this.options(),
      this.error,
      make("div", { class: "or-line" }, this.submit, this.done),
    );
    this.empty = make("div", { class: "or-empty" }, "No operations received from the runtime yet");
    this.element = make("details", { class: "or-section" }, make("summary", {}, "Run an operation"), this.form, this.empty);
    show(this.form, false);
  }

  options() {
    const device = { type: "string", default: "auto", enum: ["auto", "gpu", "cpu"], description: "Device to run on." };
    this.device = new Field("device_preference", device, {});
    this.device.element.querySelector(".or-label").textContent = "device";
    this.settings = [this.device, ...Object.entries(OPTIONS).map(([name, schema]) => new Field(name, schema, {}))];
    return make("div", { class: "or-fields" }, this.settings.map((field) => field.element));
  }

  update(operations, devices, tasks) {
    this.follow(tasks);
    this.offer(devices);
    const offered = operations.filter((each) => !NOT_BY_HAND.has(each.name));
    if (offered.map((each) => each.name).join() === this.operations.map((each) => each.name).join()) return;
    this.operations = offered;
    const chosen = this.choice.value;
    this.choice.replaceChildren(...offered.map((each) => make("option", { value: each.name }, each.name)));
    if (offered.some((each) => each.name === chosen)) this.choice.value = chosen;
    else if (offered.some((each) => each.name === "matrix_multiply")) this.choice.value = "matrix_multiply";
    this.draw();
  }

  /** Add the ids of the devices to the choices. */
  offer(devices) {
    const ids = devices.map((device) => device.id).join();
    if (ids === this.devices) return;
    this.devices = ids;
    for (const { id: value, name } of devices) {
      if (this.device.schema.enum.includes(value)) continue;
      this.device.schema.enum.push(value);
      this.device.input.append(make("option", { value }, `${value}: ${name}`));
    }
  }

  draw() {
    const operation = this.operations.find((each) => each.name === this.choice.value);
    show(this.form, Boolean(operation));
    show(this.empty, !operation);
    if (!operation) return;
    write(this.about, operation.summary);
    const root = operation.parameters_schema;
    const all = Object.entries(root.properties ?? {}).map(([name, given]) => ({ field: new Field(name, given, root), rare: rare(given, root) }));
    this.inputs = all.map((each) => each.field);
    this.fields.replaceChildren(...all.filter((each) => !each.rare).map((each) => each.field.element));
    this.rare.replaceChildren(...all.filter((each) => each.rare).map((each) => each.field.element));
    show(this.more, this.rare.childElementCount > 0);
    this.complain("");
    write(this.done, "");
    this.task = null;
  }

  complain(text) {
    write(this.error, text);
    show(this.error, text !== "");
  }

  /** Show errors next to their fields, and other errors above the button. */
  refuse(problem) {
    const rest = [];
    for (const { field: where, problem: why } of problem.details ?? []) {
      const name = where.replace(/^parameters\./, "").split(".")[0];
      const field = (where.startsWith("parameters.") ? this.inputs : this.settings).find((each) => each.name === name);
      if (field) field.complain(why);
      else rest.push(why);
    }
    this.complain(problem.details?.length ? rest.join(" ") : problem.message);
    this.focusInvalid();
  }

  /** Focus the first invalid field. */
  focusInvalid() {
    const wrong = [...this.inputs, ...this.settings].find((field) => field.wrong);
    if (wrong && this.rare.contains(wrong.element)) this.more.open = true;
    wrong?.input.focus();
    return wrong;
  }

  async run(event) {
    event.preventDefault();
    this.complain("");
    const values = (fields) => Object.fromEntries(fields.map((field) => [field.name, field.read()]).filter(([, value]) => value !== undefined));
    const request = { operation: this.choice.value, parameters: values(this.inputs), ...values(this.settings) };
    if (this.focusInvalid()) return;
    this.submit.disabled = true;
    try {
      this.follow([(this.task = await this.runtime.act("run", request))]);
    } catch (problem) {
      this.refuse(problem);
    } finally {
      this.submit.disabled = false;
    }
  }

  /** Show the state of the submitted task. */
  follow(tasks) {
    const now = this.task && tasks.find((task) => task.task_id === this.task.task_id);
    if (now) write(this.done, [called(now), state(now.status), how(now)].filter(Boolean).join(" · "));
  }
}
