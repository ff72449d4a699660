"""Execution of a chunk of `map` in a worker."""

from __future__ import annotations

import base64
import pickle
from typing import Any

import pytest

from openruntime_jupyter.current_task import set_current
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.worker import chunk as mapping


def progress_of(items: list[int], interval: float, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the progress messages of a chunk of these items."""
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr(mapping, "PROGRESS_INTERVAL", interval)
    context = TaskContext("task_1", send=lambda kind, body: messages.append(body))
    function = base64.b64encode(pickle.dumps((abs, (), {}))).decode()
    set_current(context)
    try:
        packed = mapping.apply(function, [], items, 10)
    finally:
        set_current(None)
    context.flush_progress()
    assert packed.payload is not None
    assert pickle.loads(packed.payload) == ([abs(item) for item in items], {})
    return messages


def test_progress_is_reported_after_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = progress_of([-1, -2, -3], 0.0, monkeypatch)
    assert (messages[-1]["n"], messages[-1]["total"]) == (3, 3)


def test_quick_items_report_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress_of([-1, -2, -3], 3600.0, monkeypatch) == []
