"""A task that breaks the interpreter of its worker affects no later task."""

from __future__ import annotations

import os
import pickle
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from openruntime_jupyter.engines.local import MAX_WORKERS
from openruntime_jupyter.runtime.runtime import Runtime
from tests.runtimes import cell, completed, ended, failed, pickled, runtime_in, submit, value


def forget_modules() -> None:
    sys.modules.clear()


def forget_mlx() -> None:
    for name in ("mlx", "mlx.core"):
        sys.modules.pop(name, None)


def close_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def replace_array() -> None:
    mx.array = None  # type: ignore[assignment, misc]


def replace_unpickling() -> None:
    pickle.loads = None  # type: ignore[assignment]


def computed() -> tuple[int, Any]:
    return os.getpid(), (mx.array([1.0, 2.0]) * 2).tolist()


BREAKS = [forget_modules, forget_mlx, close_files, replace_array, replace_unpickling]


@pytest.mark.parametrize("harm", BREAKS, ids=lambda harm: harm.__name__)
async def test_next_call_of_a_burst_runs_in_another_process(runtime: Runtime, harm: Callable[[], None]) -> None:
    before, _ = await value(runtime, await burst(runtime, computed))
    await ended(runtime, await burst(runtime, harm))  # it may complete, or fail because of what it did
    after, numbers = await value(runtime, await burst(runtime, computed))
    assert numbers == [2.0, 4.0]
    assert after != before


async def burst(runtime: Runtime, function: Callable[[], Any]) -> str:
    return await submit(runtime, "call", {**pickled(function), "burst": "one"})


async def test_code_that_breaks_everything_affects_nobody_else(runtime: Runtime) -> None:
    code = "import resource, sys, mlx.core as mx\nmx.array = None\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\nsys.modules.clear()"
    await ended(runtime, await cell(runtime, code))
    for operation in ("python", "call", "compute", "vector_operations"):
        await completed(runtime, await submit(runtime, operation))


async def test_task_moves_on_from_workers_that_can_not_run_it(tmp_path: Path) -> None:
    """A process whose preparation fails declines the task, and so does the next one, up to a limit."""
    sitecustomize = tmp_path / "modules" / "sitecustomize.py"
    sitecustomize.parent.mkdir()
    mark = tmp_path / "starts"
    sitecustomize.write_text(BROKEN_UNTIL.format(mark=str(mark)))
    environment = {"PYTHONPATH": os.pathsep.join([str(sitecustomize.parent), *sys.path])}
    async with runtime_in(tmp_path / "data") as runtime:
        task = await ended(runtime, await submit(runtime, "python", {"world": {"environment": {**environment, "STARTS": "3"}}}))
        assert (task.status, task.attempt) == ("completed", 1), task.failure
        assert mark.read_text() == "xxx"
        failure = await failed(runtime, await submit(runtime, "python", {"world": {"environment": {**environment, "STARTS": "99"}}}))
        assert "can't run tasks" in failure.message
        assert len(mark.read_text()) == 3 + MAX_WORKERS


BROKEN_UNTIL = """
import os, sys
if "openruntime_jupyter.worker" in sys.orig_argv:
    with open({mark!r}, "a+") as mark:
        mark.write("x")
        mark.seek(0)
        broken = len(mark.read()) < int(os.environ["STARTS"])
    if broken:
        os.getcwd = None
"""
