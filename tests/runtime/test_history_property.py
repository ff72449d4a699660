"""Property test: with random operations and full disks, acknowledged states stay and the newest states reach the disk."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage import store
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.runtime.tasks.entry import TRANSITIONS
from openruntime_jupyter.schemas.tasks import Task, TaskState
from tests.runtime.history_support import fill_disk, make_task, moved, states
from tests.runtimes import until

TASKS = 4
STEPS = st.one_of(
    st.tuples(st.just("move"), st.integers(0, TASKS - 1), st.sampled_from(list(TaskState)), st.sampled_from(["commit", "behind"])),
    st.tuples(st.just("pause"), st.sampled_from([0.0, 0.003])),
    st.tuples(st.sampled_from(["fill", "empty", "list"])),
)


class Story:
    """State machine of tasks, with the states that the history has acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history = History(Settings(data_dir=folder), "rt_1")
        # Large enough that a full disk rejects the first record of each task.
        self.tasks: list[Task] = [make_task(parameters={"filler": "x" * 9_000}) for _ in range(TASKS)]
        self.begun: set[int] = set()
        self.acknowledged: dict[str, list[TaskState]] = {}

    async def move(self, index: int, state: TaskState, how: str) -> None:
        before = self.tasks[index]
        if index in self.begun and state not in TRANSITIONS[before.status]:
            return
        self.begun.add(index)
        task = self.tasks[index] = moved(before, state if before.status is not state else before.status)
        if how == "behind":
            self.history.write_behind(task.task_id, lambda: self.tasks[index])
            return
        try:
            await self.history.commit(task)
        except StorageUnavailable:
            # A runtime does this for changes that have already happened.
            self.history.write_behind(task.task_id, lambda: self.tasks[index])
        else:
            found = states(self.folder)
            assert found[task.task_id] == str(state)

    async def run(self, steps: list[tuple]) -> None:  # type: ignore[type-arg]
        self.history.open()
        try:
            for kind, *arguments in steps:
                if kind == "move":
                    await self.move(*arguments)
                elif kind == "pause":
                    await asyncio.sleep(*arguments)
                elif kind == "list":
                    written = states(self.folder)
                    tasks, total, _ = await self.history.page(TASKS)
                    assert total == len(tasks)
                    assert {task.task_id for task in tasks} >= set(written)
                else:
                    fill_disk(self.history, kind == "fill")
            fill_disk(self.history, False)
            wanted = {self.tasks[index].task_id: str(self.tasks[index].status) for index in self.begun}
            await until(lambda: states(self.folder) == wanted, 5.0, f"{wanted} on disk, which has {states(self.folder)}")
            await until(lambda: self.history.problem is None, 5.0, "the problem's end")
        finally:
            await self.history.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=25))
def test_newest_states_reach_disk_and_acknowledged_ones_stay(
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple],  # type: ignore[type-arg]
) -> None:
    monkeypatch.setattr(store, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(store, "DELAY_SECONDS", 0.002)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(Story(Path(folder)).run(steps))
