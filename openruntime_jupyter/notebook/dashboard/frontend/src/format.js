// Number formatting: with units and three digits, so that column widths are stable.

const SIZES = ["bytes", "kB", "MB", "GB", "TB"];

function digits(value, least = 3) {
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(2);
  return value.toLocaleString("en", { maximumSignificantDigits: 3, minimumSignificantDigits: least, useGrouping: true });
}

function scaled(value, least) {
  let power = 0;
  while (value >= 999.5 && power < SIZES.length - 1) {
    value /= 1000;
    power += 1;
  }
  return power === 0 ? `${Math.round(value)} ${SIZES[0]}` : `${digits(value, least)} ${SIZES[power]}`;
}

export function bytes(value) {
  return value == null ? "" : scaled(value, 3);
}

export function percent(value) {
  return value == null ? "" : `${Math.round(value)} %`;
}

export function seconds(value) {
  if (value == null) return "";
  if (value < 1e-3) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${Math.round(value * 1e3)} ms`;
  if (value < 60) return `${digits(value)} s`;
  return long(value);
}

/** Format a changing duration in whole seconds. */
export function long(value) {
  if (value == null) return "";
  const whole = Math.max(0, Math.floor(value));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const TIME = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };

export function clock(timestamp) {
  if (!timestamp) return "";
  const at = new Date(timestamp);
  const time = at.toLocaleTimeString([], TIME);
  return new Date().toDateString() === at.toDateString() ? time : `${day(at)} ${time}`;
}

/** Format the time of data that is no longer updated, with its date, because a saved page may be opened on another day. */
export function asOf(timestamp) {
  const at = new Date(timestamp);
  return `as of ${at.getDate()} ${at.toLocaleDateString("en", { month: "short" })} ${at.toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" })}`;
}

/** Format a time for an axis, with the precision of its steps. */
export function tick(at, step) {
  if (step >= 86_400) return day(at);
  return at.toLocaleTimeString([], { ...TIME, second: step < 60 ? "2-digit" : undefined });
}

export function day(at) {
  return at.toLocaleDateString([], { month: "short", day: "numeric" });
}

export function figure(unit, value) {
  if (value == null || Number.isNaN(value)) return "–";
  if (unit === "percent") return percent(value);
  if (unit === "bytes") return bytes(value);
  if (unit === "seconds") return seconds(value);
  return value.toLocaleString("en", { maximumFractionDigits: 1 });
}

/** Format a number for an axis, without trailing zeros. */
export function mark(unit, value) {
  if (value === 0) return "0";
  if (unit === "seconds") return value < 60 ? `${digits(value, 1)} s` : value < 3600 ? `${digits(value / 60, 1)} min` : `${digits(value / 3600, 1)} h`;
  return unit === "bytes" ? scaled(value, 1) : figure(unit, value);
}

/** Return the name of a file without its folders. */
export function fileName(path) {
  return path.split(/[\\/]/).pop();
}

export function spaced(name) {
  return name.replaceAll("_", " ");
}

/** Return words as a sentence, with a capital letter and a full stop. */
export function sentence(words) {
  return words[0].toUpperCase() + words.slice(1).replace(/([^.?!}])$/, "$1.");
}
