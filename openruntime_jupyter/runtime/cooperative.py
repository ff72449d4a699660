"""What is done for thousands at once: in pieces, so that nobody else has to wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

MOST_IN_BATCH = 5_000
"""Tasks of one batch: above that, what is done in one piece would be felt by others."""

AT_ONCE = 50
"""Tasks that are looked at in one turn of the loop: a few milliseconds."""

Item = TypeVar("Item")


async def cooperatively(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Each of `items`; the loop does other things in between."""
    for number, item in enumerate(items, 1):
        yield item
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
