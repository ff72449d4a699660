"""The API about itself: `/openapi.json` for programs, `/docs` for people."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jupyter_server.auth.decorator import authorized
from pydantic_core import to_json
from tornado import web

from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.server.auth.identity import StandaloneIdentity
from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.openapi.decorator import JSON, Answer, described


@lru_cache(maxsize=2)
def _document(url: str, without_token: bool, _operations: tuple[str, ...]) -> dict[str, Any]:
    """Made anew where operations have come or gone, which packages bring and take while a server runs."""
    from openruntime_jupyter.server.openapi.document import document
    from openruntime_jupyter.server.routes import ROUTES  # which names the handlers of this file

    return document(ROUTES, url, without_token=without_token)


class AboutHandler(Handler):
    """What both have in common."""

    def document(self) -> dict[str, Any]:
        """The description of what this server serves, where it serves it."""
        provider = self.app.server.identity_provider
        local = isinstance(provider, StandaloneIdentity) and provider.allow_local and not self.settings.get("allow_remote_access")
        return _document(self.app.url_path, local, tuple(operations()))


class OpenApiHandler(AboutHandler):
    """`GET /openapi.json`."""

    @described("About the API", Answer(description="An OpenAPI 3.1 document.", media={JSON: {"type": "object"}}))
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """This description, for programs that make clients, checks or pages from it."""
        self.finish(to_json(self.document()), set_content_type=JSON)


class DocsHandler(AboutHandler):
    """`GET /docs`."""

    @property
    def content_security_policy(self) -> str:
        """Jupyter's, which lets an API show nothing; and the page's own style and script, by their hashes."""
        from openruntime_jupyter.server.openapi.page import POLICY

        return f"{super().content_security_policy}; {POLICY}"

    @described("About the API", Answer(description="A page that needs nothing from elsewhere.", media={"text/html": {"type": "string"}}))
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """This description, for people."""
        from openruntime_jupyter.server.openapi.page import page

        base = f"{self.request.protocol}://{self.request.host}{self.app.url_path.rstrip('/')}"
        self.finish(page(self.document(), base), set_content_type="text/html; charset=UTF-8")
