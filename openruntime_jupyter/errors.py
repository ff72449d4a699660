"""Errors that this package raises deliberately.

`server/http/errors.py` maps these errors to HTTP status codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openruntime_jupyter.schemas.tasks import Task


class OpenRuntimeError(Exception):
    """Base class of the errors of this package."""

    retry_after: float | None = None
    """Seconds after which a retry makes sense; None if waiting does not help."""


class InvalidRequest(OpenRuntimeError):
    """Invalid values in a request.

    `details` lists `{"field": dotted name, "problem": description}`.
    """

    def __init__(self, message: str, details: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.details = details or []

    @classmethod
    def of(cls, field: str, problem: str) -> InvalidRequest:
        """Return the error for one field."""
        return cls(f"{field}: {problem}", [{"field": field, "problem": problem}])


class UnknownOperation(InvalidRequest):
    """Unknown operation."""


class UnknownDevice(InvalidRequest):
    """Unknown device."""


class MemoryRefused(InvalidRequest):
    """Work that needs more memory than the device has. Both sizes are in bytes, and 0 over HTTP."""

    needed: int = 0
    available: int = 0

    @classmethod
    def because(cls, needed: int, available: int, what: str = "This task") -> MemoryRefused:
        """Return the error for `what`, with both sizes in bytes."""
        problem = f"{what} needs {gigabytes(needed)} of memory, and the device has {gigabytes(available)}: make it smaller"
        error = cls(problem, [{"field": "parameters", "problem": problem}])
        error.needed, error.available = needed, available
        return error


class ContextExceeded(InvalidRequest):
    """Prompt that does not fit into the context of its model."""

    @classmethod
    def because(cls, prompt: int, model: str, context: int) -> ContextExceeded:
        """Return the error for a prompt of a number of tokens, and a model with its context in tokens."""
        problem = f"has {prompt:,} tokens, but {model} has a context of {context:,} including the response: shorten it"
        return cls(f"parameters.prompt: {problem}", [{"field": "parameters.prompt", "problem": problem}])


class SessionEnded(InvalidRequest):
    """Session that has ended or is unknown; its variables are lost."""

    @classmethod
    def because(cls, name: str, reason: str, advice: str) -> SessionEnded:
        """Return the error for the session `name` with advice."""
        problem = f"the session {name!r} has ended: {reason}. {advice}"
        return cls(f"session: {problem}", [{"field": "session", "problem": problem}])


class MalformedRequest(OpenRuntimeError):
    """Unreadable request."""


class BodyTooLarge(OpenRuntimeError):
    """Body larger than the configured limit."""


class NotAllowed(OpenRuntimeError):
    """Missing permission."""


class TaskNotFound(OpenRuntimeError):
    """Unknown task id."""


class SessionNotFound(OpenRuntimeError):
    """Unknown session id."""


class ModelNotFound(OpenRuntimeError):
    """Unknown model, or a model that is not in memory."""


class ConversationNotFound(OpenRuntimeError):
    """Unknown conversation of this user."""


class TaskConflict(OpenRuntimeError):
    """Request that the state of the task does not allow."""


class IdempotencyKeyInUse(TaskConflict):
    """Idempotency key of a request that another server of this user is processing; repeat the request to get its tasks."""

    retry_after = 1.0


class ArrayNotFound(OpenRuntimeError):
    """Unknown array id, or an array whose file is missing, truncated or damaged."""


class ArrayConflict(OpenRuntimeError):
    """Request that the state of the array does not allow: it exists already, or is not complete yet."""


class Unavailable(OpenRuntimeError):
    """Service that is not available at present; retry after `retry_after` seconds unless it is None."""

    def __init__(self, message: str, retry_after: float | None = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Unavailable):
    """Queue with the maximum number of pending tasks."""


class RateLimited(Unavailable):
    """Caller that exceeds the limit of requests or open connections of one user or address."""


class Stopping(Unavailable):
    """Runtime that is shutting down."""


class StorageUnavailable(Unavailable):
    """History that cannot be written at present, or an array that does not fit on the disk."""


class NoModel(Unavailable):
    """No installed model and no provider that could answer a prompt."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)


class EngineError(OpenRuntimeError):
    """Worker that could not be started."""


class InterpreterError(EngineError):
    """Interpreter that does not exist or lacks the required version of this package."""


class NoBackend(EngineError):
    """MLX without a backend to compute on; the message names the package to install."""


class TaskError(OpenRuntimeError):
    """Task that did not complete; `task` is its record."""

    def __init__(self, message: str, task: Task | None = None) -> None:
        super().__init__(message)
        self.task = task


class TaskFailed(TaskError):
    """Task that raised an exception; `task.failure.traceback` is the remote traceback."""


class WorkerDied(TaskError):
    """Task whose worker process died; `task.failure` has signal, peak memory and last output."""


class TaskTimedOut(TaskError):
    """Task that ran longer than its timeout."""


class TaskCancelled(TaskError):
    """Cancelled task; `task.cancel_stage` is the stage that stopped it."""


class TaskInterrupted(TaskError):
    """Task whose runtime ended while it ran."""


class MapFailed(OpenRuntimeError):
    """Failed items of a `map`.

    `failures` maps the index of each failed item to its `TaskError`. `results` has the results of the others, and None for failed items.
    """

    def __init__(self, message: str, failures: dict[int, TaskError], results: list[Any]) -> None:
        super().__init__(message)
        self.failures = failures
        self.results = results

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.failures, self.results)


class ProviderError(OpenRuntimeError):
    """Prompt that a remote provider did not answer. The message names the profile, the host and what to do, and never a key."""


class KeyMissing(ProviderError):
    """API key that is missing from the location named by the profile."""


class ProviderUnreachable(ProviderError):
    """Connection to a provider that failed, was lost or timed out."""


class ProviderRefused(ProviderError):
    """Key, model, parameter or prompt that the provider rejected."""


class ProviderBusy(ProviderError):
    """Provider that is overloaded, or an account without credit; `retry_after` is the delay in seconds that the provider sent."""


class ProviderBroken(ProviderError):
    """Server error of a provider, or an incomplete response."""


class WouldDeadlock(OpenRuntimeError):
    """Deadlock: a task waits for another task in its lane while it holds the slot that the other needs."""


class PullFailed(OpenRuntimeError):
    """Failed model download; the message says why and what to do."""


class NotConnected(OpenRuntimeError):
    """No runtime responds at the given address."""


def gigabytes(size: float) -> str:
    """Format `size` in bytes with three significant digits and decimal units: `"2.31 GB"`, `"500 MB"`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if (scaled := size / factor) >= 0.9995:
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {unit}"
    return f"{int(size)} B"
