"""Handlers of the API description: `/openapi.json` and the HTML page `/docs`."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.schemas import endpoints as api
from openruntime_jupyter.server.auth.identity import StandaloneIdentity
from openruntime_jupyter.server.http.base import Handler, protected, serves

SWAGGER = Path(__file__).parents[1] / "openapi" / "swagger"
FILES = {"swagger-ui-bundle.js": "text/javascript", "init.js": "text/javascript", "swagger-ui.css": "text/css"}
POLICY = "script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
"""Swagger UI sets style attributes, and has its icons in data URLs."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{docs}/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{docs}/swagger-ui-bundle.js"></script>
<script src="{docs}/init.js" data-document="{document}" data-xsrf="{xsrf}"></script>
</body>
</html>
"""


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
        provider = self.settings["identity_provider"]
        local = isinstance(provider, StandaloneIdentity) and provider.allow_local and not self.settings.get("allow_remote_access")
        return _document(self.services.options.url_path, local, tuple(operations()))


class OpenApiHandler(AboutHandler):
    """Handler of `GET /openapi.json`."""

    @serves(api.GET_OPENAPI)
    async def get(self) -> None:
        """Return this description as an OpenAPI document."""
        self.finish(to_json(self.document()), set_content_type=api.JSON)


class DocsHandler(AboutHandler):
    """Handler of `GET /docs`."""

    @property
    def content_security_policy(self) -> str:
        """Jupyter's restrictive policy for APIs, extended by what Swagger UI needs from this server."""
        return f"{super().content_security_policy}; {POLICY}"

    @serves(api.GET_DOCS)
    async def get(self) -> None:
        """Return an HTML page on which the API can be read and tried."""
        # Reading the token also sets its cookie, with which the page's requests are compared.
        values = {"title": f"{self.document()['info']['title']}: API", "xsrf": self.xsrf_token.decode()}
        root = self.services.options.url_path.rstrip("/")
        values |= {"docs": f"{root}/docs", "document": f"{root}/openapi.json"}
        self.finish(PAGE.format_map({name: escape(value) for name, value in values.items()}), set_content_type="text/html; charset=UTF-8")


class DocsFileHandler(AboutHandler):
    """Handler of the files of Swagger UI."""

    @property
    def content_security_policy(self) -> str:
        """Jupyter's restrictive policy for APIs."""
        return str(super().content_security_policy)

    @protected
    async def get(self, name: str) -> None:
        """Send a script or style of the page."""
        self.set_header("Cache-Control", "private, max-age=3600")
        content = await asyncio.to_thread((SWAGGER / name).read_bytes)
        self.finish(content, set_content_type=f"{FILES[name]}; charset=UTF-8")
