"""What tests let workers do."""

from __future__ import annotations

import time


def spin(seconds: float) -> None:
    """Be busy for that long."""
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        pass
