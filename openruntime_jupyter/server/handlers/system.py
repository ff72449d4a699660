"""What the server is and has: `/`, `/health`, `/devices`, `/operations`, and every path that is nothing."""

from __future__ import annotations

from jupyter_server.auth.decorator import authorized
from tornado import web

from openruntime_jupyter import __version__
from openruntime_jupyter.schemas.system import Health
from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.openapi.decorator import described
from openruntime_jupyter.server.responses import DeviceList, OperationList, ServiceInfo, WorkerList


class RootHandler(Handler):
    """`GET /`."""

    @described("The service", ServiceInfo)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """The name and version of the service."""
        self.reply({"name": "OpenRuntime", "version": __version__, "status": "running"})


class HealthHandler(Handler):
    """`GET /health`."""

    @described("The service", Health)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Whether all is well, and if not, what to do."""
        runtime = await self.runtime()
        self.reply(runtime.health())


class DevicesHandler(Handler):
    """`GET /devices`."""

    @described("The service", DeviceList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Everything MLX computes on here."""
        runtime = await self.runtime()
        self.reply({"devices": runtime.devices()})


class WorkersHandler(Handler):
    """`GET /workers`."""

    @described("The service", WorkerList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """The worker processes that there are, with what each has done."""
        runtime = await self.runtime()
        self.reply({"workers": runtime.worker_stats.report()})


class OperationsHandler(Handler):
    """`GET /operations`."""

    @described("The service", OperationList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Every kind of work, with the JSON schema of its parameters."""
        runtime = await self.runtime()
        self.reply({"operations": runtime.operations()})


class NotFoundHandler(Handler):
    """Every other path: 404, to those who may know."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Say so."""
        raise web.HTTPError(404)

    post = put = patch = delete = head = get
