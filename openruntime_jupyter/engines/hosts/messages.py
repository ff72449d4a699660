"""Messages between a runtime and the agent of a host: typed objects in a frame's JSON body, and bytes beside it. Never a pickle.

The runtime sends `Hello`, and the agent answers with `Welcome` or `Refused`. Messages about a task carry the number of its `Run`, which is
unique for the connection: an attempt of a task never receives a message about another one.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from openruntime_jupyter.engines.hosts.shared_folders import FolderProof
from openruntime_jupyter.engines.protocol import (
    Completed,
    Count,
    DeviceReport,
    DeviceTaken,
    Died,
    Job,
    ModelReport,
    Name,
    NeedsMemory,
    Outcome,
    RaisedError,
    Reading,
    SessionUse,
    Stopped,
    StopReason,
    Text,
    WorkerReport,
)
from openruntime_jupyter.schemas.base import loads
from openruntime_jupyter.schemas.values import ModelSource, ToolCallPiece

PROTOCOL = 1
"""Version of these messages."""


class InvalidMessage(ValueError):
    """The other side sent bytes that are not one of these messages."""


# From the runtime


@dataclass(slots=True)
class EngineSettings:
    """Settings of the engine on the host. Times are in seconds; a `silence` of that length ends the session and its tasks."""

    cancel_grace: float = 0.5
    spare_workers: int = 1
    idle_worker_seconds: float = 300.0
    start_timeout: float = 60.0
    max_models: int = 2
    cpu_slots: int = 0
    gpu_slots: int = 1
    max_output_bytes: int = 1_000_000
    secret_variables: tuple[str, ...] = ()
    device_lock: Literal["gpu", "all", "none"] = "gpu"
    models_dirs: tuple[str, ...] = ()
    silence: float = 10.0


@dataclass(slots=True)
class Hello:
    """First message of a runtime. `label` is its name for users of the host, `proofs` are files that only a shared folder has."""

    protocol: int
    version: str
    runtime: str
    label: str = ""
    settings: EngineSettings = field(default_factory=EngineSettings)
    proofs: tuple[str, ...] = ()


@dataclass(slots=True)
class Run:
    """Start of a job. `job.lane` is a lane of the host, and the frame's data are the job's parameters.

    `copies` are the numbers of the arrays that were sent to the host, by id. `parameters` is that of large parameters, because a large
    frame would delay pings.
    """

    number: int
    job: Job
    copies: dict[str, int] = field(default_factory=dict)
    parameters: int | None = None


@dataclass(slots=True)
class Halt:
    """Stop of a running job in stages."""

    number: int
    reason: StopReason


@dataclass(slots=True)
class Ping:
    """Renewal of the session. The next ping follows the answer to this one, so it proves that the runtime has received that answer."""


@dataclass(slots=True)
class EndSession:
    """End of the worker of a session; `reason` completes "The worker was stopped: …"."""

    session_id: str
    reason: str


@dataclass(slots=True)
class MakeRoom:
    """Unloading of the least recently used idle model of a lane, except `keep`. The answer is `Unloaded`, after a `State`."""

    ask: int
    lane: str
    keep: ModelSource | None


@dataclass(slots=True)
class Unload:
    """Unloading of the idle models of that name, or all. The answer is `Unloaded`."""

    ask: int
    name: str | None


@dataclass(slots=True)
class Discard:
    """Deletion of copies of arrays, by number, and of results that the runtime has fetched."""

    copies: tuple[int, ...] = ()
    results: tuple[Name, ...] = ()
    payloads: tuple[Name, ...] = ()


# From the agent


@dataclass(slots=True)
class Welcome:
    """First message of an agent that is ready. `memory` is in bytes, `python` and `version` are those of the agent.

    `folder` names the session for further connections.
    """

    version: Text
    python: Annotated[Text, Field(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}(\.|$)")]
    platform: Text
    boot_id: Text
    cores: Annotated[int, Field(ge=1, le=100_000)]
    memory: Annotated[Count, Field(ge=1)]
    devices: Annotated[tuple[DeviceReport, ...], Field(max_length=256)]
    folder: str
    proofs: tuple[FolderProof, ...] = ()


@dataclass(slots=True)
class Refused:
    """First message of an agent that can't be used; `remedy` is what to do on that host."""

    reason: str
    remedy: str | None = None


@dataclass(slots=True)
class Started:
    """Start of a job on a worker."""

    number: int
    worker: Text


@dataclass(slots=True)
class DeviceHolder:
    """User of a lane's device, because of which jobs end with `DeviceTaken`; None once a job can start."""

    lane: Name
    holder: str | None


@dataclass(slots=True)
class Progressed:
    """Progress report of a task."""

    number: int
    n: float
    total: float | None = None
    message: str | None = None


@dataclass(slots=True)
class Printed:
    """Text that a task wrote since the last message, without `omitted` characters before it."""

    number: int
    stream: Literal["stdout", "stderr"]
    text: str
    omitted: Count = 0


@dataclass(slots=True)
class Displayed:
    """MIME bundle that a task displayed, an update of one, or the deletion of earlier output."""

    number: int
    item: dict[str, Any]


@dataclass(slots=True)
class Generated:
    """Piece of a response that a model generated since the last message."""

    number: int
    text: str = ""
    reasoning: str = ""
    call: ToolCallPiece | None = None


OutcomeKind = Literal["completed", "raised", "died", "stopped", "needs_memory", "device_taken"]

OUTCOMES: dict[OutcomeKind, type[Outcome]] = {
    "completed": Completed,
    "raised": RaisedError,
    "died": Died,
    "stopped": Stopped,
    "needs_memory": NeedsMemory,
    "device_taken": DeviceTaken,
}


@dataclass(slots=True)
class Ended:
    """End of a job. The frame's data are the payload of a completed one."""

    number: int
    outcome: Outcome


@dataclass(slots=True)
class SessionEnded:
    """End of a session's worker without a request."""

    session: SessionUse
    reason: str


@dataclass(slots=True)
class Unloaded:
    """Names of the models that were unloaded."""

    ask: int
    names: tuple[str, ...]


@dataclass(slots=True)
class GpuState:
    """Readings of a GPU: percent, bytes, degrees Celsius and watts; None for what can't be read."""

    utilization: Reading | None = None
    memory_total: Count | None = None
    memory_used: Count | None = None
    temperature: Reading | None = None
    power: Reading | None = None


@dataclass(slots=True)
class RunState:
    """Memory of the worker that runs a job, in bytes: what it has grown since the job began, and all of it."""

    allocated: int
    resident: Count | None


@dataclass(slots=True)
class State:
    """State of the host, at most a few times a second. Memory is in bytes; `runs` are by number.

    `gpus` are by lane of the host, as are `gpu_problems`, the reasons why others can't be read.
    """

    memory_total: Annotated[Count, Field(ge=1)]
    memory_available: Count
    cpu: Reading | None
    gpus: dict[str, GpuState] = field(default_factory=dict)
    gpu_problems: dict[str, str] = field(default_factory=dict)
    workers: tuple[WorkerReport, ...] = ()
    models: tuple[ModelReport, ...] = ()
    runs: dict[int, RunState] = field(default_factory=dict)


@dataclass(slots=True)
class StoredModels:
    """Language models in the host's folders, whenever they have changed."""

    models: tuple[ModelSource, ...]


@dataclass(slots=True)
class Pong:
    """Answer to a ping."""


ToAgent = Hello | Run | Halt | Ping | EndSession | MakeRoom | Unload | Discard
FromAgent = (
    Welcome
    | Refused
    | Started
    | DeviceHolder
    | Progressed
    | Printed
    | Displayed
    | Generated
    | Ended
    | SessionEnded
    | Unloaded
    | State
    | StoredModels
    | Pong
)
Message = ToAgent | FromAgent

TYPES: dict[str, type[Message]] = {
    each.__name__: each
    for each in (
        *(Hello, Run, Halt, Ping, EndSession, MakeRoom, Unload, Discard),
        *(
            Welcome,
            Refused,
            Started,
            DeviceHolder,
            Progressed,
            Printed,
            Displayed,
            Generated,
            Ended,
            SessionEnded,
            Unloaded,
            State,
            StoredModels,
            Pong,
        ),
    )
}


KINDS: dict[type[Outcome], OutcomeKind] = {each: kind for kind, each in OUTCOMES.items()}


def encode(message: Message) -> tuple[bytes, bytes]:
    """Return body and data of the frame of a message."""
    data, fields = b"", _changed(message)
    if isinstance(message, Run):
        data, fields["job"]["parameters"] = message.job.parameters, ""
    elif isinstance(message, Ended):
        outcome = message.outcome
        fields["kind"] = KINDS[type(outcome)]
        if isinstance(outcome, Completed) and outcome.payload is not None:
            data, fields["has_payload"] = outcome.payload, True
            del fields["outcome"]["payload"]
    fields["type"] = type(message).__name__
    return _json(fields), data


def decode(body: bytes, data: bytes) -> Message:
    """Return the message of a frame; raise `InvalidMessage`."""
    try:
        fields = loads(body)
        kind = TYPES[fields.pop("type")]
        has_payload = fields.pop("has_payload", False)
        if kind is Ended:
            outcome = _validator(OUTCOMES[fields["kind"]]).validate_python(fields["outcome"])
            message: Message = Ended(_validator(int).validate_python(fields["number"]), outcome)
        else:
            message = _validator(kind).validate_python(fields)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidMessage(f"{problem.title}.{place}: {first['msg']}") from problem
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise InvalidMessage(f"{type(problem).__name__}: {problem}") from problem
    if isinstance(message, Run):
        message.job.parameters = data
    elif has_payload and isinstance(message, Ended) and isinstance(message.outcome, Completed):
        message.outcome.payload = data
    return message


def _changed(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults, and of dataclasses in them. Others are not sent."""
    changed = {}
    for name, default in _defaults(type(value)):
        field = getattr(value, name)
        if field is not default and field != default:
            changed[name] = _changed(field) if hasattr(field, "__dataclass_fields__") else field
    return changed


def _defaults(kind: type[Any]) -> list[tuple[str, Any]]:
    """Return the names of the fields of a dataclass with their defaults. A field without one differs from every value."""
    if kind not in _known_defaults:
        _known_defaults[kind] = [
            (each.name, each.default_factory() if callable(each.default_factory) else each.default) for each in dataclasses.fields(kind)
        ]
    return _known_defaults[kind]


_known_defaults: dict[type[Any], list[tuple[str, Any]]] = {}
_validators: dict[type[Any], TypeAdapter[Any]] = {}


def _validator(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _validators:
        _validators[kind] = TypeAdapter(kind)
    return _validators[kind]


def _json(fields: dict[str, Any]) -> bytes:
    try:
        return to_json(fields)
    except ValueError:  # text with invalid UTF-8, such as a folder's name; escaped text could exceed the limit of a frame
        return json.dumps(fields, default=_plain, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, bytes):
        return value.decode()
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
