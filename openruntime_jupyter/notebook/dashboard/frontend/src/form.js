// A form for any operation, made from the JSON schema of its parameters.
import { make, show, write } from "./dom.js";
import { spaced } from "./format.js";

function resolved(schema, root) {
  if (schema.$ref) return { ...resolved(root.$defs?.[schema.$ref.split("/").pop()] ?? {}, root), ...schema, $ref: undefined };
  const some = (schema.anyOf ?? schema.oneOf)?.filter((each) => each.type !== "null");
  return some?.length === 1 ? { ...resolved(some[0], root), ...schema, anyOf: undefined } : schema;
}

function input(schema) {
  if (schema.enum) return make("select", {}, ["", ...schema.enum].map((value) => make("option", { value }, String(value) || "default")));
  if (schema.type === "boolean") return make("select", {}, ["", "true", "false"].map((value) => make("option", { value }, value || "default")));
  if (schema.type === "integer" || schema.type === "number") {
    return make("input", {
      type: "number",
      step: schema.type === "integer" ? 1 : "any",
      min: schema.minimum ?? schema.exclusiveMinimum,
      max: schema.maximum ?? schema.exclusiveMaximum,
    });
  }
  return schema.type === "string" ? make("textarea", { rows: 1 }) : make("textarea", { rows: 1, class: "or-json", spellcheck: "false" });
}

function value(schema, text) {
  if (schema.enum) return schema.enum.find((each) => String(each) === text);
  if (schema.type === "boolean") return text === "true";
  if (schema.type === "integer" || schema.type === "number") return Number(text);
  if (schema.type === "string") return text;
  return JSON.parse(text);
}

export class Form {
  constructor(runtime, say) {
    this.runtime = runtime;
    this.say = say;
    this.operations = [];
    this.choice = make("select", { "aria-label": "Operation", onchange: () => this.draw() });
    this.about = make("div", { class: "or-dim" });
    this.fields = make("div", { class: "or-fields" });
    this.submit = make("button", { type: "submit", class: "or-button or-strong" }, "Run");
    this.done = make("span", { class: "or-dim", role: "status" });
    this.form = make(
      "form",
      { onsubmit: (event) => this.run(event) },
      make("div", { class: "or-line" }, this.choice, this.submit, this.done),
      this.about,
      this.fields,
    );
    this.element = make("details", { class: "or-section" }, make("summary", {}, "Run an operation"), this.form);
  }

  update(operations) {
    // Code is written in cells, and prompts with `%%openruntime ai`.
    const offered = operations.filter((each) => !each.needs_execute && Object.keys(each.parameters_schema.properties ?? {}).length);
    if (offered.map((each) => each.name).join() === this.operations.map((each) => each.name).join()) return;
    this.operations = offered;
    this.choice.replaceChildren(...offered.map((each) => make("option", { value: each.name }, spaced(each.name))));
    this.draw();
  }

  draw() {
    const operation = this.operations.find((each) => each.name === this.choice.value);
    show(this.form, Boolean(operation));
    if (!operation) return;
    write(this.about, operation.summary);
    const root = operation.parameters_schema;
    this.inputs = Object.entries(root.properties).map(([name, given]) => {
      const schema = resolved(given, root);
      const field = input(schema);
      const usual = given.default == null ? "" : typeof given.default === "object" ? JSON.stringify(given.default) : String(given.default);
      if (field.tagName !== "SELECT") field.placeholder = usual;
      const label = make("label", { title: schema.description ?? "" }, make("span", {}, spaced(name)), field, make("small", { class: "or-dim" }, schema.description ?? ""));
      return { name, schema, field, label };
    });
    this.fields.replaceChildren(...this.inputs.map((each) => each.label));
    write(this.done, "");
  }

  async run(event) {
    event.preventDefault();
    const parameters = {};
    for (const { name, schema, field } of this.inputs) {
      if (field.value.trim() === "") continue;
      try {
        parameters[name] = value(schema, field.value.trim());
      } catch {
        this.say(`${spaced(name)}: this is no JSON: write numbers, [lists] or {"names": values}`);
        field.focus();
        return;
      }
    }
    this.submit.disabled = true;
    try {
      const task = await this.runtime.act("run", { operation: this.choice.value, parameters });
      write(this.done, `${task.task_id} is ${task.status}`);
      this.say("");
    } catch (problem) {
      this.say(problem.message);
    } finally {
      this.submit.disabled = false;
    }
  }
}
