"""Inside a task: refusing to wait for the lane that the task itself holds up."""

from __future__ import annotations

import os

from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.current_task import current
from openruntime_jupyter.errors import WouldDeadlock
from openruntime_jupyter.schemas.system import Device

ADVICE = "submit it and let its handle be waited for outside, or do the work right here"


def in_worker() -> bool:
    """Whether this code runs in a task, or in a process that a task started."""
    return current() is not None or os.environ.get("OPENRUNTIME_WORKER") == "1"


def refuse_deadlock(backend: Backend, wanted: str, what: str) -> None:
    """Raise `WouldDeadlock` if this code runs in a task, and `what` runs on that task's lane or may come to.

    `wanted` is the device that `what` was given or asks for. A task keeps its slot while it waits: with every slot held by one
    that waits, nothing of that lane would ever start.
    """
    if not in_worker():
        return
    context = current()
    if context is not None and context.device_type != lane_of(wanted, backend.devices()):
        return
    mine = context.task_id if context is not None else "the task that started this process"
    raise WouldDeadlock(f"{mine} holds a slot of the device that {what} needs, and would keep it from starting by waiting for it: {ADVICE}")


def lane_of(wanted: str, devices: list[Device]) -> str:
    """`gpu` or `cpu`: the kind of device behind a device's id or a preference."""
    types = {device.id: device.type for device in devices}
    fallback = "gpu" if "gpu" in types.values() else "cpu"
    return types.get(wanted) or ("cpu" if wanted == "cpu" else fallback)
