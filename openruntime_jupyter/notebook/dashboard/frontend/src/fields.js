// Form field for the JSON schema of a parameter: control, help text and validation error.
import { id, make, show, write } from "./dom.js";
import { sentence, spaced } from "./format.js";

const MOST = Number.MAX_SAFE_INTEGER;

/** Resolve a reference or a nullable schema. */
export function resolved(schema, root) {
  if (schema.$ref) return { ...resolved(root.$defs?.[schema.$ref.split("/").pop()] ?? {}, root), ...schema, $ref: undefined };
  const some = (schema.anyOf ?? schema.oneOf)?.filter((each) => each.type !== "null");
  return some?.length === 1 ? { ...resolved(some[0], root), ...schema, anyOf: undefined } : schema;
}

function amount(value) {
  return value.toLocaleString("en", { maximumSignificantDigits: 6 });
}

/** Describe the valid values, such as "a whole number from 1 to 65,536". */
export function kind(schema) {
  if (schema.enum || schema.type === "boolean") return "";
  const least = schema.minimum ?? schema.exclusiveMinimum;
  let most = schema.maximum ?? schema.exclusiveMaximum;
  if (most > MOST) most = undefined;
  if (schema.type === "array" && schema.items?.enum) return "";
  if (schema.type === "string") return schema.maxLength && schema.maxLength < 100_000 ? `at most ${amount(schema.maxLength)} characters` : "";
  const name = { integer: "a whole number", number: "a number", array: "a list, as JSON", object: "names and values, as JSON" }[schema.type] ?? "JSON";
  if (least != null && most != null) return `${name} from ${amount(least)} to ${amount(most)}`;
  if (least != null) return schema.exclusiveMinimum != null ? `${name} above ${amount(least)}` : `${name}, at least ${amount(least)}`;
  return most != null ? `${name}, at most ${amount(most)}` : name;
}

function option(value, label = String(value)) {
  return make("option", { value }, label);
}

/** Create a control whose `read()` returns undefined for the default and throws for an invalid value. */
function control(schema, usual) {
  const choices = schema.enum ?? (schema.type === "boolean" ? [true, false] : null);
  if (choices) {
    const all = choices.map((value) => option(value, value === usual ? `${value} (default)` : String(value)));
    const element = make("select", {}, usual == null ? option("", "default") : null, all);
    if (usual != null) element.value = String(usual);
    return { element, read: () => (element.value === String(usual ?? "") ? undefined : schema.enum ? schema.enum.find((value) => String(value) === element.value) : element.value === "true") };
  }
  if (schema.type === "array" && schema.items?.enum) return several(schema, usual);
  if (schema.type === "integer" || schema.type === "number") return number(schema, usual);
  const json = schema.type !== "string";
  const placeholder = usual == null ? "" : json ? JSON.stringify(usual) : usual;
  const short = !json && schema.maxLength <= 200;
  const element = short ? make("input", { type: "text", maxlength: schema.maxLength, placeholder }) : make("textarea", { rows: 1, class: json ? "or-json" : "", placeholder, spellcheck: json ? "false" : null });
  return { element, read: () => (element.value.trim() === "" ? undefined : json ? parsed(schema, element.value) : element.value) };
}

function several(schema, usual) {
  const boxes = schema.items.enum.map((value) => make("input", { type: "checkbox", value, checked: usual?.includes(value) }));
  const element = make("div", { class: "or-boxes", role: "group" }, boxes.map((box) => make("label", {}, box, box.value)));
  const read = () => {
    const chosen = boxes.filter((box) => box.checked).map((box) => box.value);
    if (chosen.length < (schema.minItems ?? 0)) throw new Error("choose at least one");
    return usual && chosen.length === usual.length && chosen.every((value) => usual.includes(value)) ? undefined : chosen;
  };
  return { element, read };
}

function number(schema, usual) {
  const whole = schema.type === "integer";
  const element = make("input", {
    type: "number",
    step: whole ? 1 : "any",
    min: schema.minimum ?? schema.exclusiveMinimum,
    max: schema.maximum ?? schema.exclusiveMaximum,
    placeholder: usual ?? "",
  });
  const read = () => {
    if (element.validity.badInput) throw new Error("this is not a number");
    if (element.value === "") return undefined;
    const value = Number(element.value);
    const { minimum, exclusiveMinimum, maximum, exclusiveMaximum } = schema;
    const wrong = (whole && !Number.isInteger(value)) || value < minimum || value <= exclusiveMinimum || value > maximum || value >= exclusiveMaximum;
    if (wrong) throw new Error(`it must be ${kind(schema)}`);
    return value;
  };
  return { element, read };
}

function parsed(schema, text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error('this is not valid JSON: use numbers, [lists] or {"names": values}');
  }
  if (schema.type === "array" && !Array.isArray(value)) throw new Error("it must be a list: [ … ]");
  if (schema.type === "object" && (value === null || typeof value !== "object" || Array.isArray(value))) throw new Error("it must be names and values: { … }");
  return value;
}

export class Field {
  constructor(name, given, root) {
    this.name = name;
    this.schema = resolved(given, root);
    const { element, read } = control(this.schema, given.default);
    this.input = element;
    this.control = read;
    const help = id("help");
    const wrong = id("wrong");
    this.error = make("div", { class: "or-wrong", id: wrong, role: "alert", hidden: true });
    element.id = id("field");
    element.setAttribute("aria-describedby", `${help} ${wrong}`);
    const label = make(element.tagName === "DIV" ? "span" : "label", { class: "or-label", for: element.id, id: id("label") }, spaced(name));
    if (element.tagName === "DIV") element.setAttribute("aria-labelledby", label.id);
    const words = [this.schema.description, kind(this.schema)].filter(Boolean).map(sentence).join(" ");
    this.element = make("div", { class: "or-field" }, label, element, this.error, make("small", { class: "or-dim", id: help }, words));
    // Validating on blur would move a button while it is being pressed.
    element.addEventListener("input", () => this.wrong && this.read());
  }

  /** Return the value, or undefined for the default or an invalid value. */
  read() {
    try {
      const value = this.control();
      this.complain("");
      return value;
    } catch (problem) {
      this.complain(problem.message);
      return undefined;
    }
  }

  get wrong() {
    return !this.error.hidden;
  }

  complain(problem) {
    write(this.error, problem && sentence(problem));
    show(this.error, problem !== "");
    this.input.setAttribute("aria-invalid", String(problem !== ""));
  }
}
