// The charts: utilisation, memory and the queue over the chosen time, each with its figures of now or of where the pointer is.
import uPlot from "uplot";
import { make, write } from "./dom.js";
import { figure } from "./format.js";

const CHARTS = [
  {
    title: "Utilisation",
    unit: "percent",
    lines: [
      ["gpu_utilization", "GPU", "brand"],
      ["cpu_utilization", "CPU", "warn"],
    ],
  },
  {
    title: "Memory",
    unit: "percent",
    lines: [["memory_usage", "machine", "brand"]],
  },
  {
    title: "Memory of tasks",
    unit: "bytes",
    lines: [
      ["worker_memory", "workers", "brand"],
      ["gpu_memory", "GPU", "warn"],
      ["mlx_memory", "MLX's peak", "success"],
    ],
  },
  {
    title: "Queue",
    unit: "tasks",
    lines: [
      ["active_tasks", "running", "success"],
      ["pending_tasks", "waiting", "warn"],
    ],
  },
];
const HEIGHT = 110;

function colour(element, name) {
  const fallback = { brand: "#1976d2", warn: "#ef6c00", success: "#2e7d32" }[name];
  return getComputedStyle(element).getPropertyValue(`--jp-${name}-color1`).trim() || fallback;
}

class Chart {
  constructor(about, sync) {
    this.about = about;
    this.sync = sync;
    this.plot = null;
    this.drawn = "";
    this.legend = make("div", { class: "or-legend" });
    this.place = make("div", { class: "or-plot", role: "img", "aria-label": `${about.title}: no figures yet` });
    this.empty = make("div", { class: "or-empty" }, "No figures yet");
    this.element = make("section", { class: "or-chart" }, make("h4", {}, about.title), this.legend, this.empty, this.place);
  }

  update(times, columns, gpu) {
    const lines = this.about.lines.filter(([name]) => (gpu || !name.startsWith("gpu_")) && columns.has(name) && columns.get(name).some((value) => value != null));
    this.lines = lines;
    this.element.hidden = this.about.unit === "bytes" && !lines.length;
    this.empty.hidden = lines.length > 0;
    this.place.hidden = !lines.length;
    if (!lines.length) return;
    this.data = [times, ...lines.map(([name]) => columns.get(name))];
    // Another theme, or another line, wants another plot; else the one there is gets new figures.
    const wanted = lines.map(([name, , hue]) => name + colour(this.element, hue)).join() + this.ink();
    if (this.plot && this.drawn === wanted) this.plot.setData(this.data);
    else this.draw(wanted);
    this.tell(null);
  }

  ink() {
    return getComputedStyle(this.element).color;
  }

  draw(wanted) {
    this.plot?.destroy();
    this.drawn = wanted;
    const ink = this.ink();
    const grid = { stroke: "rgba(128,128,128,.18)", width: 1 };
    const axis = { stroke: ink, grid, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const unit = this.about.unit;
    this.legend.replaceChildren(
      ...this.lines.map(([, label, hue]) =>
        make("span", {}, make("i", { style: `background:${colour(this.element, hue)}` }), `${label} `, make("b", {}, "–")),
      ),
    );
    this.plot = new uPlot(
      {
        width: Math.max(120, this.place.clientWidth),
        height: HEIGHT,
        legend: { show: false },
        cursor: { sync: { key: this.sync.key }, y: false, points: { size: 5 } },
        scales: { y: { range: unit === "percent" ? [0, 100] : (_, __, most) => [0, Math.max(1, most * 1.1)] } },
        axes: [
          { ...axis, space: 60, size: 22 },
          {
            ...axis,
            size: unit === "bytes" ? 58 : 40,
            space: 26,
            incrs: unit === "tasks" ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] : undefined,
            values: (_, values) => values.map((value) => figure(unit, value)),
          },
        ],
        series: [
          {},
          ...this.lines.map(([, label, hue]) => ({
            label,
            stroke: colour(this.element, hue),
            width: 1.5,
            points: { show: false },
            spanGaps: false,
          })),
        ],
        hooks: { setCursor: [(plot) => this.tell(plot.cursor.idx)] },
      },
      this.data,
      this.place,
    );
    this.sync.sub(this.plot);
  }

  tell(index) {
    const said = this.lines.map(([, label], number) => {
      const values = this.data[number + 1];
      const value = index == null ? values.findLast((each) => each != null) : values[index];
      const text = figure(this.about.unit, value);
      const shown = this.legend.children[number]?.querySelector("b");
      if (shown) write(shown, text);
      return `${label} ${text}`;
    });
    if (index == null) this.place.setAttribute("aria-label", `${this.about.title}: ${said.join(", ")}`);
  }

  resize() {
    const width = this.place.clientWidth;
    if (this.plot && width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  destroy() {
    this.plot?.destroy();
  }
}

export class Charts {
  constructor() {
    this.sync = uPlot.sync(`or-${Math.random()}`);
    this.charts = CHARTS.map((about) => new Chart(about, this.sync));
    this.element = make("div", { class: "or-charts" }, ...this.charts.map((chart) => chart.element));
    this.observer = new ResizeObserver(() => this.charts.forEach((chart) => chart.resize()));
    this.observer.observe(this.element);
  }

  /** `numbers` are float64: the times, then mean and maximum of each of `series`. Without a `gpu`, nothing is said of one. */
  update({ series, numbers }, gpu) {
    const view = numbers instanceof DataView ? numbers : new DataView(numbers.buffer ?? numbers);
    const all = new Float64Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
    const length = all.length / (1 + 2 * series.length);
    const times = Array.from(all.subarray(0, length));
    const columns = new Map();
    series.forEach(({ name }, number) => {
      const start = length * (1 + 2 * number);
      columns.set(
        name,
        Array.from(all.subarray(start, start + length), (value) => (Number.isNaN(value) ? null : value)),
      );
    });
    for (const chart of this.charts) chart.update(times, columns, gpu);
  }

  close() {
    this.observer.disconnect();
    for (const chart of this.charts) chart.destroy();
  }
}
