// Findings from the recorded history, each with a chart of its metric and the affected time.
import { id, make, show, write } from "./dom.js";
import { clock, figure, spaced } from "./format.js";
import { fromServer } from "./history.js";
import { draw, hue, thin } from "./plot.js";

const METRICS = ["performance", "memory", "efficiency", "errors"];
const COLOURS = { warning: "error", notice: "warn", info: "brand" };
const HEIGHT = 96;
/** Metric that is drawn for findings about tasks. */
const INSTEAD = { failures: "failed_tasks", burst: "failed_tasks", wasted: "failed_tasks", queueing: "pending_tasks", underused: "pending_tasks" };

/** Metrics with one value for each task, drawn as points. The maximum is used for points at the same time. */
const APART = ["queue_time", "run_time", "mlx_memory"];
/** Metrics that are drawn for findings about the whole time range. */
const WHOLE = { performance: ["gpu_utilization", "cpu_utilization"], memory: ["memory_usage"], efficiency: ["active_tasks"], errors: ["failed_tasks"] };

class Picture {
  /** `mark` is the position of the finding, or only `{ finding, kind, figure }` for a finding about the whole time range. */
  constructor(finding, mark, history) {
    this.mark = mark;
    this.name = mark.figure ?? INSTEAD[mark.kind] ?? "active_tasks";
    this.history = history;
    const column = history.columns.get(this.name);
    this.unit = column?.unit;
    this.apart = APART.includes(this.name);
    this.values = (this.apart ? column?.max : column?.mean) ?? [];
    this.place = make("div", { class: "or-plot", role: "img", "aria-label": `${spaced(this.name)} over time${mark.start ? `, with the time of finding ${mark.finding} marked` : ""}` });
    const top = mark.value != null ? ` · ${figure(this.unit, mark.value)} at ${clock(mark.at)}` : "";
    this.element = make("figure", {}, this.place, make("figcaption", { class: "or-dim" }, `${spaced(this.name)}${top}`));
    this.colour = COLOURS[finding.severity];
  }

  get empty() {
    return !this.values.some((value) => value != null);
  }

  draw() {
    const { times, step } = this.history;
    this.plot?.destroy();
    const line = hue(this.place, "brand");
    this.plot = draw(this.place, {
      unit: this.unit,
      height: HEIGHT,
      data: [times, this.values],
      span: () => [times[0], times.at(-1) + step],
      cursor: { show: false },
      series: [
        this.apart
          ? { stroke: line, width: 0, paths: () => null, points: { show: true, size: 4, fill: line, width: 0 } }
          : { stroke: line, width: 1.25, fill: thin(line, "1c"), points: { show: false } },
      ],
      hooks: { drawClear: [(plot) => this.band(plot)], draw: [(plot) => this.top(plot)] },
    });
  }

  /** Shade the time of the finding. */
  band({ ctx, bbox, valToPos }) {
    if (!this.mark.start) return;
    const position = (timestamp) => valToPos(Date.parse(timestamp) / 1000, "x", true);
    const from = Math.max(bbox.left, position(this.mark.start));
    const to = Math.min(bbox.left + bbox.width, position(this.mark.end));
    ctx.save();
    ctx.fillStyle = thin(hue(this.place, this.colour), "40");
    // Very short times are drawn at least 3 pixels wide.
    ctx.fillRect(Math.min(from, bbox.left + bbox.width - 3), bbox.top, Math.max(3, to - from), bbox.height);
    ctx.restore();
  }

  top({ ctx, valToPos }) {
    if (this.mark.value == null || !this.mark.at) return;
    ctx.save();
    ctx.fillStyle = hue(this.place, this.colour);
    ctx.beginPath();
    ctx.arc(valToPos(Date.parse(this.mark.at) / 1000, "x", true), valToPos(this.mark.value, "y", true), 4 * devicePixelRatio, 0, 7);
    ctx.fill();
    ctx.restore();
  }

  resize() {
    const width = this.place.clientWidth;
    if (this.plot && width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }
}

/** Quoted text, code, and UTC times with their date if that differs from the report's. */
const PIECES = /("[^"]*"|`[^`]*`|(?:\d{4}-\d\d-\d\dT|\b)\d\d:\d\d(?::\d\d)?Z)/;

/** Convert a text of the runtime for display: local times, and code elements. */
function prose(text, reportedAt) {
  return text.split(PIECES).map((piece, index) => {
    if (index % 2 === 0 || piece.startsWith('"')) return piece;
    return piece.startsWith("`") ? make("code", {}, piece.slice(1, -1)) : local(piece, reportedAt);
  });
}

function local(piece, reportedAt) {
  const [time, date = reportedAt.slice(0, 10)] = piece.slice(0, -1).split("T").reverse();
  const exact = time.length > 5;
  const text = clock(`${date}T${time}${exact ? "" : ":00"}Z`);
  return exact ? text : text.slice(0, -3);
}

export class Insights {
  constructor(runtime, timeframe) {
    this.runtime = runtime;
    this.timeframe = timeframe;
    this.pictures = [];
    const metric = id("metric");
    this.metric = make("select", { id: metric }, METRICS.map((name) => make("option", { value: name }, name)));
    this.button = make("button", { type: "button", class: "or-button or-strong", onclick: () => this.look() }, "Analyze");
    this.note = make("span", { class: "or-dim", role: "status" });
    this.list = make("ol", { class: "or-findings", "aria-label": "Findings" });
    this.empty = make("div", { class: "or-empty" }, "Peaks, trends, leaks and bursts of failures, computed from the history in the time range of the charts");
    this.element = make(
      "details",
      { class: "or-section", ontoggle: () => this.element.open && !this.list.childElementCount && this.look() },
      make("summary", {}, "Insights"),
      make("div", { class: "or-line" }, make("label", { class: "or-label", for: metric }, "About"), this.metric, this.button, this.note),
      this.empty,
      this.list,
    );
    this.observer = new ResizeObserver(() => this.pictures.forEach((picture) => picture.resize()));
    this.observer.observe(this.list);
  }

  async look() {
    this.button.disabled = true;
    write(this.note, "analyzing …");
    try {
      const found = await this.runtime.act("insights", { metric_type: this.metric.value, timeframe: this.timeframe(), wording: "none" });
      this.draw(found);
      write(this.note, `last ${found.timeframe}, as of ${clock(found.timestamp)}`);
    } catch (problem) {
      write(this.note, problem.message);
    } finally {
      this.button.disabled = false;
    }
  }

  draw({ findings, data, timestamp }) {
    for (const picture of this.pictures) picture.plot?.destroy();
    this.pictures = [];
    const history = fromServer(data);
    const items = findings.map((finding, index) => {
      const whole = { finding: index + 1, kind: finding.kind, figure: finding.figure ?? INSTEAD[finding.kind] ?? this.usual(history) };
      const picture = new Picture(finding, data.marks.find((each) => each.finding === index + 1) ?? whole, history);
      if (!picture.empty) this.pictures.push(picture);
      return make(
        "li",
        { "data-severity": finding.severity },
        make(
          "div",
          {},
          make("div", {}, make("span", { class: "or-state", "data-state": finding.severity }, finding.severity), " ", make("strong", {}, spaced(finding.kind))),
          make("p", {}, prose(finding.text, timestamp)),
          finding.advice ? make("p", { class: "or-dim" }, prose(finding.advice, timestamp)) : null,
        ),
        picture.empty ? null : picture.element,
      );
    });
    this.list.replaceChildren(...items);
    show(this.empty, !items.length);
    this.redraw();
  }

  /** Return the default metric for the chosen category: that of the GPU if it was used. */
  usual(history) {
    const names = WHOLE[this.metric.value];
    return names.find((name) => history.columns.get(name)?.max.some((value) => value > 0)) ?? names.at(-1);
  }

  /** Redraw after a change of theme. */
  redraw() {
    for (const picture of this.pictures) picture.draw();
  }

  close() {
    this.observer.disconnect();
    for (const picture of this.pictures) picture.plot?.destroy();
  }
}
