"""Devices, workers, sessions, health, operations and metrics on the wire."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

from pydantic import Field

from openruntime_jupyter.schemas.base import Timestamp, Wire, absent

DeviceType = Literal["gpu", "cpu"]
DeviceStatus = Literal["available", "busy", "starting", "unavailable"]
WorkerState = Literal["starting", "idle", "busy"]
HealthStatus = Literal["healthy", "degraded", "starting", "stopping"]
MetricUnit = Literal["percent", "bytes", "tasks", "seconds"]


class Device(Wire):
    """Compute device of MLX, as reported by a worker."""

    id: str = Field(description="Id such as `device_0` or `device_1`; GPUs come first.")
    name: str = Field(description="Model name of the chip or processor.")
    type: DeviceType = Field(description="Type of the device.")
    status: DeviceStatus = Field(description="State of the device.")
    capabilities: list[str] = Field(description="Capabilities, for example `mlx`, `metal`, `unified_memory`.")
    memory_total: int = Field(description="Total memory in bytes.")
    memory_available: int = Field(description="Available memory in bytes.")
    utilization: float | None = absent("Utilization by all programs in percent; absent if it cannot be read.")
    temperature_celsius: float | None = absent("Temperature in degrees Celsius; absent if it cannot be read.")
    power_watts: float | None = absent("Power consumption in watts; absent if it cannot be read.")
    slots: int = Field(1, description="Maximum number of tasks that run on the device at once.")
    running: int = Field(0, description="Number of running tasks.")
    pending: int = Field(0, description="Number of pending tasks that the device may run, including those that others may run, too.")
    mlx_version: str | None = Field(None, description="Version of MLX.")
    blas: str | None = Field(None, description="BLAS library that MLX uses on the CPU; null for a GPU.")
    advice: str | None = Field(None, description="How to make the device available or faster.")


class Worker(Wire):
    """Worker process and its statistics since its start."""

    id: str = Field(description="Id of the worker.")
    device: str | None = Field(None, description="Id of the worker's device; null before it is known.")
    state: WorkerState = Field(description="State of the worker.")
    interpreter: str = Field(description="Path of the Python interpreter.")
    started_at: Timestamp = Field(description="Time of the start.")
    task_id: str | None = Field(None, description="Id of the running task.")
    model: str | None = Field(None, description="Name of the model in memory.")
    session: str | None = Field(None, description="Id of the session that the worker serves.")
    session_name: str | None = Field(None, description="Name of that session.")
    tasks: int = Field(description="Number of finished tasks.")
    device_time_s: float = Field(description="Total seconds that tasks occupied the worker.")
    resident_bytes: int | None = Field(None, description="Resident memory in bytes; null if it cannot be read.")
    resident_peak_bytes: int | None = Field(None, description="Largest observed resident memory in bytes.")
    mlx_peak_bytes: int | None = Field(None, description="Peak of MLX allocations in bytes; null before the first task.")
    gpu_utilization: float | None = Field(None, description="Mean GPU utilization in percent over all measured tasks; null without one.")


class SessionState(str, Enum):
    """State of a session."""

    IDLE = "idle"
    BUSY = "busy"
    ENDED = "ended"

    def __str__(self) -> str:
        return str(self.value)


class Session(Wire):
    """Worker whose variables and modules persist between tasks."""

    id: str = Field(description="Id of the session; it begins with `session_`.")
    name: str = Field(description="Name by which tasks refer to the session; unique for a user and notebook.")
    state: SessionState = Field(description="`ended`: the variables are lost, and the session accepts no task until it is restarted.")
    owner: str | None = Field(None, description="User who started the session; null without a login.")
    notebook: str | None = Field(None, description="Path of the notebook that started the session.")
    kernel: str | None = Field(None, description="Random id of the process that started the session.")
    interpreter: str | None = Field(None, description="Path of the Python interpreter; null for the interpreter of the runtime.")
    directory: str | None = Field(None, description="Working directory of the process that started the session.")
    worker: str | None = Field(None, description="Id of the worker; null before the first task and after the session has ended.")
    resident_bytes: int | None = Field(None, description="Resident memory of the worker in bytes.")
    task_id: str | None = Field(None, description="Id of the running task.")
    tasks: int = Field(0, description="Number of finished tasks since the session was started.")
    created_at: Timestamp = Field(description="Time of creation.")
    used_at: Timestamp = Field(description="Time at which the last task finished or the session was created or restarted.")
    expires_at: Timestamp | None = Field(None, description="Time at which the session ends unless it is used before.")
    ended_at: Timestamp | None = Field(None, description="Time at which the session ended.")
    reason: str | None = Field(None, description="Reason why the session ended.")


class Metrics(Wire):
    """Metrics of the runtime and its machine."""

    gpu_utilization: float | None = Field(description="GPU utilization in percent; 0.0 without a GPU, null if it cannot be read.")
    memory_usage: float | None = Field(description="Used memory in percent of the machine's memory, or of the container's limit.")
    active_tasks: int = Field(description="Number of running tasks.")
    ai_tasks_processed: int = Field(description="Number of AI tasks completed since the start of the runtime.")
    cpu_utilization: float | None = Field(None, description="CPU utilization in percent.")
    pending_tasks: int = Field(0, description="Number of pending tasks.")
    hosts: str | None = absent(
        "Other hosts that run tasks or can't be used, for people, such as `2 on mac2, gpu1 lost`; absent without such hosts."
    )


class SystemMetrics(Metrics):
    """Response of `GET /metrics`."""

    uptime: str = Field(description="Uptime of the runtime, for example `2h 15m`.")
    timestamp: Timestamp = Field(description="Current time.")


Timeframe = Literal["5m", "15m", "1h", "6h", "24h", "7d"]


TIMEFRAMES: dict[Timeframe, int] = {"5m": 300, "15m": 900, "1h": 3_600, "6h": 21_600, "24h": 86_400, "7d": 604_800}
"""Lengths of the timeframes in seconds."""


class MetricSeries(Wire):
    """Time series of one metric: a value for each timestamp, null where no value was recorded."""

    unit: MetricUnit = Field(description="Unit of the values.")
    min: list[float | None] = Field(description="Minimum of each point.")
    mean: list[float | None] = Field(description="Mean of each point.")
    max: list[float | None] = Field(description="Maximum of each point.")


class MetricsHistory(Wire):
    """Response of `GET /metrics/history`."""

    timeframe: Timeframe = Field(description="As in the request.")
    start: Timestamp = Field(description="First timestamp.")
    end: Timestamp = Field(description="End of the last point, which may be in the future.")
    resolution_s: int = Field(description="Seconds between two points.")
    timestamps: list[Timestamp] = Field(description="Start of each point.")
    series: dict[str, MetricSeries] = Field(description="Time series by metric name.")


class Health(Wire):
    """Response of `GET /health`."""

    status: HealthStatus = Field(description="State of the runtime; `degraded`: it works, but with `problems`.")
    timestamp: Timestamp = Field(description="Current time.")
    service: str = Field("OpenRuntime", description="Name of the service.")
    version: str = Field(description="Version of this package.")
    devices: int = Field(description="Number of devices.")
    metrics: Metrics = Field(description="Current metrics.")
    problems: list[str] = Field(default_factory=list, description="Problems, each with a suggested fix.")
    runtime: str = Field("", description="Id of this runtime.")


class OperationInfo(Wire):
    """Entry of `GET /operations`."""

    name: str = Field(description="Value of `operation` in `POST /tasks`.")
    summary: str = Field(description="One-line summary.")
    needs_execute: bool = Field(description="true if the operation runs the caller's code and needs the permission to execute code.")
    parameters_schema: dict[str, Any] = Field(description="JSON schema of the parameters.")


class ServiceInfo(Wire):
    """Response of `GET /`."""

    name: Literal["OpenRuntime"] = Field(description="Name of the service.")
    version: str = Field(description="Version of the package and of the API.")
    status: Literal["running"] = Field(description="Always `running`.")


class DeviceList(Wire):
    """Response of `GET /devices`."""

    devices: list[Device] = Field(description="Devices, GPUs first.")


class WorkerList(Wire):
    """Response of `GET /workers`."""

    workers: list[Worker] = Field(description="Workers, oldest first.")


class OperationList(Wire):
    """Response of `GET /operations`."""

    operations: list[OperationInfo] = Field(description="Operations of the runtime, plugins included.")


class SessionList(Wire):
    """Response of `GET /sessions`."""

    sessions: list[Session] = Field(description="Sessions, most recently used first.")
