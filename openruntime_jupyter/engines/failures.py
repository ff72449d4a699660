"""Failures of tasks that did not complete, and errors of workers that did not start: what happened, and what to do."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import deque
from collections.abc import Callable

from openruntime_jupyter import __version__
from openruntime_jupyter.engines.protocol import Stage, Stopped, StopReason
from openruntime_jupyter.errors import EngineError, InterpreterError, gigabytes
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, TaskState


def oom_kills() -> int | None:
    """Return the number of processes that Linux killed for lack of memory since boot; None if unknown."""
    try:
        with open("/proc/vmstat", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return None


class OomWatch:
    """Detector of kills by the out-of-memory killer within the last seconds; older ones are unrelated."""

    READINGS = 4
    INTERVAL = 1.0
    """Seconds between two readings."""

    def __init__(self, count: Callable[[], int | None] = oom_kills, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._seen: deque[tuple[float, int | None]] = deque(maxlen=self.READINGS)

    def read(self) -> None:
        """Record the current count; must be called frequently while tasks run, on one thread."""
        now = self._clock()
        if self._seen and now - self._seen[-1][0] < self.INTERVAL:
            return
        if self._seen and now - self._seen[-1][0] > self.READINGS * self.INTERVAL:
            self._seen.clear()
        self._seen.append((now, self._count()))

    def detected_kill(self) -> bool:
        """Return whether the count has increased since the oldest reading."""
        seen, now = tuple(self._seen), self._count()
        return bool(seen) and seen[0][1] is not None and now is not None and now > seen[0][1]


oom_watch = OomWatch()


def signal_name(number: int) -> str:
    """Return the name of a signal, such as `SIGKILL` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Death:
    """End of a process: `signal` or `exit_code`, and the peak of its resident memory in bytes since the kernel's last reset."""

    def __init__(self, status: int, peak: int | None) -> None:
        self.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        self.exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        self.peak = peak


def worker_died(death: Death, peak: int | None, killed_by_us: str | None, last_output: str, loading: str | None = None) -> Failure:
    """Return the failure of a task whose worker died.

    Parameters
    ----------
    peak : peak of the worker's memory in bytes
    killed_by_us : the reason if the runtime stopped it
    loading : name of the model that it was loading
    """
    memory = f", peak memory {gigabytes(peak)}" if peak else ""
    if killed_by_us:
        how = f"The worker was stopped: {killed_by_us}{memory}"
    elif death.signal is not None:
        how = f"The worker was killed by signal {death.signal} ({signal_name(death.signal)}){memory}{_likely(death.signal)}"
        if loading is not None and death.signal in CRASHES:
            how += f". It was loading the model {loading}, whose file may be damaged: download it again, or use another model"
    else:
        how = f"The worker exited with code {death.exit_code}{memory}"
    return Failure(
        kind=FailureKind.WORKER_DIED,
        message=how,
        signal=death.signal,
        exit_code=death.exit_code,
        peak_memory=peak,
        last_output=last_output or None,
    )


CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
"""Signals of native code that failed."""


def _likely(number: int) -> str:
    if number == signal.SIGKILL and oom_watch.detected_kill():
        return ": the system's out-of-memory killer ended it; make the task smaller"
    if number == signal.SIGKILL:
        return ": likely out of memory, or killed manually"
    if number in (signal.SIGSEGV, signal.SIGBUS):
        return ": native code crashed, which also happens when an MLX allocation fails"
    if number == signal.SIGABRT:
        return ": native code aborted, see the last output"
    return ""


NO_INTERPRETER = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ELOOP, errno.ENAMETOOLONG)
FEWER_FILES = "Raise the limit of open files (`ulimit -n`) for the runtime's process, or close open files"
SHORTAGE = {
    errno.EMFILE: FEWER_FILES,
    errno.ENFILE: FEWER_FILES,
    errno.ENOMEM: "Free memory by closing other programs, and try again",
    errno.EAGAIN: "End other processes of this user, or raise their limit (`ulimit -u`)",
}
CHECK = "Check the system log, and try again"


def not_started(interpreter: str, problem: OSError) -> EngineError:
    """Return the error for a worker that could not be started, with the fix."""
    if problem.errno in NO_INTERPRETER:
        return InterpreterError(
            f"The interpreter {interpreter} can't be started: {problem.strerror}. Give the path of a Python that exists on this machine."
        )
    return EngineError(f"Cannot start a worker of {interpreter}: {problem.strerror}. {SHORTAGE.get(problem.errno or 0, CHECK)}")


def install_command(interpreter: str) -> str:
    """Return the command that installs this version of the package for that interpreter."""
    return f"{interpreter} -m pip install openruntime-jupyter=={__version__}"


def missing_package(interpreter: str) -> str:
    """Return the message for an environment without this package, with the command that installs it."""
    return (
        f"The environment of {interpreter} has no openruntime_jupyter, so it cannot run tasks. "
        f"Install it there: {install_command(interpreter)}"
    )


HOW = {
    Stage.QUEUE: "before it started",
    Stage.INTERRUPT: "by an interrupt",
    Stage.TERMINATE: "by SIGTERM, since it did not answer the interrupt",
    Stage.KILL: "by SIGKILL, since it answered neither the interrupt nor SIGTERM",
}


def cancelled(stage: Stage, last_output: str | None = None) -> Failure:
    """Return the failure of a cancelled task."""
    return Failure(kind=FailureKind.CANCELLED, message=f"Cancelled {HOW[stage]}.", last_output=last_output)


def cancelled_with(host: str) -> Failure:
    """Return the failure of a task that was cancelled on a host which does not respond and is lost."""
    return Failure(kind=FailureKind.CANCELLED, message=f"Cancelled: the host {host} was lost, and its agent ends all tasks then.")


def no_memory(needed: int, free: int, waited: float) -> Failure:
    """Return the failure of a task that an idle device had no memory for."""
    message = (
        f"It needs {gigabytes(needed)} of memory; {gigabytes(free)} were free, and {waited:g} s of waiting on an idle device "
        "changed nothing. Close what holds the memory, or make the task smaller."
    )
    return Failure(kind=FailureKind.MEMORY, message=message)


def stopped(outcome: Stopped, timeout: float | None, memory_limit: int | None) -> tuple[TaskState, Failure]:
    """Return the state and failure of a task that the engine stopped."""
    peak = outcome.measurements.resident_peak
    last = outcome.failure.last_output if outcome.failure is not None else None
    if outcome.reason is StopReason.CANCELLED:
        return TaskState.CANCELLED, cancelled(outcome.stage, last)
    if outcome.reason is StopReason.TIMED_OUT:
        message = f"It ran longer than its timeout of {timeout:g} s and was stopped {HOW[outcome.stage]}."
        return TaskState.TIMED_OUT, Failure(kind=FailureKind.TIMED_OUT, message=message, peak_memory=peak, last_output=last)
    if outcome.reason is StopReason.MEMORY:
        limit = f"its limit of {gigabytes(memory_limit)}" if memory_limit else "the limit of this runtime (memory_limit)"
        grew = gigabytes(peak) if peak else "more"
        message = f"Its worker grew to {grew} of memory, past {limit}, and was stopped. Make the task smaller, or raise the limit."
        return TaskState.FAILED, Failure(kind=FailureKind.MEMORY, message=message, peak_memory=peak, last_output=last)
    return TaskState.INTERRUPTED, Failure(kind=FailureKind.INTERRUPTED, message="The runtime was stopped while it ran.")


def fault(what: str) -> Failure:
    """Return the failure of a task that ended by a bug in this package."""
    return Failure(kind=FailureKind.NOT_STARTED, message=f"{what}. This is a bug in openruntime; the log has the traceback.")


def not_resumed(problem: str) -> Failure:
    """Return the failure of a dead runtime's task that this runtime can't run."""
    return Failure(kind=FailureKind.NOT_STARTED, message=f"It could not be queued again after its runtime ended: {problem}")
