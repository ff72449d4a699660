"""Tasks that did not complete though nobody stopped them: how many, why, and when many of them at once."""

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

PLACES = 500
"""Into how many pieces the timeframe is cut to look for bursts."""
MOST_BURSTS = 3
MANY = 0.05
"""The share of failures from which on something must be done."""
OF_MEMORY = (FailureKind.MEMORY, FailureKind.WORKER_DIED)
LONGEST_MESSAGE = 120

ADVICE = {
    FailureKind.RAISED: "The tasks' own code raised: `failure` of each has the traceback (`%openruntime result {id}`, or GET /tasks/{id}). "
    "`retries` does not help against that.",
    FailureKind.WORKER_DIED: "Their worker processes died: `failure` has signal, peak memory and last output; `retries` runs such tasks "
    "again. If memory was the reason, fewer at once help: OpenRuntimeApp.cpu_slots (now {cpu_slots}), gpu_slots (now {gpu_slots}).",
    FailureKind.TIMED_OUT: "They ran into their `timeout`: raise it, or do less in one task.",
    FailureKind.MEMORY: "They took more memory than they may: make them smaller, run fewer at once (OpenRuntimeApp.cpu_slots, now "
    "{cpu_slots}), or raise OpenRuntimeApp.memory_limit.",
    FailureKind.NOT_STARTED: "No worker could be started for them: GET /health and the server's log tell why.",
    FailureKind.INTERRUPTED: 'Their runtime ended under them: tasks with `"wait": false` and `retries` are run again by the next one.',
}
UNKNOWN = "unknown"
WAYS = {FailureKind.WORKER_DIED: "lost their worker", FailureKind.MEMORY: "took too much memory"}
"""What is said of those that ended so, where its name does not do."""


def failures(kinds: tuple[FailureKind, ...] | None = None) -> Finder:
    """Finds how many tasks failed, of these kinds or of all, and why most of them."""
    return lambda evidence: _failures(evidence, lambda task: kinds is None or task.kind in kinds)


def _failures(evidence: Dataset, wanted: Callable[[Ran], bool]) -> list[FindingDraft]:
    found = [task for task in evidence.ended.failures if wanted(task)]
    if not found:
        return []
    kinds = Counter(task.kind or UNKNOWN for task in found)
    operations = Counter(task.operation for task in found)
    number = max(evidence.ended.number, len(found))
    ratio = len(found) / number
    first, last = (task.finished or 0.0 for task in (found[0], found[-1]))
    text = (
        f"{len(found):,} of {number:,} tasks ({share(len(found), number)}) did not complete, "
        f"{span(evidence, first, last)}. By kind: {_ways(kinds)}; by operation: {_counted(operations)}."
    )
    text += _messages(found)
    severe = ratio >= MANY or any(task.kind in OF_MEMORY for task in found)
    figures: dict[str, float | None] = {"failures": float(len(found)), "percent": 100 * ratio}
    figures |= {f"{kind}_failures": float(number) for kind, number in kinds.items()}
    draft = FindingDraft("failures", text, 70.0, "warning" if severe else "notice", _advice(evidence, kinds), None, figures, first, last)
    draft.tasks = found[::-1]
    return [draft]


def _messages(found: list[Ran]) -> str:
    """The commonest first line of what they ended with."""
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


def _advice(evidence: Dataset, kinds: Counter[str]) -> str | None:
    settings = evidence.place.settings
    for kind, _ in kinds.most_common():
        if kind in ADVICE:
            return ADVICE[FailureKind(kind)].format(id="{id}", cpu_slots=settings.cpu_slot_count, gpu_slots=settings.gpu_slots)
    return None


def bursts(evidence: Dataset) -> list[FindingDraft]:
    """When more of the tasks that ended failed than in the rest of the time, beyond what chance makes."""
    edges = np.linspace(evidence.begin, evidence.end, PLACES + 1)
    failed = _counts(evidence.ended.failures, edges)
    ended = np.maximum(_counts(evidence.ended.tasks, edges) * evidence.ended.weight, failed)
    found: list[FindingDraft] = []
    while len(found) < MOST_BURSTS and (dense := burst(failed, ended)) is not None:
        inside = [task for task in evidence.ended.failures if edges[dense.first] <= (task.finished or 0.0) <= edges[dense.last + 1]]
        here = slice(dense.first, dense.last + 1)
        failed[here], ended[here] = 0.0, 0.0
        found.append(_burst(evidence, inside, round(dense.ended), round(failed.sum()), round(ended.sum())))
    return found


def _counts(tasks: list[Ran], edges: Array) -> Array:
    return np.histogram([task.finished or 0.0 for task in tasks], edges)[0].astype(np.float64)


def _burst(evidence: Dataset, inside: list[Ran], ended: int, failed_else: int, ended_else: int) -> FindingDraft:
    times = np.array([task.finished or 0.0 for task in inside])
    first, last, at = float(times[0]), float(times[-1]), float(np.median(times))
    kinds, operations = (Counter(getattr(task, field) or UNKNOWN for task in inside) for field in ("kind", "operation"))
    elsewhere = f"{failed_else:,} of {ended_else:,} in the rest of the time" if ended_else else "none ended in the rest of the time"
    text = (
        f"Failures came in a burst {span(evidence, first, last)}, most of them about {moment(at, evidence.end, 1.0)}: {len(inside):,} of "
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
        "burst", text, 90.0, "warning", _advice(evidence, kinds), "failed_tasks", figures, first, last, at, float(len(inside))
    )
    draft.tasks = inside
    return draft
