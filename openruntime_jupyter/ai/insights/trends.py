"""Changes of metrics over time: peaks, trends and memory leaks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from openruntime_jupyter.ai.insights.dataset import Dataset
from openruntime_jupyter.ai.insights.finding import Finder, FindingDraft, span
from openruntime_jupyter.ai.insights.formatting import amount, moment, percent, seconds, several, size
from openruntime_jupyter.ai.insights.statistics import LEAST_BLOCKS, Array, Line, climb, episodes, trend
from openruntime_jupyter.runtime.storage.insights import Ran

MOST_PEAKS = 2
"""Maximum peaks per metric."""
FULL = 90.0
"""Percent of the machine's memory above which it becomes slow or runs out of memory."""
SOON = 24 * 3600.0
LEAST_LEAK = 50e6
"""Bytes. Python and MLX allocate and free this much in normal operation."""

AGAINST_LEAKS = (
    "Unused memory is not released: drop references and call mx.clear_cache() at the end of such tasks, or in their "
    "session. Freeing a session releases all of its memory, and cells or calls without a session use a fresh process."
)


@dataclass(frozen=True)
class Trend:
    """Metric to examine, with the smallest relevant change in its unit."""

    figure: str
    label: str
    unit: Literal["percent", "bytes", "tasks"]
    column: Literal["mean", "max"]
    least: Callable[[Dataset], float]


MEMORY = (
    Trend("memory_usage", "Memory usage", "percent", "max", lambda dataset: 8.0),
    Trend("worker_memory", "The workers' memory", "bytes", "max", lambda dataset: max(200e6, 0.05 * dataset.environment.memory_total)),
    Trend("gpu_memory", "The GPU's memory in use", "bytes", "max", lambda dataset: max(200e6, 0.05 * dataset.environment.memory_total)),
)
LOAD = (
    Trend("gpu_utilization", "GPU utilization", "percent", "mean", lambda dataset: 30.0),
    Trend("cpu_utilization", "CPU utilization", "percent", "mean", lambda dataset: 30.0),
    Trend("pending_tasks", "The number of pending tasks", "tasks", "max", lambda dataset: 5.0),
)


def peaks(metrics: tuple[Trend, ...]) -> Finder:
    """Return a finder of peaks of these metrics, with the tasks that ran at the time."""
    return lambda dataset: [draft for metric in metrics for draft in _peaks(dataset, metric)]


def _peaks(dataset: Dataset, metric: Trend) -> list[FindingDraft]:
    columns, values = dataset.columns, dataset.columns.of(metric.figure, metric.column)
    if not dataset.enough:
        return []
    in_memory = metric in MEMORY
    median = float(np.nanmedian(values)) if columns.known(metric.figure).size else 0.0
    found = []
    for episode in episodes(values, least=metric.least(dataset))[:MOST_PEAKS]:
        top = float(values[episode.top])
        start, end, at = (float(columns.times[index]) for index in (episode.first, episode.last, episode.top))
        full = metric.figure == "memory_usage" and top >= FULL
        found.append(
            FindingDraft(
                "peak",
                f"{metric.label} spiked to {amount(top, metric.unit)} at {moment(at, dataset.end, columns.step)}, "
                f"{span(dataset, start, end + columns.step, columns.step)}, where the median is {amount(median, metric.unit)}.",
                60.0 if in_memory else 30.0,
                "warning" if full else "notice" if in_memory else "info",
                _less_at_once(dataset) if in_memory else None,
                metric.figure,
                {"peak": top, "median": median, "seconds": end + columns.step - start},
                start,
                end + columns.step,
                at,
                top,
                "memory" if in_memory else "time",
            )
        )
    return found


def _less_at_once(dataset: Dataset) -> str:
    limit = dataset.environment.settings.memory_limit
    now = size(limit) if limit else f"nine tenths of the machine's memory, {size(0.9 * dataset.environment.memory_total)}"
    return (
        "Split such tasks into smaller parts, or limit them: `memory_limit` of a task, or OpenRuntimeApp.memory_limit for all "
        f"(now {now}), stops one that grows past it."
    )


def trends(metrics: tuple[Trend, ...]) -> Finder:
    """Return a finder of steady trends of these metrics over the timeframe."""
    return lambda dataset: [draft for metric in metrics for draft in _trend(dataset, metric)]


def _trend(dataset: Dataset, metric: Trend) -> list[FindingDraft]:
    if not dataset.enough:
        return []
    line = trend(dataset.columns.times, dataset.columns.of(metric.figure))
    if line is None or abs(line.rise) < metric.least(dataset):
        return []
    begin, end = (amount(max(0.0, value), metric.unit) for value in (line.at_begin, line.at_end))
    text = f"{metric.label} {'rose' if line.rise > 0 else 'fell'} steadily from {begin} to {end} {span(dataset, line.begin, line.end)}."
    draft = FindingDraft("trend", text, 40.0, "info", None, metric.figure, _figures(line), line.begin, line.end)
    draft.value = line.at_end
    if metric.figure == "memory_usage" and line.rise > 0:
        _until_full(draft, line, dataset.before("memory_usage"))
    elif metric.figure == "pending_tasks" and line.rise > 0:
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
    return [*_worker_leak(dataset), *_leaking_operations(dataset)]


def _worker_leak(dataset: Dataset) -> list[FindingDraft]:
    columns, values = dataset.columns, dataset.columns.of("worker_memory")
    if not dataset.enough or not columns.known("worker_memory").size:
        return []
    least = max(LEAST_LEAK, 0.1 * float(np.nanmedian(values)))
    line = climb(columns.times, values, least=least, before=dataset.before("worker_memory"))
    if line is None or not np.nanmax(columns.of("active_tasks", "max")[_within(columns.times, line)], initial=0.0) > 0:
        return []
    ended = sum(task.finished is not None and line.begin <= task.finished <= line.end for task in dataset.ended.tasks)
    tasks = ended * dataset.ended.weight
    figures = {**_figures(line), "tasks": tasks, "bytes_per_task": line.rise / tasks if tasks else None}
    each = f", about {size(line.rise / tasks)} for each of the {several(tasks, 'task')} that ended then" if tasks else ""
    text = (
        f"The workers' memory grew steadily from {size(max(0.0, line.at_begin))} to {size(line.at_end)} "
        f"{span(dataset, line.begin, line.end)} and was not released: {size(3600 * line.slope)} an hour{each}."
    )
    left = (dataset.environment.memory_total * FULL / 100 - line.at_end) / line.slope
    draft = FindingDraft("leak", text, 80.0, "warning" if left < SOON else "notice", AGAINST_LEAKS, "worker_memory", figures)
    draft.start, draft.end, draft.at, draft.value, draft.around = line.begin, line.end, line.end, line.at_end, "memory"
    return [draft]


def _leaking_operations(dataset: Dataset) -> list[FindingDraft]:
    by_operation: dict[str, list[Ran]] = defaultdict(list)
    for task in dataset.ended.tasks:
        if task.started is not None:
            by_operation[task.operation].append(task)
    return [draft for operation, tasks in by_operation.items() for draft in _leaking(dataset, operation, tasks)[:1]]


def _leaking(dataset: Dataset, operation: str, tasks: list[Ran]) -> list[FindingDraft]:
    """Return a leak in the process memory or else in MLX's memory, which on a GPU is not part of the process memory."""
    found = []
    for label, measured in (
        ("the memory of their worker", [(task.finished or 0.0, task.peak_memory) for task in tasks if task.peak_memory is not None]),
        ("MLX memory", [(task.finished or 0.0, task.mlx_memory) for task in tasks if task.mlx_memory is not None]),
    ):
        if len(measured) < 2 * LEAST_BLOCKS:
            continue
        times, values = (np.array(column, dtype=np.float64) for column in zip(*measured, strict=True))
        line = climb(times, values, least=max(LEAST_LEAK, 0.2 * float(np.median(values))), share=0.1)
        if line is None:
            continue
        then = [task for task in tasks if task.finished is not None and line.begin <= task.finished <= line.end]
        count = len(then) * dataset.ended.weight
        text = (
            f"Across `{operation}` tasks, {label} grew from {size(max(0.0, line.at_begin))} to {size(line.at_end)} "
            f"{span(dataset, line.begin, line.end)}: {size(line.rise / count)} a task over {several(count, 'task')}."
        )
        figures = {**_figures(line), "tasks": count, "bytes_per_task": line.rise / count}
        draft = FindingDraft("leak", text, 85.0, "warning", AGAINST_LEAKS, None, figures, line.begin, line.end, line.end)
        draft.tasks = sorted(then, key=lambda task: -(task.peak_memory or task.mlx_memory or 0.0))
        found.append(draft)
    return found


def _figures(line: Line) -> dict[str, float | None]:
    return {"from": line.at_begin, "to": line.at_end, "per_hour": 3600 * line.slope, "tau": line.tau}


def _within(times: np.ndarray, line: Line) -> np.ndarray:
    return (times >= line.begin) & (times <= line.end)
