"""Large requests: the thread that reads them, so that the event loop waits for one of their steps at most."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

LARGE = 65_536
"""Size of a large request in bytes of JSON."""

Params = ParamSpec("Params")
Result = TypeVar("Result")

# One thread, because parsing and validation hold the interpreter's lock: the steps of two threads would add up for the loop.
_thread = ThreadPoolExecutor(1, "openruntime-large")


async def in_thread(function: Callable[Params, Result], /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
    """Call a function in the thread of large requests, after those of earlier requests."""
    return await asyncio.get_running_loop().run_in_executor(_thread, lambda: function(*args, **kwargs))
