"""Sessions on the wire."""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from openruntime_jupyter.schemas.base import Timestamp, Wire


class SessionState(str, Enum):
    """State of a session."""

    IDLE = "idle"
    BUSY = "busy"
    ENDED = "ended"

    def __str__(self) -> str:
        return str(self.value)


class Session(Wire):
    """Worker whose variables and modules persist between tasks."""

    id: str = Field(description="Id of the session; it begins with `session_`.")
    name: str = Field(description="Name by which tasks refer to the session; unique for a user and notebook.")
    state: SessionState = Field(description="`ended`: the variables are lost, and the session accepts no task until it is restarted.")
    owner: str | None = Field(None, description="User who started the session; null without a login.")
    notebook: str | None = Field(None, description="Path of the notebook that started the session.")
    kernel: str | None = Field(None, description="Random id of the process that started the session.")
    interpreter: str | None = Field(None, description="Path of the Python interpreter; null for the interpreter of the runtime.")
    directory: str | None = Field(None, description="Working directory of the process that started the session.")
    worker: str | None = Field(None, description="Id of the worker; null before the first task and after the session has ended.")
    resident_bytes: int | None = Field(None, description="Resident memory of the worker in bytes.")
    task_id: str | None = Field(None, description="Id of the running task.")
    tasks: int = Field(0, description="Number of finished tasks since the session was started.")
    created_at: Timestamp = Field(description="Time of creation.")
    used_at: Timestamp = Field(description="Time at which the last task finished or the session was created or restarted.")
    expires_at: Timestamp | None = Field(None, description="Time at which the session ends unless it is used before.")
    ended_at: Timestamp | None = Field(None, description="Time at which the session ended.")
    reason: str | None = Field(None, description="Reason why the session ended.")


class SessionList(Wire):
    """Response of `GET /sessions`."""

    sessions: list[Session] = Field(description="Sessions, most recently used first.")
