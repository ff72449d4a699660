"""Protocol between the scheduler and the engines that run its tasks.

It uses task ids, lanes, payload names and worker names, but no pids, and paths only where both sides share a folder, so that a cluster
can implement it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from openruntime_jupyter.memory import Capacity
from openruntime_jupyter.schemas.hosts import Host
from openruntime_jupyter.schemas.tasks import Failure
from openruntime_jupyter.schemas.values import ArrayKind, ModelSource, ResponsePiece

# Bounds of what another machine reports, checked where it arrives. Larger numbers don't fit into the history.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
Reading = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,200}$")]
"""Name that may be a file's name in a private folder, on any machine."""


class StopReason(str, Enum):
    """Reason for stopping a running task."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    MEMORY = "memory"
    ENDED = "ended"


class Stage(str, Enum):
    """Stage of a stop that ended the task; each stage follows the previous one after a grace period."""

    QUEUE = "queue"
    INTERRUPT = "interrupt"
    TERMINATE = "terminate"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """Device as reported by a worker's MLX; `memory` is in bytes, None if MLX does not report it."""

    type: Annotated[str, Field(pattern="^(cpu|gpu)$")]
    index: Annotated[int, Field(ge=0, le=1000)]
    name: Text
    memory: Count | None
    capabilities: Annotated[tuple[Text, ...], Field(max_length=50)]
    mlx_version: Text
    blas: Text | None = None
    advice: Text | None = None


@dataclass(frozen=True, slots=True)
class StoredArray:
    """Result array that the engine has stored; `place` is the index of its folder among those given to the task."""

    id: str
    shape: tuple[int, ...]
    dtype: str
    kind: ArrayKind
    place: int


@dataclass(frozen=True, slots=True)
class ExecutionEnvironment:
    """Execution environment of the caller's code, which restricts the prepared workers that a task may use.

    `variables` are environment variables that differ from the runtime's, as sorted pairs; None removes one. `kernel` identifies the
    calling process: tasks of different kernels never share a worker that was prepared by imports.
    """

    directory: str | None = None
    path: tuple[str, ...] | None = None
    variables: tuple[tuple[str, str | None], ...] = ()
    kernel: str | None = None


@dataclass(frozen=True, slots=True)
class ModelUse:
    """Model that a job uses. Its worker is not shared with other models and stays for `keep_alive` seconds after the last job."""

    source: ModelSource
    keep_alive: float


@dataclass(frozen=True, slots=True)
class SessionUse:
    """Session that a job runs in, whose worker keeps its variables between jobs. `number` counts restarts."""

    id: Name
    number: Count
    name: str = ""


@dataclass(frozen=True, slots=True)
class JobFiles:
    """Array files of a job that its engine does not find by itself: paths of inputs by id, and places of results as in `ArrayFiles`."""

    inputs: dict[str, str] = field(default_factory=dict)
    places: tuple[tuple[str, int, int], ...] | None = None


@dataclass(slots=True)
class Job:
    """One attempt at a task, as a lane passes it to an engine. `parameters` is JSON; sizes are in bytes.

    `memory_total` is the memory of the lane's device, and `memory_largest` that of the largest device that may run the task.

    `arrays` are the ids of the input arrays named in the parameters; ids of result arrays begin with `array_name`, which is None for an
    operation without result arrays.

    A `private` job runs code of its caller, so it gets a worker process that no other task has used. Jobs with the same `burst` may
    follow each other in one process.

    `files` and `folder` are set for other hosts: `folder` replaces the caller's working directory and import path. `name` is shown to other
    runtimes of the host that wait for its device.
    """

    task_id: Name
    operation: str
    parameters: bytes
    lane: Name
    device_type: str
    device_index: int
    memory_total: int | None
    memory_limit: int
    threads: int
    payload_name: Name
    interpreter: str | None = None
    environment: ExecutionEnvironment = field(default_factory=ExecutionEnvironment)
    private: bool = False
    burst: str | None = None
    arrays: tuple[str, ...] = ()
    array_name: Name | None = None
    model: ModelUse | None = None
    session: SessionUse | None = None
    memory_reserved: int = 0
    memory_largest: int | None = None
    files: JobFiles | None = None
    folder: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Measurements:
    """Measurements of an attempt, in seconds, bytes and percent."""

    execution_time: Seconds = 0.0
    mlx_peak: Count | None = None
    resident_peak: Count | None = None
    gpu_utilization: Reading | None = None
    """Mean utilization of the GPU during the attempt, as the agent of another host has measured it."""


@dataclass(slots=True)
class Completed:
    """Outcome of an operation that returned. Its payload is inline, or stored under the job's `payload_name`."""

    output: dict[str, Any]
    measurements: Measurements
    payload: bytes | None = None
    payload_stored: bool = False
    payload_size: Count = 0
    encoding: Text = "cloudpickle"
    arrays: tuple[StoredArray, ...] = ()


@dataclass(slots=True)
class RaisedError:
    """Outcome of a task whose code raised an exception."""

    failure: Failure
    measurements: Measurements


@dataclass(slots=True)
class HostLoss:
    """Loss of the host that a task was given to. If the task had `begun`, it may run there for up to `safe_in` seconds from then."""

    host: str
    begun: bool
    safe_in: float


@dataclass(slots=True)
class Died:
    """Outcome of a task whose worker died or could not be started; `retry` is False if another attempt would fail as well.

    With `no_worker` no worker of the lane began the task, so that it may run on another lane without counting as an attempt.
    """

    failure: Failure
    measurements: Measurements = field(default_factory=Measurements)
    retry: bool = True
    no_worker: bool = False
    host_loss: HostLoss | None = None


@dataclass(slots=True)
class Stopped:
    """Outcome of a task that the engine stopped on request; its worker has responded or is dead."""

    reason: StopReason
    stage: Stage
    measurements: Measurements
    failure: Failure | None = None


@dataclass(slots=True)
class NeedsMemory:
    """Outcome of a task that found, before it computed, that it needs more memory than was reserved for it: `needs` in bytes."""

    needs: Count
    measurements: Measurements


@dataclass(slots=True)
class DeviceTaken:
    """Outcome of a job that did not start, because another runtime of its host uses the device; see `HostDevices.holder`."""

    measurements: Measurements = field(default_factory=Measurements)


Outcome = Completed | RaisedError | Died | Stopped | NeedsMemory | DeviceTaken


class Observer(Protocol):
    """Receiver of a running job's events; called on the loop."""

    def started(self, worker: str) -> None:
        """Handle the start of the job on a worker."""

    def waiting(self, reason: str | None) -> None:
        """Handle the reason why the job can't start or can't be reached now; None once that is over."""

    def progressed(self, progress: dict[str, Any]) -> None:
        """Handle a progress report of the task."""

    def printed(self, stream: Literal["stdout", "stderr"], text: str, omitted: int = 0) -> None:
        """Handle text that the task wrote to `stdout` or `stderr`. A host left out `omitted` characters before it."""

    def displayed(self, item: dict[str, Any]) -> None:
        """Handle a MIME bundle that the task displayed, an update of one, or the deletion of earlier output.

        A bundle with `omitted` has no data: a host left out that many bytes, because the output is full.
        """

    def generated(self, piece: ResponsePiece) -> None:
        """Handle a piece of a response that a model generated."""


WorkerState = Literal["starting", "idle", "busy"]


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """Current state of a worker: `resident` is its memory in bytes, None if unreadable; `started` is in seconds since the epoch.

    `lane` is None until the worker is assigned to one, `task_id` while it is idle.
    """

    name: Text
    state: WorkerState
    resident: Count | None
    started: Seconds
    interpreter: str
    lane: Text | None = None
    task_id: Text | None = None
    model: str | None = None
    session: SessionUse | None = None


def total_resident(workers: Sequence[WorkerReport]) -> int | None:
    """Return the resident bytes of the workers whose memory is readable; None if there are workers and none is readable."""
    known = [worker.resident for worker in workers if worker.resident is not None]
    return sum(known) if known or not workers else None


@dataclass(frozen=True, slots=True)
class ModelReport:
    """Model that a worker keeps: `resident` is that worker's memory in bytes, times are in seconds.

    `idle_seconds` is None while it is busy with `task_id`.
    """

    name: str
    lane: Text
    state: WorkerState
    resident: Count | None
    keep_alive: float
    idle_seconds: Seconds | None = None
    task_id: Text | None = None


class JobRunner(Protocol):
    """Runner of jobs. Every method is called on the runtime's loop."""

    async def run(self, job: Job, observer: Observer) -> Outcome:
        """Run the job and return its outcome. Never raises for errors of the task or its worker."""

    def halt(self, task_id: str, reason: StopReason) -> None:
        """Stop a running task in stages; its `run` returns `Stopped`, or its outcome if it has already ended."""


class LoadedModels(Protocol):
    """Models that workers keep in memory."""

    def reports(self) -> list[ModelReport]:
        """Return the models, least recently used first."""

    def lanes(self, model: ModelSource) -> list[str]:
        """Return the lanes whose workers keep this model."""

    def holds(self, lane: str, model: ModelSource) -> int:
        """Return the bytes held by the worker that keeps this model; 0 if it is not loaded."""

    def make_room(self, lane: str, keep: ModelSource | None) -> str | None:
        """Start unloading the least recently used idle model of this lane except `keep`. Return its name, or None."""

    async def unload(self, name: str | None) -> list[str]:
        """Unload the idle models of that name, or all; return their names once their workers have ended."""


class HostDevices(JobRunner, Protocol):
    """Devices of another host, with the runner of their jobs. The id of a device is its host's name and its position there."""

    name: str

    @property
    def devices(self) -> list[DeviceReport]:
        """Devices of the host."""

    @property
    def machine(self) -> Capacity:
        """Memory and cores of the host."""

    @property
    def python(self) -> str:
        """Minor version of the host's Python, such as `3.11`."""

    def holder(self, lane: str) -> str | None:
        """Return who uses the device of a lane in another runtime of the host, so that no job starts on it; None if one can."""


class Engine(JobRunner, Protocol):
    """Engine that owns workers."""

    @property
    def models(self) -> LoadedModels:
        """Models that workers keep."""

    @property
    def problem(self) -> str | None:
        """Problem of missing hosts, for `/health`, or None."""

    async def start(self) -> None:
        """Start the first workers without waiting for them."""

    async def end_left_processes(self) -> None:
        """End processes that tasks of dead runtimes have left."""

    async def stop(self, deadline: float) -> None:
        """End every worker within `deadline` seconds; never raises."""

    async def devices(self, interpreter: str | None = None) -> list[DeviceReport]:
        """Return the devices of this interpreter's workers once the first one is ready; raise `EngineError` if none starts."""

    def stored_models(self) -> Mapping[str, Sequence[ModelSource]]:
        """Return the language models in the folders of other hosts, by host. May be called on any thread."""

    def watch(
        self,
        found: Callable[[str], None],
        joined: Callable[[HostDevices], None],
        left: Callable[[str], None],
        pending: Callable[[], int],
    ) -> None:
        """Report the devices of other hosts from now on.

        Parameters
        ----------
        found : called with the name of each host, which may not be ready yet
        joined : called with the devices of a host that can run jobs
        left : called with the name of such a host once it can't
        pending : returns the number of pending tasks, for clusters that start hosts
        """

    def allocated(self, task_id: str) -> int:
        """Return the bytes by which the worker of this task has grown since the task began; 0 if unknown."""

    def resident(self, task_id: str) -> int | None:
        """Return the resident bytes of the worker that runs this task; None if unknown."""

    def workers(self) -> list[WorkerReport]:
        """Return the running workers."""

    def hosts(self) -> list[Host]:
        """Return the other machines, by name, without what the lanes know: devices, slots and running tasks."""

    def session_worker(self, session_id: str) -> tuple[str | None, int | None]:
        """Return the name of the session's worker and its resident bytes; None for unknown values."""

    def end_session(self, session_id: str, reason: str) -> None:
        """End the worker of a session, and the task that it runs; `reason` completes "The worker was stopped: …"."""
