// Elements without a framework: made once, changed in place, so that nothing that is clicked or focused goes away.

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

/** Set the text of an element, if it is another one: a selection in it stays. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Show or hide. */
export function show(element, shown) {
  element.hidden = !shown;
}

/** A button that says to whoever can't see its place what it is about. */
export function button(label, about, act, kind = "") {
  return make("button", { type: "button", class: `or-button ${kind}`, title: about, "aria-label": about, onclick: act }, label);
}

/** A list of what is what, without what is not known. */
export function facts(entries) {
  const known = entries.filter(([, value]) => value != null && value !== "");
  return make(
    "dl",
    { class: "or-facts" },
    known.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
}

let count = 0;

/** An id that no other element of this page has. */
export function id(name) {
  count += 1;
  return `or-${name}-${count}-${Math.random().toString(36).slice(2, 8)}`;
}

/**
 * Make `parent` hold one child for each of `items`, in order, behind its child `after`. `key(item)` tells them apart,
 * `create(item)` makes a `{ element, update(item) }`. Children that stay are only updated and moved, and keep the focus.
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
    // What is moved loses the focus.
    if (focused && focused !== this.parent.getRootNode().activeElement && this.parent.contains(focused)) focused.focus({ preventScroll: true });
  }
}
