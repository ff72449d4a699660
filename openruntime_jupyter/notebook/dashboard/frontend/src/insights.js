// What the recorded history tells, each finding with its picture: the figure that it is about, and where in it.
import { id, make, show, write } from "./dom.js";
import { clock, figure, spaced } from "./format.js";
import { answered } from "./history.js";
import { draw, hue, thin } from "./plot.js";

const METRICS = ["performance", "memory", "efficiency", "errors"];
const COLOURS = { warning: "error", notice: "warn", info: "brand" };
const HEIGHT = 96;
/** What is drawn for findings that are about tasks. */
const INSTEAD = { failures: "failed_tasks", burst: "failed_tasks", wasted: "failed_tasks", queueing: "pending_tasks", underused: "pending_tasks" };

/** One value for each task: points, with nothing between them, and the largest of those that are together. */
const APART = ["queue_time", "run_time", "mlx_memory"];
/** What is drawn for findings about the whole time. */
const WHOLE = { performance: ["gpu_utilization", "cpu_utilization"], memory: ["memory_usage"], efficiency: ["active_tasks"], errors: ["failed_tasks"] };

class Picture {
  /** `mark` may be the finding's own place, or only `{ finding, kind, figure }` where it is about the whole time. */
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

  /** The time that the finding is about. */
  band({ ctx, bbox, valToPos }) {
    if (!this.mark.start) return;
    const position = (timestamp) => valToPos(Date.parse(timestamp) / 1000, "x", true);
    const from = Math.max(bbox.left, position(this.mark.start));
    const to = Math.min(bbox.left + bbox.width, position(this.mark.end));
    ctx.save();
    ctx.fillStyle = thin(hue(this.place, this.colour), "40");
    // A moment is shown too.
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

/** What is quoted, names of code, and times in UTC with their date where that is not the report's. */
const PIECES = /("[^"]*"|`[^`]*`|(?:\d{4}-\d\d-\d\dT|\b)\d\d:\d\d(?::\d\d)?Z)/;

/** A text of the runtime's, for the page: its times by the clock of whoever reads it. */
function prose(text, told) {
  return text.split(PIECES).map((piece, index) => {
    if (index % 2 === 0 || piece.startsWith('"')) return piece;
    return piece.startsWith("`") ? make("code", {}, piece.slice(1, -1)) : local(piece, told);
  });
}

function local(piece, told) {
  const [time, date = told.slice(0, 10)] = piece.slice(0, -1).split("T").reverse();
  const exact = time.length > 5;
  const said = clock(`${date}T${time}${exact ? "" : ":00"}Z`);
  return exact ? said : said.slice(0, -3);
}

export class Insights {
  constructor(runtime, timeframe) {
    this.runtime = runtime;
    this.timeframe = timeframe;
    this.pictures = [];
    const metric = id("metric");
    this.metric = make("select", { id: metric }, METRICS.map((name) => make("option", { value: name }, name)));
    this.button = make("button", { type: "button", class: "or-button or-strong", onclick: () => this.look() }, "Look");
    this.note = make("span", { class: "or-dim", role: "status" });
    this.list = make("ol", { class: "or-findings", "aria-label": "Findings" });
    this.empty = make("div", { class: "or-empty" }, "Peaks, trends, leaks, bursts of failures: computed from what was recorded in the time that the charts show.");
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
    write(this.note, "looking …");
    try {
      const found = await this.runtime.act("insights", { metric_type: this.metric.value, timeframe: this.timeframe(), wording: "none" });
      this.draw(found);
      write(this.note, `the last ${found.timeframe}, looked at ${clock(found.timestamp)}`);
    } catch (problem) {
      write(this.note, problem.message);
    } finally {
      this.button.disabled = false;
    }
  }

  draw({ findings, data, timestamp }) {
    for (const picture of this.pictures) picture.plot?.destroy();
    this.pictures = [];
    const history = answered(data);
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

  /** The figure that shows best what was asked about: of a GPU where one was used. */
  usual(history) {
    const names = WHOLE[this.metric.value];
    return names.find((name) => history.columns.get(name)?.max.some((value) => value > 0)) ?? names.at(-1);
  }

  /** The theme is another one. */
  redraw() {
    for (const picture of this.pictures) picture.draw();
  }

  close() {
    this.observer.disconnect();
    for (const picture of this.pictures) picture.plot?.destroy();
  }
}
