// Texts about a task.
import { clock, long, seconds, spaced } from "./format.js";

/** State symbols, as in cell outputs. None has an emoji presentation. */
export const SIGNS = {
  pending: "○",
  running: "●",
  completed: "✓",
  failed: "✕",
  cancelled: "■",
  timed_out: "✕",
  interrupted: "✕",
};
const SIGNALS = { 2: "SIGINT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM" };
const ENDS = {
  raised: "exception in the task",
  worker_died: "worker died",
  timed_out: "timeout",
  memory: "out of memory",
  not_started: "start failed",
  cancelled: "cancelled",
  interrupted: "runtime stopped",
};
const STAGES = {
  queue: "before it started",
  interrupt: "by an interrupt",
  terminate: "by ending its process",
  kill: "by killing its process",
};

export function live(task) {
  return task.status === "pending" || task.status === "running";
}

/** Return the word for a state. */
export function state(status) {
  return status === "pending" ? "waiting" : spaced(status);
}

export function called(task) {
  return task.name ?? task.operation;
}

export function signal(number) {
  return number == null ? null : SIGNALS[number] ? `${number} (${SIGNALS[number]})` : String(number);
}

export function end(kind) {
  return ENDS[kind] ?? kind;
}

export function stage(name) {
  return name && (STAGES[name] ?? name);
}

/** Return `next`, `2nd` or `13th`. */
function ordinal(place) {
  if (place === 1) return "next";
  const ending = place % 100 >= 10 && place % 100 <= 20 ? "th" : ({ 1: "st", 2: "nd", 3: "rd" }[place % 10] ?? "th");
  return `${place.toLocaleString("en")}${ending}`;
}

/** Return the line below the name: progress, reason for waiting, or error. */
export function how(task) {
  if (task.status === "pending") {
    const place = task.position && `${ordinal(task.position)} in line`;
    const start = task.estimated_start ? `starts about ${clock(task.estimated_start)}` : "";
    return [place, task.waiting_for && `waits for ${task.waiting_for}`, start].filter(Boolean).join(" · ");
  }
  const progress = task.progress;
  if (task.status === "running" && progress) {
    const done = progress.total ? `${Math.floor((100 * progress.n) / progress.total)} %` : String(progress.n);
    const left = progress.remaining != null ? `${long(progress.remaining)} left` : "";
    return [done, progress.message, left].filter(Boolean).join(" · ");
  }
  return task.error ?? "";
}

/** Return the memory of the worker in bytes: at present while the task runs, then its peak; null if unknown. */
export function memory(task) {
  if (live(task)) return task.resident_bytes;
  const peak = task.performance_metrics?.peak_memory_mb;
  return peak == null ? null : peak * 1e6;
}

/** Return the run time. `now` is the runtime's time in milliseconds. */
export function ran(task, now) {
  if (task.status === "running" && task.started_at) return long((now - Date.parse(task.started_at)) / 1000);
  return seconds(task.execution_time);
}
