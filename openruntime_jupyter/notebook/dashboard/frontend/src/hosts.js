// Hosts: other machines that run tasks of the runtime.
import { Children, make, show, write } from "./dom.js";
import { bytes, clock, percent, sentence } from "./format.js";

/** Number of hosts in the list. Hosts that are not ready come first. */
const MOST = 50;

/** Return a sentence with its number, such as "3 hosts, 1 lost". */
export function summary(hosts) {
  const numbers = new Map();
  for (const { state } of hosts) if (state !== "ready") numbers.set(state, (numbers.get(state) ?? 0) + 1);
  return [hosts.length === 1 ? "1 host" : `${hosts.length} hosts`, ...[...numbers].map(([state, number]) => `${number} ${state}`)].join(", ");
}

function about(host) {
  const devices = host.devices.map((device) => device.slice(host.name.length + 1)).join(", ");
  const slots = host.slots > 0 && `${host.running} of ${host.slots} slots in use`;
  const memory = host.memory_total != null && host.memory_available != null && `${bytes(host.memory_total - host.memory_available)} of ${bytes(host.memory_total)} memory used`;
  const load = host.cpu_utilization != null && `CPU ${percent(host.cpu_utilization)}`;
  const models = host.models.length > 0 && `models ${host.models.join(", ")}`;
  const trip = host.round_trip_s != null && `${(1000 * host.round_trip_s).toFixed(1)} ms away`;
  const versions = [host.python && `Python ${host.python}`, host.mlx_version && `MLX ${host.mlx_version}`];
  return [devices, slots, load, memory, models, trip, ...versions, host.platform, host.address, `${host.state} since ${clock(host.since)}`].filter(Boolean).join(" · ");
}

function line(host) {
  const name = make("strong");
  const state = make("span", { class: "or-state" });
  const facts = make("div", { class: "or-dim" });
  const advice = make("div", { class: "or-advice" });
  return {
    element: make("li", { "aria-label": host.name }, name, " ", state, facts, advice),
    update(now) {
      write(name, now.name);
      write(state, now.state);
      state.dataset.state = now.state;
      write(facts, about(now));
      const words = [now.problem, now.advice].filter(Boolean).join(": ");
      write(advice, words && sentence(words));
      show(advice, words !== "");
    },
  };
}

export class Hosts {
  constructor() {
    this.title = make("h4");
    this.list = make("ul", { class: "or-sessions", "aria-label": "Hosts" });
    this.more = make("div", { class: "or-dim" });
    this.element = make("section", { "aria-label": "Hosts", hidden: true }, this.title, this.list, this.more);
    this.children = new Children(this.list, (host) => host.name, line);
  }

  update(hosts) {
    const first = [...hosts.filter((host) => host.state !== "ready"), ...hosts.filter((host) => host.state === "ready")].slice(0, MOST);
    write(this.title, summary(hosts));
    this.children.update(first);
    write(this.more, hosts.length > MOST ? `${hosts.length - MOST} more hosts: %openruntime hosts lists all` : "");
    show(this.more, hosts.length > MOST);
    show(this.element, hosts.length > 0);
  }
}
