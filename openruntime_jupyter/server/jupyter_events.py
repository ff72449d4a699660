"""Jupyter Events: what becomes of tasks, for whoever runs the server to collect."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_events import EventLogger

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.events.bus import EventBus

SCHEMA = Path(__file__).with_name("events") / "task.v1.json"
BOUND = 100_000
"""States that may wait for the log to be written."""
GATHER_SECONDS = 0.05
"""Whoever waits for a task's end is answered first: nobody waits for these."""
FINAL = ("completed", "failed", "cancelled", "timed_out", "interrupted")

log = logging.getLogger(__name__)


class TaskEvents:
    """Emits an event for each change of a task's state through the server's event logger, which makes nothing of it for nobody."""

    def __init__(self, logger: EventLogger) -> None:
        schema: dict[str, Any] = json.loads(SCHEMA.read_text())
        logger.register_event_schema(schema)
        self._logger = logger
        self._schema_id: str = schema["$id"]
        self._states: dict[str, tuple[str, int]] = {}
        self._failed = False

    async def follow(self, bus: EventBus) -> None:
        """Emit until the bus closes."""
        since: int | None = None
        while True:
            subscription, gap = bus.subscribe(("task_update",), since, BOUND, GATHER_SECONDS)
            if gap:
                log.warning("Tasks change faster than their events can be written: some were left out")
            try:
                async for event in subscription:
                    since = event.id
                    if self.tell(event.body["data"]):
                        # A handler of events writes to its disk while the loop waits: others get their turn in between.
                        await asyncio.sleep(0)
            finally:
                subscription.close()
            if not subscription.overflowed:
                return

    def tell(self, data: dict[str, Any]) -> bool:
        """Emit what an update says, if it is about a new state; whether somebody got it.

        Never raises: what others do with events is not the tasks' concern.
        """
        task_id, state = data["task_id"], (data["status"], data["attempt"])
        if self._states.get(task_id) == state:
            return False
        if data["status"] in FINAL:
            self._states.pop(task_id, None)
        else:
            self._states[task_id] = state
        try:
            return self._logger.emit(schema_id=self._schema_id, data=_event(data)) is not None
        except Exception:
            # Once is enough: the next one fails for the same reason, most likely.
            if not self._failed:
                log.exception("Events of tasks can't be emitted; this is told once")
            self._failed = True
            return False


def _event(data: dict[str, Any]) -> dict[str, Any]:
    """An update of the bus in the words of the schema."""
    same = {name: data[name] for name in ("task_id", "operation", "owner", "priority", "execution_time")}
    return {**same, "state": data["status"], "device": data["device_used"]}
