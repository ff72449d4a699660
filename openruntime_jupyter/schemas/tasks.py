"""Tasks on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from pydantic import Field

from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.schemas.arrays import ArrayReference
from openruntime_jupyter.schemas.base import Priority, Timestamp, Wire


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
