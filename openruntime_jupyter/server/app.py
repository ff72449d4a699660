"""Jupyter Server extension: configuration, start and stop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from jupyter_server.utils import url_path_join
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.ioloop import PeriodicCallback
from tornado.routing import PathMatches, Router, Rule
from tornado.web import Application
from traitlets import default

from openruntime_jupyter import __version__
from openruntime_jupyter.server.announcement import Announcement, local_url
from openruntime_jupyter.server.auth.identity import NotebookIdentity
from openruntime_jupyter.server.auth.rate_limit import LimitsTraits
from openruntime_jupyter.server.jupyter_events import TaskEvents
from openruntime_jupyter.server.saved_widgets import save_static_forms
from openruntime_jupyter.server.services import SERVICES, ServerOptions, Services
from openruntime_jupyter.server.traits import AiTraits, SettingsTraits

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.runtime import Runtime

ACTIVITY_SECONDS = 5.0
SHUTDOWN_ROUTE = "api/shutdown"
"""The one route of Jupyter's that a stand-alone server keeps, for `jupyter server stop`."""


class LateRoutes(Router):
    """Router of the first request below `mount`: it imports the handlers, and puts their routes in its place.

    An earlier import would add pydantic to the benchmark row "additional start time of Jupyter Server". `but_for` is a path below the
    mount that Jupyter handles.
    """

    def __init__(self, application: Application, base_url: str, mount: str, but_for: str = "") -> None:
        self._application = application
        self._base_url = base_url
        self._mount = mount
        self._but_for = but_for
        self._rule = Rule(PathMatches(f"{url_path_join(base_url, mount).rstrip('/')}.*"), self)
        # Before the last rule, which is Jupyter's own routes.
        application.default_router.rules.insert(-1, self._rule)

    def find_handler(self, request: HTTPServerRequest, **_: Any) -> HTTPMessageDelegate | None:
        """Return the delegate for the first request."""
        from openruntime_jupyter.server.routes import routes

        self._application.default_router.rules.remove(self._rule)
        found = [(url_path_join(self._base_url, path), handler) for path, handler in routes(self._mount, self._but_for)]
        self._application.add_handlers(".*$", found)
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
        application = self.server.web_app
        application.settings[SERVICES] = self.services
        mount, but_for = ("", SHUTDOWN_ROUTE) if self.standalone else (f"/{self.name}", "")
        LateRoutes(application, self.server.base_url, mount, but_for)

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
