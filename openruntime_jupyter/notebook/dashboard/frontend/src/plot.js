// Common parts of all charts: theme colours, axes and uPlot.
import uPlot from "uplot";
import { mark, tick } from "./format.js";

const FALLBACK = { brand: "#1976d2", warn: "#ef6c00", success: "#2e7d32", error: "#c62828" };
const FONT = "11px system-ui, sans-serif";
const AXIS = 56;

/** Return a colour of the theme. */
export function hue(element, name) {
  return getComputedStyle(element).getPropertyValue(`--jp-${name}-color1`).trim() || FALLBACK[name];
}

const brush = document.createElement("canvas").getContext("2d");

/** Return the colour with the opacity `alpha`, two hexadecimal digits. */
export function thin(colour, alpha) {
  brush.fillStyle = "#888888";
  brush.fillStyle = colour;
  return brush.fillStyle.startsWith("#") ? brush.fillStyle + alpha : brush.fillStyle;
}

/** Return the theme colours that a chart in `element` uses. A change requires a redraw. */
export function theme(element) {
  return [getComputedStyle(element).color, ...Object.keys(FALLBACK).map((name) => hue(element, name))].join();
}

/** Steps of a time axis, in seconds. */
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800];
const COUNTS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
const UP = {
  percent: [50],
  tasks: COUNTS,
  seconds: [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1].flatMap((step) => [step, 2 * step, 5 * step]).concat(STEPS),
};
/** Minimum distance of time labels in pixels, without and with seconds. */
const APART = [46, 62];

function range(unit) {
  if (unit === "percent") return [0, 100];
  return (_, __, most) => [0, Math.max(unit === "bytes" ? 1e6 : 1, (most ?? 0) * 1.1)];
}

/** Draw `data` (times and columns) as uPlot's `series` into `place`. */
export function draw(place, { unit, height, series, data, span, ...more }) {
  const ink = getComputedStyle(place).color;
  const grid = { stroke: "rgba(128,128,128,.16)", width: 1 };
  const axis = { stroke: ink, grid, ticks: { show: false }, font: FONT };
  return new uPlot(
    {
      width: Math.max(120, place.clientWidth),
      height,
      legend: { show: false },
      padding: [6, 16, 0, 0],
      scales: { x: { range: () => span() }, y: { range: range(unit) } },
      axes: [
        {
          ...axis,
          space: (_, __, from, to, pixels) => APART[Number(((to - from) / pixels) * APART[0] <= 30)],
          incrs: STEPS,
          size: 22,
          values: (_, values, __, ___, step) => values.map((value) => tick(new Date(value * 1000), step)),
        },
        {
          ...axis,
          size: AXIS,
          space: 28,
          gap: 6,
          incrs: UP[unit],
          values: (_, values) => values.map((value) => mark(unit, value)),
        },
      ],
      series: [{}, ...series],
      ...more,
    },
    data,
    place,
  );
}
