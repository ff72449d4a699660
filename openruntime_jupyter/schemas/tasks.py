"""Tasks on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal
from unicodedata import category

from pydantic import AfterValidator, Field

from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.schemas.arrays import ArrayReference
from openruntime_jupyter.schemas.base import Priority, Timestamp, Wire, absent


class TaskState(str, Enum):
    """State of a task. `runtime/tasks/entry.py` has the table of transitions."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    INTERRUPTED = "interrupted"

    terminal: bool
    """True for final states, which never change."""

    def __init__(self, value: str) -> None:
        self.terminal = value not in ("pending", "running")

    def __str__(self) -> str:
        return str(self.value)


Origin = Literal["notebook", "python", "rest", "cli", "sdk"]


TaskOrder = Literal["newest", "next"]  # newest task first, or only pending tasks with the next to run first

LONGEST_NOTEBOOK = 1024
UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories of characters that a notebook's name must not have: they break lines, or no file can have them."""


def is_notebook(text: str) -> bool:
    """Return whether `text` is valid as the name of a notebook."""
    return 0 < len(text) <= LONGEST_NOTEBOOK and not any(category(character) in UNPRINTABLE for character in text)


def _printable(text: str) -> str:
    if not is_notebook(text):
        raise ValueError("has a control character or a line break, which is invalid in the name of a notebook")
    return text


NotebookName = Annotated[str, Field(min_length=1, max_length=LONGEST_NOTEBOOK), AfterValidator(_printable)]
"""Path or name of a notebook's file, as Jupyter Server or VS Code names it."""


class TaskRequest(Wire):
    """Task to submit: the body of `POST /tasks`."""

    operation: str = Field(description="Name of an operation; `GET /operations` lists them.", min_length=1, max_length=200)
    parameters: dict[str, Any] = Field(
        description="Parameters of the operation NAME, with the schema `parameters.NAME`; `{}`: the defaults."
    )
    device_preference: str = Field(
        "auto", description="`auto`, `gpu`, `cpu`, the id of a device or the name of a host.", min_length=1, max_length=100
    )
    priority: Priority = Field(5, description="1 to 10; 10 is the most urgent.")
    timeout: float | None = Field(
        None, description="Maximum run time in seconds, after which the task is stopped; null for no limit.", gt=0, le=31_536_000
    )
    retries: int = Field(
        0,
        description="Maximum number of retries if the worker process dies. A task that raised an exception is never retried.",
        ge=0,
        le=10,
        strict=True,
    )
    name: str | None = Field(None, description="Display name.", max_length=200)
    memory_limit: int | None = Field(
        None, description="Maximum resident memory of the worker in bytes; null for the default of the runtime.", ge=1_000_000, le=2**53
    )
    session: str | None = Field(
        None,
        description="Name or id of the session in which the task runs; for `python` and `call` only. A new name starts a session.",
        min_length=1,
        max_length=100,
    )
    origin: Origin = Field("rest", description="Interface that submitted the task.")
    notebook: NotebookName | None = Field(None, description="Path or name of the notebook that submits the task; null outside notebooks.")
    wait: bool = Field(True, description="false: respond with 202 immediately; the task continues if the client disconnects.", strict=True)


class TaskChange(Wire):
    """Change of a pending task: the body of `PATCH /tasks/{id}`."""

    priority: Priority = Field(description="1 to 10; 10 is the most urgent.")


class Progress(Wire):
    """Progress reported by a task."""

    n: float = Field(description="Completed amount, in any unit.")
    total: float | None = Field(None, description="Total amount, in the same unit.")
    message: str | None = Field(None, description="Progress message.")
    remaining: float | None = Field(
        None, description="Estimated remaining seconds, from the pace so far; null until 3 % or 2 s have passed since the first report."
    )


class Payload(Wire):
    """Opaque result, which `GET /tasks/{id}/payload` returns."""

    size: int = Field(description="Size in bytes.")
    encoding: str = Field(description="`cloudpickle`; load it only if you trust the code of the task.")


class TaskResult(Wire):
    """Result of a completed task."""

    execution_time: float = Field(description="Run time of the operation in seconds.")
    device_used: str = Field(description="Id of the device.")
    output: dict[str, Any] = Field(description="Return value of the operation NAME; the schema of built-in ones is `output.NAME`.")
    payload: Payload | None = Field(None, description="Opaque result, if there is one.")
    arrays: list[ArrayReference] = Field(default_factory=list, description="Large arrays of the result, in the order of the payload.")


class FailureKind(str, Enum):
    """Reason why a task did not complete."""

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
    """Details of a task that did not complete."""

    kind: FailureKind = Field(description="Reason of the failure.")
    message: str = Field(description="One-line description of the failure, with a suggested fix where possible.")
    type: str | None = Field(None, description="Class of the exception, if the task raised one.")
    traceback: str | None = Field(None, description="Remote traceback, if the task raised an exception.")
    signal: int | None = Field(None, description="Signal that terminated the worker.")
    exit_code: int | None = Field(None, description="Exit code of the worker, if it exited on its own.")
    peak_memory: int | None = Field(None, description="Peak resident memory of the worker during the task, in bytes; null if unknown.")
    last_output: str | None = Field(None, description="Last lines of the worker's output.")


class PerformanceMetrics(Wire):
    """Performance metrics of a task, with the names of the reference; null if not available."""

    execution_time_ms: float | None = Field(None, description="Run time in milliseconds.")
    memory_used_mb: float | None = Field(None, description="Peak of MLX allocations while the task ran, in MB (10^6 bytes).")
    gpu_utilization: float | None = Field(
        None,
        description="Mean GPU utilization in percent while the task ran; 0.0 without a GPU. null if other tasks used the GPU at the same "
        "time, the task was too short for a sample, or it ran on the CPU of a machine with a GPU.",
    )
    peak_memory_mb: float | None = Field(
        None,
        description="Peak resident memory of the worker while the task ran, in MB. It is sampled 10 times per second and at the end.",
    )
    device_time_s: float | None = Field(None, description="Total seconds on the device over all attempts.")


class Task(Wire):
    """Record of a task."""

    task_id: str = Field(description="Id of the task; ids sort by submission time.")
    status: TaskState = Field(description="State of the task.")
    operation: str = Field(description="Name of the operation.")
    name: str | None = Field(None, description="Display name.")
    owner: str | None = Field(None, description="User who submitted the task; null without a login.")
    origin: Origin = Field("rest", description="Interface that submitted the task.")
    notebook: str | None = Field(None, description="Path or name of the notebook that submitted the task; null if unknown.")
    priority: int = Field(5, description="1 to 10; 10 is the most urgent.")
    device_preference: str = Field("auto", description="`auto`, `gpu`, `cpu`, the id of a device or the name of a host.")
    device_used: str | None = Field(None, description="Id of the device on which the task was started.")
    session: str | None = Field(None, description="Id of the session in which the task runs.")
    session_name: str | None = Field(None, description="Name of that session.")
    timeout: float | None = Field(None, description="Maximum run time in seconds, after which the task is stopped; null for no limit.")
    retries: int = Field(0, description="Maximum number of retries if the worker process dies.")
    attempt: int = Field(0, description="Number of times the task was started.")
    wait: bool = Field(True, description="false: the task is asynchronous and continues if the client disconnects.")
    memory_limit: int | None = Field(None, description="Maximum resident memory of the worker in bytes.")
    resident_bytes: int | None = Field(
        None,
        description="Resident memory of the worker while the task runs, in bytes, read 10 times per second; null for a task that does not "
        "run, before the first reading, for a prompt to a remote provider, and for a task of another runtime.",
    )
    timestamp: Timestamp = Field(description="Time of the last state change.")
    submitted_at: Timestamp = Field(description="Time of submission.")
    started_at: Timestamp | None = Field(None, description="Time of the last start.")
    finished_at: Timestamp | None = Field(None, description="Time at which the task finished.")
    execution_time: float | None = Field(None, description="Seconds since the start, until the task finished or until now.")
    position: int | None = Field(None, description="Position in the queue while the task is pending; 1 is next.")
    estimated_start: Timestamp | None = Field(
        None,
        description="Estimated start time, from the progress of running tasks and the durations of completed tasks with the same code or "
        "function, or else with the same parameters and shapes of arrays; null if one of them is unknown, and after the first 100 pending "
        "tasks.",
    )
    waiting_for: str | None = Field(
        None, description="Reason why a pending task cannot start, other than its position in the queue, or what a running one waits for."
    )
    progress: Progress | None = Field(None, description="Last progress report.")
    cancel_stage: str | None = Field(None, description="Stage that cancelled the task: `queue`, `interrupt`, `terminate` or `kill`.")
    result: TaskResult | None = Field(None, description="Result, for a completed task.")
    error: str | None = Field(None, description="One-line error message, unless the task completed.")
    failure: Failure | None = Field(None, description="Details of the failure, unless the task completed.")
    performance_metrics: PerformanceMetrics = Field(default_factory=PerformanceMetrics, description="Measurements of the task.")
    runtime: str = Field("", description="Id of the runtime that owns the task.")
    here: bool = Field(True, description="false: the task belongs to another runtime on the same machine.")
    inputs: list[ArrayReference] = Field(
        default_factory=list, description="The first 20 arrays in the parameters. They may have been deleted when the task ended."
    )
    parameters: dict[str, Any] | None = Field(
        None, description="Parameters as submitted; omitted from lists and from the response to a submission."
    )

    def __repr_args__(self) -> Any:
        """Return the non-default fields without code and results, so that the text fits below a cell."""
        large = {"parameters", "inputs", "result", "failure"}
        return self.model_dump(mode="json", exclude_defaults=True, exclude=large, warnings=False).items()


@dataclass(frozen=True, slots=True)
class Ended:
    """Finished task: its record without parameters, or the error of the lookup.

    `payload` is the opaque result and its encoding if the result is small enough to be included. `task.result` has the size in any case.
    """

    task_id: str
    task: Task | OpenRuntimeError
    payload: tuple[bytes, str] | None = None


class TaskPage(Wire):
    """Page of tasks in the requested order."""

    tasks: list[Task] = Field(description="Tasks of the page, without parameters.")
    total_count: int = Field(description="Number of all tasks that match the filters.")
    next_before: str | None = Field(None, description="Value of `before` for the next page; null on the last page.")
    timestamp: Timestamp = Field(description="Current time.")


WIDGET = "application/vnd.jupyter.widget-view+json"
"""MIME type by which Jupyter's pages show a widget of a kernel."""
LIVE_WIDGET = "application/vnd.openruntime.widget+json"
"""MIME type of a task's widget: JSON text with the state of its models, from which a kernel makes another widget."""
MARK = {"openruntime": "live widget"}
"""Metadata of a display whose widget has an end. Jupyter Server saves it without the widget."""
DASHBOARD = "application/vnd.openruntime.dashboard+json"
"""MIME type of a dashboard: JSON with the id of its `runtime`. Jupyter Server saves it without the widget."""


OutputType = Literal["stream", "display_data", "execute_result", "update_display_data", "clear_output"]
StreamName = Literal["stdout", "stderr"]


class OutputItem(Wire):
    """Output of a task in nbformat's format, or a change of earlier output.

    `update_display_data` replaces the data of the displays with its `display_id`, and `clear_output` deletes all earlier items.
    """

    output_type: OutputType = Field(description="Type of the item; it determines which of the other fields are set.")
    name: StreamName | None = Field(None, description="Stream of a `stream`.")
    text: str | None = Field(None, description="Text of a `stream`.")
    data: dict[str, Any] | None = Field(None, description="Representations of a display or result by MIME type.")
    metadata: dict[str, Any] | None = Field(None, description="Metadata of a display or result.")
    display_id: str | None = Field(None, description="Id by which later items update this display.")
    wait: bool | None = Field(None, description="For `clear_output`: true if the next item replaces the deleted ones.")


class TaskOutput(Wire):
    """Output of a task so far. Pass `next` as `since` to get only newer output and changes of earlier output."""

    task_id: str = Field(description="Id of the task.")
    items: list[OutputItem] = Field(description="Output items in order.")
    next: int = Field(description="Value of `since` for the next request.")
    truncated: bool = Field(False, description="true if output was omitted because of the size limit.")
    finished: bool = Field(False, description="true if there will be no more output.")
    task: Task | None = Field(None, description="Record of the task, if the request asks for it.")
    reasoning: str | None = absent("Reasoning so far of the model of a running AI task, if the request asks for the record.")
