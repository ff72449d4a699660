"""Failed tasks: their number, causes and bursts. Cancelled tasks do not count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from openruntime_jupyter.ai.insights.dataset import Dataset
from openruntime_jupyter.ai.insights.finding import Finder, FindingDraft, span
from openruntime_jupyter.ai.insights.formatting import listed, moment, share
from openruntime_jupyter.ai.insights.statistics import Array, burst
from openruntime_jupyter.runtime.storage.insights import Ran
from openruntime_jupyter.schemas.tasks import FailureKind

INTERVALS = 500
"""Number of intervals of the timeframe in the search for bursts."""
MOST_BURSTS = 3
MANY = 0.05
"""Share of failures above which a finding is a warning."""
OF_MEMORY = (FailureKind.MEMORY, FailureKind.WORKER_DIED)
LONGEST_MESSAGE = 120

ADVICE = {
    FailureKind.RAISED: "The tasks' own code raised: `failure` has the traceback (`%openruntime result {id}`, or GET /tasks/{id}). "
    "`retries` does not repeat such tasks.",
    FailureKind.WORKER_DIED: "Their worker processes died: `failure` has signal, peak memory and last output; `retries` repeats such "
    "tasks. If memory was the cause, run fewer at once: OpenRuntimeApp.cpu_slots (now {cpu_slots}), gpu_slots (now {gpu_slots}).",
    FailureKind.TIMED_OUT: "They exceeded their `timeout`: raise it, or split the work into smaller tasks.",
    FailureKind.MEMORY: "They exceeded their memory limit: make them smaller, run fewer at once (OpenRuntimeApp.cpu_slots, now "
    "{cpu_slots}), or raise OpenRuntimeApp.memory_limit.",
    FailureKind.NOT_STARTED: "No worker could be started for them: see GET /health and the server's log for the reason.",
    FailureKind.INTERRUPTED: 'The runtime stopped while they ran: the next runtime repeats tasks with `"wait": false` and `retries`.',
}
UNKNOWN = "unknown"
WAYS = {FailureKind.WORKER_DIED: "lost their worker", FailureKind.MEMORY: "took too much memory"}
"""Wording for failure kinds whose names do not fit the text."""


def failures(kinds: tuple[FailureKind, ...] | None = None) -> Finder:
    """Return a finder of failures of these kinds, or of all, with the most common causes."""
    return lambda dataset: _failures(dataset, lambda task: kinds is None or task.kind in kinds)


def _failures(dataset: Dataset, wanted: Callable[[Ran], bool]) -> list[FindingDraft]:
    found = [task for task in dataset.ended.failures if wanted(task)]
    if not found:
        return []
    kinds = Counter(task.kind or UNKNOWN for task in found)
    operations = Counter(task.operation for task in found)
    number = max(dataset.ended.number, len(found))
    ratio = len(found) / number
    first, last = (task.finished or 0.0 for task in (found[0], found[-1]))
    text = (
        f"{len(found):,} of {number:,} tasks ({share(len(found), number)}) did not complete, "
        f"{span(dataset, first, last)}. By kind: {_ways(kinds)}; by operation: {_counted(operations)}."
    )
    text += _messages(found)
    severe = ratio >= MANY or any(task.kind in OF_MEMORY for task in found)
    figures: dict[str, float | None] = {"failures": float(len(found)), "percent": 100 * ratio}
    figures |= {f"{kind}_failures": float(number) for kind, number in kinds.items()}
    draft = FindingDraft("failures", text, 70.0, "warning" if severe else "notice", _advice(dataset, kinds), None, figures, first, last)
    draft.tasks = found[::-1]
    return [draft]


def _messages(found: list[Ran]) -> str:
    """Return a sentence with the most common first line of the error messages."""
    messages = Counter(task.error.strip().splitlines()[0][:LONGEST_MESSAGE] for task in found if task.error and task.error.strip())
    if not messages:
        return ""
    message, times = messages.most_common(1)[0]
    return f' {"One" if times == 1 else "All" if times == len(found) else f"{times:,}"} of them with "{message}".'


def _ways(kinds: Counter[str]) -> str:
    ways: dict[str, str] = {kind.value: words for kind, words in WAYS.items()}
    return listed([f"{number:,} {ways.get(kind, kind.replace('_', ' '))}" for kind, number in kinds.most_common(3)])


def _counted(operations: Counter[str]) -> str:
    return listed([f"{number:,} `{name}`" for name, number in operations.most_common(3)])


def _advice(dataset: Dataset, kinds: Counter[str]) -> str | None:
    settings = dataset.environment.settings
    for kind, _ in kinds.most_common():
        if kind in ADVICE:
            return ADVICE[FailureKind(kind)].format(id="{id}", cpu_slots=settings.cpu_slot_count, gpu_slots=settings.gpu_slots)
    return None


def bursts(dataset: Dataset) -> list[FindingDraft]:
    """Return bursts: intervals in which significantly more of the ended tasks failed than in the remaining time."""
    edges = np.linspace(dataset.begin, dataset.end, INTERVALS + 1)
    failed = _counts(dataset.ended.failures, edges)
    ended = np.maximum(_counts(dataset.ended.tasks, edges) * dataset.ended.weight, failed)
    found: list[FindingDraft] = []
    while len(found) < MOST_BURSTS and (dense := burst(failed, ended)) is not None:
        inside = [task for task in dataset.ended.failures if edges[dense.first] <= (task.finished or 0.0) <= edges[dense.last + 1]]
        here = slice(dense.first, dense.last + 1)
        failed[here], ended[here] = 0.0, 0.0
        found.append(_burst(dataset, inside, round(dense.ended), round(failed.sum()), round(ended.sum())))
    return found


def _counts(tasks: list[Ran], edges: Array) -> Array:
    return np.histogram([task.finished or 0.0 for task in tasks], edges)[0].astype(np.float64)


def _burst(dataset: Dataset, inside: list[Ran], ended: int, failed_else: int, ended_else: int) -> FindingDraft:
    times = np.array([task.finished or 0.0 for task in inside])
    first, last, at = float(times[0]), float(times[-1]), float(np.median(times))
    kinds, operations = (Counter(getattr(task, field) or UNKNOWN for task in inside) for field in ("kind", "operation"))
    elsewhere = f"{failed_else:,} of {ended_else:,} in the rest of the time" if ended_else else "no tasks in the rest of the time"
    text = (
        f"Failures came in a burst {span(dataset, first, last)}, mostly around {moment(at, dataset.end, 1.0)}: {len(inside):,} of "
        f"{max(ended, len(inside)):,} tasks that ended then, against {elsewhere}; {_ways(kinds)}, in {_counted(operations)}."
        + _messages(inside)
    )
    figures: dict[str, float | None] = {
        "failures": float(len(inside)),
        "ended": float(max(ended, len(inside))),
        "failures_elsewhere": float(failed_else),
        "ended_elsewhere": float(ended_else),
    }
    draft = FindingDraft(
        "burst", text, 90.0, "warning", _advice(dataset, kinds), "failed_tasks", figures, first, last, at, float(len(inside))
    )
    draft.tasks = inside
    return draft
