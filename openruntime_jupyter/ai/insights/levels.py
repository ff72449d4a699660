"""How it was: the levels of the figures over the timeframe, whatever they are."""

from __future__ import annotations

from collections import Counter

import numpy as np

from openruntime_jupyter.ai.insights.dataset import LEAST_POINTS, Dataset
from openruntime_jupyter.ai.insights.finding import FindingDraft
from openruntime_jupyter.ai.insights.formatting import amount, listed, number, percent, seconds, several, share, size
from openruntime_jupyter.ai.insights.statistics import Array
from openruntime_jupyter.runtime.storage.insights import MOST_FAILURES, UNCOMPLETED

WEIGHT = 99.0
ORDER = ("completed", "failed", "timed_out", "interrupted", "cancelled")


def performance(evidence: Dataset) -> list[FindingDraft]:
    """How busy the devices were, and how much was done."""
    parts, figures = _utilization(evidence)
    active, pending = evidence.columns.known("active_tasks"), evidence.columns.known("pending_tasks")
    if active.size and pending.size:
        parts.append(f"on average {number(active.mean())} tasks ran and {number(pending.mean())} waited")
        figures |= {"running_mean": float(active.mean()), "pending_mean": float(pending.mean())}
    ended, counted = _ended(evidence)
    return [_draft([*parts, ended], figures | counted)]


def memory(evidence: Dataset) -> list[FindingDraft]:
    """How much memory was in use."""
    parts: list[str] = []
    figures: dict[str, float | None] = {}
    for name, label, unit in (
        ("memory_usage", "memory usage", "percent"),
        ("worker_memory", "the workers' memory", "bytes"),
        ("gpu_memory", "the GPU's memory in use", "bytes"),
    ):
        values, highest = evidence.columns.known(name), evidence.columns.known(name, "max")
        if values.size:
            parts.append(f"{label} averaged {amount(values.mean(), unit)} ({_about(values, highest, unit)})")
            figures |= _figures(name, values, highest)
        else:
            figures[f"{name}_mean"] = None
    if not parts:
        parts.append("the machine's memory was not recorded")
    parts.append(f"the machine has {size(evidence.place.memory_total)}")
    return [_draft(parts, figures)]


def efficiency(evidence: Dataset) -> list[FindingDraft]:
    """How much of what is there was used."""
    parts, figures = _utilization(evidence)
    active = evidence.columns.known("active_tasks")
    if active.size:
        slots = evidence.place.slots
        parts.append(f"on average {number(active.mean())} of {several(slots, 'slot')} {'was' if slots == 1 else 'were'} in use")
        figures |= {"running_mean": float(active.mean()), "slots": float(slots)}
    ran = [task.seconds for task in evidence.ended.tasks if task.seconds is not None]
    if ran:
        total = sum(ran) * evidence.ended.weight
        parts.append(f"tasks that ended ran {seconds(total)} altogether, {seconds(float(np.median(ran)))} each (median)")
        figures |= {"run_seconds_total": total, "run_seconds_median": float(np.median(ran))}
    return [_draft(parts or ["nothing was recorded"], figures)]


def errors(evidence: Dataset) -> list[FindingDraft]:
    """What became of the tasks."""
    ended, figures = _ended(evidence)
    none = evidence.ended.number and not evidence.ended.failures
    return [_draft([ended, "none of them failed"] if none else [ended], figures)]


def _utilization(evidence: Dataset) -> tuple[list[str], dict[str, float | None]]:
    parts: list[str] = []
    figures: dict[str, float | None] = {}
    place, gpu, cpu = evidence.place, evidence.columns.known("gpu_utilization"), evidence.columns.known("cpu_utilization")
    if place.has_gpu and gpu.size:
        sound = ", a healthy load" if 50 <= gpu.mean() <= 95 and evidence.enough else ""
        highest = evidence.columns.known("gpu_utilization", "max")
        parts.append(f"GPU utilization averaged {percent(gpu.mean())} ({_about(gpu, highest, 'percent')}){sound}")
        figures |= _figures("gpu_utilization", gpu, highest)
    elif place.has_gpu:
        parts.append("the GPU's utilization can't be read here, so it is not judged")
        figures["gpu_utilization_mean"] = None
    elif place.devices:
        parts.append("there is no GPU here, so tasks computed on the CPU")
    if cpu.size:
        highest = evidence.columns.known("cpu_utilization", "max")
        parts.append(f"CPU utilization averaged {percent(cpu.mean())} ({_about(cpu, highest, 'percent')})")
        figures |= _figures("cpu_utilization", cpu, highest)
    return parts, figures


def _about(values: Array, highest: Array, unit: str) -> str:
    return f"median {amount(float(np.median(values)), unit)}, highest {amount(float(highest.max()), unit)}"


def _figures(name: str, values: Array, highest: Array) -> dict[str, float | None]:
    return {f"{name}_mean": float(values.mean()), f"{name}_median": float(np.median(values)), f"{name}_max": float(highest.max())}


def _ended(evidence: Dataset) -> tuple[str, dict[str, float | None]]:
    """What became of how many tasks; estimated from those that were drawn, where there are too many to look at each."""
    ended = evidence.ended
    if not ended.number:
        return "no task ended", {"tasks": 0.0}
    drawn = Counter(task.state for task in ended.tasks)
    counts = {state: drawn[state] * ended.weight for state in ORDER}
    if ended.weight > 1:
        failed = Counter(task.state for task in ended.failures)
        counts |= {state: failed[state] for state in UNCOMPLETED if failed[state] < MOST_FAILURES}
    counts = {state: count for state, count in counts.items() if count}
    about = "" if ended.weight == 1 else "about "
    parts = [f"{about}{count:,.0f} {state.replace('_', ' ')} ({share(count, ended.number)})" for state, count in counts.items()]
    text = f"{several(ended.number, 'task')} ended: {listed(parts)}"
    return text, {"tasks": float(ended.number), **{f"{state}_tasks": float(round(count)) for state, count in counts.items()}}


def _draft(parts: list[str], figures: dict[str, float | None]) -> FindingDraft:
    text = "; ".join(parts)
    return FindingDraft("levels", text[0].upper() + text[1:] + ".", WEIGHT, figures=figures)


def too_little(evidence: Dataset) -> FindingDraft | None:
    """How much there is and what would be needed; None where there is enough."""
    if evidence.enough:
        return None
    step, points = evidence.columns.step, evidence.columns.observed
    return FindingDraft(
        "too_little",
        f"There is too little history to tell peaks and trends from chance: {several(points, 'value')} of {seconds(step)} each, where "
        f"{LEAST_POINTS} are needed ({seconds(LEAST_POINTS * step)}), and {several(evidence.ended.number, 'ended task')}.",
        WEIGHT,
        "notice",
        advice="Ask again later." if evidence.timeframe == "5m" else "Ask again later, or for a shorter timeframe, which needs less.",
        figures={"values": float(points), "values_needed": float(LEAST_POINTS), "tasks": float(evidence.ended.number)},
    )


def nothing(evidence: Dataset) -> FindingDraft:
    """That there is nothing to tell."""
    return FindingDraft(
        "nothing",
        f"Nothing stands out in {seconds(evidence.columns.observed * evidence.columns.step)} of figures and "
        f"{several(evidence.ended.number, 'ended task')}: nothing of what was looked for is beyond chance.",
        1.0,
        figures={"observed_s": float(evidence.columns.observed * evidence.columns.step), "tasks": float(evidence.ended.number)},
    )
