"""All queues and lanes of a runtime: which lane serves which queue, and the order of pending tasks over several queues."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice

from openruntime_jupyter.errors import UnknownDevice
from openruntime_jupyter.memory import Capacity
from openruntime_jupyter.runtime.queue.lane import Counts, Durations, Lane, Queue, in_order, key_of
from openruntime_jupyter.runtime.tasks.entry import Entry, QueueKey

LAST_ESTIMATED = 100
"""Last position in the queue with an estimated start. An estimate takes up to 0.1 ms, and later ones would mean little."""
MOST_SLOTS = 100
"""Slots of the lanes that serve a queue, above which starts are not estimated."""

MISSING = {"auto": "a device, and none is available", "gpu": "a GPU, and none is available", "cpu": "a CPU, and none is available"}


class Lanes:
    """Queues and open lanes of a runtime.

    A queue is made when its first lane opens, and stays when its last lane leaves. A lane serves the queues of its id and its device type.
    The GPUs serve `auto`, or the CPUs while there is no GPU. `gpu` is served by the CPUs until there has been a GPU. The queue of another
    host is served by its GPUs, or by its CPUs if it has no GPU.
    """

    def __init__(self) -> None:
        self.devices: dict[str, Lane] = {}
        """Open lanes of devices, by id."""
        self.remote: Queue | None = None
        """Queue of operations that need no device."""
        self._counts = Counts()
        self._queues: dict[str, Queue] = {}
        self._running_on: dict[str, Lane] = {}
        self._sharing: dict[Capacity, dict[str, Entry]] = {}
        """Running tasks in the memory of each machine."""
        self._durations: dict[tuple[str, str], Durations] = {}
        self._hosts: set[str] = set()
        """Names of all hosts that were ever found."""
        self._gpus = 0
        self._had_gpu = False

    # Lanes

    def open_queues(self) -> None:
        """Accept tasks from now on, also while no lane is open."""
        for name in ("auto", "gpu", "cpu"):
            self._queue(name)

    def expect(self, host: str) -> None:
        """Accept tasks for this host and its devices from now on, also while it is not ready."""
        self._hosts.add(host)
        self._queue(host)

    def join(self, lane: Lane) -> None:
        """Open the lane of a device; raise `ValueError` if a lane with its id is open."""
        if lane.id in self.devices:
            raise ValueError(f"the lane {lane.id} is open already")
        first = lane.device.type == "gpu" and not self._gpus
        self.open_queues()
        self.devices[lane.id] = lane
        if lane.shares_memory:
            lane.sharing = self._sharing.setdefault(lane.machine, {})
        self._gpus += lane.device.type == "gpu"
        self._had_gpu |= first
        for each in self.devices.values() if first else [lane]:
            self._assign(each)

    def join_remote(self, lane: Lane) -> None:
        """Open the lane of operations that need no device."""
        self.remote = self._queue(lane.id)
        lane.serve(self.remote)

    def leave(self, lane_id: str) -> Lane:
        """Close the lane of a device and return it: it takes no more tasks, and its running ones continue.

        Raises `KeyError` if no such lane is open.
        """
        lane = self.devices.pop(lane_id)
        lane.open = False
        for queue in tuple(lane.queues.values()):
            lane.stop_serving(queue)
        self._gpus -= lane.device.type == "gpu"
        if lane.device.type == "gpu" and not self._gpus:
            for each in self.devices.values():
                self._assign(each)
        return lane

    def _assign(self, lane: Lane) -> None:
        """Make the lane serve its queues."""
        on_gpu = lane.device.type == "gpu"
        names = {lane.id, lane.device.type}
        if on_gpu or not self._gpus:
            names.add("auto")
        if not self._had_gpu:
            names.add("gpu")
        if lane.host and (on_gpu or not self._has_gpu(lane.host)):
            names.add(lane.host)
        for queue in [queue for name, queue in lane.queues.items() if name not in names]:
            lane.stop_serving(queue)
        for name in sorted(names - lane.queues.keys()):
            lane.serve(self._queue(name))

    def _has_gpu(self, host: str) -> bool:
        return any(lane.host == host and lane.device.type == "gpu" for lane in self.devices.values())

    def _queue(self, name: str) -> Queue:
        if name not in self._queues:
            self._queues[name] = Queue(name, self._counts, MISSING.get(name, f"{name}, which is not available"))
        return self._queues[name]

    def durations(self, device_type: str, name: str) -> Durations:
        """Return the durations of tasks on devices of this type and name, which their lanes share."""
        return self._durations.setdefault((device_type, name), Durations())

    @property
    def known(self) -> bool:
        """True once tasks are accepted: a device lane has joined, or may."""
        return "auto" in self._queues

    @property
    def has_gpu(self) -> bool:
        """True if one of the devices is a GPU."""
        return self._gpus > 0

    def __iter__(self) -> Iterator[Lane]:
        """Iterate over the open lanes."""
        yield from self.devices.values()
        if self.remote is not None:
            yield from self.remote.lanes.values()

    # Queues

    def place(self, preference: str) -> Queue:
        """Return the queue for `auto`, `gpu`, `cpu`, a host or a device id; raise `UnknownDevice`."""
        queue = self._queues.get(preference)
        host = preference.rpartition(".")[0]
        if queue is None and host in self._hosts and not any(lane.host == host for lane in self.devices.values()):
            return self._queue(preference)  # its devices are not known yet
        if queue is None or queue is self.remote:
            devices = [name for name in self._queues if name not in MISSING and self._queues[name] is not self.remote]
            problem = f"unknown device {preference!r}; known are auto, gpu, cpu, {', '.join(devices)}"
            raise UnknownDevice(f"device_preference: {problem}", [{"field": "device_preference", "problem": problem}])
        return queue

    def queue_of(self, entry: Entry) -> Queue:
        """Return the queue of a task."""
        return self._queues[entry.queue]

    @property
    def pending(self) -> int:
        """Number of pending tasks."""
        return self._counts.pending

    def next_up(self, limit: int, offset: int = 0) -> list[Entry]:
        """Return pending tasks of all queues, most urgent first."""
        queues = [queue for queue in self._queues.values() if queue.tasks]
        return list(islice(in_order(queues), offset, offset + limit))

    def take_all(self) -> list[Entry]:
        """Remove and return all pending tasks."""
        return [entry for queue in self._queues.values() for entry in queue.clear()]

    # Running tasks

    @property
    def running(self) -> int:
        """Number of running tasks."""
        return len(self._running_on)

    def running_by_host(self) -> Counter[str]:
        """Return the numbers of running tasks by the names of their hosts; the local name is empty."""
        return Counter(lane.host for lane in self._running_on.values())

    def begin(self, lane: Lane, entry: Entry) -> None:
        """Count a task as running on the lane."""
        lane.running[entry.task_id] = lane.sharing[entry.task_id] = entry
        self._running_on[entry.task_id] = lane

    def end(self, lane: Lane, entry: Entry) -> None:
        """Count a task as running no more."""
        del lane.running[entry.task_id]
        lane.sharing.pop(entry.task_id, None)
        del self._running_on[entry.task_id]

    def lane_of(self, entry: Entry) -> Lane | None:
        """Return the lane that runs the task, or None."""
        return self._running_on.get(entry.task_id)

    # Positions

    def position(self, entry: Entry) -> int | None:
        """Return the task's position, 1 for the next; None if it is not pending.

        Before it count the tasks that the same lane would take first. If several lanes serve its queue, the lane with the fewest counts.
        """
        queue = self._queues[entry.queue]
        if entry.key not in queue.tasks:
            return None
        fewest: int | None = None
        seen: dict[str, int] = {}
        for lane in queue.lanes.values():
            before = 0
            for name, other in lane.queues.items():
                if other.tasks:
                    if name not in seen:
                        seen[name] = other.rank(entry.key)
                    before += seen[name]
            fewest = before if fewest is None else min(fewest, before)
            if fewest == seen[queue.name]:  # no lane has fewer
                break
        return 1 + (queue.rank(entry.key) if fewest is None else fewest)

    def estimate(self, entry: Entry) -> float | None:
        """Return the estimated start, in seconds since the epoch.

        Each task before it takes the slot that becomes free first on the devices it may use, for the time that its kind usually takes
        there. None if an unknown time could change the result: a kind that has not completed yet, a running task without progress that
        takes longer than usual, a wait for memory, a session or another runtime.
        """
        queue = self._queues[entry.queue]
        if len(queue.lanes) > MOST_SLOTS or entry.key not in queue.tasks or queue.rank(entry.key) >= LAST_ESTIMATED:
            return None
        if entry.waiting_for is not None or queue.waiting_for is not None:
            return None
        queues = {name: other for lane in queue.lanes.values() for name, other in lane.queues.items() if other.tasks}
        before = sum(other.rank(entry.key) for other in queues.values())
        if before >= LAST_ESTIMATED:
            return None
        lanes = {each.id: each for other in queues.values() for each in islice(other.lanes.values(), MOST_SLOTS)}
        if sum(lane.slots for lane in lanes.values()) > MOST_SLOTS:
            return None
        slots = [slot for number, lane in enumerate(lanes.values()) for slot in _slots(number, lane)]
        heapify(slots)
        for other in _before(list(queues.values()), entry.key):
            _occupy(slots, other)
        free = min((at for at, _, lane in slots if entry.queue in lane.queues), default=math.inf)
        return time.time() + free if free < math.inf else None


Slot = tuple[float, int, Lane]
"""Seconds until the slot is free, number of its lane, and the lane."""


def _slots(number: int, lane: Lane) -> list[Slot]:
    busy = [(lane.time_left(entry) if lane.waiting_for is None else math.inf, number, lane) for entry in lane.running.values()]
    free: Slot = (0.0 if lane.waiting_for is None else math.inf, number, lane)
    return [*busy, *[free] * lane.free_slots]


def _before(queues: list[Queue], key: QueueKey) -> list[Entry]:
    """Return the tasks of these queues that are more urgent than `key`, in order."""
    found = [entry for queue in queues for entry in queue.first(queue.rank(key))]
    if len(queues) > 1:
        found.sort(key=key_of)
    return found


def _occupy(slots: list[Slot], entry: Entry) -> None:
    """Add the usual time of the task to the slot that becomes free first for it."""
    if entry.queue in slots[0][2].queues:
        at, number, lane = slots[0]
        heapreplace(slots, (at + lane.typical(entry), number, lane))
        return
    others: list[Slot] = []
    while slots and entry.queue not in slots[0][2].queues:
        others.append(heappop(slots))
    if slots:
        at, number, lane = slots[0]
        heapreplace(slots, (at + lane.typical(entry), number, lane))
    for slot in others:
        heappush(slots, slot)
