"""Interrupted waits: exceptions that IPython shows as one line, and an event loop that notices the stop button."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TypeVar
from weakref import WeakKeyDictionary

Error = TypeVar("Error", bound=BaseException)

PULSE_SECONDS = 0.25
"""Maximum time until an event loop notices the stop button."""


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
    """Repeated timer of an event loop while something waits."""

    def __init__(self) -> None:
        self.waits = 0
        self.beating = False

    def beat(self) -> None:
        self.beating = self.waits > 0
        if self.beating:
            asyncio.get_running_loop().call_later(PULSE_SECONDS, self.beat)


_pulses: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pulse] = WeakKeyDictionary()


@contextlib.contextmanager
def pulse() -> Iterator[None]:
    """Wake the running event loop regularly during the block.

    The stop button of a notebook schedules the cancellation of an awaiting cell on the loop, but does not wake it. All waits of a loop
    share one timer.
    """
    current = _pulses.setdefault(asyncio.get_running_loop(), _Pulse())
    current.waits += 1
    if not current.beating:
        current.beat()
    try:
        yield
    finally:
        current.waits -= 1
