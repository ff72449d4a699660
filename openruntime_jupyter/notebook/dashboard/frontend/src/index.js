// The dashboard's page: it draws what the kernel tells, and asks the server itself for what is clicked, where it can.
import uplotStyle from "uplot/dist/uPlot.min.css";
import style from "./style.css";
import { Charts } from "./charts.js";
import { Devices } from "./devices.js";
import { make, show, write } from "./dom.js";
import { Form } from "./form.js";
import { Insights } from "./insights.js";
import { Models } from "./models.js";
import { Runtime } from "./runtime.js";
import { Tasks } from "./tasks.js";

const TIMEFRAMES = ["5m", "15m", "1h", "6h", "24h", "7d"];
const SILENT = 6_000;

class Page {
  constructor(model, el) {
    this.model = model;
    this.runtime = new Runtime(model);
    this.state = make("span", { class: "or-state" });
    this.where = make("span", { class: "or-dim" });
    this.banner = make("div", { class: "or-banner", role: "alert", hidden: true });
    this.said = make("div", { class: "or-advice", role: "alert", hidden: true });
    this.choice = make(
      "select",
      {
        "aria-label": "How far back the charts go",
        onchange: () => {
          model.set("timeframe", this.choice.value);
          model.save_changes();
        },
      },
      TIMEFRAMES.map((name) => make("option", { value: name }, name)),
    );
    const say = (text) => {
      write(this.said, text);
      show(this.said, text !== "");
    };
    this.devices = new Devices();
    this.charts = new Charts();
    this.tasks = new Tasks(this.runtime, say);
    this.models = new Models(this.runtime, say);
    this.form = new Form(this.runtime, say);
    this.insights = new Insights(this.runtime, () => this.choice.value);
    this.element = make(
      "div",
      { class: "or-dashboard", role: "region", "aria-label": "OpenRuntime dashboard" },
      make("style", {}, uplotStyle, style),
      make("header", { class: "or-header" }, make("h3", {}, "OpenRuntime"), this.state, this.where, make("label", { class: "or-right" }, "the last ", this.choice)),
      this.banner,
      this.devices.element,
      this.charts.element,
      this.said,
      this.tasks.element,
      this.models.element,
      this.form.element,
      this.insights.element,
    );
    el.append(this.element);
    this.heard = Date.now();
    this.watchers = { state: () => this.draw(), chart: () => this.chart(), change: () => this.tasks.change(model.get("change")), timeframe: () => this.chosen() };
    for (const [name, call] of Object.entries(this.watchers)) model.on(`change:${name}`, call);
    this.timer = setInterval(() => this.connection(), 1000);
    this.chosen();
    this.draw();
    this.chart();
  }

  chosen() {
    this.choice.value = this.model.get("timeframe");
  }

  draw() {
    const state = this.model.get("state");
    this.heard = Date.now();
    this.runtime.look(state.health?.runtime);
    write(this.where, [state.where, state.health && `version ${state.health.version}`].filter(Boolean).join(" · "));
    this.devices.update(state.devices ?? []);
    this.tasks.update(state.tasks ?? [], state.total ?? 0, state.devices);
    this.models.update(state.models ?? []);
    this.form.update(state.operations ?? []);
    this.connection();
  }

  chart() {
    const chart = this.model.get("chart");
    this.heard = Date.now();
    const gpu = (this.model.get("state").devices ?? []).some((device) => device.type === "gpu");
    if (chart?.numbers) this.charts.update(chart, gpu);
  }

  /** Say what is wrong: the runtime, the way to it, or the kernel. */
  connection() {
    const { connection, health, closed } = this.model.get("state");
    const gone = this.model.comm_live === false;
    const silent = Date.now() - this.heard > SILENT;
    let text = "";
    let state = health?.status ?? "connecting";
    if (closed) [state, text] = ["closed", "This dashboard was closed: run its cell again."];
    else if (gone || (silent && health)) {
      const since = new Date(this.heard).toLocaleTimeString();
      [state, text] = ["kernel gone", `Nothing was heard of the kernel since ${since}: what is shown is of then. If the kernel was restarted, run this cell again.`];
    } else if (connection && !connection.live) {
      [state, text] = ["reconnecting", `The runtime does not answer, and is asked again: ${connection.reason}`];
    } else if (health?.problems?.length) text = health.problems.join(" ");
    write(this.state, state);
    this.state.dataset.state = state;
    write(this.banner, text);
    show(this.banner, text !== "");
  }

  close() {
    clearInterval(this.timer);
    for (const [name, call] of Object.entries(this.watchers)) this.model.off(`change:${name}`, call);
    this.charts.close();
    this.runtime.close();
  }
}

export default {
  render({ model, el }) {
    const page = new Page(model, el);
    return () => page.close();
  },
};
