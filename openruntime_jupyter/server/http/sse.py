"""Server-sent events: the text of an AI task while it is generated, then the task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import to_json

from openruntime_jupyter.schemas.endpoints import EVENT_STREAM
from openruntime_jupyter.server.http.base import Handler

if TYPE_CHECKING:
    from openruntime_jupyter.ai.service import AiService

HEARTBEAT_SECONDS = 10.0
"""Seconds between heartbeats. Many proxies close connections that are idle for longer."""
HEARTBEAT = b": heartbeat\n\n"

Item = TypeVar("Item")


def event(name: str, data: Any, number: int | None = None) -> bytes:
    """Return an encoded event. JSON has no line breaks, so `data` is a single line."""
    head = f"event: {name}\n" if number is None else f"event: {name}\nid: {number}\n"
    return head.encode() + b"data: " + to_json(data, inf_nan_mode="null") + b"\n\n"


async def with_pauses(items: AsyncIterator[Item], seconds: float) -> AsyncIterator[Item | None]:
    """Yield the items, and None whenever there was no item for `seconds`."""
    coming: asyncio.Future[Item] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(items))
            await asyncio.wait({coming}, timeout=seconds)
            if not coming.done():
                yield None
                continue
            done, coming = coming, None
            try:
                item = done.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if coming is not None:
            coming.cancel()


class TokenStream(Handler):
    """Base class of handlers that respond with server-sent events."""

    async def stream(self, service: AiService, task_id: str, since: int = 0) -> None:
        """Send the text after `since` characters while it is generated, then the finished task, at the speed of the client."""
        self.set_header("Content-Type", EVENT_STREAM)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")  # prevents buffering by nginx
        # Send the headers immediately, so that the client sees that the request was accepted.
        await self.write_chunk()
        if self.request.method == "HEAD":
            self.finish(set_content_type=EVENT_STREAM)
            return
        async for chunk in with_pauses(service.runtime.tasks.tokens(task_id, since), HEARTBEAT_SECONDS):
            if chunk is None:
                await self.write_chunk(HEARTBEAT)
            else:
                token = {"text": chunk.text, "index": chunk.index}
                await self.write_chunk(event("token", token, chunk.index + len(chunk.text)))
        self.write(event("task", await service.get(task_id, None)))
        self.finish(set_content_type=EVENT_STREAM)
