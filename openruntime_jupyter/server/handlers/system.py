"""Handlers of `/`, `/health`, `/devices`, `/workers`, `/operations`, and of unknown paths."""

from __future__ import annotations

from typing import Any

from jupyter_server.auth.decorator import authorized
from pydantic import Field
from tornado import web

from openruntime_jupyter import __version__
from openruntime_jupyter.operations.registry import describe_operations
from openruntime_jupyter.schemas.system import Health, MetricsHistory, SystemMetrics, Timeframe
from openruntime_jupyter.server.http.base import ENVELOPE, Handler
from openruntime_jupyter.server.http.requests import Query, preferred
from openruntime_jupyter.server.openapi.decorator import JSON, VERSIONS, Response, described
from openruntime_jupyter.server.responses import DeviceList, OperationList, ServiceInfo, WorkerList


class RootHandler(Handler):
    """Handler of `GET /`."""

    @described("The service", ServiceInfo)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Return the name and version of the service."""
        self.reply({"name": "OpenRuntime", "version": __version__, "status": "running"})


class HealthHandler(Handler):
    """Handler of `GET /health`."""

    @described("The service", Health)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Return the health of the server, and its problems with suggested fixes."""
        runtime = await self.runtime()
        self.reply(runtime.health())


class DevicesHandler(Handler):
    """Handler of `GET /devices`."""

    @described("The service", DeviceList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """List the compute devices of MLX."""
        runtime = await self.runtime()
        self.reply({"devices": runtime.devices()})


class WorkersHandler(Handler):
    """Handler of `GET /workers`."""

    @described("The service", WorkerList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """List the worker processes with their statistics."""
        runtime = await self.runtime()
        self.reply({"workers": runtime.worker_stats.report()})


class OperationsHandler(Handler):
    """Handler of `GET /operations`."""

    @described("The service", OperationList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """List the operations with the JSON schemas of their parameters."""
        await self.runtime()
        self.reply({"operations": describe_operations()})


class NotFoundHandler(Handler):
    """Handler of all other paths, which responds with 404 to authorized clients."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Respond with 404."""
        raise web.HTTPError(404)

    post = put = patch = delete = head = get


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
