"""Asynchronous client that runs Python code and functions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from openruntime_jupyter.client.async_base import AsyncTaskHandle, BaseAsyncClient
from openruntime_jupyter.client.code.futures import Completions
from openruntime_jupyter.client.code.map import MapStopped, run_map
from openruntime_jupyter.client.code_client import CodeClient
from openruntime_jupyter.client.interruption import pulse, shown_as_line
from openruntime_jupyter.errors import OpenRuntimeError


class AsyncClient(BaseAsyncClient):
    """Asynchronous counterpart of `Client`, available as `client.aio`. Cancelling `run` or `call` cancels the task."""

    client: CodeClient

    def __init__(self, client: CodeClient, completions: Completions | None = None) -> None:
        super().__init__(client, completions)

    async def submit_call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AsyncTaskHandle:
        """Submit a function call; see `Client.submit_call`."""
        return await self._submitted(partial(self.client.submit_call, function, *args, **kwargs))

    async def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run `function(*args, **kwargs)` in a worker and return its value; see `Client.call`."""
        return await self._finish(partial(self.client.submit_call, function, *args, **kwargs))

    async def map(
        self,
        function: Callable[[Any], Any],
        iterable: Iterable[Any],
        /,
        chunk_size: int | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> list[Any]:
        """Return `function(item)` for each item; see `Client.map`. Cancelling it cancels the remaining tasks."""
        client, items, stop = self.client.with_options(**options), list(iterable), threading.Event()

        def run() -> list[Any]:
            return run_map(client, function, items, chunk_size, progress, stop)

        mapping = asyncio.ensure_future(asyncio.to_thread(run))
        try:
            with pulse():
                return await asyncio.shield(mapping)
        except asyncio.CancelledError:
            stop.set()
            raise shown_as_line(asyncio.CancelledError(await asyncio.shield(_stopped(mapping)))) from None


async def _stopped(mapping: asyncio.Future[list[Any]]) -> str:
    """Wait for the end of a map that is being stopped, and return what became of it."""
    try:
        await mapping
    except (MapStopped, OpenRuntimeError) as problem:
        return str(problem)
    return "the map completed before it could be cancelled"
