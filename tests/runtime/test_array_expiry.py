"""Expiry of arrays by the monotonic clock, and completion of arrays."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from openruntime_jupyter.arrays import conversion
from openruntime_jupyter.arrays.array_file import Layout
from openruntime_jupyter.errors import ArrayConflict, ArrayNotFound, InvalidRequest
from openruntime_jupyter.runtime.arrays.store import ArrayRecord, ArrayStore
from openruntime_jupyter.schemas.arrays import ArrayInfo
from tests.runtime.array_support import MB, SMALL, put, result, store_in


class Ages:
    """Manual clock for the age of arrays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr(sys.modules[ArrayRecord.__module__], "now", lambda: self.seconds)


async def test_unused_array_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ages = Ages(monkeypatch)

    async with store_in(tmp_path, array_seconds=60.0) as store:
        old, used = await put(store, np.zeros(10)), await put(store, np.zeros(10))
        ages.seconds += 50
        await store.info(used.id)
        ages.seconds += 20
        new = await put(store, np.zeros(10))
        await store.sweep()
        assert {each.id for each in store.page().arrays} == {used.id, new.id}
        assert old.expires_at is not None


@pytest.mark.parametrize("days", [-365, 365])
async def test_changed_wall_clock_does_not_affect_expiry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    ages, true = Ages(monkeypatch), time.time

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


async def test_idle_time_survives_server_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ages = Ages(monkeypatch)

    async with store_in(tmp_path, "rt_1", array_seconds=60.0) as store:
        old, young = await result(store, "task_a", np.ones(10)), await result(store, "task_b", np.ones(10))
        ages.seconds += 50
        await store.adopt("me", [])
        store._records[young].touch()
    async with store_in(tmp_path, "rt_2", array_seconds=60.0) as store:
        ages.seconds += 20
        await store.sweep()
        assert [each.id for each in store.page().arrays] == [young], old


async def test_concurrent_ready_calls_keep_the_array(store: ArrayStore) -> None:
    info = await store.allocate(SMALL)
    first, second = await asyncio.gather(store.ready(info.id), store.ready(info.id), return_exceptions=True)
    assert isinstance(first, ArrayInfo)
    assert isinstance(second, ArrayConflict)
    assert conversion.view(store.path_of(info.id), info.id).shape == SMALL.shape


@pytest.mark.parametrize("first", ["ready", "remove"])
async def test_array_deleted_during_finish_leaves_no_file(tmp_path: Path, first: str) -> None:
    async with store_in(tmp_path, warm_bytes=0) as store:
        for _ in range(20):
            info = await store.allocate(SMALL, name="weights")
            works = {"ready": store.ready(info.id), "remove": store.remove(info.id)}
            begun = asyncio.ensure_future(works.pop(first))
            (other,) = works.values()
            outcomes = dict(zip((first, "other"), await asyncio.gather(begun, other, return_exceptions=True), strict=True))
            assert any(isinstance(each, ArrayNotFound) for each in outcomes.values())
            assert store.used_bytes == 0
            assert not [path for place in store._spool.places for path in place.folder.iterdir() if path.is_file()]


async def test_name_of_array_being_uploaded_is_reserved_and_cannot_be_marked_ready(store: ArrayStore) -> None:
    making = asyncio.ensure_future(store.place_for("weights", SMALL, "me"))
    await asyncio.sleep(0)
    with pytest.raises(ArrayConflict, match="being sent"):
        await store.ready("weights")
    with pytest.raises(ArrayConflict):
        await store.place_for("weights", Layout((1,), "int8"), "me")
    await making
    with store.writing("weights"):
        with pytest.raises(ArrayConflict, match="being sent"):
            await store.ready("weights")
        assert (await store.ready("weights", sent=True)).state == "ready"


async def test_task_cannot_lease_array_being_deleted(store: ArrayStore) -> None:
    info = await put(store, np.zeros(10))
    going = asyncio.ensure_future(store.remove(info.id))
    await asyncio.sleep(0)
    with pytest.raises(InvalidRequest, match="it was deleted"):
        store.lease([info.id], "task_a")
    await going
