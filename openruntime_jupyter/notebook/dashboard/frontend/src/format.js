// Figures as people read them, in the words of the package's Python views.

const SIZES = ["bytes", "kB", "MB", "GB", "TB"];

export function bytes(value) {
  if (value == null) return "";
  let power = 0;
  while (value >= 1000 && power < SIZES.length - 1) {
    value /= 1000;
    power += 1;
  }
  return `${power === 0 ? Math.round(value) : value.toPrecision(3)} ${SIZES[power]}`;
}

export function percent(value) {
  return value == null ? "" : `${Math.round(value)} %`;
}

export function seconds(value) {
  if (value == null) return "";
  if (value < 1e-3) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${Math.round(value * 1e3)} ms`;
  if (value < 60) return `${value.toPrecision(3)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(value % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function clock(timestamp) {
  if (!timestamp) return "";
  const at = new Date(timestamp);
  const today = new Date().toDateString() === at.toDateString();
  const time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return today ? time : `${at.toLocaleDateString([], { month: "short", day: "numeric" })} ${time}`;
}

export function figure(unit, value) {
  if (value == null || Number.isNaN(value)) return "–";
  if (unit === "percent") return percent(value);
  if (unit === "bytes") return bytes(value);
  if (unit === "seconds") return seconds(value);
  return Number.isInteger(value) ? String(value) : value.toPrecision(3);
}

export function spaced(name) {
  return name.replaceAll("_", " ");
}
