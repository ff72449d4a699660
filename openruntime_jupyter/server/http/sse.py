"""Server-sent events: the text of an AI task as it is written, then the task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import to_json

from openruntime_jupyter.server.http.base import Handler

if TYPE_CHECKING:
    from openruntime_jupyter.ai.service import AiService

EVENT_STREAM = "text/event-stream"
HEARTBEAT_SECONDS = 10.0
"""How long nothing may be sent: proxies give up on longer silence."""
HEARTBEAT = b": still there\n\n"

EVENTS: dict[str, Any] = {
    "type": "string",
    "description": "Events: `token` with `text` and `index`, which is how many characters (code points) came before it; at the end `task` "
    "with an AiTask. The `id` of a token is how many characters there were after it: as `Last-Event-ID` it goes on from there. A token "
    "whose `index` is 0 again begins anew, as the worker died and the task runs again. Comments in between keep the connection alive.",
}

Item = TypeVar("Item")


def event(name: str, data: Any, number: int | None = None) -> bytes:
    """One event; JSON has no line ends of its own."""
    head = f"event: {name}\n" if number is None else f"event: {name}\nid: {number}\n"
    return head.encode() + b"data: " + to_json(data, inf_nan_mode="null") + b"\n\n"


async def with_pauses(items: AsyncIterator[Item], seconds: float) -> AsyncIterator[Item | None]:
    """The items as they come, and None whenever none came for so many seconds."""
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
    """Answers by server-sent events."""

    async def stream(self, service: AiService, task_id: str, since: int = 0) -> None:
        """Tell the text after `since` characters as it is written, and the task at its end; no faster than the client takes it."""
        self.set_header("Content-Type", EVENT_STREAM)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")  # nginx would hold it back
        # Whoever asked learns at once that it was taken.
        await self.pass_on()
        if self.request.method == "HEAD":
            self.finish(set_content_type=EVENT_STREAM)
            return
        async for piece in with_pauses(service.runtime.tasks.tokens(task_id, since), HEARTBEAT_SECONDS):
            if piece is None:
                await self.pass_on(HEARTBEAT)
            else:
                told = {"text": piece.text, "index": piece.index}
                await self.pass_on(event("token", told, piece.index + len(piece.text)))
        self.write(event("task", await service.get(task_id, None)))
        self.finish(set_content_type=EVENT_STREAM)
