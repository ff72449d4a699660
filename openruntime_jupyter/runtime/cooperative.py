"""Iteration over thousands of items in small steps, so that it does not block the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

AT_ONCE = 50
"""Tasks handled in one loop iteration, which takes a few milliseconds."""

Item = TypeVar("Item")


async def cooperatively(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Yield each of `items`; the loop runs other work in between."""
    for number, item in enumerate(items, 1):
        yield item
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
