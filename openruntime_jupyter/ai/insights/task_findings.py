"""Findings about tasks: failures, waiting, durations, wasted work, devices and memory. Cancelled tasks are not failures."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from openruntime_jupyter.ai.insights.dataset import Dataset
from openruntime_jupyter.ai.insights.finding import (
    Figures,
    FindingDraft,
    called,
    listed,
    memory_of,
    moment,
    number,
    seconds,
    several,
    share,
    span,
)
from openruntime_jupyter.ai.insights.statistics import CHANCE, Array, burst, rank_sum
from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.runtime.storage.insights import TaskRow
from openruntime_jupyter.schemas.insights import Severity
from openruntime_jupyter.schemas.tasks import FailureKind

INTERVALS = 500
"""Number of intervals of the timeframe in the search for bursts."""
MOST_BURSTS = 3
MANY_FAILURES = 0.05
"""Share of failures above which a finding is a warning."""
OF_MEMORY = (FailureKind.MEMORY, FailureKind.WORKER_DIED)
LONGEST_MESSAGE = 120
LEAST_WAITING = 10
"""Minimum number of tasks to assess waiting times."""
LONG_WAIT = 60.0
NOTABLE_WAIT = 1.0
SHORT = 0.05
MANY_SHORT = 200
LEAST_WASTED = 60.0
SLOWER = 1.5
LEAST_SLOWER = 0.005
LARGEST = 3

ADVICE = {
    FailureKind.RAISED: "The tasks' own code raised: `failure` has the traceback (`%openruntime result {task}`, or GET /tasks/{task}). "
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


def failures(dataset: Dataset, kinds: tuple[FailureKind, ...] | None = None) -> list[FindingDraft]:
    """Return the number of failures of these kinds, or of all, with the most common causes."""
    found = [task for task in dataset.ended.failures if kinds is None or task.kind in kinds]
    if not found:
        return []
    by_kind = Counter(task.kind or UNKNOWN for task in found)
    by_operation = Counter(task.operation for task in found)
    total = max(dataset.ended.number, len(found))
    first, last = (task.finished or 0.0 for task in (found[0], found[-1]))
    text = (
        f"{len(found):,} of {total:,} tasks ({share(len(found), total)}) did not complete, {span(dataset, first, last)}. "
        f"By kind: {_ways(by_kind)}; by operation: {_counted(by_operation)}.{_messages(found)}"
    )
    severe = len(found) / total >= MANY_FAILURES or any(task.kind in OF_MEMORY for task in found)
    figures: Figures = {"failures": float(len(found)), "percent": 100 * len(found) / total}
    figures |= {f"{kind}_failures": float(count) for kind, count in by_kind.items()}
    draft = FindingDraft(
        "failures", text, 70.0, "warning" if severe else "notice", _advice(dataset, by_kind, found), None, figures, first, last
    )
    draft.tasks = found[::-1]
    return [draft]


def _messages(found: list[TaskRow]) -> str:
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


def _advice(dataset: Dataset, kinds: Counter[str], found: list[TaskRow]) -> str | None:
    """Return advice on the most common kind of the failed tasks `found`, with the newest one as the example."""
    settings = dataset.environment.settings
    for kind, _ in kinds.most_common():
        if kind in ADVICE:
            newest = next(task.task_id for task in reversed(found) if (task.kind or UNKNOWN) == kind)
            return ADVICE[FailureKind(kind)].format(task=newest, cpu_slots=settings.cpu_slot_count, gpu_slots=settings.gpu_slots)
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


def _counts(tasks: list[TaskRow], edges: Array) -> Array:
    return np.histogram([task.finished or 0.0 for task in tasks], edges)[0].astype(np.float64)


def _burst(dataset: Dataset, inside: list[TaskRow], ended: int, failed_else: int, ended_else: int) -> FindingDraft:
    times = np.array([task.finished or 0.0 for task in inside])
    first, last, at = float(times[0]), float(times[-1]), float(np.median(times))
    kinds, operations = (Counter(getattr(task, field) or UNKNOWN for task in inside) for field in ("kind", "operation"))
    elsewhere = f"{failed_else:,} of {ended_else:,} in the rest of the time" if ended_else else "no tasks in the rest of the time"
    text = (
        f"Failures came in a burst {_when(dataset, first, last, at)}: {len(inside):,} of "
        f"{max(ended, len(inside)):,} tasks that ended then, against {elsewhere}; {_ways(kinds)}, in {_counted(operations)}."
        + _messages(inside)
    )
    figures: Figures = {
        "failures": float(len(inside)),
        "ended": float(max(ended, len(inside))),
        "failures_elsewhere": float(failed_else),
        "ended_elsewhere": float(ended_else),
    }
    draft = FindingDraft(
        "burst", text, 90.0, "warning", _advice(dataset, kinds, inside), "failed_tasks", figures, first, last, at, float(len(inside))
    )
    draft.tasks = inside
    return draft


def _when(dataset: Dataset, first: float, last: float, at: float) -> str:
    """Return an interval, with the time `at` unless that is one of its ends."""
    interval, middle = span(dataset, first, last), moment(at, dataset.end, 1.0)
    return interval if middle in interval else f"{interval}, mostly around {middle}"


def queueing(dataset: Dataset) -> list[FindingDraft]:
    """Return the queueing time if it was long compared with the run time."""
    waited = sorted((task for task in dataset.ended.tasks if task.waited is not None), key=lambda task: -(task.waited or 0.0))
    if len(waited) < LEAST_WAITING:
        return []
    waits = np.array([task.waited for task in waited], dtype=np.float64)
    late, typical = float(np.percentile(waits, 95)), float(np.median([_run_time(task) for task in waited]))
    if late < max(NOTABLE_WAIT, typical):
        return []
    longest = waited[0]
    text = (
        f"Tasks waited {seconds(float(np.median(waits)))} before they started (median; 95th percentile {seconds(late)}) and ran "
        f"{seconds(typical)}. The longest wait was {called(longest)}: {seconds(float(waits.max()))}, until "
        f"{moment(longest.started or 0.0, dataset.end, 1.0)}."
    )
    figures: Figures = {
        "wait_median_s": float(np.median(waits)),
        "wait_p95_s": late,
        "wait_max_s": float(waits.max()),
        "run_median_s": typical,
    }
    advice = "Give urgent tasks a higher `priority` (up to 10); combine similar tasks into one, or submit them with one POST /tasks/batch."
    severity: Severity = "warning" if late >= LONG_WAIT else "notice"
    return [FindingDraft("queueing", text, 60.0, severity, advice, "queue_time", figures, tasks=waited)]


def short_tasks(dataset: Dataset) -> list[FindingDraft]:
    """Return operations with many short tasks, for which the overhead exceeds the run time."""
    times: dict[str, list[float]] = defaultdict(list)
    for task in dataset.completed:
        if task.seconds is not None:
            times[task.operation].append(task.seconds)
    found = []
    for operation, ran in times.items():
        count, typical = len(ran) * dataset.ended.weight, float(np.median(ran))
        if count >= MANY_SHORT and typical < SHORT:
            text = f"{several(count, 'task')} of `{operation}` took {seconds(typical)} each (median)."
            advice = "Submit many of them in one request with POST /tasks/batch, or as fewer, larger tasks with client.map()."
            figures: Figures = {"tasks": float(count), "run_median_s": typical}
            found.append(FindingDraft("short_tasks", text, 45.0, "notice", advice, "run_time", figures))
    return sorted(found, key=lambda draft: -(draft.figures["tasks"] or 0.0))[:2]


def wasted(dataset: Dataset) -> list[FindingDraft]:
    """Return the device time of tasks that did not complete."""
    lost = [task for task in dataset.ended.tasks if task.state != "completed"]
    total, gone = (sum(map(_run_time, tasks)) * dataset.ended.weight for tasks in (dataset.ended.tasks, lost))
    if gone < max(LEAST_WASTED, 0.1 * total):
        return []
    states: dict[str, float] = defaultdict(float)
    for task in lost:
        states[task.state.replace("_", " ")] += _run_time(task) * dataset.ended.weight
    parts = listed([f"{seconds(time)} {state}" for state, time in sorted(states.items(), key=lambda each: -each[1])])
    text = f"{seconds(gone)} of {seconds(total)} on the devices ({share(gone, total)}) went to tasks that did not complete: {parts}."
    advice = "Use a `timeout` to stop hanging tasks earlier, and test on less data first."
    figures: Figures = {"wasted_s": gone, "run_s": total, "percent": 100 * gone / total}
    tasks = sorted(lost, key=_run_time, reverse=True)
    return [FindingDraft("wasted", text, 50.0, "notice", advice, figures=figures, tasks=tasks)]


def _run_time(task: TaskRow) -> float:
    return task.seconds or 0.0


def slower(dataset: Dataset) -> list[FindingDraft]:
    """Return operations that took longer than before the timeframe, with the same name and parameters."""
    found = []
    for each in dataset.compared:
        now, before = float(np.median(each.lately)), float(np.median(each.before))
        chance = rank_sum(each.lately, each.before) * len(dataset.compared)
        if before <= 0 or now < max(SLOWER * before, before + LEAST_SLOWER) or chance > CHANCE:
            continue
        since = moment(dataset.begin, dataset.end, 60)
        text = (
            f"`{each.operation}` takes {number(now / before)} times as long as before, with the same parameters: {seconds(now)} (median of "
            f"{each.lately.size}), compared with {seconds(before)} before {since} (median of {each.before.size})."
        )
        advice = (
            "Check what else uses the device, and whether it throttles: GET /devices reports `advice` and, if available, the temperature."
        )
        figures: Figures = {"run_median_s": now, "before_median_s": before, "ratio": now / before}
        found.append(FindingDraft("slower", text, 75.0, "notice", advice, "run_time", figures))
    return found


def devices(dataset: Dataset) -> list[FindingDraft]:
    """Return the advice of devices, and tasks that ran on the CPU although there is a GPU."""
    found = [
        FindingDraft("device", f"{device.name} ({device.id}) does not perform optimally.", 55.0, "notice", device.advice)
        for device in dataset.environment.devices
        if device.advice
    ]
    gpus = {device.id for device in dataset.environment.devices if device.type == "gpu"}
    ran = [task for task in dataset.ended.tasks if task.device is not None]
    aside = [task for task in ran if task.device not in gpus and task.device != "remote"]
    total, beside = sum(map(_run_time, ran)), sum(map(_run_time, aside))
    if gpus and total and beside > total / 2 and beside * dataset.ended.weight > LEAST_WASTED:
        text = f"{share(beside, total)} of the run time of tasks ({seconds(beside * dataset.ended.weight)}) was on the CPU, despite a GPU."
        advice = "Leave `device_preference` at `auto`, or set it to `gpu`."
        figures: Figures = {"cpu_seconds": beside * dataset.ended.weight}
        tasks = sorted(aside, key=_run_time, reverse=True)
        found.append(FindingDraft("device", text, 50.0, "notice", advice, figures=figures, tasks=tasks))
    return found


def largest(dataset: Dataset) -> list[FindingDraft]:
    """Return the tasks with the highest memory usage."""
    tasks = sorted(filter(memory_of, dataset.ended.tasks), key=memory_of, reverse=True)[:LARGEST]
    if not tasks:
        return []
    total = dataset.environment.memory_total
    parts = [f"{called(task)[:-1]}; {gigabytes(memory_of(task))}, {share(memory_of(task), total)} of the machine's)" for task in tasks]
    kind = "task with the highest memory usage was" if len(parts) == 1 else "tasks with the highest memory usage were"
    text = f"The {kind} {listed(parts)}."
    return [FindingDraft("largest", text, 40.0, figures={"peak_bytes": memory_of(tasks[0])}, tasks=tasks)]
