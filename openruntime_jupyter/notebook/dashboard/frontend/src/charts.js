// Charts of utilization, memory and the queue, each with the current values or the values at the pointer.
import uPlot from "uplot";
import { make, show, write } from "./dom.js";
import { clock, figure } from "./format.js";
import { draw, hue, theme, thin } from "./plot.js";

const CHARTS = [
  {
    title: "Utilization",
    unit: "percent",
    lines: [
      { name: "gpu_utilization", label: "GPU", colour: "brand" },
      { name: "cpu_utilization", label: "CPU", colour: "warn" },
    ],
  },
  {
    title: "Queue",
    unit: "tasks",
    lines: [
      { name: "active_tasks", label: "running", colour: "brand" },
      { name: "pending_tasks", label: "waiting", colour: "warn" },
    ],
  },
  { title: "Memory of the machine", unit: "percent", lines: [{ name: "memory_usage", label: "in use", colour: "brand" }] },
  {
    title: "Memory of tasks",
    unit: "bytes",
    lines: [
      { name: "worker_memory", label: "workers", colour: "brand" },
      { name: "gpu_memory", label: "GPU", colour: "warn" },
      // One value for each finished task: points without lines.
      { name: "mlx_memory", label: "MLX's peak in a task", colour: "success", points: true },
    ],
  },
];
const HEIGHT = 118;

class Chart {
  constructor(about, sync, say) {
    this.about = about;
    this.sync = sync;
    this.say = say;
    this.plot = null;
    this.drawn = "";
    this.lines = [];
    this.at = make("span", { class: "or-dim" });
    this.legend = make("div", { class: "or-legend", "data-unit": about.unit });
    this.place = make("div", {
      class: "or-plot",
      role: "img",
      tabindex: 0,
      "aria-label": `${about.title}: no data yet`,
      onkeydown: (event) => this.key(event),
      onblur: () => this.leave(),
    });
    this.empty = make("div", { class: "or-empty" }, "No data yet");
    this.element = make("section", { class: "or-chart", "aria-label": about.title }, make("div", { class: "or-head" }, make("h4", {}, about.title), this.at), this.legend, this.empty, this.place);
  }

  /** Draw `columns`, which has mean and max by name. Without a GPU, its series are omitted. */
  update({ times, step, columns }, gpu) {
    const lines = this.about.lines.filter(({ name }) => (gpu || !name.startsWith("gpu_")) && columns.get(name)?.mean.some((value) => value != null));
    show(this.empty, !lines.length);
    show(this.place, lines.length > 0);
    if (!lines.length) {
      this.legend.replaceChildren();
      return;
    }
    this.lines = lines;
    this.step = step;
    this.data = [times, ...lines.map(({ name }) => columns.get(name).mean), ...lines.map(({ name }) => columns.get(name).max)];
    // A change of theme or series needs a new plot; otherwise only the data is replaced.
    const wanted = lines.map(({ name }) => name).join() + theme(this.element);
    if (this.plot && this.drawn === wanted) this.plot.setData(this.data);
    else this.draw(wanted);
    this.tell(this.plot.cursor.idx);
  }

  draw(wanted) {
    this.plot?.destroy();
    this.drawn = wanted;
    const count = this.lines.length;
    this.legend.replaceChildren(
      ...this.lines.map(({ label, colour, points }) =>
        make("span", {}, make("i", { class: points ? "or-dot" : "", style: `background:${hue(this.element, colour)}` }), `${label} `, make("b", {}, "–")),
      ),
    );
    this.plot = draw(this.place, {
      unit: this.about.unit,
      height: HEIGHT,
      data: this.data,
      span: () => [this.data[0][0], this.data[0].at(-1) + this.step],
      cursor: { sync: { key: this.sync.key, setSeries: false }, y: false, drag: { x: false, y: false }, points: { size: 6 } },
      series: [
        ...this.lines.map(({ colour, points }) => {
          const stroke = hue(this.element, colour);
          if (points) return { stroke, width: 0, paths: () => null, points: { show: true, size: 5, fill: stroke, width: 0 } };
          return { stroke, width: 1.5, fill: thin(stroke, "1c"), points: { show: false }, spanGaps: false };
        }),
        ...this.lines.map(() => ({ stroke: "transparent", width: 0, points: { show: false } })),
      ],
      // The band between mean and maximum.
      bands: this.lines.flatMap(({ colour, points }, index) => (points ? [] : [{ series: [1 + count + index, 1 + index], fill: thin(hue(this.element, colour), "30") }])),
      hooks: { setCursor: [(plot) => this.tell(plot.cursor.idx)] },
    });
    this.sync.sub(this.plot);
  }

  /** Write the values at a point, or the current values. */
  tell(index) {
    const there = index != null && index < this.data[0].length;
    write(this.at, there ? clock(this.data[0][index] * 1000) : "");
    const values = this.lines.map(({ label }, number) => {
      const column = this.data[number + 1];
      const text = figure(this.about.unit, there ? column[index] : column.findLast((each) => each != null));
      const shown = this.legend.children[number]?.querySelector("b");
      if (shown) write(shown, text);
      return `${label} ${text}`;
    });
    if (!there) this.place.setAttribute("aria-label", `${this.about.title}: ${values.join(", ")}. Use the arrow keys to read earlier values.`);
    return values.join(", ");
  }

  key(event) {
    if (!this.plot) return;
    const last = this.data[0].length - 1;
    const now = this.plot.cursor.idx ?? last;
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, PageUp: now - 20, PageDown: now + 20, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.leave();
    if (to === undefined) return;
    event.preventDefault();
    const index = Math.min(last, Math.max(0, to));
    this.plot.setCursor({ left: this.plot.valToPos(this.data[0][index], "x"), top: 10 });
    this.say(`${clock(this.data[0][index] * 1000)}: ${this.tell(index)}`);
  }

  leave() {
    this.plot?.setCursor({ left: -10, top: -10 });
  }

  resize() {
    const width = this.place.clientWidth;
    if (this.plot && width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  destroy() {
    if (this.plot) this.sync.unsub(this.plot);
    this.plot?.destroy();
  }
}

export class Charts {
  /** `say` announces a text to screen readers. */
  constructor(say) {
    this.sync = uPlot.sync(`or-${Math.random()}`);
    this.charts = CHARTS.map((about) => new Chart(about, this.sync, say));
    this.element = make("div", { class: "or-charts", role: "group", "aria-label": "Charts" }, ...this.charts.map((chart) => chart.element));
    this.observer = new ResizeObserver(() => this.charts.forEach((chart) => chart.resize()));
    this.observer.observe(this.element);
  }

  update(history, gpu) {
    [this.history, this.gpu] = [history, gpu];
    for (const chart of this.charts) chart.update(history, gpu);
  }

  /** Redraw after a change of theme. */
  redraw() {
    if (this.history) this.update(this.history, this.gpu);
  }

  close() {
    this.observer.disconnect();
    for (const chart of this.charts) chart.destroy();
  }
}
