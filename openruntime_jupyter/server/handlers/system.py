"""Handlers of `/`, `/health`, `/devices`, `/workers`, `/operations`, and of unknown paths."""

from __future__ import annotations

from jupyter_server.auth.decorator import authorized
from tornado import web

from openruntime_jupyter import __version__
from openruntime_jupyter.schemas.system import Health
from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.openapi.decorator import described
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
        runtime = await self.runtime()
        self.reply({"operations": runtime.operations()})


class NotFoundHandler(Handler):
    """Handler of all other paths, which responds with 404 to authorized clients."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Respond with 404."""
        raise web.HTTPError(404)

    post = put = patch = delete = head = get
