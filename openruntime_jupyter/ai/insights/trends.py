"""What figures did over time: peaks, trends, and memory that only grows."""

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
"""Of one figure."""
FULL = 90.0
"""Percent of the machine's memory from which on it gets slow, or worse."""
SOON = 24 * 3600.0
LEAST_LEAK = 50e6
"""Bytes: Python and MLX take and give back so much anyway."""

AGAINST_LEAKS = (
    "Something keeps what it does not need any more: drop references and call mx.clear_cache() at the end of such tasks, or in the "
    "session in which they run. Freeing a session gives all of its memory back, and a cell or call without one takes a fresh process."
)


@dataclass(frozen=True)
class Trend:
    """A figure that is looked at, and how much of a change of it matters, in its unit."""

    figure: str
    label: str
    unit: Literal["percent", "bytes", "tasks"]
    column: Literal["mean", "max"]
    least: Callable[[Dataset], float]


MEMORY = (
    Trend("memory_usage", "Memory usage", "percent", "max", lambda evidence: 8.0),
    Trend("worker_memory", "The workers' memory", "bytes", "max", lambda evidence: max(200e6, 0.05 * evidence.place.memory_total)),
    Trend("gpu_memory", "The GPU's memory in use", "bytes", "max", lambda evidence: max(200e6, 0.05 * evidence.place.memory_total)),
)
LOAD = (
    Trend("gpu_utilization", "GPU utilization", "percent", "mean", lambda evidence: 30.0),
    Trend("cpu_utilization", "CPU utilization", "percent", "mean", lambda evidence: 30.0),
    Trend("pending_tasks", "The number of tasks that wait", "tasks", "max", lambda evidence: 5.0),
)


def peaks(courses: tuple[Trend, ...]) -> Finder:
    """Finds when these figures stood out, and who ran then."""
    return lambda evidence: [draft for course in courses for draft in _peaks(evidence, course)]


def _peaks(evidence: Dataset, course: Trend) -> list[FindingDraft]:
    columns, values = evidence.columns, evidence.columns.of(course.figure, course.column)
    if not evidence.enough:
        return []
    in_memory = course in MEMORY
    median = float(np.nanmedian(values)) if columns.known(course.figure).size else 0.0
    found = []
    for episode in episodes(values, least=course.least(evidence))[:MOST_PEAKS]:
        top = float(values[episode.top])
        start, end, at = (float(columns.times[place]) for place in (episode.first, episode.last, episode.top))
        full = course.figure == "memory_usage" and top >= FULL
        found.append(
            FindingDraft(
                "peak",
                f"{course.label} spiked to {amount(top, course.unit)} at {moment(at, evidence.end, columns.step)}, "
                f"{span(evidence, start, end + columns.step, columns.step)}, where the median is {amount(median, course.unit)}.",
                60.0 if in_memory else 30.0,
                "warning" if full else "notice" if in_memory else "info",
                _less_at_once(evidence) if in_memory else None,
                course.figure,
                {"peak": top, "median": median, "seconds": end + columns.step - start},
                start,
                end + columns.step,
                at,
                top,
                "memory" if in_memory else "time",
            )
        )
    return found


def _less_at_once(evidence: Dataset) -> str:
    limit = evidence.place.settings.memory_limit
    now = size(limit) if limit else f"nine tenths of the machine's memory, {size(0.9 * evidence.place.memory_total)}"
    return (
        "Let such tasks work on smaller pieces, or bound them: `memory_limit` of a task, or OpenRuntimeApp.memory_limit for all "
        f"(now {now}), stops one that grows past it."
    )


def trends(courses: tuple[Trend, ...]) -> Finder:
    """Finds which of these figures went one way over the whole timeframe."""
    return lambda evidence: [draft for course in courses for draft in _trend(evidence, course)]


def _trend(evidence: Dataset, course: Trend) -> list[FindingDraft]:
    if not evidence.enough:
        return []
    line = trend(evidence.columns.times, evidence.columns.of(course.figure))
    if line is None or abs(line.rise) < course.least(evidence):
        return []
    begin, end = (amount(max(0.0, value), course.unit) for value in (line.at_begin, line.at_end))
    text = f"{course.label} {'rose' if line.rise > 0 else 'fell'} steadily from {begin} to {end} {span(evidence, line.begin, line.end)}."
    draft = FindingDraft("trend", text, 40.0, "info", None, course.figure, _figures(line), line.begin, line.end)
    draft.value = line.at_end
    if course.figure == "memory_usage" and line.rise > 0:
        _until_full(draft, line, evidence.before("memory_usage"))
    elif course.figure == "pending_tasks" and line.rise > 0:
        draft.severity = "notice"
        draft.advice = (
            "More comes in than is done: submit less at once, give what is urgent a higher `priority`, or see what holds the slots."
        )
    return [draft]


def _until_full(draft: FindingDraft, line: Line, before: Array | None) -> None:
    """Where it goes, as far as can be told: not beyond twice the time that was seen, nor where it was as high a while ago."""
    if before is not None and before.size and float(before.max()) > line.at_begin + line.rise / 2:
        draft.text += f" It was at {percent(float(before.max()))} before that, too."
        return
    left = max(0.0, (FULL - line.at_end) / line.slope)
    if left > 2 * (line.end - line.begin):
        return
    draft.figures["seconds_until_90_percent"] = left
    draft.severity = "warning" if left < SOON else "notice"
    draft.text += f" At this pace it reaches {percent(FULL)} in {seconds(left)}."
    draft.advice = "See which program holds it: what is not the workers' memory is outside of this service."


def leaks(evidence: Dataset) -> list[FindingDraft]:
    """Memory of the workers that grew while tasks ran and was not given back, and operations whose tasks took more from task to task."""
    return [*_worker_leak(evidence), *_leaking_operations(evidence)]


def _worker_leak(evidence: Dataset) -> list[FindingDraft]:
    columns, values = evidence.columns, evidence.columns.of("worker_memory")
    if not evidence.enough or not columns.known("worker_memory").size:
        return []
    least = max(LEAST_LEAK, 0.1 * float(np.nanmedian(values)))
    line = climb(columns.times, values, least=least, before=evidence.before("worker_memory"))
    if line is None or not np.nanmax(columns.of("active_tasks", "max")[_within(columns.times, line)], initial=0.0) > 0:
        return []
    ended = sum(task.finished is not None and line.begin <= task.finished <= line.end for task in evidence.ended.tasks)
    tasks = ended * evidence.ended.weight
    figures = {**_figures(line), "tasks": tasks, "bytes_per_task": line.rise / tasks if tasks else None}
    each = f", about {size(line.rise / tasks)} for each of the {several(tasks, 'task')} that ended then" if tasks else ""
    text = (
        f"The workers' memory grew steadily from {size(max(0.0, line.at_begin))} to {size(line.at_end)} "
        f"{span(evidence, line.begin, line.end)} and was not given back: {size(3600 * line.slope)} an hour{each}."
    )
    left = (evidence.place.memory_total * FULL / 100 - line.at_end) / line.slope
    draft = FindingDraft("leak", text, 80.0, "warning" if left < SOON else "notice", AGAINST_LEAKS, "worker_memory", figures)
    draft.start, draft.end, draft.at, draft.value, draft.around = line.begin, line.end, line.end, line.at_end, "memory"
    return [draft]


def _leaking_operations(evidence: Dataset) -> list[FindingDraft]:
    by_operation: dict[str, list[Ran]] = defaultdict(list)
    for task in evidence.ended.tasks:
        if task.started is not None:
            by_operation[task.operation].append(task)
    return [draft for operation, tasks in by_operation.items() for draft in _leaking(evidence, operation, tasks)[:1]]


def _leaking(evidence: Dataset, operation: str, tasks: list[Ran]) -> list[FindingDraft]:
    """By what the process held or, where that tells nothing, by what MLX did, which on a GPU is not part of it."""
    found = []
    for label, measured in (
        ("the memory of their worker", [(task.finished or 0.0, task.peak_memory) for task in tasks if task.peak_memory is not None]),
        ("the memory that MLX took", [(task.finished or 0.0, task.mlx_memory) for task in tasks if task.mlx_memory is not None]),
    ):
        if len(measured) < 2 * LEAST_BLOCKS:
            continue
        times, values = (np.array(column, dtype=np.float64) for column in zip(*measured, strict=True))
        line = climb(times, values, least=max(LEAST_LEAK, 0.2 * float(np.median(values))), share=0.1)
        if line is None:
            continue
        then = [task for task in tasks if task.finished is not None and line.begin <= task.finished <= line.end]
        count = len(then) * evidence.ended.weight
        text = (
            f"From one `{operation}` task to the next {label} grew, from {size(max(0.0, line.at_begin))} to {size(line.at_end)} "
            f"{span(evidence, line.begin, line.end)}: {size(line.rise / count)} a task over {several(count, 'task')}."
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
