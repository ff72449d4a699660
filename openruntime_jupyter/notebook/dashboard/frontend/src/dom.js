// Elements without a framework: made once, changed in place, so that nothing that is clicked or focused goes away.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== ""));
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

/**
 * Make `parent` hold one child for each of `items`, in order. `key(item)` tells them apart, `create(item)` makes a
 * `{ element, update(item) }`, and children that stay are only updated and moved.
 */
export class Children {
  constructor(parent, key, create) {
    this.parent = parent;
    this.key = key;
    this.create = create;
    this.known = new Map();
  }

  update(items) {
    const kept = new Map();
    let place = this.parent.firstChild;
    for (const item of items) {
      const key = this.key(item);
      const child = this.known.get(key) ?? this.create(item);
      child.update(item);
      kept.set(key, child);
      if (child.element === place) place = place.nextSibling;
      else this.parent.insertBefore(child.element, place);
    }
    for (const [key, child] of this.known) if (!kept.has(key)) child.element.remove();
    this.known = kept;
  }
}
