"""Work for tasks in tests."""

from __future__ import annotations

import time


def spin(seconds: float) -> None:
    """Use the CPU for this many seconds."""
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        pass
