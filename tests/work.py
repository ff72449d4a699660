"""Work for tasks in tests. The module is small, because each worker that runs one of these functions imports it."""

from __future__ import annotations

import time


def spin(seconds: float) -> None:
    """Use the CPU for this many seconds."""
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        pass


def square(number: int) -> int:
    return number * number


def add(left: int, right: int) -> int:
    return left + right


def invert(number: float) -> float:
    return 1 / number


def nap(seconds: float) -> float:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(0.01)
    return seconds


def fails() -> None:
    raise ZeroDivisionError("by nought")
