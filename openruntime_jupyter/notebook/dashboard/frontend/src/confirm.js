// Button that requires a second click before it deletes something.
import { button, write } from "./dom.js";

/** Time for the confirming click, in milliseconds. */
const SURE = 5_000;

/** Button that requires a second click if something would be lost. */
export class ConfirmButton {
  constructor(label, act) {
    this.label = label;
    this.act = act;
    this.element = button(label, label, () => this.click());
    this.element.addEventListener("blur", () => this.ask(false));
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.ask(false);
    });
  }

  /** `about` describes the action, and `lost` what it deletes (null for nothing). */
  update(about, lost) {
    this.about = about;
    this.lost = lost;
    this.draw();
  }

  draw() {
    const text = this.asking ? `${this.label}: sure?` : this.label;
    const about = this.asking ? `${this.about}: ${this.lost}. Click again to confirm` : this.about;
    write(this.element, text);
    this.element.title = about;
    this.element.setAttribute("aria-label", about);
    this.element.classList.toggle("or-sure", Boolean(this.asking));
  }

  ask(asking) {
    clearTimeout(this.timer);
    this.asking = asking;
    if (asking) this.timer = setTimeout(() => this.ask(false), SURE);
    this.draw();
  }

  async click() {
    if (this.lost && !this.asking) {
      this.ask(true);
      return;
    }
    this.ask(false);
    this.element.disabled = true;
    try {
      await this.act();
    } finally {
      this.element.disabled = false;
    }
  }
}
