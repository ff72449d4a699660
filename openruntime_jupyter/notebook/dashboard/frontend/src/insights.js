// What the recorded history tells, with the figures that it rests on.
import { make, write } from "./dom.js";
import { clock } from "./format.js";

const METRICS = ["performance", "memory", "efficiency", "errors"];

export class Insights {
  constructor(runtime, timeframe) {
    this.runtime = runtime;
    this.timeframe = timeframe;
    this.metric = make("select", { "aria-label": "What to look at" }, METRICS.map((name) => make("option", { value: name }, name)));
    this.button = make("button", { type: "button", class: "or-button or-strong", onclick: () => this.look() }, "Look");
    this.note = make("span", { class: "or-dim", role: "status" });
    this.list = make("ol", { class: "or-findings" });
    this.element = make(
      "details",
      { class: "or-section" },
      make("summary", {}, "Insights"),
      make("div", { class: "or-line" }, this.metric, this.button, this.note),
      this.list,
    );
  }

  async look() {
    this.button.disabled = true;
    write(this.note, "looking …");
    try {
      const found = await this.runtime.act("insights", { metric_type: this.metric.value, timeframe: this.timeframe(), wording: "none" });
      this.list.replaceChildren(...found.findings.map((finding) => this.finding(finding)));
      write(this.note, `the last ${found.timeframe}, at ${clock(found.timestamp)}`);
    } catch (problem) {
      write(this.note, problem.message);
    } finally {
      this.button.disabled = false;
    }
  }

  finding(finding) {
    return make(
      "li",
      { "data-severity": finding.severity },
      finding.text,
      finding.advice ? make("div", { class: "or-dim" }, finding.advice) : null,
    );
  }
}
