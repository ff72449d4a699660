"""Jupyter Events: changes of task states, for the administrator's event handlers."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_events import EventLogger

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.events import EventBus

SCHEMA = Path(__file__).with_name("events") / "task.v1.json"
BOUND = 100_000
"""Maximum number of queued state changes."""
GATHER_SECONDS = 0.05
"""Delay before events are emitted, so that responses to waiting clients are sent first."""
FINAL = ("completed", "failed", "cancelled", "timed_out", "interrupted")

log = logging.getLogger(__name__)


class TaskEvents:
    """Emitter of an event for each change of a task's state. The event logger does nothing if no handler is registered."""

    def __init__(self, logger: EventLogger) -> None:
        schema: dict[str, Any] = json.loads(SCHEMA.read_text())
        logger.register_event_schema(schema)
        self._logger = logger
        self._schema_id: str = schema["$id"]
        self._states: dict[str, tuple[str, int]] = {}
        self._failed = False

    async def follow(self, bus: EventBus) -> None:
        """Emit events until the bus closes."""
        since: int | None = None
        while True:
            subscription, gap = bus.subscribe(("task_update",), since, BOUND, GATHER_SECONDS)
            if gap:
                log.warning("Task states change faster than their events can be written: some events were dropped")
            try:
                async for event in subscription:
                    since = event.id
                    if self.emit(event.body["data"]):
                        # An event handler may block the loop with disk writes, so other coroutines run between two events.
                        await asyncio.sleep(0)
            finally:
                subscription.close()
            if not subscription.overflowed:
                return

    def emit(self, data: dict[str, Any]) -> bool:
        """Emit an event if the update has a new state. Return True if a handler received it.

        Never raises: failing event handlers must not affect tasks.
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
            # The next event probably fails for the same reason.
            if not self._failed:
                log.exception("Task events cannot be emitted; further failures are not logged")
            self._failed = True
            return False


def _event(data: dict[str, Any]) -> dict[str, Any]:
    """Convert an update of the bus to an event of the schema."""
    same = {name: data[name] for name in ("task_id", "operation", "owner", "priority", "execution_time")}
    return {**same, "state": data["status"], "device": data["device_used"]}
