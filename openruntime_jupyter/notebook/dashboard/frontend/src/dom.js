// DOM helpers. Elements are created once and updated in place, so that focus and clicks are not lost.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== "" && child !== false));
  return element;
}

/** Set the text of an element only if it differs, so that a selection is kept. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Show or hide an element. */
export function show(element, shown) {
  element.hidden = !shown;
}

/** Create a button with a description for screen readers. */
export function button(label, about, act, kind = "") {
  return make("button", { type: "button", class: `or-button ${kind}`, title: about, "aria-label": about, onclick: act }, label);
}

/** Create a description list without empty values. */
export function facts(entries) {
  const known = entries.filter(([, value]) => value != null && value !== "");
  return make(
    "dl",
    { class: "or-facts" },
    known.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
}

let count = 0;

/** Return an id that is unique in the page. */
export function id(name) {
  count += 1;
  return `or-${name}-${count}-${Math.random().toString(36).slice(2, 8)}`;
}

/**
 * Keyed list: one child of `parent` for each item, in order, after the child `after`. `key(item)` identifies an item, and
 * `create(item)` returns `{ element, update(item) }`. Remaining children are only updated and moved, and keep the focus.
 */
export class Children {
  constructor(parent, key, create, after = null) {
    this.parent = parent;
    this.key = key;
    this.create = create;
    this.after = after;
    this.known = new Map();
  }

  update(items) {
    const focused = this.parent.getRootNode().activeElement;
    const wanted = new Map(items.map((item) => [this.key(item), item]));
    for (const [key, child] of this.known) if (!wanted.has(key)) child.element.remove();
    const kept = new Map();
    let place = this.after ? this.after.nextSibling : this.parent.firstChild;
    for (const [key, item] of wanted) {
      const child = this.known.get(key) ?? this.create(item);
      child.update(item);
      kept.set(key, child);
      if (child.element === place) place = place.nextSibling;
      else this.parent.insertBefore(child.element, place);
    }
    this.known = kept;
    // Moved elements lose the focus.
    if (focused && focused !== this.parent.getRootNode().activeElement && this.parent.contains(focused)) focused.focus({ preventScroll: true });
  }
}
