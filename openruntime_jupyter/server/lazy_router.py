"""Router that imports the request handlers on first use, because importing pydantic dominates the start time of the extension."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from jupyter_server.utils import url_path_join
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.routing import RuleRouter
from tornado.web import Application


class LazyRouter(RuleRouter):
    """Router for all paths below `mount`, which imports the handlers for the first request.

    `but_for` has the same meaning as for `routes`.
    """

    SUPPORTED_METHODS: ClassVar[tuple[str, ...]] = ()
    """Empty, because Jupyter warns about methods without authentication. A test checks that all handlers require it."""

    def __init__(self, application: Application, base_url: str, mount: str, but_for: str = "") -> None:
        super().__init__()
        self._application = application
        self._base_url = base_url
        self._mount = mount
        self._but_for = but_for
        self._suited: Callable[..., Any] = lambda handler, *_: handler

    @property
    def pattern(self) -> str:
        """Regular expression that matches every routed path, and possibly others."""
        return f"{url_path_join(self._base_url, self._mount).rstrip('/')}.*"

    def find_handler(self, request: HTTPServerRequest, **_: Any) -> HTTPMessageDelegate | None:
        """Return the delegate for a request, or None for the path that Jupyter handles."""
        if not self.rules:
            from openruntime_jupyter.server.http.base import suited
            from openruntime_jupyter.server.routes import routes

            self._suited = suited
            self.add_rules([(url_path_join(self._base_url, path), handler) for path, handler in routes(self._mount, self._but_for)])
        return super().find_handler(request)

    def get_target_delegate(self, target: Any, request: HTTPServerRequest, **params: Any) -> HTTPMessageDelegate | None:
        """Return the delegate that passes the request to a handler."""
        limited = self._application.settings["openruntime"].limits.on
        return self._application.get_handler_delegate(request, self._suited(target, request, limited), **params)
