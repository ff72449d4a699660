"""Ids, and the times that tasks tell."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest

from openruntime_jupyter.runtime.ids import make_id, make_ids, neighbour
from openruntime_jupyter.runtime.storage.rows import micros
from openruntime_jupyter.schemas.base import epoch, timestamp


def test_ids_sort_by_creation() -> None:
    made = [make_id("task") for _ in range(2000)] + make_ids("task", 50) + [make_id("task")]
    assert sorted(made) == made
    assert len(set(made)) == len(made)
    assert {len(each) for each in made} == {25}


def test_ids_increase_when_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made, true = [make_id("task")], time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true() - 365 * 86_400 * 10**9)
    made += [make_id("task"), *make_ids("task", 3), make_id("task")]
    assert sorted(set(made)) == made


def test_neighbour_computes_ids_of_one_run() -> None:
    made = make_ids("task", 1000)
    assert [neighbour(made[500], step - 500) for step in range(1000)] == made


def test_timestamps_have_microseconds() -> None:
    for seconds in (0.0, 0.9999995, 59.000001, 1_700_000_000.999999, 1_732_320_828.123457, 4_102_444_799.5):
        told = timestamp(seconds)
        assert abs(epoch(told) - seconds) <= 1e-6  # type: ignore[operator]
        assert micros(told) == round(seconds * 1e6)
    assert timestamp(1_732_320_828.1) == datetime(2024, 11, 23, 0, 13, 48, 100_000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
