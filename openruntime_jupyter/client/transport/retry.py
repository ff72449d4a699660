"""Retries of requests, and what ends the wait between them: a deadline, or a cancellation on another thread."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

RETRIES = 2
"""Retries of a request. Requests are safe to repeat, because submissions have an idempotency key."""
LONGEST_DELAY = 60.0
"""Maximum `Retry-After` in seconds. A client that should wait longer gets the error at once."""
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 8.0
"""Seconds before the first retry, and at most, where the server does not say."""


class Limit:
    """Limit of the time that the requests of one call may take.

    `seconds` is the time from now; None for no limit. Another thread may call `cancel`.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._until = None if seconds is None else time.monotonic() + seconds
        self._cancelled = threading.Event()
        self._ended = False

    def cancel(self) -> None:
        """End the waits before retries, now and later."""
        self._cancelled.set()

    @property
    def ended(self) -> bool:
        """Return whether the time is over, or was too short for a retry."""
        return self._ended or (self._until is not None and time.monotonic() >= self._until)

    def left(self, most: float | None = None) -> float | None:
        """Return the seconds that are left, at most `most`; None for no limit."""
        if self._until is None:
            return most
        left = max(0.0, self._until - time.monotonic())
        return left if most is None else min(most, left)

    def sleep(self, seconds: float) -> bool:
        """Wait before a retry. Return False at once if there is not enough time, or as soon as the limit is cancelled."""
        self._ended = self.left(seconds) != seconds
        return not self._ended and not self._cancelled.wait(seconds)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the limit to the requests of this context during the block."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[Limit | None] = ContextVar("openruntime_limit", default=None)
UNLIMITED = Limit()


def current_limit() -> Limit:
    """Return the limit of this context."""
    return _current.get() or UNLIMITED


class Retries:
    """Retries of one request. `patience` is the time in seconds, from the first failure, in which their number has no limit."""

    def __init__(self, patience: float = 0.0) -> None:
        self._made = 0
        self._patience = patience
        self._until = 0.0

    def wait(self, delay: float | None = None) -> bool:
        """Wait before the next attempt, and return whether there is one.

        `delay` is the server's in seconds. By default the delay grows with each attempt, and is random, so that clients do not return at
        the same time.
        """
        if self._made == 0:
            self._until = time.monotonic() + self._patience
        if (self._made >= RETRIES and time.monotonic() >= self._until) or (delay or 0.0) > LONGEST_DELAY:
            return False
        backoff = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(self._made, 10)) * random.uniform(0.75, 1.0)  # noqa: S311 - no secret
        self._made += 1
        return delay == 0 or current_limit().sleep(backoff if delay is None else delay)
