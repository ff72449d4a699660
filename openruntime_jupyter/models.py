"""The wire types: what goes over HTTP, what a client returns, and what the history stores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.values import ArrayDtype, ArrayKind

Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""UTC, ISO 8601, ending in `Z`."""

Priority = Annotated[int, Field(ge=1, le=10, strict=True)]
"""1 to 10; 10 is the most urgent."""


@lru_cache(maxsize=256)  # each moment of a task is told several times: in its records, its row, its events
def timestamp(seconds: float) -> str:
    """Seconds since the epoch as a `Timestamp`."""
    whole, micros = divmod(round(seconds * 1e6), 1_000_000)
    return f"{_to_the_second(whole)}.{micros:06d}Z"


@lru_cache(maxsize=64)  # most of them lie within the last seconds
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None).isoformat()


def iso(seconds: float | None) -> str | None:
    """`timestamp`, where None stays None."""
    return None if seconds is None else timestamp(seconds)


def epoch(timestamp: str | None) -> float | None:
    """A `Timestamp` as seconds since the epoch; the inverse of `iso`."""
    return None if timestamp is None else datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp()


class TaskState(str, Enum):
    """What a task is doing. `runtime/tasks/states.py` has the table of transitions."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    INTERRUPTED = "interrupted"

    terminal: bool
    """Whether the task is at its end; a terminal state never changes."""

    def __init__(self, value: str) -> None:
        self.terminal = value not in ("pending", "running")

    def __str__(self) -> str:
        return str(self.value)


Origin = Literal["notebook", "python", "rest", "cli"]
TaskOrder = Literal["newest", "next"]  # the newest first, or of those that wait the one that is next


class Wire(BaseModel):
    """What every wire type has in common."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class TaskRequest(Wire):
    """What is asked for: the body of `POST /tasks`."""

    operation: str = Field(description="The name of an operation; `GET /operations` lists them.", min_length=1, max_length=200)
    parameters: dict[str, Any] = Field(description="The operation's parameters; `{}` takes its defaults.")
    device_preference: str = Field("auto", description="`auto`, `gpu`, `cpu`, or the id of a device.", min_length=1, max_length=100)
    priority: Priority = Field(5, description="1 to 10; 10 is the most urgent.")
    timeout: float | None = Field(None, description="Seconds of running after which it is stopped; null for no limit.", gt=0, le=31_536_000)
    retries: int = Field(0, description="How often to run it again if its worker dies; never for what it raised.", ge=0, le=10, strict=True)
    name: str | None = Field(None, description="What people call it.", max_length=200)
    memory_limit: int | None = Field(
        None, description="Bytes of resident memory past which its worker is stopped; null for the runtime's own.", ge=1_000_000, le=2**53
    )
    session: str | None = Field(
        None,
        description="Name or id of the session whose variables it uses; `python` and `call` only. A new name starts a session.",
        min_length=1,
        max_length=100,
    )
    origin: Origin = Field("rest", description="Where it comes from.")
    wait: bool = Field(True, description="false: answer 202 at once, and let the task outlive this connection.", strict=True)


class SessionState(str, Enum):
    """What a session does now."""

    IDLE = "idle"
    BUSY = "busy"
    ENDED = "ended"

    def __str__(self) -> str:
        return str(self.value)


class Session(Wire):
    """A worker whose variables and modules stay from one task to the next."""

    id: str
    name: str = Field(description="What tasks call it; unique for one user and notebook.")
    state: SessionState = Field(description="`ended`: its variables are gone, and it takes no task until it is restarted.")
    owner: str | None = Field(None, description="The user who started it; null without a login.")
    notebook: str | None = Field(None, description="Path of the notebook that started it.")
    kernel: str | None = Field(None, description="Random id of the process that started it.")
    interpreter: str | None = Field(None, description="Path of its Python; null for the runtime's own.")
    directory: str | None = Field(None, description="Working directory of its caller.")
    worker: str | None = Field(None, description="Its worker; null before its first task and after its end.")
    resident_bytes: int | None = Field(None, description="Resident memory of its worker, in bytes.")
    task_id: str | None = Field(None, description="The task that it runs.")
    tasks: int = Field(0, description="Tasks that have ended in it since it was started.")
    created_at: Timestamp
    used_at: Timestamp = Field(description="When its last task ended, or it was created or restarted.")
    expires_at: Timestamp | None = Field(None, description="When it ends unless it is used before.")
    ended_at: Timestamp | None = Field(None, description="When it ended.")
    reason: str | None = Field(None, description="Why it has ended.")


class TaskChange(Wire):
    """What can be changed about a task that waits: the body of `PATCH /tasks/{id}`."""

    priority: Priority = Field(description="1 to 10; 10 is the most urgent.")


class Progress(Wire):
    """How far a task says it is."""

    n: float = Field(description="How much is done, in any unit.")
    total: float | None = Field(None, description="Of how much.")
    message: str | None = Field(None, description="In words.")
    remaining: float | None = Field(None, description="Estimated seconds left, from the pace so far.")


class Payload(Wire):
    """An opaque result that is fetched on its own: `GET /tasks/{id}/payload`."""

    size: int = Field(description="Bytes.")
    encoding: str = Field(description="`cloudpickle`: load it only if you trust the task's code.")


class ArrayReference(Wire):
    """An array in the spool."""

    id: str
    shape: list[int]
    dtype: str = Field(description="As MLX calls it: `float32`, `bfloat16`, `bool` and so on.")
    bytes: int = Field(description="Bytes of its elements.")
    kind: ArrayKind = "numpy"


class ArrayRequest(Wire):
    """Room that is asked for: the body of `POST /arrays`."""

    shape: list[Annotated[int, Field(ge=0, strict=True)]] = Field(description="May be empty, for a single number.", max_length=32)
    dtype: ArrayDtype = Field(description="As MLX calls it.")
    kind: ArrayKind = Field("numpy", description="What it is to be where it is used.")


class ArrayInfo(ArrayReference):
    """An array, and what becomes of it."""

    state: Literal["writing", "ready"]
    size: int = Field(description="Bytes of its file.")
    owner: str | None = None
    task_id: str | None = Field(None, description="The task whose result it is.")
    created_at: Timestamp
    expires_at: Timestamp | None = Field(
        None, description="When it is deleted unless it is used before; null: never, or not while it is written or tasks use it."
    )
    leases: int = Field(0, description="How many tasks that wait or run use it.")
    path: str | None = Field(None, description="Its file, for programs of the same user on the same machine.")


class ArrayPage(Wire):
    """Every array of a runtime."""

    arrays: list[ArrayInfo]
    total_bytes: int = Field(description="Bytes of all files, those that are just being deleted included.")
    warm_bytes: int = Field(0, description="Bytes of free files beside them, kept so that new arrays are written faster.")
    quota_bytes: int = Field(description="Bytes that they may have together.")
    timestamp: Timestamp


class TaskResult(Wire):
    """What a completed task gives."""

    execution_time: float = Field(description="Seconds the operation ran.")
    device_used: str = Field(description="The id of the device.")
    output: dict[str, Any] = Field(description="What the operation returned.")
    payload: Payload | None = Field(None, description="Where there is an opaque result.")
    arrays: list[ArrayReference] = Field(default_factory=list, description="The large arrays in it, in the order of the payload.")


class FailureKind(str, Enum):
    """Why a task did not complete."""

    RAISED = "raised"
    WORKER_DIED = "worker_died"
    TIMED_OUT = "timed_out"
    MEMORY = "memory"
    NOT_STARTED = "not_started"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    def __str__(self) -> str:
        return self.value


class Failure(Wire):
    """The post-mortem of a task that did not complete."""

    kind: FailureKind
    message: str = Field(description="One line that says what happened and, where there is something, what to do.")
    type: str | None = Field(None, description="The exception's class, where the task raised.")
    traceback: str | None = Field(None, description="The remote traceback, where the task raised.")
    signal: int | None = Field(None, description="The signal that ended the worker.")
    exit_code: int | None = Field(None, description="The worker's exit code, where it left by itself.")
    peak_memory: int | None = Field(None, description="Bytes: the largest resident memory of the worker's life.")
    last_output: str | None = Field(None, description="The last lines that the worker wrote.")


class PerformanceMetrics(Wire):
    """A task's figures, as the reference names them; null where there is none."""

    execution_time_ms: float | None = None
    memory_used_mb: float | None = Field(None, description="Peak of MLX's own allocations while the task ran, in MB (10^6 bytes).")
    gpu_utilization: float | None = Field(
        None,
        description="Percent: the mean of its GPU's utilisation while it ran; 0.0 where there is no GPU, null where it was not alone on "
        "one, ran too short for a sample, or ran on the CPU beside one.",
    )
    peak_memory_mb: float | None = Field(
        None,
        description="Largest resident memory of the worker seen while the task ran (ten looks a second, one at its end), in MB.",
    )
    device_time_s: float | None = Field(None, description="Seconds that it ran on its device, all attempts together.")


class Task(Wire):
    """The record of a task."""

    task_id: str = Field(description="Ids sort by time.")
    status: TaskState
    operation: str = Field(description="What kind of work it is.")
    name: str | None = Field(None, description="What people call it.")
    owner: str | None = Field(None, description="The user who submitted it; null without a login.")
    origin: Origin = Field("rest", description="Where it comes from.")
    priority: int = Field(5, description="1 to 10; 10 is the most urgent.")
    device_preference: str = Field("auto", description="`auto`, `gpu`, `cpu`, or the id of a device.")
    device_used: str | None = Field(None, description="The id of the device on which it was started.")
    session: str | None = Field(None, description="The id of the session whose variables it uses.")
    session_name: str | None = Field(None, description="The name of that session.")
    timeout: float | None = Field(None, description="Seconds of running after which it is stopped; null for no limit.")
    retries: int = Field(0, description="How often it may be run again if its worker dies.")
    attempt: int = Field(0, description="How often it was started.")
    wait: bool = Field(True, description="false: the task is asynchronous and outlives its submitter.")
    memory_limit: int | None = Field(None, description="Bytes of resident memory past which its worker is stopped.")
    timestamp: Timestamp = Field(description="When its state last changed.")
    submitted_at: Timestamp = Field(description="When it was submitted.")
    started_at: Timestamp | None = Field(None, description="When it was last started.")
    finished_at: Timestamp | None = Field(None, description="When it ended.")
    execution_time: float | None = Field(None, description="Seconds from start to end; while it runs, until now.")
    position: int | None = Field(None, description="1 is next; only while it waits.")
    estimated_start: Timestamp | None = Field(
        None, description="By how long recent tasks took and what the running ones say; null where nothing is known."
    )
    waiting_for: str | None = Field(None, description="What a waiting task waits for, where it is not only its turn.")
    progress: Progress | None = Field(None, description="How far it is, as it last told.")
    cancel_stage: str | None = Field(None, description="`queue`, `interrupt`, `terminate` or `kill`: the stage that worked.")
    result: TaskResult | None = Field(None, description="Of a completed task.")
    error: str | None = Field(None, description="One line, where it did not complete.")
    failure: Failure | None = Field(None, description="The post-mortem, where it did not complete.")
    performance_metrics: PerformanceMetrics = Field(default_factory=PerformanceMetrics)
    runtime: str = Field("", description="The id of the runtime that holds it.")
    here: bool = Field(True, description="false: it belongs to another runtime on this machine.")
    parameters: dict[str, Any] | None = Field(None, description="As submitted; left out of lists, and of what submitting answers.")

    def __repr_args__(self) -> Any:
        """What is not as usual, without code and results: it has to fit below a cell."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"parameters", "result", "failure"}, warnings=False).items()


@dataclass(frozen=True, slots=True)
class Ended:
    """An ended task: its record without parameters, or the error of looking for it.

    `payload` is its opaque result with the encoding where that is small enough to come along; the task's result says whether it has one.
    """

    task_id: str
    task: Task | OpenRuntimeError
    payload: tuple[bytes, str] | None = None


class TaskPage(Wire):
    """Some tasks, in the order that was asked for."""

    tasks: list[Task]
    total_count: int = Field(description="Of all that the filters let through.")
    next_before: str | None = Field(None, description="Give it as `before` for the next page; null on the last.")
    timestamp: Timestamp


class OutputItem(Wire):
    """One thing that a task showed, in nbformat's words: `stream`, `display_data` or `execute_result`."""

    output_type: Literal["stream", "display_data", "execute_result"]
    name: Literal["stdout", "stderr"] | None = None
    text: str | None = None
    data: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class TaskOutput(Wire):
    """What a task showed so far. `next` is what to give as `since` to get only what is new."""

    task_id: str
    items: list[OutputItem]
    next: int = Field(description="What to give as `since` next time.")
    truncated: bool = Field(False, description="Whether output was left out at the cap.")
    finished: bool = Field(False, description="Whether no more will come.")
    task: Task | None = Field(None, description="The task's record, where the question asks for it.")


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
