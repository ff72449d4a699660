"""Sessions: workers whose variables stay from one task to the next."""

from __future__ import annotations

from jupyter_server.auth.decorator import authorized
from tornado import web

from openruntime_jupyter.schemas.sessions import Session
from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.openapi.decorator import described
from openruntime_jupyter.server.responses import SessionList

NOT_FOUND = {404: "There is no such session."}


class SessionsHandler(Handler):
    """`GET /sessions`."""

    @described("Sessions", SessionList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """List the sessions, with the memory that each holds."""
        runtime = await self.runtime()
        self.reply({"sessions": runtime.sessions.list()})


class SessionHandler(Handler):
    """`DELETE /sessions/{id}`."""

    @described("Sessions", Session, errors=NOT_FOUND)
    @web.authenticated
    @authorized
    async def delete(self, session_id: str) -> None:
        """End a session and the task that it runs; its memory is given back and its variables are gone."""
        runtime = await self.runtime()
        self.reply(runtime.sessions.free(session_id))


class SessionRestartHandler(Handler):
    """`POST /sessions/{id}/restart`."""

    @described("Sessions", Session, errors=NOT_FOUND)
    @web.authenticated
    @authorized
    async def post(self, session_id: str) -> None:
        """End the session's worker and the task that it runs; the next task starts with an empty namespace."""
        runtime = await self.runtime()
        self.reply(runtime.sessions.restart(session_id))
