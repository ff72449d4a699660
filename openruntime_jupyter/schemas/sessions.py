"""Sessions on the wire."""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from openruntime_jupyter.schemas.base import Timestamp, Wire


class SessionState(str, Enum):
    """What a session does now."""

    IDLE = "idle"
    BUSY = "busy"
    ENDED = "ended"

    def __str__(self) -> str:
        return str(self.value)


class Session(Wire):
    """A worker whose variables and modules stay from one task to the next."""

    id: str
    name: str = Field(description="What tasks call it; unique for one user and notebook.")
    state: SessionState = Field(description="`ended`: its variables are gone, and it takes no task until it is restarted.")
    owner: str | None = Field(None, description="The user who started it; null without a login.")
    notebook: str | None = Field(None, description="Path of the notebook that started it.")
    kernel: str | None = Field(None, description="Random id of the process that started it.")
    interpreter: str | None = Field(None, description="Path of its Python; null for the runtime's own.")
    directory: str | None = Field(None, description="Working directory of its caller.")
    worker: str | None = Field(None, description="Its worker; null before its first task and after its end.")
    resident_bytes: int | None = Field(None, description="Resident memory of its worker, in bytes.")
    task_id: str | None = Field(None, description="The task that it runs.")
    tasks: int = Field(0, description="Tasks that have ended in it since it was started.")
    created_at: Timestamp
    used_at: Timestamp = Field(description="When its last task ended, or it was created or restarted.")
    expires_at: Timestamp | None = Field(None, description="When it ends unless it is used before.")
    ended_at: Timestamp | None = Field(None, description="When it ended.")
    reason: str | None = Field(None, description="Why it has ended.")
