"""Sessions: named workers whose variables and modules stay from one task to the next.

A session belongs to one notebook of one user (or to one process, where no notebook is known), so that two notebooks which both say
`--session train` never share variables. Its worker holds memory but no slot while it is idle. When the worker ends, the session
stays listed with the reason until it is restarted or freed: a task never runs with an empty namespace where its user expects a full one.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from openruntime_jupyter.engines.protocol import Engine, SessionUse
from openruntime_jupyter.errors import InvalidRequest, SessionEnded, SessionNotFound, Unavailable
from openruntime_jupyter.operations.base import World
from openruntime_jupyter.runtime.ids import make_id
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.base import iso, timestamp
from openruntime_jupyter.schemas.system import Session, SessionState
from openruntime_jupyter.schemas.tasks import Failure, FailureKind

ID = re.compile(r"session_[0-9a-z]{20}")

MOST_INACTIVE = 100
"""Ended and empty sessions that stay listed."""

UNUSED_SECONDS = 60.0
"""Time after which a session is dropped whose first task was rejected."""

Scope = tuple[str, str, str]
"""Owner, notebook or process, and interpreter."""


@dataclass(slots=True, eq=False)
class SessionEntry:
    """State of one session. `number` counts restarts; times are in seconds since the epoch."""

    id: str
    name: str
    scope: Scope
    world: World
    created: float = field(default_factory=time.time)
    used: float = field(default_factory=time.time)
    number: int = 0
    tasks: int = 0
    open: int = 0
    """Tasks that wait or run."""
    listed: bool = False
    """True once a task was accepted for it."""
    task_id: str | None = None
    device: str | None = None
    """Device of the last task, where its variables are."""
    ended: str | None = None
    """Why its worker has ended; None while it can be used."""
    ended_at: float | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def active(self) -> bool:
        """True if it has a worker, or its first task is starting one."""
        return self.ended is None and bool(self.tasks or self.open)

    @property
    def use(self) -> SessionUse:
        """The session as the engine needs it."""
        return SessionUse(self.id, self.number, self.name)


class Sessions:
    """Registry of sessions. `engine` returns the engine."""

    def __init__(self, settings: Settings, engine: Callable[[], Engine]) -> None:
        self._settings = settings
        self._engine = engine
        self._all: dict[str, SessionEntry] = {}

    def use(self, wanted: str, owner: str | None, world: World | None) -> SessionEntry:
        """Return the session of that name or id, made if its name is new.

        Raises `SessionEnded` where it has ended or its id is unknown, and `Unavailable` where there are too many.
        """
        world = world or World()
        scope = (owner or "", world.notebook or world.kernel or "", world.interpreter or "")
        if ID.fullmatch(wanted):
            found = self._all.get(wanted)
            if found is None or found.scope[0] != scope[0]:
                raise SessionEnded.because(
                    wanted, "it was freed, or its runtime was restarted", "The next task with its name starts an empty session"
                )
        else:
            found = next((each for each in self._all.values() if (each.name, each.scope) == (wanted, scope)), None)
        if found is None:
            return self._make(wanted, scope, world)
        self._require_alive(found)
        if not found.active:
            self._require_room()
        return found

    def _make(self, name: str, scope: Scope, world: World) -> SessionEntry:
        if not name.isprintable() or not name.strip():
            raise InvalidRequest.of("session", f"{name!r} is not a valid name")
        self._forget_old()
        self._require_room()
        made = SessionEntry(make_id("session"), name, scope, world)
        self._all[made.id] = made
        return made

    def _require_room(self) -> None:
        active = [each.name for each in self._all.values() if each.active]
        most = self._settings.max_sessions
        if len(active) < most:
            return
        if most == 0:
            raise InvalidRequest.of("session", "this runtime allows no sessions (max_sessions is 0)")
        raise Unavailable(
            f"{len(active)} sessions are open ({', '.join(active)}), and at most {most} are allowed (max_sessions). Free one: "
            "`%openruntime free NAME` or DELETE /sessions/{id}",
            retry_after=60.0,
        )

    def _forget_old(self) -> None:
        """Drop sessions whose first task was rejected, and the longest unused of too many that have ended."""
        late = time.time() - UNUSED_SECONDS
        inactive = sorted((each for each in self._all.values() if not each.active), key=lambda each: -each.used)
        for entry in [*(each for each in inactive if not each.listed and each.used < late), *inactive[MOST_INACTIVE:]]:
            self._all.pop(entry.id, None)

    @staticmethod
    def _require_alive(entry: SessionEntry) -> None:
        if entry.ended is not None:
            raise SessionEnded.because(entry.name, entry.ended, f"`%openruntime restart {entry.name}` starts an empty session of this name")

    # A task's life

    def rejection(self, entry: SessionEntry, number: int) -> Failure | None:
        """Return why a task that was submitted to this session can't start, or None; `number` is the session's at that time."""
        reason = entry.ended if entry.number == number else "it was restarted after this task was submitted, and its variables are gone"
        if reason is None:
            return None
        return Failure(kind=FailureKind.NOT_STARTED, message=f"The session {entry.name!r} can't run this task: {reason}")

    def add_task(self, entry: SessionEntry) -> None:
        """Note that a task was accepted for the session; its idle time ends."""
        entry.open += 1
        entry.listed = True
        self._stop_timer(entry)

    def remove_task(self, entry: SessionEntry) -> None:
        """Note that such a task has ended or was withdrawn; the idle time starts with the last one."""
        entry.open -= 1
        entry.used = time.time()
        seconds = self._settings.session_idle_seconds
        if seconds > 0 and entry.active and not entry.open and entry.id in self._all:
            self._stop_timer(entry)
            entry.timer = asyncio.get_running_loop().call_later(seconds, self._expire, entry)

    def end_task(self, entry: SessionEntry, number: int, ran: bool) -> None:
        """Note that the session's task has ended. `number` is the session's when the task was submitted, `ran` whether it started."""
        entry.task_id = None
        if ran and entry.number == number:
            entry.tasks += 1
        self.remove_task(entry)

    def worker_ended(self, use: SessionUse, reason: str) -> None:
        """Note that the worker of a session has ended, which the engine reports."""
        entry = self._all.get(use.id)
        if entry is not None and entry.number == use.number:
            entry.ended, entry.ended_at = f"{reason}; its variables are gone", time.time()
            self._stop_timer(entry)

    def _expire(self, entry: SessionEntry) -> None:
        minutes = self._settings.session_idle_seconds / 60
        self.worker_ended(entry.use, f"it was not used for {minutes:g} minutes (session_idle_seconds)")
        self._engine().end_session(entry.id, "its session was not used any more")

    @staticmethod
    def _stop_timer(entry: SessionEntry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    # Requests

    def list(self) -> list[Session]:
        """Return every session, the last used first."""
        return [self._view(each) for each in sorted(self._all.values(), key=lambda each: -each.used) if each.listed]

    def restart(self, session_id: str) -> Session:
        """End the session's worker; its next task starts with an empty namespace. Raises `SessionNotFound`."""
        entry = self._find(session_id)
        self._stop_timer(entry)
        entry.number += 1
        entry.ended, entry.ended_at, entry.tasks, entry.used, entry.device = None, None, 0, time.time(), None
        self._engine().end_session(entry.id, "its session was restarted")
        return self._view(entry)

    def free(self, session_id: str) -> Session:
        """End the session and forget it; return what it was. Raises `SessionNotFound`."""
        entry = self._find(session_id)
        self._stop_timer(entry)
        seen = self._view(entry)
        del self._all[entry.id]
        entry.ended = "it was freed"
        self._engine().end_session(entry.id, "its session was freed")
        return seen

    def close(self) -> None:
        """Forget the idle times."""
        for entry in self._all.values():
            self._stop_timer(entry)

    def _find(self, session_id: str) -> SessionEntry:
        found = self._all.get(session_id)
        if found is None:
            known = ", ".join(f"{each.name} ({each.id})" for each in self._all.values()) or "none"
            raise SessionNotFound(f"There is no session {session_id!r}; open sessions: {known}")
        return found

    def _view(self, entry: SessionEntry) -> Session:
        worker, resident = self._engine().session_worker(entry.id)
        state = SessionState.ENDED if entry.ended else SessionState.BUSY if entry.task_id else SessionState.IDLE
        idle = self._settings.session_idle_seconds
        return Session(
            id=entry.id,
            name=entry.name,
            state=state,
            owner=entry.scope[0] or None,
            notebook=entry.world.notebook,
            kernel=entry.world.kernel,
            interpreter=entry.world.interpreter,
            directory=entry.world.directory,
            worker=worker,
            resident_bytes=resident,
            task_id=entry.task_id,
            tasks=entry.tasks,
            created_at=timestamp(entry.created),
            used_at=timestamp(entry.used),
            expires_at=iso(entry.used + idle) if entry.timer is not None else None,
            ended_at=iso(entry.ended_at),
            reason=entry.ended,
        )
