"""Interrupts of tasks, which are raised only in the code of the requested task.

The control thread calls `request(task_id)`. The signal handler on the main thread raises `KeyboardInterrupt` only while the body of that
task runs and no frame is being written. It raises at most once per task: if the code swallows the interrupt, the next stage of the cancel
stops it.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

# The C functions behind `signal`, which do not convert results to enums: ten times faster, and every task calls several.
_system: Any = sys.modules.get("_signal", signal)
handler_of: Callable[[int], Any] = _system.getsignal
_handle_by: Callable[[int, Any], Any] = _system.signal
_SIGINT, _SIGTERM, _DEFAULT = int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIG_DFL)


class InterruptGuard:
    """Owner of SIGINT in a worker, created on the main thread."""

    def __init__(self) -> None:
        self._main = threading.main_thread()
        self._requested: str | None = None
        self._running: str | None = None
        self._shield = 0
        self._shielding = _Shield(self)
        self._held_back = False
        self.delivered = False
        """True if the running task was interrupted."""
        self.install()

    def install(self) -> None:
        """Restore the handlers of SIGINT and SIGTERM, which a task may have changed."""
        _handle_by(_SIGINT, self._handle)
        _handle_by(_SIGTERM, _DEFAULT)

    def request(self, task_id: str) -> None:
        """Interrupt `task_id` if it is running; called on the control thread."""
        self._requested = task_id
        if self._running == task_id and self._main.ident is not None:
            signal.pthread_kill(self._main.ident, signal.SIGINT)

    def enter(self, task_id: str) -> None:
        """Begin the body of `task_id`."""
        self.delivered = False
        self._held_back = False
        self._running = task_id
        if self._requested == task_id:  # requested since the frame arrived
            self._raise()

    def leave(self) -> None:
        """End the body; later interrupts are ignored."""
        self._running = None
        self._held_back = False

    def shielded(self) -> AbstractContextManager[None]:
        """Return a context that delays interrupts while a frame is written."""
        return self._shielding if threading.get_ident() == self._main.ident else _NOT_INTERRUPTED

    def hold(self) -> None:
        """Begin to delay interrupts."""
        self._shield += 1

    def release(self) -> None:
        """Raise a delayed interrupt after the last `hold` is released."""
        self._shield -= 1
        if self._held_back and not self._shield and self._running is not None:
            self._raise()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._running is None or self._requested != self._running or self.delivered:
            return
        if self._shield:
            self._held_back = True
        else:
            self._raise()

    def _raise(self) -> None:
        self._held_back = False
        self.delivered = True
        self._requested = None
        raise KeyboardInterrupt("the task was cancelled")


_NOT_INTERRUPTED = nullcontext()
"""Context for other threads; signals are handled on the main thread."""


class _Shield(AbstractContextManager[None]):
    def __init__(self, guard: InterruptGuard) -> None:
        self._guard = guard

    def __enter__(self) -> None:
        self._guard.hold()

    def __exit__(self, *raised: object) -> None:
        self._guard.release()
