"""`Client.map`: one function on many items, a task for each chunk of them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.client.arrays import Parcel
from openruntime_jupyter.client.backend import Backend, new_key
from openruntime_jupyter.client.handle import TaskHandle
from openruntime_jupyter.client.lanes import lane_of
from openruntime_jupyter.client.pickling import pack_call
from openruntime_jupyter.errors import InvalidRequest, MapFailed, OpenRuntimeError, TaskError, TaskFailed
from openruntime_jupyter.models import Task
from openruntime_jupyter.worker.mapping import apply

if TYPE_CHECKING:
    from openruntime_jupyter.client.client import Client

CHUNKS_A_SLOT = 4
"""Enough that slots which end early find more to do, few enough that the cost of a task does not show."""
MOST_AHEAD = 200
"""Chunks that are submitted and not yet fetched: what waits in the queue leaves room for others."""
MOST_BYTES = 4_000_000
"""JSON bytes of one request's chunks, beyond its first."""


@dataclass
class Chunk:
    """Items that one task works on: `size` of them from the place `first`."""

    first: int
    size: int
    request: dict[str, Any]
    parcel: Parcel


@dataclass
class Mapping:
    """One `map` under way."""

    backend: Backend
    chunks: Iterator[Chunk]
    results: list[Any]
    told: Callable[[Task | BaseException], None] = lambda answer: None
    """Called with the answer to each submission."""
    failures: dict[int, TaskError] = field(default_factory=dict)
    _flying: deque[tuple[Chunk, TaskHandle]] = field(default_factory=deque)
    _sending: tuple[list[Chunk], str] | None = None

    def run(self) -> list[Any]:
        """The results in order; raises `MapFailed`. Whatever else ends it, Ctrl-C among that, cancels what is left."""
        try:
            while self._send() or self._flying:
                self._fetch(*self._flying[0])
                self._flying.popleft()
        except BaseException:
            self._cancel()
            raise
        if self.failures:
            raise MapFailed(_summary(self.failures, len(self.results)), dict(sorted(self.failures.items())), self.results)
        return self.results

    def _send(self) -> bool:
        """Submit more, once half of what may be under way has ended; whether there was any."""
        if len(self._flying) > MOST_AHEAD // 2:
            return False
        group: list[Chunk] = []
        size = 0
        while len(self._flying) + len(group) < MOST_AHEAD and size < MOST_BYTES and (chunk := next(self.chunks, None)):
            group.append(chunk)
            size += len(chunk.request["parameters"]["pickled"])
        if not group:
            return False
        self._sending = group, new_key()
        answers = self._submit(*self._sending)
        self._take(group, answers)
        self._sending = None
        for chunk in group:
            chunk.parcel.release()
        refused = next((answer for answer in answers if isinstance(answer, OpenRuntimeError)), None)
        if refused is not None:
            raise refused
        return True

    def _submit(self, group: list[Chunk], key: str) -> list[Task | OpenRuntimeError]:
        return self.backend.submit_many([chunk.request for chunk in group], key)

    def _take(self, group: list[Chunk], answers: list[Task | OpenRuntimeError]) -> None:
        for chunk, answer in zip(group, answers, strict=True):
            self.told(answer)
            if isinstance(answer, Task):
                self._flying.append((chunk, TaskHandle(self.backend, answer)))

    def _fetch(self, chunk: Chunk, handle: TaskHandle) -> None:
        try:
            outcomes = handle.result()
        except TaskError as problem:
            self.failures.update(dict.fromkeys(range(chunk.first, chunk.first + chunk.size), problem))
            return
        for index, (worked, value) in enumerate(outcomes, chunk.first):
            if worked:
                self.results[index] = value
            else:
                said = f"{value['type']}: {value['message']}"
                self.failures[index] = TaskFailed(f"{said}\n\nIn the worker:\n{value['traceback'].rstrip()}", handle.last_seen)

    def _cancel(self) -> None:
        """The last first, so that nothing is started that is about to be cancelled."""
        with contextlib.suppress(OpenRuntimeError):
            if self._sending is not None:
                # The same key gives the same tasks, also where the interrupt came before their ids did.
                self._take(self._sending[0], self._submit(*self._sending))
                for chunk in self._sending[0]:
                    chunk.parcel.release()
        for _, handle in reversed(self._flying):
            with contextlib.suppress(OpenRuntimeError):
                handle.cancel()


def run_map(client: Client, function: Callable[[Any], Any], items: Sequence[Any], chunk_size: int | None) -> list[Any]:
    """`function(item)` for each item, in order; see `Client.map`."""
    if chunk_size is not None and (isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1):
        raise InvalidRequest.of("chunk_size", "give a whole number of items, at least 1, or leave it away")
    if items:
        pack_call(function, (), {})  # what keeps it from travelling is told of it, not of a chunk
    size = chunk_size or _chunk_size(client, len(items))

    def chunks() -> Iterator[Chunk]:
        for first in range(0, len(items), size):
            some = items[first : first + size]
            parcel = Parcel(client.backend)
            yield Chunk(first, len(some), client.call_request(parcel, apply, function, some, first, called=function), parcel)

    return Mapping(client.backend, chunks(), [None] * len(items), client.follow_session).run()


def _chunk_size(client: Client, number: int) -> int:
    """So that each slot of the lane where it runs gets a few chunks."""
    devices = client.devices()
    lane = lane_of(client.options.device, devices)
    slots = next((device.slots for device in devices if device.id == client.options.device or device.type == lane), 1)
    return max(1, -(-number // (CHUNKS_A_SLOT * slots)))


def _summary(failures: dict[int, TaskError], number: int) -> str:
    index = min(failures)
    return f"{len(failures)} of {number} items failed. The first, item {index}: {failures[index]}"
