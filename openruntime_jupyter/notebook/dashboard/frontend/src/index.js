// The page of the dashboard. It displays data from the kernel, and sends user actions to the server directly if possible.
import uplotStyle from "uplot/dist/uPlot.min.css";
import style from "./style.css";
import { Charts } from "./charts.js";
import { Devices } from "./devices.js";
import { id, make, show, write } from "./dom.js";
import { Form } from "./form.js";
import { asOf } from "./format.js";
import { Hosts } from "./hosts.js";
import { fromKernel, fromServer } from "./history.js";
import { Insights } from "./insights.js";
import { Models } from "./models.js";
import { Runtime, runAgain } from "./runtime.js";
import { Sessions } from "./sessions.js";
import { Tasks } from "./tasks.js";
import { called } from "./words.js";

const TIMEFRAMES = { "5m": "5 min", "15m": "15 min", "1h": "1 h", "6h": "6 h", "24h": "24 h", "7d": "7 d" };
/** Milliseconds without a message after which the server is checked. If it responds, the kernel is considered gone. */
const SILENT = 6_000;
/** Interval of the reports that this view is shown, in milliseconds. A page that is closed sends no last one. */
const REPORT = 20_000;
/** Milliseconds after which charts are requested from the server, in case the kernel is too busy to respond. */
const IMPATIENT = 1_500;

/** Radio buttons for the time range. */
class Timeframe {
  constructor(choose) {
    const name = id("timeframe");
    this.inputs = Object.entries(TIMEFRAMES).map(([value, label]) => ({ label, input: make("input", { type: "radio", name, value, onchange: () => choose(value) }) }));
    this.element = make(
      "fieldset",
      { class: "or-choice", onkeydown: (event) => this.step(event, choose) },
      make("legend", { class: "or-hidden" }, "Time range of the charts"),
      this.inputs.map(({ input, label }) => make("label", {}, input, make("span", {}, label))),
    );
  }

  /** Handle arrow keys, which JupyterLab does not pass to the browser. */
  step(event, choose) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const count = this.inputs.length;
    const { input } = this.inputs[(this.inputs.findIndex((each) => each.input.checked) + step + count) % count];
    input.focus();
    input.checked = true;
    choose(input.value);
  }

  show(value) {
    for (const { input } of this.inputs) input.checked = input.value === value;
  }
}

class Page {
  constructor(model, el) {
    this.model = model;
    this.view = id("view");
    this.heard = false;
    this.runtime = new Runtime(model);
    this.received();
    this.parts();
    el.append(this.element);
    this.listen();
    this.chosen();
    this.draw();
    this.chart();
  }

  parts() {
    this.state = make("span", { class: "or-state", role: "status" });
    this.counts = make("span");
    this.where = make("footer", { class: "or-dim" });
    this.banner = make("div", { class: "or-banner", role: "alert", hidden: true });
    this.message = make("div", { class: "or-banner", role: "alert", hidden: true });
    this.live = make("div", { class: "or-hidden", role: "status", "aria-live": "polite" });
    this.timeframe = new Timeframe((value) => {
      this.model.set("timeframe", value);
      this.model.save_changes();
    });
    const say = (text) => {
      write(this.message, text);
      show(this.message, text !== "");
    };
    const announce = (text) => write(this.live, text);
    this.devices = new Devices();
    this.hosts = new Hosts();
    this.charts = new Charts(announce);
    this.tasks = new Tasks(this.runtime, say, announce);
    this.models = new Models(this.runtime, say);
    this.sessions = new Sessions(this.runtime, say, announce, (id) => called(this.tasks.tasks.find((task) => task.task_id === id) ?? { name: id }));
    this.form = new Form(this.runtime);
    this.insights = new Insights(this.runtime, () => this.model.get("timeframe"));
    this.element = make(
      "div",
      { class: "or-dashboard", role: "region", "aria-label": "OpenRuntime dashboard" },
      make("style", {}, uplotStyle, style),
      make("header", { class: "or-header" }, make("h3", {}, "OpenRuntime"), this.state, this.counts, this.timeframe.element),
      this.banner,
      make("div", { class: "or-top" }, make("div", { class: "or-side" }, this.devices.element, this.models.element), this.charts.element),
      this.hosts.element,
      this.message,
      this.tasks.element,
      this.sessions.element,
      this.form.element,
      this.insights.element,
      this.where,
      this.live,
    );
  }

  listen() {
    const { model } = this;
    const draw = () => {
      this.heard = true;
      this.draw();
    };
    this.watchers = { chart: () => this.chart(), timeframe: () => this.chosen(), changes: () => model.get("changes").forEach((each) => this.tasks.change(each)) };
    for (const name of ["where", "connection", "health", "devices", "hosts", "tasks", "counts", "sessions", "models", "operations", "closed", "selected"]) this.watchers[name] = draw;
    for (const [name, call] of Object.entries(this.watchers)) model.on(`change:${name}`, call);
    this.timer = setInterval(() => this.second(), 1000);
    // Jupyter sets themes on the body. Charts must be redrawn when they change.
    this.theme = new MutationObserver(() => requestAnimationFrame(() => [this.charts, this.insights].forEach((each) => each.redraw())));
    this.theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light", "class", "data-theme"] });
    // Jupyter's single-key shortcuts and arrow keys would act on the cell, so they are suppressed here. Shortcuts with Ctrl or Cmd
    // still work.
    const own = (event) => !(event.ctrlKey || event.metaKey);
    this.keys = (event) => this.element.toggleAttribute("data-lm-suppress-shortcuts", own(event));
    window.addEventListener("keydown", this.keys, true);
    this.element.addEventListener("keydown", (event) => own(event) && event.stopPropagation());
    this.seen(true);
  }

  /** Report whether this view is shown, since the kernel pauses updates without views. */
  seen(shown) {
    this.reported = Date.now();
    if (this.model.comm_live === false) return;
    try {
      this.model.send({ name: "view", args: { view: this.view, shown } });
    } catch {
      // The kernel is gone, which checkConnection() reports.
    }
  }

  /** Schedule one redraw for all pending changes. */
  draw() {
    this.received();
    this.due ??= requestAnimationFrame(() => this.drawNow());
  }

  drawNow() {
    this.due = null;
    const get = (name) => this.model.get(name);
    const health = get("health");
    this.runtime.look(health.runtime);
    this.connection();
    write(this.where, [get("where"), health.version && `version ${health.version}`].filter(Boolean).join(" · "));
    this.devices.update(get("devices"));
    this.hosts.update(get("hosts"));
    this.tasks.update(get("tasks"), get("counts"), get("devices"), get("notebook"));
    this.sessions.update(get("sessions"));
    this.models.update(get("models"));
    this.form.update(get("operations"), get("devices"), [...this.tasks.tasks, ...get("tasks")]);
    this.select();
  }

  /** Show the task that the surrounding page has selected, once the others are listed. */
  select() {
    const id = this.model.get("selected");
    if (!id || this.model.get("counts").ended === undefined) return;
    this.model.set("selected", null);
    this.tasks.select(id);
  }

  chosen() {
    const timeframe = this.model.get("timeframe");
    this.timeframe.show(timeframe);
    this.charts.element.setAttribute("aria-busy", String(this.charted !== timeframe));
    clearTimeout(this.wait);
    this.wait = setTimeout(() => this.ask(), IMPATIENT);
  }

  chart() {
    this.received();
    const chart = this.model.get("chart");
    // A busy kernel still sends the previous timeframe.
    if (chart?.timeframe && (chart.timeframe === this.model.get("timeframe") || !this.charted)) this.plot(chart.numbers ? fromKernel(chart) : fromServer(chart));
  }

  plot(history) {
    this.charted = history.timeframe;
    this.charts.element.setAttribute("aria-busy", String(this.charted !== this.model.get("timeframe")));
    this.charts.update(history, this.model.get("devices").some((device) => device.type === "gpu"));
  }

  /** Fetch the charts from the server until the kernel sends the chosen timeframe. */
  async ask() {
    const timeframe = this.model.get("timeframe");
    if (this.model.get("chart")?.timeframe === timeframe || !this.runtime.isDirect) return;
    try {
      const history = await this.runtime.ask("GET", `metrics/history?timeframe=${timeframe}&points=300`);
      if (this.model.get("timeframe") === timeframe && this.model.get("chart")?.timeframe !== timeframe) this.plot(fromServer(history));
    } catch {
      // connection() reports connection errors.
    }
    clearTimeout(this.wait);
    this.wait = setTimeout(() => this.ask(), 2 * IMPATIENT);
  }

  received() {
    this.lastMessage = Date.now();
    this.silent = null;
  }

  second() {
    if (Date.now() - this.lastMessage > SILENT) this.checkConnection();
    this.connection();
    if (!this.stale) this.tasks.tick();
    if (Date.now() - this.reported > REPORT) this.seen(true);
  }

  /** True if the data is no longer updated. It is then shown with its time. */
  get stale() {
    const gone = this.silent || this.model.comm_live === false;
    return Boolean(gone || this.reopened || this.model.get("closed") || this.model.get("connection").live === false);
  }

  /** True if the data is from before this page, as in a saved notebook, and the kernel has not sent newer data yet. */
  get reopened() {
    const { timestamp } = this.model.get("health");
    return !this.heard && Boolean(timestamp) && Date.now() - Date.parse(timestamp) > SILENT;
  }

  /** Determine whether the kernel or the server is unresponsive. */
  async checkConnection() {
    if (this.checking) return;
    this.checking = true;
    const { lastMessage } = this;
    const silent = !this.runtime.page && (await this.runtime.served()) ? "kernel gone" : "no answer";
    this.checking = false;
    if (this.lastMessage === lastMessage) this.silent = silent;
  }

  /** Show the connection state and any problem of the runtime, the server or the kernel. */
  connection() {
    const health = this.model.get("health");
    const connection = this.model.get("connection");
    // Without a runtime the kernel has nothing to send, so that its silence means nothing.
    const silent = connection.live === false && this.silent === "kernel gone" ? null : this.silent;
    const gone = this.model.comm_live === false ? "kernel gone" : silent;
    let text = "";
    let state = (this.reopened ? null : health.status) ?? "connecting";
    const time = this.stale && health.timestamp ? asOf(health.timestamp) : "";
    const shown = time && ` It shows the state ${time}.`;
    if (this.model.get("closed")) [state, text] = ["closed", `This dashboard was closed.${shown} Run its cell again to reopen it.`];
    else if (gone) {
      state = gone;
      text =
        state === "no answer"
          ? `This dashboard gets no response from Jupyter's server.${shown} Updates resume when the server responds.`
          : `This dashboard gets no response from its kernel.${shown} Tasks on a server continue. Restart the kernel and run this cell again.`;
    } else if (connection.live === false) {
      [state, text] = ["reconnecting", `This dashboard gets no response from the runtime and retries: ${connection.reason}.${shown}`];
    } else if (health.problems?.length) text = health.problems.join(" ");
    const counts = health.metrics ? [`${health.metrics.active_tasks} running`, `${health.metrics.pending_tasks} waiting`, time] : [time];
    write(this.counts, counts.filter(Boolean).join(" · "));
    this.tasks.clock(health.timestamp, this.stale);
    write(this.state, state);
    this.state.dataset.state = state;
    this.element.dataset.state = state;
    write(this.banner, text);
    show(this.banner, text !== "");
  }

  close() {
    clearInterval(this.timer);
    clearTimeout(this.wait);
    if (this.due) cancelAnimationFrame(this.due);
    this.theme.disconnect();
    window.removeEventListener("keydown", this.keys, true);
    for (const [name, call] of Object.entries(this.watchers)) this.model.off(`change:${name}`, call);
    this.charts.close();
    this.insights.close();
    this.seen(false);
    this.runtime.close();
  }
}

export { runAgain };

export default {
  render({ model, el }) {
    const page = new Page(model, el);
    return () => page.close();
  },
};
