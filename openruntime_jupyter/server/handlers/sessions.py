"""Handlers of sessions: workers whose variables persist between tasks."""

from __future__ import annotations

from jupyter_server.auth.decorator import authorized
from tornado import web

from openruntime_jupyter.schemas.sessions import Session
from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.openapi.decorator import described
from openruntime_jupyter.server.responses import SessionList

NOT_FOUND = {404: "Unknown session."}


class SessionsHandler(Handler):
    """Handler of `GET /sessions`."""

    @described("Sessions", SessionList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """List the sessions with their memory."""
        runtime = await self.runtime()
        self.reply({"sessions": runtime.sessions.list()})


class SessionHandler(Handler):
    """Handler of `DELETE /sessions/{id}`."""

    @described("Sessions", Session, errors=NOT_FOUND)
    @web.authenticated
    @authorized
    async def delete(self, session_id: str) -> None:
        """End a session and its running task. Its memory is freed and its variables are lost."""
        runtime = await self.runtime()
        self.reply(runtime.sessions.free(session_id))


class SessionRestartHandler(Handler):
    """Handler of `POST /sessions/{id}/restart`."""

    @described("Sessions", Session, errors=NOT_FOUND)
    @web.authenticated
    @authorized
    async def post(self, session_id: str) -> None:
        """Restart the worker of a session and end its running task. The next task starts with an empty namespace."""
        runtime = await self.runtime()
        self.reply(runtime.sessions.restart(session_id))
