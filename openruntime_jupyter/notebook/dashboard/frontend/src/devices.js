// Device cards: description, utilization, memory and queue.
import { Children, make, show, write } from "./dom.js";
import { bytes, percent } from "./format.js";

/** Number of devices that are shown as cards, of this machine and of hosts. */
const MOST = 6;

function bar(label) {
  const fill = make("div");
  const element = make("div", { class: "or-bar", role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  return {
    element,
    update(value, text) {
      show(element, value != null);
      if (value == null) return;
      const rounded = Math.round(Math.min(100, Math.max(0, value)));
      fill.style.width = `${rounded}%`;
      element.setAttribute("aria-valuenow", rounded);
      element.setAttribute("aria-valuetext", text);
    },
  };
}

function row(label) {
  const value = make("span", { class: "or-value" });
  const meter = bar(label);
  const element = make("div", { class: "or-row" }, make("span", { class: "or-dim" }, label), value, meter.element);
  return {
    element,
    update(percentage, text) {
      show(element, text !== "");
      meter.update(percentage, text);
      write(value, text);
    },
  };
}

function card(device) {
  const name = make("strong");
  const kind = make("div", { class: "or-dim" });
  const state = make("span", { class: "or-state" });
  const advice = make("div", { class: "or-advice" });
  const load = row("utilization");
  const memory = row("memory");
  const slots = row("slots");
  const waiting = row("waiting");
  const element = make(
    "li",
    { class: "or-card", "aria-label": device.id },
    make("div", { class: "or-head" }, name, state),
    kind,
    ...[load, memory, slots, waiting].map((each) => each.element),
    advice,
  );
  return {
    element,
    update(now) {
      write(name, now.name);
      write(state, now.status);
      state.dataset.state = now.status;
      const sensors = [now.temperature_celsius != null && `${Math.round(now.temperature_celsius)} °C`, now.power_watts != null && `${Math.round(now.power_watts)} W`];
      const versions = [now.mlx_version && `MLX ${now.mlx_version}`, now.blas];
      write(kind, [now.type.toUpperCase(), now.id, ...versions, ...sensors].filter(Boolean).join(" · "));
      load.update(now.utilization, percent(now.utilization));
      const used = now.memory_total - now.memory_available;
      memory.update((100 * used) / now.memory_total, `${bytes(used)} of ${bytes(now.memory_total)}`);
      slots.update((100 * now.running) / now.slots, `${now.running} of ${now.slots} in use`);
      waiting.update(null, now.pending === 1 ? "1 task" : `${now.pending} tasks`);
      write(advice, now.advice ?? "");
      show(advice, Boolean(now.advice));
    },
  };
}

export class Devices {
  constructor() {
    this.list = make("ul", { class: "or-cards", "aria-label": "Devices" });
    this.empty = make("div", { class: "or-card or-empty" }, "No devices known yet: the first worker reports them when it has started");
    this.elsewhere = make("div", { class: "or-dim" });
    this.element = make("section", { "aria-label": "Devices" }, this.list, this.empty, this.elsewhere);
    this.children = new Children(this.list, (device) => device.id, card);
  }

  /** Show the devices. Many hosts would push everything else out of sight, so their devices are then only in the list of hosts. */
  update(devices) {
    const shown = devices.length > MOST ? devices.filter((device) => !device.id.includes(".")) : devices;
    const left = devices.length - shown.length;
    this.children.update(shown);
    write(this.elsewhere, left ? `${left} devices of hosts are in the list of hosts` : "");
    show(this.elsewhere, left > 0);
    show(this.empty, !devices.length);
  }
}
