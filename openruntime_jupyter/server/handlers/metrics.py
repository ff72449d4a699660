"""Figures: of now, as JSON or for Prometheus, and over time."""

from __future__ import annotations

from typing import Any

from jupyter_server.auth.decorator import authorized
from pydantic import Field
from tornado import web

from openruntime_jupyter.schemas.system import MetricsHistory, SystemMetrics, Timeframe
from openruntime_jupyter.server.http.base import ENVELOPE, Handler
from openruntime_jupyter.server.http.negotiation import preferred
from openruntime_jupyter.server.http.requests import Query
from openruntime_jupyter.server.openapi.decorator import JSON, VERSIONS, Answer, described

TEXT: dict[str, Any] = {"type": "string"}


class HistoryQuery(Query):
    """`GET /metrics/history`."""

    timeframe: Timeframe = Field("1h", description="How far back from now.")
    points: int = Field(300, ge=10, le=2000, description="How many points at most.")
    runtime: str | None = Field(None, min_length=1, max_length=200, description="The id of one runtime; without it, of all together.")


class MetricsHandler(Handler):
    """`GET /metrics`."""

    @described("The service", Answer(SystemMetrics, media=dict.fromkeys(VERSIONS, TEXT)))
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """The figures of now. Prometheus' text for whoever likes `text/plain` or OpenMetrics better than JSON."""
        runtime = await self.runtime()
        liked = preferred(self.request.headers.get("Accept"), (JSON, ENVELOPE, *VERSIONS))
        if liked in VERSIONS:
            from openruntime_jupyter.server.handlers.prometheus import exposition

            text, content_type = exposition(runtime, liked)
            self.set_header("Vary", "Accept")
            self.finish(text, set_content_type=content_type)
        else:
            self.reply(runtime.system_metrics())


class MetricsHistoryHandler(Handler):
    """`GET /metrics/history`."""

    @described("The service", MetricsHistory, query=HistoryQuery)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """The figures of the last minutes, hours or days, as columns of equal length."""
        query = self.query(HistoryQuery)
        runtime = await self.runtime()
        self.reply(await self.while_connected(runtime.metrics_service.history(query.timeframe, query.points, query.runtime)))
