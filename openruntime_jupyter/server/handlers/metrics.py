"""Handlers of current metrics, as JSON or for Prometheus, and of their history."""

from __future__ import annotations

from typing import Any

from jupyter_server.auth.decorator import authorized
from pydantic import Field
from tornado import web

from openruntime_jupyter.schemas.system import MetricsHistory, SystemMetrics, Timeframe
from openruntime_jupyter.server.http.base import ENVELOPE, Handler
from openruntime_jupyter.server.http.negotiation import preferred
from openruntime_jupyter.server.http.requests import Query
from openruntime_jupyter.server.openapi.decorator import JSON, VERSIONS, Response, described

TEXT: dict[str, Any] = {"type": "string"}


class HistoryQuery(Query):
    """Query of `GET /metrics/history`."""

    timeframe: Timeframe = Field("1h", description="Length of the period, which ends now.")
    points: int = Field(300, ge=10, le=2000, description="Maximum number of points.")
    runtime: str | None = Field(None, min_length=1, max_length=200, description="Id of one runtime; by default all runtimes together.")


class MetricsHandler(Handler):
    """Handler of `GET /metrics`."""

    @described("The service", Response(SystemMetrics, media=dict.fromkeys(VERSIONS, TEXT)))
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Return the current metrics: as JSON, or in Prometheus format if the client prefers `text/plain` or OpenMetrics."""
        runtime = await self.runtime()
        media_type = preferred(self.request.headers.get("Accept"), (JSON, ENVELOPE, *VERSIONS))
        if media_type in VERSIONS:
            from openruntime_jupyter.server.handlers.prometheus import exposition

            text, content_type = exposition(runtime, media_type)
            self.set_header("Vary", "Accept")
            self.finish(text, set_content_type=content_type)
        else:
            self.reply(runtime.system_metrics())


class MetricsHistoryHandler(Handler):
    """Handler of `GET /metrics/history`."""

    @described("The service", MetricsHistory, query=HistoryQuery)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Return the metrics of the last minutes, hours or days as columns of equal length."""
        query = self.query(HistoryQuery)
        runtime = await self.runtime()
        self.reply(await self.while_connected(runtime.metrics_service.history(query.timeframe, query.points, query.runtime)))
