"""`Client.map`: one function applied to many items, with a task per chunk."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from openruntime_jupyter.client.arrays import ArrayUploads
from openruntime_jupyter.client.code.map_progress import MapReporter, MapState
from openruntime_jupyter.client.code.results import python_result
from openruntime_jupyter.client.code.serialization import pack_call, sources_of
from openruntime_jupyter.client.code_client import CodeClient, name_of
from openruntime_jupyter.client.handles import TaskHandle, lane_of, refuse_deadlock, with_traceback
from openruntime_jupyter.client.interruption import kernel_stops, kernel_stops_soon, shown_as_line
from openruntime_jupyter.client.transport.protocol import LONGEST_WAIT, MOST_BYTES, Backend, new_key, size_of_call
from openruntime_jupyter.client.unseen import leave
from openruntime_jupyter.errors import InvalidRequest, MapFailed, OpenRuntimeError, TaskError, TaskFailed
from openruntime_jupyter.schemas.endpoints import COLLECT_RESULTS, SUBMIT_BATCH
from openruntime_jupyter.schemas.tasks import Task, TaskState
from openruntime_jupyter.worker.chunk import apply

CHUNKS_A_SLOT = 4
"""Tasks per slot: enough to balance the load, few enough to keep the overhead of tasks small."""
MOST_AHEAD = 200
"""Maximum number of submitted chunks that are not fetched yet, which leaves queue space for other tasks."""
STOP_POLL = 0.5
"""Seconds until a map that can be stopped from another thread checks that."""


class MapStopped(Exception):
    """Map that another thread stopped; the message says what became of it."""


@dataclass
class Chunk:
    """Items of one task: `size` items, starting at index `first`."""

    first: int
    size: int
    request: dict[str, Any]
    uploads: ArrayUploads


@dataclass
class Mapping:
    """State of one `map` call."""

    backend: Backend
    chunks: Iterator[Chunk]
    results: list[Any]
    reporter: MapReporter
    on_response: Callable[[Task | BaseException], None] = lambda answer: None
    """Called with the response to each submission."""
    stop: threading.Event | None = None
    """Set by another thread to stop the map."""
    failures: dict[int, TaskError] = field(default_factory=dict)
    _submitted: dict[str, tuple[Chunk, TaskHandle]] = field(default_factory=dict)
    _sending: tuple[list[Chunk], str] | None = None
    _all_sent: bool = False
    _done: int = 0
    """Items of ended chunks."""

    def run(self) -> list[Any]:
        """Return the results in order. Raises `MapFailed`. Any other error, including Ctrl-C, cancels the remaining tasks.

        Raises `MapStopped` once `stop` is set, which another thread may do.
        """
        try:
            while self._send() or self._submitted:
                self._collect()
                running = ((task_id, chunk.size) for task_id, (chunk, _) in self._submitted.items())
                self.reporter.update(self._done, len(self.failures), running)
                if self.stop is not None and (self.stop.is_set() or kernel_stops()):
                    raise MapStopped(self._interrupted())
        except MapStopped:
            raise
        except KeyboardInterrupt:
            raise shown_as_line(KeyboardInterrupt(self._interrupted())) from None
        except BaseException:
            try:
                self._cancel()
            finally:
                self._report("failed")
            raise
        self._report("completed")
        if self.failures:
            raise MapFailed(_summary(self.failures, len(self.results)), dict(sorted(self.failures.items())), self.results)
        return self.results

    def _send(self) -> bool:
        """Submit more chunks once half of those ahead have been fetched. Return whether there were any."""
        if self._all_sent or len(self._submitted) > MOST_AHEAD // 2:
            return False
        group: list[Chunk] = []
        size = 0
        while len(self._submitted) + len(group) < MOST_AHEAD and size < MOST_BYTES:
            chunk = next(self.chunks, None)
            if chunk is None:
                self._all_sent = True
                break
            group.append(chunk)
            size += size_of_call(chunk.request)
        if not group:
            return False
        self._sending = group, new_key()
        answers = self._submit(*self._sending)
        self._take(group, answers)
        self._sending = None
        for chunk in group:
            chunk.uploads.release()
        refused = next((answer for answer in answers if isinstance(answer, OpenRuntimeError)), None)
        if refused is not None:
            raise refused
        return True

    def _submit(self, group: list[Chunk], key: str) -> list[Task | OpenRuntimeError]:
        # Not durable: only this process uses the results, and small tasks run three times as fast (`benchmarks/map.py`).
        body = {"tasks": [chunk.request for chunk in group], "durable": False}
        return self.backend.call(SUBMIT_BATCH, body=body, key=key)

    def _take(self, group: list[Chunk], answers: list[Task | OpenRuntimeError]) -> None:
        for chunk, answer in zip(group, answers, strict=True):
            self.on_response(answer)
            if isinstance(answer, Task):
                self._submitted[answer.task_id] = chunk, TaskHandle(self.backend, answer, python_result)

    def _collect(self) -> None:
        """Fetch results of ended tasks in one request: enough to submit more chunks, or all remaining ones."""
        wanted = len(self._submitted) - (0 if self._all_sent else MOST_AHEAD // 2)
        body = {"tasks": list(self._submitted), "at_least": max(1, wanted)}
        for ended in self.backend.call(COLLECT_RESULTS, body=body, wait=self._patience()):
            chunk, handle = self._submitted[ended.task_id]
            handle.take(ended)
            self._store(chunk, handle)
            self._done += chunk.size
            del self._submitted[ended.task_id]

    def _patience(self) -> float:
        """Return the time in seconds to wait for results: until the next report or check of `stop`, if there are any."""
        return min(LONGEST_WAIT, self.reporter.interval or LONGEST_WAIT, LONGEST_WAIT if self.stop is None else STOP_POLL)

    def _report(self, state: MapState) -> None:
        self.reporter.end(state, self._done, len(self.failures))

    def _store(self, chunk: Chunk, handle: TaskHandle) -> None:
        try:
            values, failures = handle.result()
        except TaskError as problem:
            self.failures.update(dict.fromkeys(range(chunk.first, chunk.first + chunk.size), problem))
            return
        self.results[chunk.first : chunk.first + chunk.size] = values
        for index, described in failures.items():
            message = ": ".join(filter(None, (described["type"], described["message"])))
            self.failures[index] = TaskFailed(with_traceback(message, described["traceback"]), handle.last_seen)

    def _interrupted(self) -> str:
        """Cancel the remaining tasks of an interrupted map, unless the kernel stops, and return what became of it."""
        if kernel_stops_soon():
            self._recover()
            self._report("no longer watched")
            return f"{self._done:,} of {len(self.results):,} items were done, and {leave(self.backend.where, *self._submitted)}"
        try:
            self._cancel()
            self._report("cancelled")
        except KeyboardInterrupt:
            self._report("cancelled")
            return "interrupted again while the tasks were being cancelled: tasks() shows their states"
        return f"{self._done:,} of {len(self.results):,} items were done, and the tasks of the others were cancelled"

    def _cancel(self) -> None:
        """Cancel the remaining tasks, last one first, so that freed slots do not start tasks that are about to be cancelled."""
        self._recover()
        for chunk, handle in reversed(self._submitted.values()):
            with contextlib.suppress(OpenRuntimeError):
                if handle.cancel().status is TaskState.COMPLETED:
                    self._done += chunk.size

    def _recover(self) -> None:
        """Complete an interrupted submission, so that its tasks are known."""
        with contextlib.suppress(OpenRuntimeError):
            if self._sending is not None:
                # The same key returns the same tasks, even if the interrupt came before their ids.
                self._take(self._sending[0], self._submit(*self._sending))
                for chunk in self._sending[0]:
                    chunk.uploads.release()


def run_map(
    client: CodeClient,
    function: Callable[[Any], Any],
    items: Sequence[Any],
    chunk_size: int | None,
    progress: bool | None,
    stop: threading.Event | None = None,
) -> list[Any]:
    """Return `function(item)` for each item, in order; see `Client.map`. Raises `MapStopped` once `stop` is set."""
    reporter = MapReporter(client.backend, client.options.name or name_of(function) or "", len(items), progress)
    refuse_deadlock(client.backend, client.options.device, "a new task")
    if chunk_size is not None and (isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1):
        raise InvalidRequest.of("chunk_size", "must be a whole number of items, at least 1, or None")
    if not items:
        return []
    with ArrayUploads(client.backend) as uploads:
        chunks = _chunks(client, function, items, chunk_size, uploads)
        return Mapping(client.backend, chunks, [None] * len(items), reporter, client.follow_session, stop).run()


def _chunks(
    client: CodeClient, function: Callable[[Any], Any], items: Sequence[Any], chunk_size: int | None, shared: ArrayUploads
) -> Iterator[Chunk]:
    """Yield the chunks. The function is pickled once, with its large arrays in `shared`."""
    codes: list[CodeType] = []
    pickled = pack_call(function, (), {}, shared, codes)
    large = [pickled] if isinstance(pickled, dict) else []
    sources = sources_of(codes, client.backend.local)
    template = client.call_request(function, {"burst": uuid.uuid4().hex})
    size = chunk_size or _chunk_size(client, len(items))
    for first in range(0, len(items), size):
        some = items[first : first + size]
        uploads, codes = ArrayUploads(client.backend), []
        parameters = {
            **template["parameters"],
            "pickled": pack_call(apply, (pickled, shared.ids, some, first), {}, uploads, codes),
            "arrays": [*uploads.references(), *shared.references(), *large],
            "sources": sources + sources_of(codes, client.backend.local),
        }
        yield Chunk(first, len(some), {**template, "parameters": parameters}, uploads)


def _chunk_size(client: CodeClient, number: int) -> int:
    """Return the chunk size that gives each slot of its devices a few chunks."""
    devices = client.devices()
    lane = lane_of(client.options.device, devices)
    chosen = [device for device in devices if device.id == client.options.device] or [device for device in devices if device.type == lane]
    slots = sum(device.slots for device in chosen) or 1
    return max(1, -(-number // (CHUNKS_A_SLOT * slots)))


def _summary(failures: dict[int, TaskError], number: int) -> str:
    index = min(failures)
    return f"{len(failures)} of {number} items failed. The first, item {index}: {failures[index]}"
