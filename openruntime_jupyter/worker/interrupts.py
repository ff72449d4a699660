"""An interrupt reaches the task it names, inside that task's own code, or nobody.

The control thread asks with `request(task_id)`; the signal handler, on the main thread, raises `KeyboardInterrupt` only while
that very task's body runs and no frame is being written. It raises at most once a task: code that swallows the interrupt is
left to the next stage of the cancel.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

# What `signal` is made of, without its making an enum of each answer: that takes ten times as long, and every task needs several.
_system: Any = sys.modules.get("_signal", signal)
handler_of: Callable[[int], Any] = _system.getsignal
_handle_by: Callable[[int, Any], Any] = _system.signal
_SIGINT, _SIGTERM, _DEFAULT = int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIG_DFL)


class InterruptGuard:
    """Owns SIGINT in a worker. Made on the main thread."""

    def __init__(self) -> None:
        self._main = threading.main_thread()
        self._requested: str | None = None
        self._running: str | None = None
        self._shield = 0
        self._shielding = _Shield(self)
        self._held_back = False
        self.delivered = False
        """Whether the running task was interrupted."""
        self.install()

    def install(self) -> None:
        """Take SIGINT and SIGTERM back from whatever a task did with them."""
        _handle_by(_SIGINT, self._handle)
        _handle_by(_SIGTERM, _DEFAULT)

    def request(self, task_id: str) -> None:
        """Interrupt `task_id` if it is the one that runs; called on the control thread."""
        self._requested = task_id
        if self._running == task_id and self._main.ident is not None:
            signal.pthread_kill(self._main.ident, signal.SIGINT)

    def enter(self, task_id: str) -> None:
        """The body of `task_id` begins."""
        self.delivered = False
        self._held_back = False
        self._running = task_id
        if self._requested == task_id:  # asked for between the frame's arrival and here
            self._raise()

    def leave(self) -> None:
        """The body is over: no interrupt is raised from here on."""
        self._running = None
        self._held_back = False

    def shielded(self) -> AbstractContextManager[None]:
        """Hold an interrupt back while a frame is written; it is raised at the end."""
        return self._shielding if threading.get_ident() == self._main.ident else _NOT_INTERRUPTED

    def hold(self) -> None:
        """From here on an interrupt is held back."""
        self._shield += 1

    def let_go(self) -> None:
        """Raise what was held back, if this was the last that held."""
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
"""The shield of every other thread: signals are handled on the main one."""


class _Shield(AbstractContextManager[None]):
    def __init__(self, guard: InterruptGuard) -> None:
        self._guard = guard

    def __enter__(self) -> None:
        self._guard.hold()

    def __exit__(self, *raised: object) -> None:
        self._guard.let_go()
