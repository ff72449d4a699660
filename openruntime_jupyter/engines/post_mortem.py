"""Why a worker ended, in words and figures."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.models import Failure, FailureKind

if TYPE_CHECKING:
    from openruntime_jupyter.engines.worker_process import Death, WorkerProcess


def oom_kills() -> int | None:
    """How many processes Linux has killed for want of memory since it started; None where it does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return None


class OomWatch:
    """Tells whether the kernel's out-of-memory killer struck since the last question."""

    def __init__(self) -> None:
        self._seen = oom_kills()

    def struck(self) -> bool:
        """Whether the count rose."""
        before, self._seen = self._seen, oom_kills()
        return before is not None and self._seen is not None and self._seen > before


oom_watch = OomWatch()


def signal_name(number: int) -> str:
    """`SIGKILL` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def died(worker: WorkerProcess, death: Death, peak: int | None) -> Failure:
    """The post-mortem of a worker that ended under a task; `peak` is in bytes."""
    figures = f", peak memory {gigabytes(peak)}" if peak else ""
    if worker.killed_by_us:
        how = f"The worker was stopped: {worker.killed_by_us}{figures}"
    elif death.signal is not None:
        how = f"The worker was killed by signal {death.signal} ({signal_name(death.signal)}){figures}{_likely(death.signal)}"
    else:
        how = f"The worker left with exit code {death.exit_code}{figures}"
    return Failure(
        kind=FailureKind.WORKER_DIED,
        message=how,
        signal=death.signal,
        exit_code=death.exit_code,
        peak_memory=peak,
        last_output=worker.last_output() or None,
    )


def _likely(number: int) -> str:
    if number == signal.SIGKILL and oom_watch.struck():
        return ": the system's out-of-memory killer ended it; make the task smaller"
    if number == signal.SIGKILL:
        return ": likely out of memory, or killed by hand"
    if number in (signal.SIGSEGV, signal.SIGBUS):
        return ": native code crashed, which is also how MLX ends when an allocation fails"
    if number == signal.SIGABRT:
        return ": native code gave up, see the last output"
    return ""
