"""Findings about metrics over time: their levels, peaks, trends and memory leaks, idle time and unused devices."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from openruntime_jupyter.ai.insights.dataset import LEAST_POINTS, Dataset
from openruntime_jupyter.ai.insights.finding import (
    Figures,
    FindingDraft,
    amount,
    listed,
    memory_of,
    moment,
    number,
    percent,
    seconds,
    several,
    share,
    span,
)
from openruntime_jupyter.ai.insights.statistics import LEAST_BLOCKS, Array, Line, climb, episodes, trend
from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.runtime.storage.insights import MOST_FAILURES, UNCOMPLETED, TaskRow

LEVELS_WEIGHT = 99.0
STATES = ("completed", "failed", "timed_out", "interrupted", "cancelled")
MOST_PEAKS = 2
"""Maximum peaks per metric."""
FULL = 90.0
"""Percent of the machine's memory above which it becomes slow or runs out of memory."""
SOON = 24 * 3600.0
LEAST_LEAK = 50e6
"""Bytes. Python and MLX allocate and free this much in normal operation."""
LEAST_IDLE = 0.5
BUSY = 60.0
"""Percent of utilization below which a device can run more tasks."""
LEAST_WAITING = 10
"""Minimum number of points with pending tasks."""

AGAINST_LEAKS = (
    "Unused memory is not released: drop references and call mx.clear_cache() at the end of such tasks, or in their "
    "session. Freeing a session releases all of its memory, and cells or calls without a session use a fresh process."
)


@dataclass(frozen=True)
class Metric:
    """Metric to examine. `least` is the smallest relevant change in its unit; None depends on the machine's memory."""

    name: str
    label: str
    unit: Literal["percent", "bytes", "tasks"]
    column: Literal["mean", "max"]
    least: float | None

    def least_change(self, dataset: Dataset) -> float:
        """Return the smallest relevant change in the unit of the metric."""
        return max(200e6, 0.05 * dataset.environment.memory_total) if self.least is None else self.least


MEMORY = (
    Metric("memory_usage", "Memory usage", "percent", "max", 8.0),
    Metric("worker_memory", "The workers' memory", "bytes", "max", None),
    Metric("gpu_memory", "The GPU's memory in use", "bytes", "max", None),
)
LOAD = (
    Metric("gpu_utilization", "GPU utilization", "percent", "mean", 30.0),
    Metric("cpu_utilization", "CPU utilization", "percent", "mean", 30.0),
    Metric("pending_tasks", "The number of pending tasks", "tasks", "max", 5.0),
)

Part = tuple[str, Figures]
"""Clause of an overview with its numbers."""


def performance_levels(dataset: Dataset) -> list[FindingDraft]:
    """Return the device utilization and the number of finished tasks."""
    parts = _utilization(dataset)
    active, pending = dataset.columns.known("active_tasks"), dataset.columns.known("pending_tasks")
    if active.size and pending.size:
        running, waiting = float(active.mean()), float(pending.mean())
        text = f"on average {number(running)} tasks were running and {number(waiting)} pending"
        parts.append((text, {"running_mean": running, "pending_mean": waiting}))
    return [_overview([*parts, _ended(dataset)])]


def memory_levels(dataset: Dataset) -> list[FindingDraft]:
    """Return the memory usage."""
    parts = [part for metric in MEMORY for part in _level(dataset, metric.name, metric.label, metric.unit)]
    unknown: Figures = {f"{metric.name}_mean": None for metric in MEMORY}
    parts = parts or [("the machine's memory was not recorded", {})]
    overview = _overview([*parts, (f"the machine has {gigabytes(dataset.environment.memory_total)}", {})])
    overview.figures = unknown | overview.figures
    return [overview]


def efficiency_levels(dataset: Dataset) -> list[FindingDraft]:
    """Return the utilization of devices and slots."""
    parts = _utilization(dataset)
    active = dataset.columns.known("active_tasks")
    if active.size:
        slots, running = dataset.environment.slots, float(active.mean())
        text = f"on average {number(running)} of {several(slots, 'slot')} {'was' if slots == 1 else 'were'} in use"
        parts.append((text, {"running_mean": running, "slots": float(slots)}))
    ran = [task.seconds for task in dataset.ended.tasks if task.seconds is not None]
    if ran:
        total, typical = sum(ran) * dataset.ended.weight, float(np.median(ran))
        text = f"finished tasks ran {seconds(total)} in total, {seconds(typical)} each (median)"
        parts.append((text, {"run_seconds_total": total, "run_seconds_median": typical}))
    return [_overview(parts or [("nothing was recorded", {})])]


def error_levels(dataset: Dataset) -> list[FindingDraft]:
    """Return the number of tasks by final state."""
    none: list[Part] = [("none of them failed", {})] if dataset.ended.number and not dataset.ended.failures else []
    return [_overview([_ended(dataset), *none])]


def _overview(parts: Sequence[Part]) -> FindingDraft:
    text = "; ".join(text for text, _ in parts)
    figures: Figures = {name: value for _, part in parts for name, value in part.items()}
    return FindingDraft("levels", text[0].upper() + text[1:] + ".", LEVELS_WEIGHT, figures=figures)


def _level(dataset: Dataset, name: str, label: str, unit: str) -> list[Part]:
    """Return the mean, median and maximum of a metric, or nothing if it is unknown."""
    values = dataset.columns.known(name)
    if not values.size:
        return []
    mean, median, highest = float(values.mean()), float(np.median(values)), float(dataset.columns.known(name, "max").max())
    label = label if label.startswith(("GPU", "CPU")) else label[0].lower() + label[1:]
    text = f"{label} averaged {amount(mean, unit)} (median {amount(median, unit)}, highest {amount(highest, unit)})"
    return [(text, {f"{name}_mean": mean, f"{name}_median": median, f"{name}_max": highest})]


def _utilization(dataset: Dataset) -> list[Part]:
    parts: list[Part] = []
    environment, gpu = dataset.environment, _level(dataset, "gpu_utilization", "GPU utilization", "percent")
    if environment.has_gpu and gpu:
        [(text, figures)] = gpu
        healthy = dataset.enough and 50 <= (figures["gpu_utilization_mean"] or 0.0) <= 95
        parts.append((f"{text}, a healthy load" if healthy else text, figures))
    elif environment.has_gpu:
        unknown = "the GPU's utilization is not available on this machine, so it is not assessed"
        parts.append((unknown, {"gpu_utilization_mean": None}))
    elif environment.devices:
        parts.append(("this machine has no GPU, so tasks ran on the CPU", {}))
    return parts + _level(dataset, "cpu_utilization", "CPU utilization", "percent")


def _ended(dataset: Dataset) -> Part:
    """Return the number of tasks by final state, estimated from a sample if there are too many."""
    ended = dataset.ended
    if not ended.number:
        return "no task ended", {"tasks": 0.0}
    drawn = Counter(task.state for task in ended.tasks)
    counts = {state: drawn[state] * ended.weight for state in STATES}
    if ended.weight > 1:
        failed = Counter(task.state for task in ended.failures)
        counts |= {state: failed[state] for state in UNCOMPLETED if failed[state] < MOST_FAILURES}
    counts = {state: count for state, count in counts.items() if count}
    about = "" if ended.weight == 1 else "about "
    parts = [f"{about}{count:,.0f} {state.replace('_', ' ')} ({share(count, ended.number)})" for state, count in counts.items()]
    text = f"{several(ended.number, 'task')} ended: {listed(parts)}"
    return text, {"tasks": float(ended.number), **{f"{state}_tasks": float(round(count)) for state, count in counts.items()}}


def peaks(dataset: Dataset, metrics: Sequence[Metric]) -> list[FindingDraft]:
    """Return the peaks of these metrics. The tasks that ran at the time are attached later."""
    return [draft for metric in metrics for draft in _peaks(dataset, metric)] if dataset.enough else []


def _peaks(dataset: Dataset, metric: Metric) -> list[FindingDraft]:
    columns, values = dataset.columns, dataset.columns.of(metric.name, metric.column)
    in_memory = metric in MEMORY
    found = []
    for episode in episodes(values, least=metric.least_change(dataset))[:MOST_PEAKS]:
        top, median = float(values[episode.top]), float(np.nanmedian(values))
        start, end, at = (float(columns.times[index]) for index in (episode.first, episode.last, episode.top))
        end += columns.step
        interval, highest = span(dataset, start, end, columns.step), moment(at, dataset.end, columns.step)
        when = interval if highest in interval else f"at {highest}, {interval}"
        full = metric.name == "memory_usage" and top >= FULL
        found.append(
            FindingDraft(
                "peak",
                f"{metric.label} spiked to {amount(top, metric.unit)} {when}, where the median is {amount(median, metric.unit)}.",
                60.0 if in_memory else 30.0,
                "warning" if full else "notice" if in_memory else "info",
                advice=_less_at_once(dataset) if in_memory else None,
                figure=metric.name,
                figures={"peak": top, "median": median, "seconds": end - start},
                start=start,
                end=end,
                at=at,
                value=top,
                around="memory" if in_memory else "time",
            )
        )
    return found


def _less_at_once(dataset: Dataset) -> str:
    limit = dataset.environment.settings.memory_limit
    now = gigabytes(limit) if limit else f"nine tenths of the machine's memory, {gigabytes(0.9 * dataset.environment.memory_total)}"
    return (
        "Split such tasks into smaller parts, or limit them: `memory_limit` of a task, or OpenRuntimeApp.memory_limit for all "
        f"(now {now}), stops one that grows past it."
    )


def trends(dataset: Dataset, metrics: Sequence[Metric]) -> list[FindingDraft]:
    """Return the steady trends of these metrics over the timeframe."""
    return [draft for metric in metrics for draft in _trend(dataset, metric)] if dataset.enough else []


def _trend(dataset: Dataset, metric: Metric) -> list[FindingDraft]:
    line = trend(dataset.columns.times, dataset.columns.of(metric.name))
    if line is None or abs(line.rise) < metric.least_change(dataset):
        return []
    begin, end = (amount(max(0.0, value), metric.unit) for value in (line.at_begin, line.at_end))
    text = f"{metric.label} {'rose' if line.rise > 0 else 'fell'} steadily from {begin} to {end} {span(dataset, line.begin, line.end)}."
    draft = FindingDraft("trend", text, 40.0, figure=metric.name, figures=_figures(line), start=line.begin, end=line.end, value=line.at_end)
    if metric.name == "memory_usage" and line.rise > 0:
        _until_full(draft, line, dataset.before("memory_usage"))
    elif metric.name == "pending_tasks" and line.rise > 0:
        draft.severity = "notice"
        draft.advice = (
            "Tasks arrive faster than they finish: submit fewer at once, raise the `priority` of urgent tasks, or check the running tasks."
        )
    return [draft]


def _until_full(draft: FindingDraft, line: Line, before: Array | None) -> None:
    """Add a forecast of when memory is full: at most twice the observed time ahead, and not if it was as high before."""
    if before is not None and before.size and float(before.max()) > line.at_begin + line.rise / 2:
        draft.text += f" It reached {percent(float(before.max()))} earlier, too."
        return
    left = max(0.0, (FULL - line.at_end) / line.slope)
    if left > 2 * (line.end - line.begin):
        return
    draft.figures["seconds_until_90_percent"] = left
    draft.severity = "warning" if left < SOON else "notice"
    draft.text += f" At this pace it reaches {percent(FULL)} in {seconds(left)}."
    draft.advice = "Check which program uses it: memory outside the workers does not belong to this service."


def leaks(dataset: Dataset) -> list[FindingDraft]:
    """Return leaks: worker memory that grew and was not released, and operations whose tasks used more and more memory."""
    by_operation: dict[str, list[TaskRow]] = defaultdict(list)
    for task in dataset.ended.tasks:
        if task.started is not None:
            by_operation[task.operation].append(task)
    return [*_worker_leak(dataset), *(draft for name, tasks in by_operation.items() for draft in _operation_leak(dataset, name, tasks))]


def _worker_leak(dataset: Dataset) -> list[FindingDraft]:
    columns, values = dataset.columns, dataset.columns.of("worker_memory")
    if not dataset.enough or not columns.known("worker_memory").size:
        return []
    least = max(LEAST_LEAK, 0.1 * float(np.nanmedian(values)))
    line = climb(columns.times, values, least=least, before=dataset.before("worker_memory"))
    if line is None:
        return []
    within = (columns.times >= line.begin) & (columns.times <= line.end)
    if not np.nanmax(columns.of("active_tasks", "max")[within], initial=0.0) > 0:
        return []
    tasks = len(_ended_within(dataset.ended.tasks, line)) * dataset.ended.weight
    each = f", about {gigabytes(line.rise / tasks)} for each of the {several(tasks, 'task')} that ended then" if tasks else ""
    text = (
        f"The workers' memory grew steadily from {gigabytes(max(0.0, line.at_begin))} to {gigabytes(line.at_end)} "
        f"{span(dataset, line.begin, line.end)} and was not released: {gigabytes(3600 * line.slope)} an hour{each}."
    )
    left = (dataset.environment.memory_total * FULL / 100 - line.at_end) / line.slope
    figures = {**_figures(line), "tasks": tasks, "bytes_per_task": line.rise / tasks if tasks else None}
    draft = FindingDraft("leak", text, 80.0, "warning" if left < SOON else "notice", AGAINST_LEAKS, "worker_memory", figures)
    draft.start, draft.end, draft.at, draft.value, draft.around = line.begin, line.end, line.end, line.at_end, "memory"
    return [draft]


def _operation_leak(dataset: Dataset, operation: str, tasks: list[TaskRow]) -> list[FindingDraft]:
    """Return a leak in the process memory or else in MLX's memory, which on a GPU is not part of the process memory."""
    for label, measured in (
        ("the memory of their worker", [(task.finished or 0.0, task.peak_memory) for task in tasks if task.peak_memory is not None]),
        ("MLX memory", [(task.finished or 0.0, task.mlx_memory) for task in tasks if task.mlx_memory is not None]),
    ):
        if len(measured) < 2 * LEAST_BLOCKS:
            continue
        times, values = np.array(measured, dtype=np.float64).T
        line = climb(times, values, least=max(LEAST_LEAK, 0.2 * float(np.median(values))), share=0.1)
        if line is None:
            continue
        then = _ended_within(tasks, line)
        count = len(then) * dataset.ended.weight
        text = (
            f"Across `{operation}` tasks, {label} grew from {gigabytes(max(0.0, line.at_begin))} to {gigabytes(line.at_end)} "
            f"{span(dataset, line.begin, line.end)}: {gigabytes(line.rise / count)} a task over {several(count, 'task')}."
        )
        figures = {**_figures(line), "tasks": count, "bytes_per_task": line.rise / count}
        draft = FindingDraft("leak", text, 85.0, "warning", AGAINST_LEAKS, None, figures, line.begin, line.end, line.end)
        draft.tasks = sorted(then, key=memory_of, reverse=True)
        return [draft]
    return []


def _figures(line: Line) -> Figures:
    return {"from": line.at_begin, "to": line.at_end, "per_hour": 3600 * line.slope, "tau": line.tau}


def _ended_within(tasks: list[TaskRow], line: Line) -> list[TaskRow]:
    return [task for task in tasks if task.finished is not None and line.begin <= task.finished <= line.end]


def idle(dataset: Dataset) -> list[FindingDraft]:
    """Return the idle time."""
    most = dataset.columns.known("active_tasks", "max")
    if not dataset.enough or not most.size or (quiet := float((most == 0).mean())) < LEAST_IDLE:
        return []
    time = quiet * most.size * dataset.columns.step
    text = f"No tasks ran for {percent(100 * quiet)} of the recorded time ({seconds(time)})."
    advice = (
        "Schedule deferrable work there. Idle workers, except one per device, exit after OpenRuntimeApp.idle_worker_seconds "
        f"(now {number(dataset.environment.settings.idle_worker_seconds)} s)."
    )
    figures: Figures = {"idle_percent": 100 * quiet, "idle_seconds": time}
    return [FindingDraft("idle", text, 30.0, "info", advice, "active_tasks", figures)]


def underused(dataset: Dataset) -> list[FindingDraft]:
    """Return the utilization of the device while tasks waited for it."""
    columns, environment = dataset.columns, dataset.environment
    figure, label = ("gpu_utilization", "GPU utilization") if environment.has_gpu else ("cpu_utilization", "CPU utilization")
    busy, active = columns.of(figure), columns.of("active_tasks")
    waiting = (columns.of("pending_tasks") >= 0.5) & ~np.isnan(busy)
    if not dataset.enough or waiting.sum() < LEAST_WAITING or (level := float(busy[waiting].mean())) >= BUSY:
        return []
    running, waited = float(np.nanmean(active[waiting])), float(waiting.sum()) * columns.step
    text = (
        f"While tasks waited, for {seconds(waited)} in total, {label} averaged only {percent(level)}, with "
        f"{number(running)} of {several(environment.slots, 'slot')} in use."
    )
    figures: Figures = {"utilization_mean": level, "waiting_s": waited, "running_mean": running}
    times = columns.times[waiting]
    draft = FindingDraft("underused", text, 65.0, "notice", _more_at_once(dataset, running), figure, figures)
    draft.start, draft.end, draft.value = float(times[0]), float(times[-1]) + columns.step, level
    return [draft]


def _more_at_once(dataset: Dataset, running: float) -> str:
    settings = dataset.environment.settings
    if running < dataset.environment.slots - 0.5:
        return (
            "Free slots were available: `waiting_for` of a pending task says whether it waits for memory or for another runtime on "
            "the same device."
        )
    if dataset.environment.has_gpu:
        return f"If the tasks are small, run more of them at once: OpenRuntimeApp.gpu_slots (now {settings.gpu_slots})."
    return f"Run more tasks at once: OpenRuntimeApp.cpu_slots (now {settings.cpu_slot_count})."


def too_little(dataset: Dataset) -> FindingDraft:
    """Return the available and the required amount of data."""
    step, points = dataset.columns.step, dataset.columns.observed
    return FindingDraft(
        "too_little",
        f"There is too little history to distinguish peaks and trends from chance: {several(points, 'value')} of {seconds(step)} each, but "
        f"{LEAST_POINTS} are needed ({seconds(LEAST_POINTS * step)}), and {several(dataset.ended.number, 'ended task')}.",
        LEVELS_WEIGHT,
        "notice",
        "Try again later." if dataset.timeframe == "5m" else "Try again later, or use a shorter timeframe, which needs less data.",
        figures={"values": float(points), "values_needed": float(LEAST_POINTS), "tasks": float(dataset.ended.number)},
    )


def nothing(dataset: Dataset) -> FindingDraft:
    """Return the finding that nothing stands out."""
    observed = float(dataset.columns.observed * dataset.columns.step)
    text = (
        f"Nothing stands out in {seconds(observed)} of figures and {several(dataset.ended.number, 'ended task')}: "
        "all values are within random variation."
    )
    return FindingDraft("nothing", text, 1.0, figures={"observed_s": observed, "tasks": float(dataset.ended.number)})
