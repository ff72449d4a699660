"""What a scheduler asks of whatever runs its tasks: the protocol that every engine keeps.

It speaks of task ids, lanes, payload names and worker names, never of paths or pids, so that a cluster fits behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol

from openruntime_jupyter.schemas.tasks import Failure
from openruntime_jupyter.schemas.values import ArrayKind, ModelSource


class StopReason(str, Enum):
    """Why a running task is stopped."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    MEMORY = "memory"
    ENDED = "ended"


class Stage(str, Enum):
    """What ended a stopped task: each follows the one before it after a grace."""

    QUEUE = "queue"
    INTERRUPT = "interrupt"
    TERMINATE = "terminate"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """A device as a worker's MLX described it; `memory` is in bytes, None where MLX does not say."""

    type: str
    index: int
    name: str
    memory: int | None
    capabilities: tuple[str, ...]
    mlx_version: str
    blas: str | None = None
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array that a task gave back, which its engine has stored in one of the places that it was given, by number."""

    id: str
    shape: tuple[int, ...]
    dtype: str
    kind: ArrayKind
    place: int


@dataclass(frozen=True, slots=True)
class ExecutionEnvironment:
    """What the caller's own code finds around it: part of what decides which prepared worker a task may have.

    `variables` are environment variables that differ from the runtime's, as sorted pairs; None removes one. `kernel` identifies the
    calling process: tasks of different kernels never share a worker that was prepared by imports.
    """

    directory: str | None = None
    path: tuple[str, ...] | None = None
    variables: tuple[tuple[str, str | None], ...] = ()
    kernel: str | None = None


@dataclass(frozen=True, slots=True)
class ModelUse:
    """The model that a job runs, in a worker of its own, which stays for `keep_alive` seconds after the last one."""

    source: ModelSource
    keep_alive: float


@dataclass(frozen=True, slots=True)
class SessionUse:
    """The session that a job runs in: its worker stays with its variables. `number` counts restarts."""

    id: str
    number: int
    name: str = ""


@dataclass(slots=True)
class Job:
    """One attempt at a task, as a lane hands it to an engine. `parameters` is JSON; sizes are in bytes.

    `arrays` are the ids of those that the parameters name; ids of those that it gives back begin with `array_name`.

    A `private` job runs code of its caller, so it gets a worker process that no other task has used. Jobs with the same `burst` may
    follow each other in one process.
    """

    task_id: str
    operation: str
    parameters: bytes
    lane: str
    device_type: str
    device_index: int
    memory_total: int | None
    memory_limit: int
    threads: int
    payload_name: str
    interpreter: str | None = None
    environment: ExecutionEnvironment = field(default_factory=ExecutionEnvironment)
    private: bool = False
    burst: str | None = None
    arrays: tuple[str, ...] = ()
    array_name: str = ""
    model: ModelUse | None = None
    session: SessionUse | None = None


@dataclass(slots=True)
class Figures:
    """What was measured: seconds, and bytes."""

    execution_time: float = 0.0
    mlx_peak: int | None = None
    resident_peak: int | None = None


@dataclass(slots=True)
class Completed:
    """The operation returned. A payload is inline, or stored under the job's `payload_name`."""

    output: dict[str, Any]
    figures: Figures
    payload: bytes | None = None
    payload_stored: bool = False
    payload_size: int = 0
    encoding: str = "cloudpickle"
    arrays: tuple[StoredArray, ...] = ()


@dataclass(slots=True)
class RaisedError:
    """The task's own code raised."""

    failure: Failure
    figures: Figures


@dataclass(slots=True)
class Died:
    """The worker ended under the task, or none could be started for it; `retry` says whether another try makes sense."""

    failure: Failure
    figures: Figures = field(default_factory=Figures)
    retry: bool = True


@dataclass(slots=True)
class Stopped:
    """The engine stopped the task because it was asked to; its worker has answered or is dead."""

    reason: StopReason
    stage: Stage
    figures: Figures
    failure: Failure | None = None


Outcome = Completed | RaisedError | Died | Stopped


class Observer(Protocol):
    """Hears of a job while it runs; called on the loop."""

    def started(self, worker: str) -> None:
        """A worker has the job now."""

    def progressed(self, progress: dict[str, Any]) -> None:
        """The task said how far it is."""

    def printed(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        """The task wrote to `stdout` or `stderr`."""

    def displayed(self, item: dict[str, Any]) -> None:
        """The task showed a MIME bundle."""

    def generated(self, text: str) -> None:
        """A piece of the text that a model writes."""


WorkerState = Literal["starting", "idle", "busy"]


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A worker as it is now: `resident` is its memory in bytes, None where that can't be read; `started` in seconds since the epoch.

    `lane` is None before it is known what it is for, `task_id` while it runs none.
    """

    name: str
    state: WorkerState
    resident: int | None
    started: float
    interpreter: str
    lane: str | None = None
    task_id: str | None = None
    model: str | None = None
    session: SessionUse | None = None


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model that a worker keeps: `resident` is that worker's memory in bytes, times are in seconds.

    `idle_seconds` is None while it is busy with `task_id`.
    """

    name: str
    lane: str
    state: WorkerState
    resident: int | None
    keep_alive: float
    idle_seconds: float | None = None
    task_id: str | None = None


class Runs(Protocol):
    """Runs jobs. Every method is called on the runtime's loop."""

    async def run(self, job: Job, observer: Observer) -> Outcome:
        """Run the job to its end. Never raises for anything that the task or its worker does."""

    def halt(self, task_id: str, reason: StopReason) -> None:
        """Stop a task that `run` has, in stages; its `run` then returns `Stopped`, or what it ended as before."""


class Engine(Runs, Protocol):
    """Owns workers."""

    async def start(self) -> None:
        """Begin to start workers, without waiting for them."""

    async def stop(self, deadline: float) -> None:
        """End every worker within `deadline` seconds; never raises."""

    async def devices(self, interpreter: str | None = None) -> list[DeviceReport]:
        """What the workers of this interpreter compute on; waits for the first hello; raises `EngineError`."""

    def prepare(self, lane: str, workers: int) -> None:
        """Have workers of this lane ready before anybody asks."""

    def resident(self, task_id: str) -> int | None:
        """Resident bytes of the worker that runs this task now; None if none does."""

    def workers(self) -> list[WorkerReport]:
        """The workers that live now."""

    def models(self) -> list[ModelReport]:
        """The models that workers keep now, the longest unused first."""

    def holds(self, lane: str, model: ModelSource) -> int:
        """Bytes that the worker which keeps this model holds already; 0 where none does."""

    def make_room(self, lane: str, keep: ModelSource | None) -> str | None:
        """Begin to unload the idle model of this lane that was not used for longest, but never `keep`; its name, None without one."""

    def session_worker(self, session_id: str) -> tuple[str | None, int | None]:
        """Return the name of the session's worker and its resident bytes; None for what is unknown."""

    def end_session(self, session_id: str, reason: str) -> None:
        """End the worker of a session, and the task that it runs; `reason` completes "the worker was stopped: …"."""

    async def unload(self, name: str | None) -> list[str]:
        """Unload the idle models of that name, or all; returns their names once their workers are gone."""
