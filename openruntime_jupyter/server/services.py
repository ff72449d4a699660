"""Services of the request handlers: the runtime with its start and stop, the rate limits, and the identity of notebooks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.errors import Stopping, Unavailable
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.server.auth.identity import NotebookIdentity
from openruntime_jupyter.server.auth.rate_limit import Limits

if TYPE_CHECKING:
    from openruntime_jupyter.ai.config import AiConfig
    from openruntime_jupyter.ai.service import AiService
    from openruntime_jupyter.runtime.runtime import Runtime

SERVICES = "openruntime_services"
"""Key of the `Services` in tornado's settings."""
STOP_SECONDS = 5.0
"""Time limit of stopping."""
HEADSTART_SECONDS = 0.5
"""Delay of the runtime's start, in which Jupyter's own start has the processor; a request ends it."""
YOUNG_OBJECTS = 10_000
"""New objects after which the garbage collector runs. Python's default of 700 starts full collections while one large body is read."""
STALLED_SECONDS = 120.0
"""Maximum pause of an upload or download in seconds. After it, the client is considered disconnected: an interrupted network does not
close the connection."""
START_SECONDS = 20.0
"""Time that a request waits for the runtime's start."""


@dataclass(frozen=True)
class ServerOptions:
    """Options of the server that handlers need."""

    url_path: str
    """Path of our root, as clients see it."""
    max_parameters_bytes: int
    record_http_metrics: bool
    """Whether Jupyter counts requests in its own Prometheus metrics."""


class Services:
    """The runtime of a server, shared by its request handlers. `options` are those of the server."""

    def __init__(self, options: ServerOptions, notebooks: NotebookIdentity, limits: Limits, log: logging.Logger) -> None:
        self.options = options
        self.notebooks = notebooks
        self.limits = limits
        self.runtime: Runtime | None = None
        self.ai: AiService | None = None
        self.held_bytes = 0
        """Size of the bodies of requests in memory."""
        self.waiters: Counter[str] = Counter()
        """Number of connected clients that wait for a task, by its id."""
        self._log = log
        self._starting: asyncio.Task[Runtime] | None = None
        self._wanted = asyncio.Event()
        self._begun = False
        self._stopped = False
        self._background: set[asyncio.Task[Any]] = set()

    def start(self, settings: Settings, ai: AiConfig | None, headstart: bool, before: Callable[[Runtime], None]) -> None:
        """Start the runtime in the background, with `headstart` after a delay or at the first request.

        `before(runtime)` is called before the start, which may recover tasks of dead runtimes.
        """
        self._starting = asyncio.ensure_future(self._start(settings, ai, headstart, before))
        self._starting.add_done_callback(self._started)

    async def _start(self, settings: Settings, ai: AiConfig | None, headstart: bool, before: Callable[[Runtime], None]) -> Runtime:
        if headstart:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), HEADSTART_SECONDS)
        self._begun = True
        # Imported on a thread: it takes several times as long as the rest of the extension's start.
        await asyncio.to_thread(import_module, "openruntime_jupyter.server.routes")
        module = await asyncio.to_thread(import_module, "openruntime_jupyter.ai.service")
        service: AiService = module.host(settings, ai)
        self.ai, self.runtime = service, service.runtime
        before(self.runtime)
        await self.runtime.start()
        # Jupyter's and our modules stay. A full collection over them takes 100 ms, in which the loop is blocked.
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
        return self.runtime

    def _started(self, starting: asyncio.Task[Runtime]) -> None:
        if not starting.cancelled() and starting.exception() is not None:
            self._log.error("OpenRuntime did not start", exc_info=starting.exception())

    async def ready(self) -> Runtime:
        """Return the started runtime; raise `Unavailable` with the reason if it could not start, and `Stopping` at the end."""
        if self._stopped:
            raise Stopping("The server is stopping: ask again once it runs", retry_after=5.0)
        if self._starting is None:
            raise Unavailable("The server is starting: ask again in a second")
        self._wanted.set()
        if not self._starting.done():
            await asyncio.wait({self._starting}, timeout=START_SECONDS)
        if not self._starting.done():
            raise Unavailable("OpenRuntime is still starting: ask again in a few seconds", retry_after=5.0)
        try:
            return self._starting.result()
        except asyncio.CancelledError:
            raise Stopping("The server is stopping: ask again once it runs", retry_after=5.0) from None
        except Exception as problem:
            raise Unavailable(
                f"OpenRuntime could not be started: {problem}. Fix this and restart the server", retry_after=None
            ) from problem

    def in_background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` in the background until the server stops at the latest; log a failure."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log.error("A background task of OpenRuntime failed", exc_info=task.exception())

    async def stop(self) -> None:
        """Stop within one deadline, without raising: Jupyter has more to stop.

        Order: reject requests, stop the runtime (which ends tasks and processes, wakes waiters, and closes the event bus and with it the
        WebSockets), cancel background tasks.
        """
        if self._stopped:
            return
        self._stopped = True
        deadline = time.monotonic() + STOP_SECONDS
        try:
            if self._starting is not None:
                if self._begun:
                    await asyncio.wait({self._starting}, timeout=STOP_SECONDS / 2)
                self._starting.cancel()
            if self.runtime is not None:
                await self.runtime.stop(max(0.5, deadline - time.monotonic()))
            if self.ai is not None:
                await self.ai.close()
            await self._end_background(max(0.1, min(1.0, deadline - time.monotonic())))
        except Exception:
            self._log.exception("OpenRuntime did not stop cleanly")

    async def _end_background(self, seconds: float) -> None:
        """Wait up to `seconds` for the background tasks, then cancel them."""
        if self._background:
            await asyncio.wait(set(self._background), timeout=seconds)
        left = set(self._background)
        for task in left:
            task.cancel()
        if left:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(left, timeout=seconds)
