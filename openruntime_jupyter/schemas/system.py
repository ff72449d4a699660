"""Devices, workers, health, operations and metrics on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from openruntime_jupyter.schemas.base import Timestamp, Wire

AbsentFigure = Annotated[float | None, WithJsonSchema({"type": "number"})]
"""A figure that is left out of answers where it is not known, and so is never null there."""


def _absent(description: str) -> Any:
    return Field(None, description=description, exclude_if=lambda value: value is None, json_schema_extra=_without_default)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


class Device(Wire):
    """Something MLX computes on, as a worker reported it."""

    id: str = Field(description="`device_0`, `device_1` and so on; GPUs first.")
    name: str = Field(description="The model of the chip or processor.")
    type: Literal["gpu", "cpu"]
    status: Literal["available", "busy", "starting", "unavailable"]
    capabilities: list[str] = Field(description="Such as `mlx`, `metal`, `unified_memory`.")
    memory_total: int = Field(description="Bytes.")
    memory_available: int = Field(description="Bytes.")
    utilization: AbsentFigure = _absent("Percent, by all programs together; absent where it can't be read.")
    temperature_celsius: AbsentFigure = _absent("Degrees Celsius; absent where it can't be read.")
    power_watts: AbsentFigure = _absent("Watts; absent where they can't be read.")
    slots: int = Field(1, description="How many tasks may compute on it at once.")
    running: int = Field(0, description="How many do.")
    pending: int = Field(0, description="How many wait for it.")
    mlx_version: str | None = Field(None, description="The version of MLX that computes.")
    blas: str | None = Field(None, description="The BLAS that MLX uses on the CPU; null on a GPU.")
    advice: str | None = Field(None, description="What would make it work, or work faster.")


class Worker(Wire):
    """A worker process, and what it has done since it started."""

    id: str
    device: str | None = Field(None, description="The id of the device that it computes on; null before that is known.")
    state: Literal["starting", "idle", "busy"]
    interpreter: str = Field(description="The Python that it runs.")
    started_at: Timestamp
    task_id: str | None = Field(None, description="What it runs now.")
    model: str | None = Field(None, description="The model that it keeps in memory.")
    session: str | None = Field(None, description="The id of the session whose variables it keeps.")
    session_name: str | None = Field(None, description="The name of that session.")
    tasks: int = Field(description="How many tasks it has ended.")
    device_time_s: float = Field(description="Seconds that tasks held it, all together.")
    resident_bytes: int | None = Field(None, description="Its memory now; null where that can't be read.")
    resident_peak_bytes: int | None = Field(None, description="The largest seen.")
    mlx_peak_bytes: int | None = Field(None, description="The peak of MLX's own allocations; null before its first task.")
    gpu_utilization: float | None = Field(
        None, description="Percent: the mean of its GPU's utilisation over those of its tasks that could be metered; null without one."
    )


class Metrics(Wire):
    """The figures of now."""

    gpu_utilization: float | None = Field(description="Percent; 0.0 where there is no GPU, null where it can't be read.")
    memory_usage: float | None = Field(description="Percent of the machine's memory; a container's limit counts as the machine's.")
    active_tasks: int = Field(description="How many run.")
    ai_tasks_processed: int = Field(description="AI tasks completed since the start.")
    cpu_utilization: float | None = Field(None, description="Percent.")
    pending_tasks: int = Field(0, description="How many wait.")


class SystemMetrics(Metrics):
    """`GET /metrics`."""

    uptime: str = Field(description="Such as `2h 15m`.")
    timestamp: Timestamp


Timeframe = Literal["5m", "15m", "1h", "6h", "24h", "7d"]


TIMEFRAMES: dict[Timeframe, int] = {"5m": 300, "15m": 900, "1h": 3_600, "6h": 21_600, "24h": 86_400, "7d": 604_800}
"""In seconds."""


class MetricSeries(Wire):
    """One figure over time: a value for each timestamp, null where there is none."""

    unit: Literal["percent", "bytes", "tasks", "seconds"]
    min: list[float | None]
    mean: list[float | None]
    max: list[float | None]


class MetricsHistory(Wire):
    """`GET /metrics/history`."""

    timeframe: Timeframe
    start: Timestamp = Field(description="The first of the timestamps.")
    end: Timestamp = Field(description="The end of the last point, which may still be going on.")
    resolution_s: int = Field(description="Seconds from one point to the next.")
    timestamps: list[Timestamp] = Field(description="When each point begins.")
    series: dict[str, MetricSeries] = Field(description="By the name of the figure.")


class Health(Wire):
    """`GET /health`."""

    status: Literal["healthy", "degraded", "starting", "stopping"]
    timestamp: Timestamp
    service: str = "OpenRuntime"
    version: str = Field(description="Of this package.")
    devices: int = Field(description="How many there are.")
    metrics: Metrics
    problems: list[str] = Field(default_factory=list, description="What is wrong, each with what to do.")
    runtime: str = Field("", description="The id of this runtime.")


class OperationInfo(Wire):
    """One entry of `GET /operations`."""

    name: str = Field(description="What `POST /tasks` takes as `operation`.")
    summary: str = Field(description="One line.")
    needs_execute: bool = Field(description="Whether it runs the caller's own code, and so needs that permission.")
    parameters_schema: dict[str, Any] = Field(description="The JSON schema of its parameters.")
