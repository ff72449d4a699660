"""How arrays grow old, by a clock that nobody sets, and who may say when one is complete."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import numpy as np
import pytest

from openruntime_jupyter.arrays import blocks, conversion
from openruntime_jupyter.arrays.array_file import Layout
from openruntime_jupyter.errors import ArrayConflict, ArrayNotFound, InvalidRequest
from openruntime_jupyter.runtime.arrays import quota, rows
from openruntime_jupyter.schemas.arrays import ArrayInfo
from tests.runtime.test_arrays import MB, SMALL, put, result, store_in
from tests.runtimes import live


class Ages:
    """A clock by which arrays grow old only when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr(rows, "now", lambda: self.seconds)


def test_what_nobody_uses_goes_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ages = Ages(monkeypatch)

    async def body() -> None:
        async with store_in(tmp_path, array_seconds=60.0) as store:
            old, used = await put(store, np.zeros(10)), await put(store, np.zeros(10))
            ages.seconds += 50
            await store.info(used.id)
            ages.seconds += 20
            new = await put(store, np.zeros(10))
            await store.sweep()
            assert {each.id for each in store.page().arrays} == {used.id, new.id}
            assert old.expires_at is not None

    live(body())


@pytest.mark.parametrize("days", [-365, 365])
def test_a_clock_that_is_set_takes_no_array_away_and_keeps_none_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    ages, true = Ages(monkeypatch), time.time

    async def body() -> None:
        async with store_in(tmp_path, array_bytes=2 * MB, array_seconds=60.0) as store:
            fetched = await result(store, "task_a", np.zeros(MB, np.uint8))
            await store.info(fetched)
            half = await store.allocate(Layout((10,), "int8"))
            monkeypatch.setattr(time, "time", lambda: true() + days * 86_400)
            await store.sweep()
            assert {each.id for each in store.page().arrays} == {fetched, half.id}
            ages.seconds += 1
            sent = await put(store, np.zeros(MB, np.uint8))
            assert store.known(fetched) is None, "it made room"
            ages.seconds += 61
            await store.sweep()
            assert not store.page().arrays, (sent.id, half.id)

    live(body())


def test_the_next_server_knows_how_long_nobody_has_used_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ages = Ages(monkeypatch)

    async def body() -> None:
        async with store_in(tmp_path, "rt_1", array_seconds=60.0) as store:
            old, young = await result(store, "task_a", np.ones(10)), await result(store, "task_b", np.ones(10))
            ages.seconds += 50
            await store.adopt("me", [])
            store._records[young].touch()
        async with store_in(tmp_path, "rt_2", array_seconds=60.0) as store:
            ages.seconds += 20
            await store.sweep()
            assert [each.id for each in store.page().arrays] == [young], old

    live(body())


def test_two_who_say_at_once_that_an_array_is_complete_lose_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with store_in(tmp_path) as store:
            told = await store.allocate(SMALL)
            first, second = await asyncio.gather(store.ready(told.id), store.ready(told.id), return_exceptions=True)
            assert isinstance(first, ArrayInfo)
            assert isinstance(second, ArrayConflict)
            assert conversion.view(store.path_of(told.id), told.id).shape == SMALL.shape

    live(body())


@pytest.mark.parametrize("first", ["ready", "remove"])
def test_an_array_that_is_deleted_while_it_is_finished_leaves_nothing(tmp_path: Path, first: str) -> None:
    async def body() -> None:
        async with store_in(tmp_path, warm_bytes=0) as store:
            for _ in range(20):
                told = await store.allocate(SMALL, name="weights")
                works = {"ready": store.ready(told.id), "remove": store.remove(told.id)}
                begun = asyncio.ensure_future(works.pop(first))
                (other,) = works.values()
                outcomes = dict(zip((first, "other"), await asyncio.gather(begun, other, return_exceptions=True), strict=True))
                assert any(isinstance(each, ArrayNotFound) for each in outcomes.values())
                assert store.used_bytes == 0
                assert not [path for place in store._spool.places for path in place.folder.iterdir() if path.is_file()]

    live(body())


def test_room_that_is_just_being_filled_is_not_complete_because_somebody_says_so(tmp_path: Path) -> None:
    async def body() -> None:
        async with store_in(tmp_path) as store:
            making = asyncio.ensure_future(store.place_for("weights", SMALL, "me"))
            await asyncio.sleep(0)
            with pytest.raises(ArrayConflict, match="just being sent"):
                await store.ready("weights")
            await making
            with store.writing("weights"):
                with pytest.raises(ArrayConflict, match="just being sent"):
                    await store.ready("weights")
                assert (await store.ready("weights", sent=True)).state == "ready"

    live(body())


def test_a_slow_writer_has_time_to_say_that_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ages = Ages(monkeypatch)

    async def body() -> None:
        async with store_in(tmp_path) as store:
            told = await store.allocate(SMALL)
            descriptor = os.open(str(told.path), os.O_RDWR)
            assert blocks.lease(descriptor, str(told.path))
            ages.seconds += 10 * quota.WRITER_SECONDS
            await store.sweep()
            os.close(descriptor)
            await store.sweep()
            assert (await store.ready(told.id)).state == "ready"

    live(body())


def test_a_task_gets_no_array_that_is_just_going(tmp_path: Path) -> None:
    async def body() -> None:
        async with store_in(tmp_path) as store:
            told = await put(store, np.zeros(10))
            going = asyncio.ensure_future(store.remove(told.id))
            await asyncio.sleep(0)
            with pytest.raises(InvalidRequest, match="it was deleted"):
                store.lease([told.id], "task_a")
            await going

    live(body())
