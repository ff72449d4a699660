"""Fixtures: a shared runtime, and an operation run like in a worker, but in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.registry import operation
from tests.runtimes import jp_asyncio_loop, runtime

__all__ = ["jp_asyncio_loop", "runtime"]

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run() -> Run:
    """Validate parameters, run the operation, and check that its output is JSON."""

    def call(name: str, parameters: dict[str, Any] | None = None, context: TaskContext | None = None) -> dict[str, Any]:
        kind = operation(name)
        output = kind.run(kind.validate(parameters or {}), context or TaskContext())
        assert isinstance(output, dict)
        return json.loads(json.dumps(output, allow_nan=False))

    return call
