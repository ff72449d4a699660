"""Fixtures: a shared runtime, and an operation run like in a worker, but in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.registry import operation
from tests.runtimes import jp_asyncio_loop, runtime

__all__ = ["jp_asyncio_loop", "runtime"]

Run = Callable[..., dict[str, Any]]


def inline_value(output: dict[str, Any]) -> Any:
    """Return the inline value of an output or a result as a NumPy array."""

    def number(each: Any) -> Any:
        if isinstance(each, list):
            return [number(inner) for inner in each]
        return complex(each["real"], each["imag"]) if isinstance(each, dict) else each

    return np.array(number(output["value"])).reshape(output["shape"])


@pytest.fixture
def run() -> Run:
    """Validate parameters, run the operation, and check that its output is JSON."""

    def call(name: str, parameters: dict[str, Any] | None = None, context: TaskContext | None = None) -> dict[str, Any]:
        kind = operation(name)
        output = kind.run(kind.validate(parameters or {}), context or TaskContext())
        assert isinstance(output, dict)
        return json.loads(json.dumps(output, allow_nan=False))

    return call
