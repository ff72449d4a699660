"""Deadlock check for code in a task that waits for its own lane."""

from __future__ import annotations

import os

from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.current_task import current
from openruntime_jupyter.errors import WouldDeadlock
from openruntime_jupyter.schemas.system import Device

ADVICE = "Submit it and wait for its handle outside the task, or run the work directly in this task"


def in_worker() -> bool:
    """Return whether this code runs in a task, or in a process that a task started."""
    return current() is not None or os.environ.get("OPENRUNTIME_WORKER") == "1"


def refuse_deadlock(backend: Backend, wanted: str, what: str) -> None:
    """Raise `WouldDeadlock` if this code runs in a task and `what` runs, or may run, on that task's lane.

    `wanted` is the assigned or requested device of `what`. A waiting task keeps its slot: if all slots are held by waiting tasks,
    no task of the lane can start.
    """
    if not in_worker():
        return
    context = current()
    if context is not None and context.device_type != lane_of(wanted, backend.devices()):
        return
    mine = context.task_id if context is not None else "the task that started this process"
    raise WouldDeadlock(f"Deadlock: waiting here would block {what}, because {mine} holds the device slot it needs. {ADVICE}")


def lane_of(wanted: str, devices: list[Device]) -> str:
    """Return the type (`gpu` or `cpu`) of a device id or preference."""
    types = {device.id: device.type for device in devices}
    fallback = "gpu" if "gpu" in types.values() else "cpu"
    return types.get(wanted) or ("cpu" if wanted == "cpu" else fallback)
