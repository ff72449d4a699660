"""Many tasks at once: each checked on its own, all recorded in one transaction."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError, TaskConflict, Unavailable
from openruntime_jupyter.models import Task, TaskRequest
from openruntime_jupyter.operations.base import invalid
from openruntime_jupyter.runtime.entry import Entry
from openruntime_jupyter.runtime.history import History
from openruntime_jupyter.runtime.ids import make_ids, neighbour
from openruntime_jupyter.runtime.intake import Intake
from openruntime_jupyter.runtime.recorder import Recorder
from openruntime_jupyter.runtime.slowly import AT_ONCE, MOST_IN_BATCH, slowly
from openruntime_jupyter.runtime.submission import Caller

Answer = Task | OpenRuntimeError
"""A task's record, or why there is none."""
Key = tuple[str, str, str]


class BatchIntake:
    """Takes in many tasks, by what `Intake` does with one."""

    def __init__(self, intake: Intake, history: History, recorder: Recorder) -> None:
        self._intake = intake
        self._history = history
        self._recorder = recorder

    async def submit(self, requests: Sequence[Any], caller: Caller, idempotency_key: str | None = None) -> list[Answer]:
        """Queue a task for each of `requests` (as JSON) and give its record, or what is wrong with it, in their order.

        Every task is asynchronous, and on disk when this returns. Raises `InvalidRequest` for too many or a key that was used for
        others, and `Unavailable` and its kinds where nothing at all can be taken. Under a key that was used for the same requests
        the tasks of then are given again; what was refused then is tried again.
        """
        if len(requests) > MOST_IN_BATCH:
            raise InvalidRequest.of("tasks", f"{len(requests):,} are too many for one batch: send at most {MOST_IN_BATCH:,} at once")
        if idempotency_key is None:
            return await self._take(requests, caller, make_ids("task", len(requests)), {})
        async with self._intake.lock(caller, idempotency_key):
            return await self._once(requests, caller, idempotency_key)

    async def _once(self, requests: Sequence[Any], caller: Caller, name: str) -> list[Answer]:
        same = hashlib.sha256(b"batch" + to_json(requests, inf_nan_mode="constants")).hexdigest()
        owner = caller.owner or ""
        earlier = await self._history.remember_key(owner, name, None)
        if earlier is None:
            return await self._take(requests, caller, make_ids("task", len(requests)), {}, (owner, name, same))
        first, known = earlier
        fingerprint, _, place = known.partition("@")
        if fingerprint != same or not place:
            raise InvalidRequest.of("Idempotency-Key", "this key was used for another request: take a new one for each request")
        ids = [neighbour(first, index - int(place)) for index in range(len(requests))]
        return await self._take(requests, caller, ids, await self._known(ids))

    async def _known(self, ids: list[str]) -> dict[int, Answer]:
        """The tasks that there are already, by their place."""
        found: dict[int, Answer] = {}
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            tasks = enumerate(await asyncio.gather(*map(self._find, some)), start)
            found.update((index, task) for index, task in tasks if task is not None)
        return found

    async def _find(self, task_id: str) -> Task | None:
        entry = self._recorder.find(task_id)
        if entry is not None:
            return entry.record(parameters=False)
        task = await self._history.get(task_id)
        return task and task.model_copy(update={"parameters": None})

    async def _take(
        self, requests: Sequence[Any], caller: Caller, ids: list[str], answers: dict[int, Answer], key: Key | None = None
    ) -> list[Answer]:
        taken: dict[int, Entry] = {}
        async for index, request in slowly(enumerate(requests)):
            if index in answers:
                continue
            try:
                taken[index] = await self._prepare(request, caller, ids[index])
            except Unavailable:
                raise  # whatever it is, it holds for all of them
            except OpenRuntimeError as problem:
                answers[index] = problem
        # Whatever becomes of who asked: what is on disk has its turn.
        taken = await asyncio.shield(self._record(taken, answers, key))
        async for index, entry in slowly(taken.items()):
            answers[index] = entry.record(parameters=False)
        return [answers[index] for index in range(len(requests))]

    async def _prepare(self, request: Any, caller: Caller, task_id: str) -> Entry:
        try:
            wanted = TaskRequest.model_validate(request)
        except ValidationError as problem:
            raise invalid(problem, known=TaskRequest.model_fields) from None
        return await self._intake.prepare(wanted.model_copy(update={"wait": False}), caller, task_id)

    async def _record(self, taken: dict[int, Entry], answers: dict[int, Answer], key: Key | None) -> dict[int, Entry]:
        """Write what there is room for, let it wait for its turn, and give it; what is wrong with the rest is told in `answers`."""
        room: dict[int, Entry] = {}
        try:
            async for index, entry in slowly(taken.items()):
                try:
                    self._intake.expect(entry)
                    room[index] = entry
                except OpenRuntimeError as problem:
                    answers[index] = problem
            refused = await self._write(room, key)
        except BaseException:
            for entry in room.values():
                self._intake.give_up(entry)
            raise
        async for index, entry in slowly(list(room.items())):
            if entry.task_id in refused:
                self._intake.give_up(entry)
                del room[index]
                answers[index] = TaskConflict(f"{entry.task_id} was purged, and is not made again: take a new Idempotency-Key")
            else:
                self._intake.begin(entry)
        return room

    async def _write(self, taken: dict[int, Entry], key: Key | None) -> set[str]:
        """Record all of them in one transaction; the ids of those that were purged."""
        if not taken:
            return set()
        if key is not None:
            # What leads from the first that was taken to the others is kept with it.
            key = (*key[:2], f"{key[2]}@{next(iter(taken))}")
        entries = list(taken.values())
        return await self._recorder.admit_all(entries, [entry.snapshot(live=False) async for entry in slowly(entries)], key)
