"""The end of a task, for any number who wait for it."""

from __future__ import annotations

import asyncio


class Finish:
    """Is reached once. Who waits is woken in the same turn of the loop, and may go away before it."""

    __slots__ = ("_waiters", "reached")

    def __init__(self) -> None:
        self.reached = False
        self._waiters: list[asyncio.Future[None]] | None = None  # most tasks have none

    def reach(self) -> None:
        """It is over; more than once does no harm."""
        self.reached = True
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            _wake(waiter)

    async def wait(self, timeout: float | None = None) -> None:
        """Until it is reached, or for `timeout` seconds."""
        if self.reached:
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters = waiters = self._waiters or []
        waiters.append(waiter)
        timer = None if timeout is None else loop.call_later(timeout, _wake, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            if not self.reached:
                waiters.remove(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
