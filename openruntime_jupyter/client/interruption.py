"""Interrupted waits: exceptions that IPython shows as one line, kernels that stop, and an event loop that notices the stop button."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

Error = TypeVar("Error", bound=BaseException)

PULSE_SECONDS = 0.25
"""Maximum time until an event loop notices the stop button."""
DECIDE_SECONDS = 0.5
"""Time between Ctrl-C and the cancellation in a kernel. Jupyter interrupts a kernel before it restarts it, and such a stop cancels nothing.
The request to shut down, or the kill, follows within milliseconds."""
DECIDE_POLL = 0.02
"""Interval between checks for a shutdown during that time, in seconds."""

awaited: set[str] = set()
"""Ids of the tasks that coroutines await. A kernel that stops may not run these coroutines again."""


def _shell() -> Any:
    """Return the IPython shell of this process, or None."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def in_kernel() -> bool:
    """Return whether this process is a Jupyter kernel."""
    return getattr(_shell(), "kernel", None) is not None


def kernel_stops() -> bool:
    """Return whether the kernel has received a request to shut down, which also precedes a restart.

    The kernel's control thread receives it while the main thread runs a cell.
    """
    return in_kernel() and bool(getattr(_shell(), "exit_now", False))


def kernel_stops_soon() -> bool:
    """Return whether an interrupt came from a restart or shutdown of the kernel, after `DECIDE_SECONDS` if not.

    A second interrupt, and one outside of a kernel, is decided at once.
    """
    with contextlib.suppress(KeyboardInterrupt):
        for _ in _undecided():
            time.sleep(DECIDE_POLL)
    return kernel_stops()


async def kernel_stops_soon_async() -> bool:
    """Return the same for a coroutine. A kernel that stops also stops its event loop, so that this may never return."""
    for _ in _undecided():
        await asyncio.sleep(DECIDE_POLL)
    return kernel_stops()


def _undecided() -> Iterator[None]:
    deadline = time.monotonic() + (DECIDE_SECONDS if in_kernel() else 0.0)
    while not kernel_stops() and time.monotonic() < deadline:
        yield


def shown_as_line(error: Error) -> Error:
    """Make IPython show `error` as one line instead of a traceback, and return it."""
    line = f"{type(error).__name__}: {error}"
    # IPython uses this method of an exception to render it. Subclasses of KeyboardInterrupt do not end a script by the signal.
    setattr(error, "_render_traceback_", lambda: [line])  # noqa: B010  not declared by any exception
    return error


@contextlib.contextmanager
def interruptible(otherwise: str) -> Iterator[None]:
    """Raise a KeyboardInterrupt of the block without the frames of this package, with `otherwise` if it has no message."""
    try:
        yield
    except KeyboardInterrupt as problem:
        raise shown_as_line(KeyboardInterrupt(str(problem) or otherwise)) from None


class _Pulse:
    """Repeated timer of an event loop while coroutines wait."""

    def __init__(self) -> None:
        self.waits: list[asyncio.Task[Any] | None] = []
        self._beating = False
        self._catches = False

    def enter(self, task: asyncio.Task[Any] | None) -> None:
        """Add a wait of a coroutine."""
        self.waits.append(task)
        if len(self.waits) == 1 and _in_terminal():
            self._catches = True
            signal.signal(signal.SIGINT, partial(self._interrupt, asyncio.get_running_loop()))
        if not self._beating:
            self._beat()

    def leave(self, task: asyncio.Task[Any] | None) -> None:
        """Remove a wait."""
        self.waits.remove(task)
        if not self.waits:
            self._release()

    def _beat(self) -> None:
        self._beating = bool(self.waits)
        if self._beating:
            asyncio.get_running_loop().call_later(PULSE_SECONDS, self._beat)

    def _interrupt(self, loop: asyncio.AbstractEventLoop, _number: int, _frame: FrameType | None) -> None:
        self._release()  # a second Ctrl-C raises
        for task in filter(None, self.waits):
            loop.call_soon_threadsafe(task.cancel)

    def _release(self) -> None:
        if self._catches:
            self._catches = False
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _in_terminal() -> bool:
    """Return whether this is a terminal's IPython, where Ctrl-C would leave coroutines suspended."""
    waits_here = threading.current_thread() is threading.main_thread()
    return _shell() is not None and not in_kernel() and waits_here and signal.getsignal(signal.SIGINT) is signal.default_int_handler


_pulses: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pulse] = WeakKeyDictionary()


@contextlib.contextmanager
def pulse() -> Iterator[None]:
    """Let the stop button of a notebook, and Ctrl-C in a terminal's IPython, cancel the coroutine during the block.

    The stop button schedules the cancellation of an awaiting cell on the loop, but does not wake it. So the loop is woken regularly, for
    all its waits by one timer.
    """
    current, task = _pulses.setdefault(asyncio.get_running_loop(), _Pulse()), asyncio.current_task()
    current.enter(task)
    try:
        yield
    finally:
        current.leave(task)
