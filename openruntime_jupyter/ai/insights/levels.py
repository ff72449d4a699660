"""Summary of the metrics over the timeframe."""

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


def performance(dataset: Dataset) -> list[FindingDraft]:
    """Return the device utilization and the number of finished tasks."""
    parts, figures = _utilization(dataset)
    active, pending = dataset.columns.known("active_tasks"), dataset.columns.known("pending_tasks")
    if active.size and pending.size:
        parts.append(f"on average {number(active.mean())} tasks were running and {number(pending.mean())} pending")
        figures |= {"running_mean": float(active.mean()), "pending_mean": float(pending.mean())}
    ended, counted = _ended(dataset)
    return [_draft([*parts, ended], figures | counted)]


def memory(dataset: Dataset) -> list[FindingDraft]:
    """Return the memory usage."""
    parts: list[str] = []
    figures: dict[str, float | None] = {}
    for name, label, unit in (
        ("memory_usage", "memory usage", "percent"),
        ("worker_memory", "the workers' memory", "bytes"),
        ("gpu_memory", "the GPU's memory in use", "bytes"),
    ):
        values, highest = dataset.columns.known(name), dataset.columns.known(name, "max")
        if values.size:
            parts.append(f"{label} averaged {amount(values.mean(), unit)} ({_about(values, highest, unit)})")
            figures |= _figures(name, values, highest)
        else:
            figures[f"{name}_mean"] = None
    if not parts:
        parts.append("the machine's memory was not recorded")
    parts.append(f"the machine has {size(dataset.environment.memory_total)}")
    return [_draft(parts, figures)]


def efficiency(dataset: Dataset) -> list[FindingDraft]:
    """Return the utilization of devices and slots."""
    parts, figures = _utilization(dataset)
    active = dataset.columns.known("active_tasks")
    if active.size:
        slots = dataset.environment.slots
        parts.append(f"on average {number(active.mean())} of {several(slots, 'slot')} {'was' if slots == 1 else 'were'} in use")
        figures |= {"running_mean": float(active.mean()), "slots": float(slots)}
    ran = [task.seconds for task in dataset.ended.tasks if task.seconds is not None]
    if ran:
        total = sum(ran) * dataset.ended.weight
        parts.append(f"finished tasks ran {seconds(total)} in total, {seconds(float(np.median(ran)))} each (median)")
        figures |= {"run_seconds_total": total, "run_seconds_median": float(np.median(ran))}
    return [_draft(parts or ["nothing was recorded"], figures)]


def errors(dataset: Dataset) -> list[FindingDraft]:
    """Return the number of tasks by final state."""
    ended, figures = _ended(dataset)
    none = dataset.ended.number and not dataset.ended.failures
    return [_draft([ended, "none of them failed"] if none else [ended], figures)]


def _utilization(dataset: Dataset) -> tuple[list[str], dict[str, float | None]]:
    parts: list[str] = []
    figures: dict[str, float | None] = {}
    environment, gpu, cpu = dataset.environment, dataset.columns.known("gpu_utilization"), dataset.columns.known("cpu_utilization")
    if environment.has_gpu and gpu.size:
        sound = ", a healthy load" if 50 <= gpu.mean() <= 95 and dataset.enough else ""
        highest = dataset.columns.known("gpu_utilization", "max")
        parts.append(f"GPU utilization averaged {percent(gpu.mean())} ({_about(gpu, highest, 'percent')}){sound}")
        figures |= _figures("gpu_utilization", gpu, highest)
    elif environment.has_gpu:
        parts.append("the GPU's utilization is not available on this machine, so it is not assessed")
        figures["gpu_utilization_mean"] = None
    elif environment.devices:
        parts.append("this machine has no GPU, so tasks ran on the CPU")
    if cpu.size:
        highest = dataset.columns.known("cpu_utilization", "max")
        parts.append(f"CPU utilization averaged {percent(cpu.mean())} ({_about(cpu, highest, 'percent')})")
        figures |= _figures("cpu_utilization", cpu, highest)
    return parts, figures


def _about(values: Array, highest: Array, unit: str) -> str:
    return f"median {amount(float(np.median(values)), unit)}, highest {amount(float(highest.max()), unit)}"


def _figures(name: str, values: Array, highest: Array) -> dict[str, float | None]:
    return {f"{name}_mean": float(values.mean()), f"{name}_median": float(np.median(values)), f"{name}_max": float(highest.max())}


def _ended(dataset: Dataset) -> tuple[str, dict[str, float | None]]:
    """Return the number of tasks by final state, estimated from a sample if there are too many."""
    ended = dataset.ended
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


def too_little(dataset: Dataset) -> FindingDraft | None:
    """Return the available and the required amount of data, or None if there is enough."""
    if dataset.enough:
        return None
    step, points = dataset.columns.step, dataset.columns.observed
    return FindingDraft(
        "too_little",
        f"There is too little history to distinguish peaks and trends from chance: {several(points, 'value')} of {seconds(step)} each, but "
        f"{LEAST_POINTS} are needed ({seconds(LEAST_POINTS * step)}), and {several(dataset.ended.number, 'ended task')}.",
        WEIGHT,
        "notice",
        advice="Try again later." if dataset.timeframe == "5m" else "Try again later, or use a shorter timeframe, which needs less data.",
        figures={"values": float(points), "values_needed": float(LEAST_POINTS), "tasks": float(dataset.ended.number)},
    )


def nothing(dataset: Dataset) -> FindingDraft:
    """Return the finding that nothing stands out."""
    return FindingDraft(
        "nothing",
        f"Nothing stands out in {seconds(dataset.columns.observed * dataset.columns.step)} of figures and "
        f"{several(dataset.ended.number, 'ended task')}: all values are within random variation.",
        1.0,
        figures={"observed_s": float(dataset.columns.observed * dataset.columns.step), "tasks": float(dataset.ended.number)},
    )
