"""Jupyter Server extension: configuration, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections import Counter
from collections.abc import Coroutine
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from jupyter_server.utils import url_path_join
from tornado.ioloop import PeriodicCallback
from traitlets import default

from openruntime_jupyter import __version__
from openruntime_jupyter.errors import Stopping, Unavailable
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.server.announcement import Announcement, local_url
from openruntime_jupyter.server.auth.identity import NotebookIdentity
from openruntime_jupyter.server.auth.rate_limit import LimitsTraits
from openruntime_jupyter.server.config.ai_traits import AiTraits
from openruntime_jupyter.server.config.traits import SettingsTraits
from openruntime_jupyter.server.jupyter_events import TaskEvents
from openruntime_jupyter.server.lazy_router import LazyRouter

if TYPE_CHECKING:
    from openruntime_jupyter.ai.service import AiService
    from openruntime_jupyter.runtime.runtime import Runtime

STOP_SECONDS = 5.0
"""Time limit of stopping."""
HEADSTART_SECONDS = 0.5
"""Delay of the runtime's start, in which Jupyter's own start has the processor; a request ends it."""
START_SECONDS = 20.0
"""Time that a request waits for the runtime's start."""
ACTIVITY_SECONDS = 5.0
SHUTDOWN_ROUTE = "api/shutdown"
"""The one route of Jupyter's that a stand-alone server keeps, for `jupyter server stop`."""


class OpenRuntimeApp(SettingsTraits, AiTraits, LimitsTraits, ExtensionApp):
    """One shared queue for MLX work. Every setting below may also be set in jupyter_openruntime_config.py."""

    name = "openruntime"
    version = __version__
    description = "One shared, visible, killable queue for MLX work inside Jupyter."
    load_other_extensions = False
    extension_url = "/"

    @default("open_browser")
    def _no_browser(self) -> bool:
        return False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.runtime: Runtime | None = None
        self.ai: AiService | None = None
        self.waiters: Counter[str] = Counter()
        self.known_host: str | None = None
        """The `Host` header that was last found to be a local name: which names are local does not change while a server runs."""
        self._announcement: Announcement | None = None
        self._starting: asyncio.Task[Runtime] | None = None
        self._wanted = asyncio.Event()
        self._begun = False
        self._stopped = False
        self._background: set[asyncio.Task[Any]] = set()

    def initialize_handlers(self) -> None:
        """Put our routes below `openruntime/`, or at the root of a stand-alone server. The configuration is loaded by now."""
        self.notebooks = NotebookIdentity(parent=self)
        self.limits = self.limits_of()
        self._activity = PeriodicCallback(self.report_activity, ACTIVITY_SECONDS * 1000)
        application, base_url = self.server.web_app, self.server.base_url
        late = (
            LazyRouter(application, base_url, "", SHUTDOWN_ROUTE) if self.standalone else LazyRouter(application, base_url, f"/{self.name}")
        )
        application.add_handlers(".*$", [(late.pattern, late)])  # type: ignore[no-untyped-call]

    @property
    def standalone(self) -> bool:
        """True for a stand-alone server."""
        return self.server.starter_app is self

    @property
    def server(self) -> ServerApp:
        """Jupyter's server around us."""
        assert self.serverapp is not None
        return self.serverapp

    @property
    def url_path(self) -> str:
        """The path of our root, as clients see it."""
        return self.server.base_url if self.standalone else str(url_path_join(self.server.base_url, self.name))

    async def _start_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        """Start the runtime in the background, and announce the server to kernels and clients.

        Jupyter calls this once the port is final.
        """
        url = local_url(serverapp, self.url_path)
        settings = self.settings_of()
        settings.label = settings.label or url or f"server {os.getpid()}"
        self._starting = asyncio.ensure_future(self._start(settings))
        self._starting.add_done_callback(self._started)
        if url is not None:
            self._announcement = Announcement(url, self.notebooks.token)
            self._announcement.to_kernels()
            if self.standalone:
                try:
                    self._announcement.to_clients(settings.data_dir, serverapp.identity_provider.token)
                except OSError as problem:
                    self.log.warning("Other programs will not find this server automatically: %s", problem)
        self._activity.start()

    async def _start(self, settings: Settings) -> Runtime:
        if not self.standalone:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), HEADSTART_SECONDS)
        self._begun = True
        # Imported on a thread: it takes several times as long as the rest of the extension's start.
        await asyncio.to_thread(import_module, "openruntime_jupyter.server.routes")
        module = await asyncio.to_thread(import_module, "openruntime_jupyter.ai.service")
        ai: AiService = module.host(settings, self.ai_config())
        self.ai, self.runtime = ai, ai.runtime
        # Subscribed before the start, which may recover tasks of dead runtimes.
        if self.server.event_logger is not None:
            self.in_background(TaskEvents(self.server.event_logger).follow(self.runtime.bus))
        await self.runtime.start()
        # Jupyter's and our modules stay. A full collection over them takes 100 ms, in which the loop is blocked.
        gc.freeze()
        return self.runtime

    def _started(self, starting: asyncio.Task[Runtime]) -> None:
        if not starting.cancelled() and starting.exception() is not None:
            self.log.error("OpenRuntime did not start", exc_info=starting.exception())

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
                f"OpenRuntime could not be started: {problem}. Fix this and restart the server", retry_after=60.0
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
            self.log.error("A background task of OpenRuntime failed", exc_info=task.exception())

    def current_activity(self) -> dict[str, int] | None:
        """Return the numbers of tasks; Jupyter asks for them before it shuts down an idle server."""
        if self.runtime is None or not self.runtime.active:
            return None
        metrics = self.runtime.metrics()
        return {"running": metrics.active_tasks, "pending": metrics.pending_tasks}

    def report_activity(self) -> None:
        """Count pending and running tasks as activity, so that no culler stops the server."""
        if self.runtime is not None and self.runtime.active:
            from jupyter_server._tz import utcnow

            self.server.web_app.settings["openruntime_last_activity"] = utcnow()

    async def stop_extension(self) -> None:
        """Stop the extension within one deadline, without raising: Jupyter has more to stop.

        Order: withdraw the announcement, reject requests, stop the runtime (which ends tasks and processes, wakes waiters, and closes the
        event bus and with it the WebSockets), cancel background tasks.
        """
        if self._stopped:
            return
        self._stopped = True
        deadline = time.monotonic() + STOP_SECONDS
        try:
            if self._announcement is not None:
                self._announcement.withdraw()
            self._activity.stop()
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
            self.log.exception("OpenRuntime did not stop cleanly")

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
