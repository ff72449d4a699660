"""Handlers of `/`, health, hosts, devices, workers, operations, metrics and sessions, and of unknown paths."""

from __future__ import annotations

from tornado import web

from openruntime_jupyter import __version__
from openruntime_jupyter.errors import NotAllowed
from openruntime_jupyter.operations.registry import describe_operations
from openruntime_jupyter.schemas import endpoints as api
from openruntime_jupyter.schemas.queries import HistoryQuery
from openruntime_jupyter.server.auth.identity import WHICH_TOKEN, LocalUser
from openruntime_jupyter.server.http.base import Handler, protected, serves
from openruntime_jupyter.server.http.requests import preferred


class RootHandler(Handler):
    """Handler of `GET /`."""

    @serves(api.GET_SERVICE)
    async def get(self) -> None:
        """Return the name and version of the service."""
        self.reply({"name": "OpenRuntime", "version": __version__, "status": "running"})


class HealthHandler(Handler):
    """Handler of `GET /health`."""

    @serves(api.GET_HEALTH)
    async def get(self) -> None:
        """Return the health of the server, and its problems with suggested fixes."""
        runtime = await self.runtime()
        self.reply(runtime.health())


class DevicesHandler(Handler):
    """Handler of `GET /devices`."""

    @serves(api.LIST_DEVICES)
    async def get(self) -> None:
        """List the compute devices of MLX."""
        runtime = await self.runtime()
        self.reply({"devices": runtime.devices()})


class HostsHandler(Handler):
    """Handler of `GET /hosts`."""

    @serves(api.LIST_HOSTS)
    async def get(self) -> None:
        """List the other machines that run tasks of this runtime."""
        runtime = await self.runtime()
        self.reply({"hosts": runtime.hosts()})


class WorkersHandler(Handler):
    """Handler of `GET /workers`."""

    @serves(api.LIST_WORKERS)
    async def get(self) -> None:
        """List the worker processes with their statistics."""
        runtime = await self.runtime()
        self.reply({"workers": runtime.worker_stats.report()})


class OperationsHandler(Handler):
    """Handler of `GET /operations`."""

    @serves(api.LIST_OPERATIONS)
    async def get(self) -> None:
        """List the operations with the api.JSON schemas of their parameters."""
        await self.runtime()
        self.reply({"operations": describe_operations()})


class NotFoundHandler(Handler):
    """Handler of all other paths, which responds with 404 to authorized clients."""

    @protected
    async def get(self) -> None:
        """Respond with 404."""
        raise web.HTTPError(404)

    post = put = patch = delete = head = get


class ShutdownHandler(Handler):
    """Handler of `POST /api/shutdown` of a stand-alone server, for `jupyter server stop`. Unlike Jupyter's, it limits the body."""

    auth_resource = "server"

    @protected
    async def post(self) -> None:
        """Stop the server."""
        if isinstance(self.user, LocalUser):
            raise NotAllowed(f"Stopping the server needs its token: {WHICH_TOKEN}")
        assert self.serverapp is not None
        self.serverapp.stop()
        self.finish()


class MetricsHandler(Handler):
    """Handler of `GET /metrics`."""

    @serves(api.GET_METRICS)
    async def get(self) -> None:
        """Return the current metrics: as api.JSON, or in Prometheus format if the client prefers `text/plain` or OpenMetrics."""
        runtime = await self.runtime()
        media_type = preferred(self.request.headers.get("Accept"), (api.JSON, api.ENVELOPE, *api.VERSIONS))
        if media_type in api.VERSIONS:
            from openruntime_jupyter.server.handlers.prometheus import exposition

            text, content_type = exposition(runtime, media_type)
            self.set_header("Vary", "Accept")
            self.finish(text, set_content_type=content_type)
        else:
            self.reply(runtime.system_metrics())


class MetricsHistoryHandler(Handler):
    """Handler of `GET /metrics/history`."""

    @serves(api.GET_METRICS_HISTORY)
    async def get(self) -> None:
        """Return the metrics of the last minutes, hours or days as columns of equal length."""
        query = self.query(HistoryQuery)
        runtime = await self.runtime()
        self.reply(await self.while_connected(runtime.metrics_service.history(query.timeframe, query.points, query.runtime)))


class SessionsHandler(Handler):
    """Handler of `GET /sessions`."""

    @serves(api.LIST_SESSIONS)
    async def get(self) -> None:
        """List the sessions with their memory."""
        runtime = await self.runtime()
        self.reply({"sessions": runtime.sessions.list()})


class SessionHandler(Handler):
    """Handler of `DELETE /sessions/{id}`."""

    @serves(api.FREE_SESSION)
    async def delete(self, session_id: str) -> None:
        """End a session and its running task. Its memory is freed and its variables are lost."""
        runtime = await self.runtime()
        await self.reply_changed(runtime.sessions.free(session_id))


class SessionRestartHandler(Handler):
    """Handler of `POST /sessions/{id}/restart`."""

    @serves(api.RESTART_SESSION)
    async def post(self, session_id: str) -> None:
        """Restart the worker of a session and end its running task. The next task starts with an empty namespace."""
        runtime = await self.runtime()
        await self.reply_changed(runtime.sessions.restart(session_id))
