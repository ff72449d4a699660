"""Device usage: idle and queueing time, unused concurrency, wasted work, and durations compared with earlier ones."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from openruntime_jupyter.ai.insights.dataset import Dataset
from openruntime_jupyter.ai.insights.finding import FindingDraft
from openruntime_jupyter.ai.insights.formatting import called, listed, moment, number, percent, seconds, several, share, size
from openruntime_jupyter.ai.insights.statistics import CHANCE, rank_sum
from openruntime_jupyter.runtime.storage.insights import Ran

LEAST_IDLE = 0.5
LONG_WAIT = 60.0
NOTABLE_WAIT = 1.0
BUSY = 60.0
"""Percent of utilization below which a device can run more tasks."""
LEAST_WAITING = 10
"""Minimum number of points with pending tasks."""
SHORT = 0.05
MANY_SHORT = 200
LEAST_WASTED = 60.0
SLOWER = 1.5
LEAST_SLOWER = 0.005
LARGEST = 3


def idle(dataset: Dataset) -> list[FindingDraft]:
    """Return the idle time."""
    most = dataset.columns.known("active_tasks", "max")
    if not dataset.enough or not most.size or (quiet := float((most == 0).mean())) < LEAST_IDLE:
        return []
    text = f"No tasks ran for {percent(100 * quiet)} of the recorded time ({seconds(quiet * most.size * dataset.columns.step)})."
    keep = dataset.environment.settings.idle_worker_seconds
    advice = (
        "Schedule deferrable work there. Idle workers, except one per device, exit after OpenRuntimeApp.idle_worker_seconds "
        f"(now {number(keep)} s)."
    )
    figures: dict[str, float | None] = {"idle_percent": 100 * quiet, "idle_seconds": quiet * most.size * dataset.columns.step}
    return [FindingDraft("idle", text, 30.0, "info", advice, "active_tasks", figures)]


def queueing(dataset: Dataset) -> list[FindingDraft]:
    """Return the queueing time if it was long compared with the run time."""
    waited = [task for task in dataset.ended.tasks if task.waited is not None]
    if len(waited) < LEAST_WAITING:
        return []
    waits = np.array([task.waited for task in waited], dtype=np.float64)
    runs = np.array([task.seconds or 0.0 for task in waited])
    late, typical = float(np.percentile(waits, 95)), float(np.median(runs))
    if late < max(NOTABLE_WAIT, typical):
        return []
    longest = max(waited, key=lambda task: task.waited or 0.0)
    text = (
        f"Tasks waited {seconds(float(np.median(waits)))} before they started (median; 95th percentile {seconds(late)}) and ran "
        f"{seconds(typical)}. The longest wait was {called(longest)}: {seconds(float(waits.max()))}, until "
        f"{moment(longest.started or 0.0, dataset.end, 1.0)}."
    )
    figures: dict[str, float | None] = {
        "wait_median_s": float(np.median(waits)),
        "wait_p95_s": late,
        "wait_max_s": float(waits.max()),
        "run_median_s": typical,
    }
    advice = "Give urgent tasks a higher `priority` (up to 10); combine similar tasks into one, or submit them with one POST /tasks/batch."
    draft = FindingDraft("queueing", text, 60.0, "warning" if late >= LONG_WAIT else "notice", advice, "queue_time", figures)
    draft.tasks = sorted(waited, key=lambda task: -(task.waited or 0.0))
    return [draft]


def underused(dataset: Dataset) -> list[FindingDraft]:
    """Return the utilization of the device while tasks waited for it."""
    columns, environment = dataset.columns, dataset.environment
    figure, label = ("gpu_utilization", "GPU utilization") if environment.has_gpu else ("cpu_utilization", "CPU utilization")
    busy, active = columns.of(figure), columns.of("active_tasks")
    waiting = (columns.of("pending_tasks") >= 0.5) & ~np.isnan(busy)
    if not dataset.enough or waiting.sum() < LEAST_WAITING:
        return []
    level, running = float(busy[waiting].mean()), float(np.nanmean(active[waiting]))
    if level >= BUSY:
        return []
    times = columns.times[waiting]
    text = (
        f"While tasks waited, for {seconds(float(waiting.sum()) * columns.step)} in total, {label} averaged only {percent(level)}, with "
        f"{number(running)} of {several(environment.slots, 'slot')} in use."
    )
    figures: dict[str, float | None] = {
        "utilization_mean": level,
        "waiting_s": float(waiting.sum()) * columns.step,
        "running_mean": running,
    }
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
            figures: dict[str, float | None] = {"tasks": float(count), "run_median_s": typical}
            found.append(FindingDraft("short_tasks", text, 45.0, "notice", advice, "run_time", figures))
    return sorted(found, key=lambda draft: -(draft.figures["tasks"] or 0.0))[:2]


def wasted(dataset: Dataset) -> list[FindingDraft]:
    """Return the device time of tasks that did not complete."""
    ran = [task for task in dataset.ended.tasks if task.seconds is not None]
    lost = [task for task in ran if task.state != "completed"]
    total, gone = (sum(task.seconds or 0.0 for task in tasks) * dataset.ended.weight for tasks in (ran, lost))
    if gone < max(LEAST_WASTED, 0.1 * total):
        return []
    states: dict[str, float] = defaultdict(float)
    for task in lost:
        states[task.state.replace("_", " ")] += (task.seconds or 0.0) * dataset.ended.weight
    parts = listed([f"{seconds(time)} {state}" for state, time in sorted(states.items(), key=lambda each: -each[1])])
    text = f"{seconds(gone)} of {seconds(total)} on the devices ({share(gone, total)}) went to tasks that did not complete: {parts}."
    advice = "Use a `timeout` to stop hanging tasks earlier, and test on less data first."
    draft = FindingDraft("wasted", text, 50.0, "notice", advice, None, {"wasted_s": gone, "run_s": total, "percent": 100 * gone / total})
    draft.tasks = sorted(lost, key=lambda task: -(task.seconds or 0.0))
    return [draft]


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
        figures: dict[str, float | None] = {"run_median_s": now, "before_median_s": before, "ratio": now / before}
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
    ran = [task for task in dataset.ended.tasks if task.seconds is not None and task.device is not None]
    total = sum(task.seconds or 0.0 for task in ran)
    aside = [task for task in ran if task.device not in gpus and task.device != "remote"]
    beside = sum(task.seconds or 0.0 for task in aside)
    if gpus and total and beside > total / 2 and beside * dataset.ended.weight > LEAST_WASTED:
        text = f"{share(beside, total)} of the run time of tasks ({seconds(beside * dataset.ended.weight)}) was on the CPU, despite a GPU."
        advice = "Leave `device_preference` at `auto`, or set it to `gpu`."
        draft = FindingDraft("device", text, 50.0, "notice", advice, None, {"cpu_seconds": beside * dataset.ended.weight})
        draft.tasks = sorted(aside, key=lambda task: -(task.seconds or 0.0))
        found.append(draft)
    return found


def largest(dataset: Dataset) -> list[FindingDraft]:
    """Return the tasks with the highest memory usage."""

    def held(task: Ran) -> float:
        return max(task.peak_memory or 0.0, task.mlx_memory or 0.0)

    tasks = sorted((task for task in dataset.ended.tasks if held(task)), key=lambda task: -held(task))[:LARGEST]
    if not tasks:
        return []
    total = dataset.environment.memory_total
    parts = [f"{called(task)[:-1]}; {size(held(task))}, {share(held(task), total)} of the machine's)" for task in tasks]
    kind = "task with the highest memory usage was" if len(parts) == 1 else "tasks with the highest memory usage were"
    draft = FindingDraft("largest", f"The {kind} {listed(parts)}.", 40.0, "info", None, None, {"peak_bytes": held(tasks[0])})
    draft.tasks = tasks
    return [draft]
