"""Our place in Jupyter's web application, before our handlers are loaded: they need pydantic, which takes longer than all else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from jupyter_server.utils import url_path_join
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.routing import RuleRouter
from tornado.web import Application


class LazyRouter(RuleRouter):
    """Leads every path below `mount` to its handler, and loads the handlers when the first is asked for.

    Loaded already is what was imported meanwhile. `but_for` is as for `routes`.
    """

    SUPPORTED_METHODS: ClassVar[tuple[str, ...]] = ()
    """Jupyter warns of methods that ask for no login; a test holds that those of our handlers do."""

    def __init__(self, application: Application, base_url: str, mount: str, but_for: str = "") -> None:
        super().__init__()
        self._application = application
        self._base_url = base_url
        self._mount = mount
        self._but_for = but_for
        self._suited: Callable[..., Any] = lambda handler, *_: handler

    @property
    def pattern(self) -> str:
        """The paths that it is to be asked about, and some that it knows nothing of."""
        return f"{url_path_join(self._base_url, self._mount).rstrip('/')}.*"

    def find_handler(self, request: HTTPServerRequest, **_: Any) -> HTTPMessageDelegate | None:
        """Who answers; None for the path that is left to Jupyter."""
        if not self.rules:
            from openruntime_jupyter.server.http.base import suited
            from openruntime_jupyter.server.routes import routes

            self._suited = suited
            self.add_rules([(url_path_join(self._base_url, path), handler) for path, handler in routes(self._mount, self._but_for)])
        return super().find_handler(request)

    def get_target_delegate(self, target: Any, request: HTTPServerRequest, **params: Any) -> HTTPMessageDelegate | None:
        """What takes the request to a handler."""
        limited = self._application.settings["openruntime"].limits.on
        return self._application.get_handler_delegate(request, self._suited(target, request, limited), **params)
