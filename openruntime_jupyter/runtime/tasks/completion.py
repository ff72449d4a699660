"""One-shot event for the end of a task, with any number of waiters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial


class Completion:
    """One-shot event. Waiters resume in the same loop iteration and may be cancelled before that."""

    __slots__ = ("_callbacks", "reached")

    def __init__(self) -> None:
        self.reached = False
        self._callbacks: list[Callable[[], None]] | None = None  # most tasks have none

    def reach(self) -> None:
        """Set the event and call the callbacks. Further calls have no effect."""
        self.reached = True
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback()

    def call(self, callback: Callable[[], None]) -> None:
        """Call `callback`, which must not raise, once the event is set; at once if it is set already."""
        if self.reached:
            callback()
            return
        self._callbacks = self._callbacks or []
        self._callbacks.append(callback)

    def uncall(self, callback: Callable[[], None]) -> None:
        """Undo `call`. Has no effect once the event is set."""
        if not self.reached and self._callbacks is not None:
            self._callbacks.remove(callback)

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until the event is set, or for `timeout` seconds."""
        if not self.reached:
            await wait_for_some([self], 1, timeout)


async def wait_for_some(events: list[Completion], number: int, timeout: float | None = None) -> None:
    """Wait until `number` of `events` are set, or for `timeout` seconds. One future serves all of them."""
    pending = [event for event in events if not event.reached]
    left = min(number, len(events)) - (len(events) - len(pending))
    if left <= 0:
        return
    loop = asyncio.get_running_loop()
    enough: asyncio.Future[None] = loop.create_future()

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            _wake(enough)

    for event in pending:
        event.call(count)
    timer = None if timeout is None else loop.call_later(timeout, partial(_wake, enough))
    try:
        await enough
    finally:
        if timer is not None:
            timer.cancel()
        for event in pending:
            event.uncall(count)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
