"""Failures of tasks that did not complete: what happened, and what to do."""

from __future__ import annotations

from openruntime_jupyter.engines.protocol import Stage, Stopped, StopReason
from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.runtime.tasks.entry import Entry
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, TaskState

HOW = {
    Stage.QUEUE: "before it started",
    Stage.INTERRUPT: "by an interrupt",
    Stage.TERMINATE: "by SIGTERM, since it did not answer the interrupt",
    Stage.KILL: "by SIGKILL, since it answered neither the interrupt nor SIGTERM",
}


def cancelled(stage: Stage, last_output: str | None = None) -> Failure:
    """Return the failure of a cancelled task."""
    return Failure(kind=FailureKind.CANCELLED, message=f"Cancelled {HOW[stage]}.", last_output=last_output)


def interrupted(message: str) -> Failure:
    """Return the failure of a task whose runtime ended."""
    return Failure(kind=FailureKind.INTERRUPTED, message=message)


def no_memory(needed: int, free: int, waited: float) -> Failure:
    """Return the failure of a task that an idle device had no memory for."""
    message = (
        f"It needs {gigabytes(needed)} of memory; {gigabytes(free)} were free, and {waited:g} s of waiting on an idle device "
        "changed nothing. Close what holds the memory, or make the task smaller."
    )
    return Failure(kind=FailureKind.MEMORY, message=message)


def stopped(outcome: Stopped, entry: Entry) -> tuple[TaskState, Failure]:
    """Return the state and failure of a task that the engine stopped."""
    died = outcome.failure
    peak = outcome.measurements.resident_peak
    last = died.last_output if died is not None else None
    if outcome.reason is StopReason.CANCELLED:
        return TaskState.CANCELLED, cancelled(outcome.stage, last)
    if outcome.reason is StopReason.TIMED_OUT:
        message = f"It ran longer than its timeout of {entry.timeout:g} s and was stopped {HOW[outcome.stage]}."
        return TaskState.TIMED_OUT, Failure(kind=FailureKind.TIMED_OUT, message=message, peak_memory=peak, last_output=last)
    if outcome.reason is StopReason.MEMORY:
        limit = f"its limit of {gigabytes(entry.memory_limit)}" if entry.memory_limit else "the limit of this runtime (memory_limit)"
        grew = gigabytes(peak) if peak else "more"
        message = f"Its worker grew to {grew} of memory, past {limit}, and was stopped. Make the task smaller, or raise the limit."
        return TaskState.FAILED, Failure(kind=FailureKind.MEMORY, message=message, peak_memory=peak, last_output=last)
    return TaskState.INTERRUPTED, interrupted("The runtime was stopped while it ran.")


def fault(what: str) -> Failure:
    """Return the failure of a task that ended by a bug in this package."""
    return Failure(kind=FailureKind.NOT_STARTED, message=f"{what}. This is a bug in openruntime; the log has the traceback.")


def not_resumed(problem: str) -> Failure:
    """Return the failure of a dead runtime's task that this runtime can't run."""
    return Failure(kind=FailureKind.NOT_STARTED, message=f"It could not be queued again after its runtime ended: {problem}")
