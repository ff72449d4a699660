"""Jupyter Server extension: configuration, start and stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from jupyter_server.utils import url_path_join
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
    split_host_and_port,
)
from tornado.ioloop import PeriodicCallback
from tornado.routing import PathMatches, Router, Rule
from tornado.web import Application
from traitlets import default

from openruntime_jupyter import __version__
from openruntime_jupyter.server.announcement import Announcement, local_url
from openruntime_jupyter.server.auth.identity import NotebookIdentity
from openruntime_jupyter.server.auth.rate_limit import LimitsTraits
from openruntime_jupyter.server.jupyter_events import TaskEvents
from openruntime_jupyter.server.log_filter import limit_descriptor_reports
from openruntime_jupyter.server.saved_widgets import save_static_forms
from openruntime_jupyter.server.services import SERVICES, ServerOptions, Services
from openruntime_jupyter.server.traits import AiTraits, SettingsTraits

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.runtime import Runtime

ACTIVITY_SECONDS = 5.0
SMALL_BODY = 65_536
"""Maximum bytes of a body that a handler gets at once."""
LATE_SECONDS = 1.0


class LateRoutes(Router):
    """Router below `mount`. It imports the handlers at the first request.

    An earlier import would add pydantic to the benchmark row "additional start time of Jupyter Server".
    """

    def __init__(self, application: Application, base_url: str, mount: str) -> None:
        self._application = application
        self._base_url = base_url
        self._mount = mount
        self._router: Router | None = None
        # Before the last rule, which is Jupyter's own routes.
        application.default_router.rules.insert(-1, Rule(PathMatches(f"{url_path_join(base_url, mount).rstrip('/')}.*"), self))

    def find_handler(self, request: HTTPServerRequest, **_: Any) -> HTTPMessageDelegate | None:
        """Return the delegate for a request, or None for a path that Jupyter handles."""
        if self._router is None:
            self._router = self._load()
        delegate = self._router.find_handler(request)
        if delegate is None or not self._waits_for_body(request):
            return delegate
        return CompleteRequest(delegate)

    def _load(self) -> Router:
        from openruntime_jupyter.server.routes import routes

        found = [(url_path_join(self._base_url, path), handler) for path, handler in routes(self._mount)]
        self._application.add_handlers(".*$", found)  # Jupyter checks here that each handler requires a login
        router: Router = self._application.default_router.rules.pop(-2).target
        return router

    def _waits_for_body(self, request: HTTPServerRequest) -> bool:
        """Return whether the handler gets the request with its body, which is small or empty.

        Where requests are limited, each one counts from its headers on. An upload (PUT) is always read in chunks.
        """
        headers = request.headers
        length = headers.get("Content-Length", "0")
        small = len(length) < 6 and length.isdecimal() and int(length) <= SMALL_BODY and "Transfer-Encoding" not in headers
        return small and request.method != "PUT" and not self._application.settings[SERVICES].limits.on


class CompleteRequest(HTTPMessageDelegate):
    """Delegate that passes a request on once its body is complete, or late after `LATE_SECONDS`, so that the handler sees a slow client.

    Handlers read bodies in chunks, for which tornado resumes the connection two more times: `GET /metrics` would take 6.5 loop iterations
    instead of 4.5, and a bare handler takes 4.2.
    """

    def __init__(self, delegate: HTTPMessageDelegate) -> None:
        self._delegate = delegate
        self._head: tuple[RequestStartLine | ResponseStartLine, HTTPHeaders] | None = None
        """The headers until they are passed on."""
        self._body = b""
        self._late: asyncio.TimerHandle | None = None

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> None:
        """Keep the headers."""
        self._head = start_line, headers
        if headers.get("Content-Length", "0") != "0":
            self._late = asyncio.get_running_loop().call_later(LATE_SECONDS, self._pass_on)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Keep a part of the body, or pass a late one on."""
        if self._head is None:
            return self._delegate.data_received(chunk)
        self._body += chunk
        return None

    def finish(self) -> None:
        """Pass on what was kept, and the end of the request."""
        self._pass_on()
        self._delegate.finish()

    def on_connection_close(self) -> None:
        """Pass the end of the connection on to a handler that has begun."""
        if self._late is not None:
            self._late.cancel()
        if self._head is None:
            self._delegate.on_connection_close()

    def _pass_on(self) -> None:
        if self._late is not None:
            self._late.cancel()
        if self._head is not None:
            head, self._head = self._head, None
            self._delegate.headers_received(*head)
            if self._body:
                self._delegate.data_received(self._body)


class AbsoluteTargets(Router):
    """Router of requests whose target is a complete URL below `root`, as to a proxy. HTTP requires servers to accept them."""

    def __init__(self, application: Application, root: str) -> None:
        self._application = application
        application.default_router.rules.insert(0, Rule(PathMatches(f"https?://[^/]+{root.rstrip('/')}(/.*)?"), self))

    def find_handler(self, request: HTTPServerRequest, **_: Any) -> HTTPMessageDelegate | None:
        """Return the delegate for the request with the path as its target, and the host of the URL instead of the header's."""
        host, _slash, rest = request.path.partition("://")[2].partition("/")
        assert request.uri is not None
        request.path, request.uri = f"/{rest}", "/" + request.uri.partition("://")[2].partition("/")[2]
        request.host = request.headers["Host"] = host
        request.host_name = split_host_and_port(host.lower())[0]
        return self._application.find_handler(request)


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
        self.services: Services | None = None
        self._announcement: Announcement | None = None
        self._activity = PeriodicCallback(self.report_activity, ACTIVITY_SECONDS * 1000)

    def initialize_handlers(self) -> None:
        """Put our routes below `openruntime/`, or at the root of a stand-alone server. The configuration is loaded by now."""
        metrics = bool(getattr(self.server, "record_http_request_metrics", True))
        options = ServerOptions(self.url_path, self.max_parameters_bytes, metrics)
        self.services = Services(options, NotebookIdentity(parent=self), self.limits_of(), self.log)
        limit_descriptor_reports()
        application = self.server.web_app
        application.settings[SERVICES] = self.services
        mount = "" if self.standalone else f"/{self.name}"
        LateRoutes(application, self.server.base_url, mount)
        AbsoluteTargets(application, url_path_join(self.server.base_url, mount))

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
        assert self.services is not None
        url = local_url(serverapp, self.url_path)
        settings = self.settings_of()
        settings.label = settings.label or url or f"server {os.getpid()}"
        self.services.start(settings, self.ai_config(), not self.standalone, self._follow_events)
        if url is not None:
            live_widgets = not self.standalone and save_static_forms(serverapp)
            self._announcement = Announcement(url, self.services.notebooks.token, live_widgets)
            self._announcement.to_kernels()
            if self.standalone:
                try:
                    self._announcement.to_clients(settings.data_dir, serverapp.identity_provider.token)
                except OSError as problem:
                    self.log.warning("Other programs will not find this server automatically: %s", problem)
        self._activity.start()

    def _follow_events(self, runtime: Runtime) -> None:
        assert self.services is not None
        if self.server.event_logger is not None:
            self.services.in_background(TaskEvents(self.server.event_logger).follow(runtime.bus))

    @property
    def runtime(self) -> Runtime | None:
        """The runtime; None before its start."""
        return None if self.services is None else self.services.runtime

    async def ready(self) -> Runtime:
        """Return the started runtime; see `Services.ready`."""
        assert self.services is not None
        return await self.services.ready()

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
        """Withdraw the announcement, then stop the services. Does not raise."""
        try:
            if self._announcement is not None:
                self._announcement.withdraw()
            self._activity.stop()
        except Exception:
            self.log.exception("OpenRuntime did not stop cleanly")
        if self.services is not None:
            await self.services.stop()
