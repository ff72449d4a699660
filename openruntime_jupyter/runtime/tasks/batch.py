"""Submission of many tasks in one transaction, and collection of many results in one answer."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic_core import to_json

from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError, TaskConflict, TaskNotFound, Unavailable
from openruntime_jupyter.operations.base import validated
from openruntime_jupyter.runtime.ids import make_ids, neighbour
from openruntime_jupyter.runtime.large import LARGE, in_thread
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.runtime.tasks.entry import Entry, wait_for_some
from openruntime_jupyter.runtime.tasks.registry import OTHERS_POLL, TaskRegistry
from openruntime_jupyter.runtime.tasks.submission import Caller, TaskSubmission
from openruntime_jupyter.schemas.batch import MOST_IN_BATCH
from openruntime_jupyter.schemas.tasks import Ended, Task, TaskRequest

LARGEST_PAYLOAD = 65_536
"""Largest payload, in bytes, within a collected result. Larger ones are streamed separately."""
MOST_PAYLOADS = 4_000_000
"""Bytes of payloads after which an answer ends."""

Answer = Task | OpenRuntimeError
"""A task's record, or the error in its place."""
Key = tuple[str, str, str]


class BatchSubmission:
    """Submission of many tasks, each as by `TaskSubmission`."""

    def __init__(self, submission: TaskSubmission, history: History, registry: TaskRegistry) -> None:
        self._submission = submission
        self._history = history
        self._registry = registry

    async def submit(
        self, requests: Sequence[Any], caller: Caller, idempotency_key: str | None = None, *, durable: bool = True, large: bool = False
    ) -> list[Answer]:
        """Queue a task for each of `requests` (as JSON) and return its record, or the error, in their order.

        All tasks are on disk when this returns. Tasks that are not `durable` end as interrupted if the runtime ends first: their later
        states are written behind, and small tasks run about three times as fast.

        A repeated key returns the same tasks, and tries the rejected ones again. Raises `InvalidRequest` for too many requests or a key of
        other requests, and `Unavailable` and its subclasses if no task can be accepted. Of a `large` batch, large requests are validated
        on a thread.
        """
        if len(requests) > MOST_IN_BATCH:
            raise InvalidRequest.of("tasks", f"{len(requests):,} tasks exceed the maximum of {MOST_IN_BATCH:,} in one batch")
        sizes = await in_thread(_sizes, requests) if large else [0] * len(requests)
        if idempotency_key is None:
            return await self._take(requests, sizes, caller, durable, make_ids("task", len(requests)), {})
        async with self._submission.lock(caller, idempotency_key):
            return await self._once(requests, sizes, caller, durable, idempotency_key)

    async def _once(self, requests: Sequence[Any], sizes: list[int], caller: Caller, durable: bool, name: str) -> list[Answer]:
        kind = b"batch" if durable else b"transient batch"
        same = await in_thread(_fingerprint, kind, requests) if sum(sizes) > LARGE else _fingerprint(kind, requests)
        owner = caller.owner or ""
        earlier = await self._history.remember_key(owner, name, None)
        if earlier is None:
            return await self._take(requests, sizes, caller, durable, make_ids("task", len(requests)), {}, (owner, name, same))
        first, known = earlier
        fingerprint, _, place = known.partition("@")
        if fingerprint != same or not place:
            raise InvalidRequest.of("Idempotency-Key", "this key was used for another request: take a new one for each request")
        ids = [neighbour(first, index - int(place)) for index in range(len(requests))]
        return await self._take(requests, sizes, caller, durable, ids, await self._known(ids))

    async def _known(self, ids: list[str]) -> dict[int, Answer]:
        """Return the tasks that exist already, by index."""
        found: dict[int, Answer] = {}
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            tasks = enumerate(await asyncio.gather(*map(self._find, some)), start)
            found.update((index, task) for index, task in tasks if task is not None)
        return found

    async def _find(self, task_id: str) -> Task | None:
        entry = self._registry.find(task_id)
        if entry is not None:
            return self._registry.view(entry, parameters=False)
        return await self._history.get(task_id, parameters=False)

    async def _take(
        self,
        requests: Sequence[Any],
        sizes: list[int],
        caller: Caller,
        durable: bool,
        ids: list[str],
        answers: dict[int, Answer],
        key: Key | None = None,
    ) -> list[Answer]:
        taken: dict[int, Entry] = {}
        async for index, request in cooperatively(enumerate(requests)):
            if index in answers:
                continue
            try:
                taken[index] = await self._prepare(request, caller, durable, ids[index], sizes[index] > LARGE)
            except Unavailable:
                raise  # the error applies to all of them
            except OpenRuntimeError as problem:
                answers[index] = problem
        # Tasks on disk are queued even if the caller has gone.
        taken = await asyncio.shield(self._record(taken, answers, key))
        async for index, entry in cooperatively(taken.items()):
            answers[index] = self._registry.view(entry, parameters=False)
        return [answers[index] for index in range(len(requests))]

    async def _prepare(self, request: Any, caller: Caller, durable: bool, task_id: str, large: bool) -> Entry:
        wanted = await in_thread(validated, TaskRequest, request) if large else validated(TaskRequest, request)
        wanted.wait = not durable
        return await self._submission.prepare(wanted, caller, task_id, large=large)

    async def _record(self, taken: dict[int, Entry], answers: dict[int, Answer], key: Key | None) -> dict[int, Entry]:
        """Store and queue as many entries as there is room for, and return them; put the errors of the rest into `answers`."""
        room: dict[int, Entry] = {}
        try:
            async for index, entry in cooperatively(taken.items()):
                try:
                    self._submission.reserve(entry)
                    room[index] = entry
                except OpenRuntimeError as problem:
                    answers[index] = problem
            refused = await self._write(room, key)
        except BaseException:
            for entry in room.values():
                self._submission.unreserve(entry)
            raise
        async for index, entry in cooperatively(list(room.items())):
            if entry.task_id in refused:
                self._submission.unreserve(entry)
                del room[index]
                answers[index] = TaskConflict(f"{entry.task_id} was purged, and is not made again: take a new Idempotency-Key")
            else:
                self._submission.enqueue(entry)
        return room

    async def _write(self, taken: dict[int, Entry], key: Key | None) -> set[str]:
        """Record all of them in one transaction; return the ids of those that were purged."""
        if not taken:
            return set()
        if key is not None:
            # The fingerprint also names the index of the first stored task, from which the others follow.
            key = (*key[:2], f"{key[2]}@{next(iter(taken))}")
        entries = list(taken.values())
        return await self._registry.admit_all(entries, [entry.record() async for entry in cooperatively(entries)], key)


class BatchResults:
    """Collection of many tasks' results."""

    def __init__(self, history: History, registry: TaskRegistry) -> None:
        self._history = history
        self._registry = registry

    async def collect(self, task_ids: Sequence[str], at_least: int = 1, wait: float = 0.0) -> list[Ended]:
        """Return the tasks among `task_ids` that have ended, in that order, once `at_least` of them have.

        Returns with fewer after `wait` seconds. Payloads of up to `LARGEST_PAYLOAD` bytes come along, and the answer ends after
        `MOST_PAYLOADS` bytes of them: the rest of the tasks are in the answer to the next call. An unknown task has ended with
        `TaskNotFound`.
        """
        deadline = time.monotonic() + wait
        entries = {task_id: self._registry.find(task_id) for task_id in task_ids}
        needed = min(at_least, len(entries))
        elsewhere: dict[str, Answer] = {}
        while True:
            lost = [task_id for task_id, entry in entries.items() if task_id not in elsewhere and (entry is None or _lost(entry))]
            elsewhere |= await self._look(lost)
            here = {task_id: entry for task_id, entry in entries.items() if entry is not None and not _lost(entry)}
            pending = [entry.done for entry in here.values() if not entry.over]
            missing = needed - len(elsewhere) - (len(here) - len(pending))
            left = deadline - time.monotonic()
            if missing <= 0 or left <= 0:
                ended = elsewhere | {task_id: entry.record(parameters=False) for task_id, entry in here.items() if entry.over}
                return await self._with_payloads({task_id: ended[task_id] for task_id in entries if task_id in ended})
            pause = min(left, OTHERS_POLL) if len(elsewhere) + len(here) < len(entries) else left
            if pending:
                await wait_for_some(pending, missing, pause)
            else:
                await asyncio.sleep(pause)

    async def _look(self, task_ids: list[str]) -> dict[str, Answer]:
        """Return those tasks that have ended, from the history: other runtimes hold or held them."""
        found: dict[str, Answer] = {}
        for start in range(0, len(task_ids), AT_ONCE):
            some = task_ids[start : start + AT_ONCE]
            tasks = await asyncio.gather(*(self._registry.get(task_id, parameters=False) for task_id in some), return_exceptions=True)
            for task_id, task in zip(some, tasks, strict=True):
                if isinstance(task, TaskNotFound) or (isinstance(task, Task) and task.status.terminal):
                    found[task_id] = task
                elif isinstance(task, BaseException):
                    raise task
        return found

    async def _with_payloads(self, tasks: dict[str, Answer]) -> list[Ended]:
        """Add the payloads that are small enough."""
        wanted: list[str] = []
        size = 0
        taken: list[str] = []
        for task_id, task in tasks.items():
            if size >= MOST_PAYLOADS:
                break
            taken.append(task_id)
            described = task.result.payload if isinstance(task, Task) and task.result is not None else None
            if described is not None and described.size <= LARGEST_PAYLOAD:
                wanted.append(task_id)
                size += described.size
        payloads = await self._history.get_payloads(wanted) if wanted else {}
        return [Ended(task_id, tasks[task_id], _in_memory(payloads.get(task_id))) for task_id in taken]


def _sizes(requests: Sequence[Any]) -> list[int]:
    """Return the sizes of requests in bytes of JSON."""
    return [len(to_json(request, inf_nan_mode="constants")) for request in requests]


def _fingerprint(kind: bytes, requests: Sequence[Any]) -> str:
    return hashlib.sha256(kind + to_json(requests, inf_nan_mode="constants")).hexdigest()


def _lost(entry: Entry) -> bool:
    """Return whether another runtime has taken over the task."""
    return entry.done.reached and not entry.over


def _in_memory(payload: tuple[bytes | Path, str] | None) -> tuple[bytes, str] | None:
    """Return the payload unless it is in a file, which the reader fetches separately."""
    if payload is None or isinstance(payload[0], Path):
        return None
    return payload[0], payload[1]


AT_ONCE = 50
"""Tasks handled in one loop iteration, which takes a few milliseconds."""
LONGEST_TURN = 0.01
"""Seconds after which an iteration with larger tasks ends."""

Item = TypeVar("Item")


async def cooperatively(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Yield each of `items`; the loop runs other work in between."""
    begun = time.perf_counter()
    for number, item in enumerate(items, 1):
        yield item
        if number % AT_ONCE == 0 or time.perf_counter() - begun > LONGEST_TURN:
            await asyncio.sleep(0)
            begun = time.perf_counter()
