"""How well the devices were used: idle and queueing time, what could have run at once, work for nothing, durations against their past."""

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
"""Percent of utilisation below which a device has room for more."""
LEAST_WAITING = 10
"""Points with something waiting without which nothing is said of them."""
SHORT = 0.05
MANY_SHORT = 200
LEAST_WASTED = 60.0
SLOWER = 1.5
LEAST_SLOWER = 0.005
LARGEST = 3


def idle(evidence: Dataset) -> list[FindingDraft]:
    """How long nothing ran."""
    most = evidence.columns.known("active_tasks", "max")
    if not evidence.enough or not most.size or (quiet := float((most == 0).mean())) < LEAST_IDLE:
        return []
    text = f"Nothing ran for {percent(100 * quiet)} of the recorded time ({seconds(quiet * most.size * evidence.columns.step)})."
    keep = evidence.place.settings.idle_worker_seconds
    advice = (
        "Work that can wait fits there. Idle workers beyond one a device leave after OpenRuntimeApp.idle_worker_seconds "
        f"(now {number(keep)} s)."
    )
    figures: dict[str, float | None] = {"idle_percent": 100 * quiet, "idle_seconds": quiet * most.size * evidence.columns.step}
    return [FindingDraft("idle", text, 30.0, "info", advice, "active_tasks", figures)]


def queueing(evidence: Dataset) -> list[FindingDraft]:
    """How long tasks waited, where that was long against what they took."""
    waited = [task for task in evidence.ended.tasks if task.waited is not None]
    if len(waited) < LEAST_WAITING:
        return []
    waits = np.array([task.waited for task in waited], dtype=np.float64)
    runs = np.array([task.seconds or 0.0 for task in waited])
    late, typical = float(np.percentile(waits, 95)), float(np.median(runs))
    if late < max(NOTABLE_WAIT, typical):
        return []
    longest = max(waited, key=lambda task: task.waited or 0.0)
    text = (
        f"Tasks waited {seconds(float(np.median(waits)))} before they started (median; 95th percentile {seconds(late)}), where they ran "
        f"{seconds(typical)}. Longest waited {called(longest)}: {seconds(float(waits.max()))}, until "
        f"{moment(longest.started or 0.0, evidence.end, 1.0)}."
    )
    figures: dict[str, float | None] = {
        "wait_median_s": float(np.median(waits)),
        "wait_p95_s": late,
        "wait_max_s": float(waits.max()),
        "run_median_s": typical,
    }
    advice = "What must not wait gets a higher `priority` (up to 10); what is alike goes into one task, or into one POST /tasks/batch."
    draft = FindingDraft("queueing", text, 60.0, "warning" if late >= LONG_WAIT else "notice", advice, "queue_time", figures)
    draft.tasks = sorted(waited, key=lambda task: -(task.waited or 0.0))
    return [draft]


def underused(evidence: Dataset) -> list[FindingDraft]:
    """How busy the device was while something waited for it."""
    columns, place = evidence.columns, evidence.place
    figure, label = ("gpu_utilization", "GPU utilization") if place.has_gpu else ("cpu_utilization", "CPU utilization")
    busy, active = columns.of(figure), columns.of("active_tasks")
    waiting = (columns.of("pending_tasks") >= 0.5) & ~np.isnan(busy)
    if not evidence.enough or waiting.sum() < LEAST_WAITING:
        return []
    level, running = float(busy[waiting].mean()), float(np.nanmean(active[waiting]))
    if level >= BUSY:
        return []
    times = columns.times[waiting]
    text = (
        f"While tasks waited, for {seconds(float(waiting.sum()) * columns.step)} altogether, {label} averaged only {percent(level)}, with "
        f"{number(running)} of {several(place.slots, 'slot')} in use."
    )
    figures: dict[str, float | None] = {
        "utilization_mean": level,
        "waiting_s": float(waiting.sum()) * columns.step,
        "running_mean": running,
    }
    draft = FindingDraft("underused", text, 65.0, "notice", _more_at_once(evidence, running), figure, figures)
    draft.start, draft.end, draft.value = float(times[0]), float(times[-1]) + columns.step, level
    return [draft]


def _more_at_once(evidence: Dataset, running: float) -> str:
    settings = evidence.place.settings
    if running < evidence.place.slots - 0.5:
        return (
            "The slots were not the reason: `waiting_for` of a waiting task says whether it is memory, or the turn of another runtime on "
            "this machine."
        )
    if evidence.place.has_gpu:
        return f"If the tasks are small, let more of them compute at once: OpenRuntimeApp.gpu_slots (now {settings.gpu_slots})."
    return f"Let more tasks compute at once: OpenRuntimeApp.cpu_slots (now {settings.cpu_slot_count})."


def short_tasks(evidence: Dataset) -> list[FindingDraft]:
    """Many tasks that are over at once: sending each costs more than running it."""
    times: dict[str, list[float]] = defaultdict(list)
    for task in evidence.completed:
        if task.seconds is not None:
            times[task.operation].append(task.seconds)
    found = []
    for operation, ran in times.items():
        count, typical = len(ran) * evidence.ended.weight, float(np.median(ran))
        if count >= MANY_SHORT and typical < SHORT:
            text = f"{several(count, 'task')} of `{operation}` took {seconds(typical)} each (median)."
            advice = "Put many of them into one request by POST /tasks/batch, or into fewer and larger tasks by client.map()."
            figures: dict[str, float | None] = {"tasks": float(count), "run_median_s": typical}
            found.append(FindingDraft("short_tasks", text, 45.0, "notice", advice, "run_time", figures))
    return sorted(found, key=lambda draft: -(draft.figures["tasks"] or 0.0))[:2]


def wasted(evidence: Dataset) -> list[FindingDraft]:
    """Time on a device for tasks that came to nothing."""
    ran = [task for task in evidence.ended.tasks if task.seconds is not None]
    lost = [task for task in ran if task.state != "completed"]
    total, gone = (sum(task.seconds or 0.0 for task in tasks) * evidence.ended.weight for tasks in (ran, lost))
    if gone < max(LEAST_WASTED, 0.1 * total):
        return []
    states: dict[str, float] = defaultdict(float)
    for task in lost:
        states[task.state.replace("_", " ")] += (task.seconds or 0.0) * evidence.ended.weight
    parts = listed([f"{seconds(time)} {state}" for state, time in sorted(states.items(), key=lambda each: -each[1])])
    text = f"{seconds(gone)} of {seconds(total)} on the devices ({share(gone, total)}) went to tasks that did not complete: {parts}."
    advice = "A `timeout` ends what hangs earlier, and what is only tried can be tried on less data first."
    draft = FindingDraft("wasted", text, 50.0, "notice", advice, None, {"wasted_s": gone, "run_s": total, "percent": 100 * gone / total})
    draft.tasks = sorted(lost, key=lambda task: -(task.seconds or 0.0))
    return [draft]


def slower(evidence: Dataset) -> list[FindingDraft]:
    """Operations that took longer than before the timeframe, with the same name and parameters."""
    found = []
    for each in evidence.compared:
        now, before = float(np.median(each.lately)), float(np.median(each.before))
        chance = rank_sum(each.lately, each.before) * len(evidence.compared)
        if before <= 0 or now < max(SLOWER * before, before + LEAST_SLOWER) or chance > CHANCE:
            continue
        since = moment(evidence.begin, evidence.end, 60)
        text = (
            f"`{each.operation}` takes {number(now / before)} times as long as before, with the same parameters: {seconds(now)} (median of "
            f"{each.lately.size}), where it was {seconds(before)} before {since} (median of {each.before.size})."
        )
        advice = (
            "See what else computes on the device, and whether it throttles: GET /devices has its temperature where that can be read, and "
            "its `advice`."
        )
        figures: dict[str, float | None] = {"run_median_s": now, "before_median_s": before, "ratio": now / before}
        found.append(FindingDraft("slower", text, 75.0, "notice", advice, "run_time", figures))
    return found


def devices(evidence: Dataset) -> list[FindingDraft]:
    """What would make a device work, or work faster, as its workers say; and a GPU that is left aside."""
    found = [
        FindingDraft("device", f"{device.name} ({device.id}) is not at its best.", 55.0, "notice", device.advice)
        for device in evidence.place.devices
        if device.advice
    ]
    gpus = {device.id for device in evidence.place.devices if device.type == "gpu"}
    ran = [task for task in evidence.ended.tasks if task.seconds is not None and task.device is not None]
    total = sum(task.seconds or 0.0 for task in ran)
    aside = [task for task in ran if task.device not in gpus and task.device != "remote"]
    beside = sum(task.seconds or 0.0 for task in aside)
    if gpus and total and beside > total / 2 and beside * evidence.ended.weight > LEAST_WASTED:
        text = (
            f"{share(beside, total)} of the time that tasks took ({seconds(beside * evidence.ended.weight)}) was on the CPU, beside a GPU."
        )
        advice = "Leave `device_preference` at `auto`, or set it to `gpu`."
        draft = FindingDraft("device", text, 50.0, "notice", advice, None, {"cpu_seconds": beside * evidence.ended.weight})
        draft.tasks = sorted(aside, key=lambda task: -(task.seconds or 0.0))
        found.append(draft)
    return found


def largest(evidence: Dataset) -> list[FindingDraft]:
    """The tasks that held most memory."""

    def held(task: Ran) -> float:
        return max(task.peak_memory or 0.0, task.mlx_memory or 0.0)

    tasks = sorted((task for task in evidence.ended.tasks if held(task)), key=lambda task: -held(task))[:LARGEST]
    if not tasks:
        return []
    total = evidence.place.memory_total
    parts = [f"{called(task)[:-1]}; {size(held(task))}, {share(held(task), total)} of the machine's)" for task in tasks]
    kind = "task that held most memory was" if len(parts) == 1 else "tasks that held most memory were"
    draft = FindingDraft("largest", f"The {kind} {listed(parts)}.", 40.0, "info", None, None, {"peak_bytes": held(tasks[0])})
    draft.tasks = tasks
    return [draft]
