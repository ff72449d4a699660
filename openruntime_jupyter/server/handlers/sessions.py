"""Handlers of sessions: workers whose variables persist between tasks."""

from __future__ import annotations

from openruntime_jupyter.schemas.endpoints import FREE_SESSION, LIST_SESSIONS, RESTART_SESSION
from openruntime_jupyter.server.http.base import Handler, serves


class SessionsHandler(Handler):
    """Handler of `GET /sessions`."""

    @serves(LIST_SESSIONS)
    async def get(self) -> None:
        """List the sessions with their memory."""
        runtime = await self.runtime()
        self.reply({"sessions": runtime.sessions.list()})


class SessionHandler(Handler):
    """Handler of `DELETE /sessions/{id}`."""

    @serves(FREE_SESSION)
    async def delete(self, session_id: str) -> None:
        """End a session and its running task. Its memory is freed and its variables are lost."""
        runtime = await self.runtime()
        self.reply(runtime.sessions.free(session_id))


class SessionRestartHandler(Handler):
    """Handler of `POST /sessions/{id}/restart`."""

    @serves(RESTART_SESSION)
    async def post(self, session_id: str) -> None:
        """Restart the worker of a session and end its running task. The next task starts with an empty namespace."""
        runtime = await self.runtime()
        self.reply(runtime.sessions.restart(session_id))
