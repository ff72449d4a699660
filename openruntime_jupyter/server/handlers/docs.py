"""Handlers of the API description: `/openapi.json` and the HTML page `/docs`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jupyter_server.auth.decorator import authorized
from pydantic_core import to_json
from tornado import web

from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.server.auth.identity import StandaloneIdentity
from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.openapi.decorator import JSON, Response, described


@lru_cache(maxsize=2)
def _document(url: str, without_token: bool, _operations: tuple[str, ...]) -> dict[str, Any]:
    """Return the cached document. The operations are part of the key, because installing packages can change them at run time."""
    from openruntime_jupyter.server.openapi.document import document
    from openruntime_jupyter.server.routes import ROUTES  # imported here because it imports this module

    return document(ROUTES, url, without_token=without_token)


class AboutHandler(Handler):
    """Base class of the description handlers."""

    def document(self) -> dict[str, Any]:
        """Return the OpenAPI document of this server with its URL."""
        provider = self.app.server.identity_provider
        local = isinstance(provider, StandaloneIdentity) and provider.allow_local and not self.settings.get("allow_remote_access")
        return _document(self.app.url_path, local, tuple(operations()))


class OpenApiHandler(AboutHandler):
    """Handler of `GET /openapi.json`."""

    @described("About the API", Response(description="OpenAPI 3.1 document.", media={JSON: {"type": "object"}}))
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Return this description as an OpenAPI document."""
        self.finish(to_json(self.document()), set_content_type=JSON)


class DocsHandler(AboutHandler):
    """Handler of `GET /docs`."""

    @property
    def content_security_policy(self) -> str:
        """Jupyter's restrictive policy for APIs, extended by the hashes of the page's style and script."""
        from openruntime_jupyter.server.openapi.page import POLICY

        return f"{super().content_security_policy}; {POLICY}"

    @described("About the API", Response(description="HTML page without external resources.", media={"text/html": {"type": "string"}}))
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Return this description as an HTML page."""
        from openruntime_jupyter.server.openapi.page import page

        base = f"{self.request.protocol}://{self.request.host}{self.app.url_path.rstrip('/')}"
        self.finish(page(self.document(), base), set_content_type="text/html; charset=UTF-8")
