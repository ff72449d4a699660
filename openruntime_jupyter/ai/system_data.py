"""Data about the runtime for models: recorded metrics and settings. Contains no output, errors or parameters of tasks."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from openruntime_jupyter.ai.insights.finding import amount
from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.system import Device, MetricsHistory, Timeframe

POINTS = 60
PRIVATE = ("data_dir", "label", "device_lock_dir", "models_dir", "models_dirs", "spool_dir", "blas", "allowed_models")
"""Settings that contain private paths."""
COUNTS = ("completed_tasks", "failed_tasks", "cancelled_tasks", "timed_out_tasks", "interrupted_tasks")


async def metrics_text(runtime: Runtime, timeframe: Timeframe) -> str:
    """Return devices, current metrics and recorded metrics of `timeframe` as lines of text. Raises `StorageUnavailable`."""
    now = runtime.system_metrics()
    history = await runtime.metrics_service.history(timeframe, POINTS)
    use = f"memory in use {_number(now.memory_usage, 'percent')}; CPU {_number(now.cpu_utilization, 'percent')}"
    lines = [
        f"Recorded figures of this OpenRuntime (a queue for compute tasks), {now.timestamp}, up for {now.uptime}:",
        *(_device(each) for each in runtime.devices()),
        f"now: {now.active_tasks} tasks run and {now.pending_tasks} wait; {use}; GPU {_number(now.gpu_utilization, 'percent')}",
        f"over the last {timeframe} (lowest, mean, highest):",
        *_levels(history),
        *_ends(history),
    ]
    return "\n".join(lines)


def settings_text(settings: Settings) -> str:
    """Return the settings without private paths, as lines of text."""
    lines = ["Settings of this OpenRuntime (times in seconds, sizes in bytes):"]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name not in PRIVATE and not isinstance(value, Path):
            lines.append(f"{field.name} = {value}")
    return "\n".join(lines)


def _device(device: Device) -> str:
    return (
        f"{device.id}: {device.name} ({device.type}), {device.slots} slots, {device.running} in use, "
        f"{gigabytes(device.memory_available)} of {gigabytes(device.memory_total)} memory free"
    )


def _levels(history: MetricsHistory) -> list[str]:
    lines = []
    for name, series in history.series.items():
        known = [value for value in series.mean if value is not None]
        if name in COUNTS or not known:
            continue
        lowest = min(value for value in series.min if value is not None)
        highest = max(value for value in series.max if value is not None)
        mean = sum(known) / len(known)
        lines.append(f"{name}: {', '.join(_number(value, series.unit) for value in (lowest, mean, highest))}")
    return lines or ["nothing was recorded"]


def _ends(history: MetricsHistory) -> list[str]:
    totals = {name: sum(value or 0.0 for value in history.series[name].mean) for name in COUNTS if name in history.series}
    counts = [f"{int(total)} {name.removesuffix('_tasks')}" for name, total in totals.items() if total]
    return [f"tasks that ended: {', '.join(counts) or 'none'}"]


def _number(value: float | None, unit: str) -> str:
    return "unknown" if value is None else amount(value, unit)
