"""Every error this package raises on purpose.

OpenRuntimeError
├── InvalidRequest            a value, field, operation or device that is wrong
│   ├── UnknownOperation
│   ├── UnknownDevice
│   ├── MemoryRefused         needs more memory than the device has
│   └── SessionEnded          the session has ended: its variables are gone
├── MalformedRequest          not JSON, or not the content type that is needed
├── BodyTooLarge              a body above the configured bound
├── NotAllowed                the caller may not do this
├── TaskNotFound              no task of that id
├── SessionNotFound           no session of that id
├── TaskConflict              the task is not in a state that allows this
├── ModelNotFound             no model of that name on this machine, or none in memory
├── ConversationNotFound      no conversation of that name
├── ArrayNotFound             no array of that id, or its file is gone or damaged
├── ArrayConflict             the array is not in a state that allows this
├── Unavailable               not now: carries `retry_after` in seconds
│   ├── QueueFull
│   ├── RateLimited           the caller asks more often, or has more open, than one may
│   ├── Stopping
│   └── StorageUnavailable    the history cannot be written, so nothing durable is accepted; or there is no room for an array
├── EngineError               a worker could not be started
│   ├── InterpreterError      the interpreter is missing, or lacks this package
│   └── NoBackend             MLX is installed without anything to compute on
├── TaskError                 raised by `result()` when a task did not complete; carries the `Task`
│   ├── TaskFailed            the task itself raised
│   ├── WorkerDied            its worker process ended under it
│   ├── TaskTimedOut
│   ├── TaskCancelled
│   └── TaskInterrupted       its runtime ended under it
├── MapFailed                 raised by `map()`: which items failed, and the results of the others
├── ProviderError             a remote provider gave no answer to a prompt
│   ├── KeyMissing            its key is not where the profile says
│   ├── ProviderUnreachable   no connection, or it broke, or it was silent for too long
│   ├── ProviderRefused       it does not take this key, model, parameter or prompt
│   ├── ProviderBusy          too many requests, or no credit left
│   └── ProviderBroken        it failed itself, or what it sent is no whole answer
├── WouldDeadlock             a task waits for its own lane
├── PullFailed                a model could not be fetched
└── NotConnected              no runtime answers where one was looked for

This file knows no HTTP: `server/http/errors.py` holds the one table from these to status codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openruntime_jupyter.schemas.tasks import Task


class OpenRuntimeError(Exception):
    """The root of the tree."""

    retry_after: float | None = None
    """Seconds after which trying again makes sense; None where it does not."""


class InvalidRequest(OpenRuntimeError):
    """A request whose values are wrong.

    `details` lists `{"field": dotted name, "problem": what is wrong with it}`.
    """

    def __init__(self, message: str, details: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.details = details or []

    @classmethod
    def of(cls, field: str, problem: str) -> InvalidRequest:
        """One wrong field."""
        return cls(f"{field}: {problem}", [{"field": field, "problem": problem}])


class UnknownOperation(InvalidRequest):
    """No operation has that name."""


class UnknownDevice(InvalidRequest):
    """No device has that id."""


class MemoryRefused(InvalidRequest):
    """The work needs more memory than the device has; both figures are in bytes."""

    def __init__(self, needed: int, available: int, what: str = "This task") -> None:
        problem = f"{what} needs {gigabytes(needed)} of memory, and the device has {gigabytes(available)}: make it smaller"
        super().__init__(problem, [{"field": "parameters", "problem": problem}])
        self.needed = needed
        self.available = available

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.needed, self.available)


class SessionEnded(InvalidRequest):
    """The session that a request names has ended, or its id is unknown: its variables are gone."""

    @classmethod
    def because(cls, name: str, reason: str, advice: str) -> SessionEnded:
        """Return the error for the session `name`, with what to do."""
        problem = f"the session {name!r} has ended: {reason}. {advice}"
        return cls(f"session: {problem}", [{"field": "session", "problem": problem}])


class MalformedRequest(OpenRuntimeError):
    """The request could not be read at all."""


class BodyTooLarge(OpenRuntimeError):
    """The body is above the configured bound."""


class NotAllowed(OpenRuntimeError):
    """The caller may not do this."""


class TaskNotFound(OpenRuntimeError):
    """No task has that id."""


class SessionNotFound(OpenRuntimeError):
    """No session has that id."""


class ModelNotFound(OpenRuntimeError):
    """No model has that name, or none of that name is in memory."""


class ConversationNotFound(OpenRuntimeError):
    """Its owner has no conversation of that name."""


class TaskConflict(OpenRuntimeError):
    """The task's state does not allow this."""


class ArrayNotFound(OpenRuntimeError):
    """No array has that id, or its file is gone, short or damaged."""


class ArrayConflict(OpenRuntimeError):
    """The array's state does not allow this: it is there already, or not complete yet."""


class Unavailable(OpenRuntimeError):
    """Not now; `retry_after` says in how many seconds to ask again."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Unavailable):
    """As many tasks wait as may."""


class RateLimited(Unavailable):
    """The caller asks more often, or has more open at once, than one user or address may."""


class Stopping(Unavailable):
    """The runtime is being stopped."""


class StorageUnavailable(Unavailable):
    """The history cannot be written now, or there is no room for an array."""


class EngineError(OpenRuntimeError):
    """A worker could not be started."""


class InterpreterError(EngineError):
    """The interpreter of a task does not exist, or does not have this package in the needed version."""


class NoBackend(EngineError):
    """MLX has nothing to compute on: the message says what to install."""


class TaskError(OpenRuntimeError):
    """A task that did not complete; `task` is its record."""

    def __init__(self, message: str, task: Task | None = None) -> None:
        super().__init__(message)
        self.task = task


class TaskFailed(TaskError):
    """The task raised; `task.failure.traceback` is the remote traceback."""


class WorkerDied(TaskError):
    """The worker process ended under the task; `task.failure` has signal, peak memory and last output."""


class TaskTimedOut(TaskError):
    """The task ran longer than its timeout."""


class TaskCancelled(TaskError):
    """The task was cancelled; `task.cancel_stage` says which stage stopped it."""


class TaskInterrupted(TaskError):
    """The runtime ended under the task."""


class MapFailed(OpenRuntimeError):
    """Items of a `map` that failed.

    `failures` has the `TaskError` of each by its place; `results` what the others gave, None in the places of those that failed.
    """

    def __init__(self, message: str, failures: dict[int, TaskError], results: list[Any]) -> None:
        super().__init__(message)
        self.failures = failures
        self.results = results

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.failures, self.results)


class ProviderError(OpenRuntimeError):
    """A remote provider gave no answer to a prompt: the message names the profile, the host and what to do, and never a key."""


class KeyMissing(ProviderError):
    """The key is not where the profile says that it is."""


class ProviderUnreachable(ProviderError):
    """There is no connection to it, or the connection broke, or nothing came for too long."""


class ProviderRefused(ProviderError):
    """It does not take this key, model, parameter or prompt."""


class ProviderBusy(ProviderError):
    """It has too much to do, or its account no credit; `retry_after` is what it says itself, in seconds."""


class ProviderBroken(ProviderError):
    """It failed itself, or what it sent is no whole answer."""


class WouldDeadlock(OpenRuntimeError):
    """A task must not wait for a task of its own lane: it holds the slot that the other needs."""


class PullFailed(OpenRuntimeError):
    """A model could not be fetched; the message says why and what to do."""


class NotConnected(OpenRuntimeError):
    """No runtime answers at the given place."""


def gigabytes(size: float) -> str:
    """`size` bytes as a person reads them, in three figures: `"2.31 GB"`, `"500 MB"` (powers of ten)."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if (scaled := size / factor) >= 0.9995:
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {unit}"
    return f"{int(size)} B"
