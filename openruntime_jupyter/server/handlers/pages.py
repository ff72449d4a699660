"""Handlers of the HTML pages `/docs` and `/dashboard`, of their files, and of the API description `/openapi.json`."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from pydantic_core import to_json

import openruntime_jupyter
from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.schemas import endpoints as api
from openruntime_jupyter.server.auth.identity import StandaloneIdentity
from openruntime_jupyter.server.http.base import Handler, protected, serves

PACKAGE = Path(openruntime_jupyter.__file__).parent
SWAGGER = PACKAGE / "server" / "openapi" / "swagger"
DASHBOARD = PACKAGE / "notebook" / "dashboard" / "static"
FILES = {
    "docs/swagger-ui-bundle.js": SWAGGER,
    "docs/init.js": SWAGGER,
    "docs/swagger-ui.css": SWAGGER,
    "dashboard/page.js": DASHBOARD,
    "dashboard/dashboard.js": DASHBOARD,
}
"""Files of the pages by their path below the mount, with their folders."""
TYPES = {".js": "text/javascript", ".css": "text/css"}
POLICY = "script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
"""Both pages set style attributes. Swagger UI has its icons in data URLs."""

DOCS = """<!DOCTYPE html>
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


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>OpenRuntime</title>
<link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0 auto; padding: 16px; max-width: 1400px; background: Canvas; color: CanvasText; }}
</style>
</head>
<body>
<noscript>This page needs JavaScript.</noscript>
<main id="dashboard" data-base="{base}"></main>
<script type="module" src="{base}dashboard/page.js"></script>
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


class PageHandler(AboutHandler):
    """Base class of the pages."""

    @property
    def content_security_policy(self) -> str:
        """Jupyter's restrictive policy for APIs, extended by what the pages need from this server."""
        return f"{super().content_security_policy}; {POLICY}"

    def finish_page(self, template: str, **values: str) -> None:
        """Send a page. It also sets the XSRF cookie, with which the token of the page's requests is compared."""
        xsrf = self.xsrf_token.decode()
        shown = {name: escape(value) for name, value in {**values, "xsrf": xsrf}.items()}
        self.finish(template.format_map(shown), set_content_type="text/html; charset=UTF-8")


class OpenApiHandler(AboutHandler):
    """Handler of `GET /openapi.json`."""

    @serves(api.GET_OPENAPI)
    async def get(self) -> None:
        """Return this description as an OpenAPI document."""
        self.finish(to_json(self.document()), set_content_type=api.JSON)


class DocsHandler(PageHandler):
    """Handler of `GET /docs`."""

    @serves(api.GET_DOCS)
    async def get(self) -> None:
        """Return an HTML page on which the API can be read and tried."""
        root = self.services.options.url_path.rstrip("/")
        self.finish_page(DOCS, title=f"{self.document()['info']['title']}: API", docs=f"{root}/docs", document=f"{root}/openapi.json")


class DashboardHandler(PageHandler):
    """Handler of `GET /dashboard`."""

    @serves(api.GET_DASHBOARD)
    async def get(self) -> None:
        """Return an HTML page with the live dashboard: devices, charts, tasks, sessions and models."""
        self.finish_page(PAGE, base=f"{self.services.options.url_path.rstrip('/')}/")


class PageFileHandler(AboutHandler):
    """Handler of the files of the pages."""

    @property
    def content_security_policy(self) -> str:
        """Jupyter's restrictive policy for APIs."""
        return str(super().content_security_policy)

    @protected
    async def get(self, name: str) -> None:
        """Send a script or style of a page."""
        self.set_header("Cache-Control", "private, max-age=3600" if name.startswith("docs/") else "private, no-cache")
        path = FILES[name] / name.rpartition("/")[2]
        content = await asyncio.to_thread(path.read_bytes)
        self.finish(content, set_content_type=f"{TYPES[path.suffix]}; charset=UTF-8")
