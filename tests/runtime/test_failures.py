from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from openruntime_jupyter.errors import InvalidRequest, MemoryRefused, NotAllowed, Unavailable, UnknownOperation
from openruntime_jupyter.operations.registry import operation
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.schemas.tasks import TaskRequest
from tests.runtimes import cell, completed, ended, failed, pickled, printed, python_that, runtime_in, says, submit, value, waits_for
from tests.support import slowness

# The pid comes last: who kills on hearing it kills after the last words.
LAST_WORDS = "import os, time\nos.write(2, b'these are my last words\\n')\nprint('worker', os.getpid(), flush=True)\ntime.sleep(600)"


async def worker_pid(runtime: Runtime, task_id: str) -> int:
    await says(runtime, task_id, "worker")
    return int((await printed(runtime, task_id)).split()[1])


@pytest.mark.every_engine
async def test_raised_error_has_type_message_and_lines_of_the_cell(runtime: Runtime) -> None:
    code = "def halve(n):\n    return 1 / n\n\nhalve(0)"
    task = await ended(runtime, await submit(runtime, "python", {"code": code, "filename": "<cell 7>"}, retries=3))
    assert (task.status, task.attempt) == ("failed", 1), "an error that the task raised is never retried"
    assert task.failure is not None
    assert (task.failure.kind, task.failure.type) == ("raised", "ZeroDivisionError")
    assert task.error == task.failure.message == "ZeroDivisionError: division by zero"
    lines = (task.failure.traceback or "").splitlines()
    assert [line.strip() for line in lines if "cell 7" in line] == [
        'File "<cell 7>", line 4, in <module>',
        'File "<cell 7>", line 2, in halve',
    ]
    assert "openruntime_jupyter" not in (task.failure.traceback or "")


async def test_values_that_a_worker_rejects_have_a_message_without_frames(runtime: Runtime) -> None:
    task = await ended(runtime, await submit(runtime, "mlx_operation", {"function": "matmul", "args": [1, 2]}))
    assert task.failure is not None
    assert task.failure.message.startswith("InvalidRequest: parameters: matmul(int32[], int32[]): ")
    assert task.failure.traceback == f"openruntime_jupyter.errors.{task.failure.message}\n"


@pytest.mark.every_engine
async def test_killed_worker_fails_its_task_with_signal_memory_and_output(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, cpu_slots=2) as runtime:
        victim, neighbour = await cell(runtime, LAST_WORDS), await cell(runtime, LAST_WORDS)
        os.kill(await worker_pid(runtime, victim), signal.SIGKILL)
        failure = await failed(runtime, victim)
        assert (failure.kind, failure.signal) == ("worker_died", 9)
        assert "signal 9" in failure.message
        assert "likely out of memory" in failure.message
        assert 10e6 < (failure.peak_memory or 0) < 2e9
        assert "these are my last words" in (failure.last_output or "")
        assert (await runtime.tasks.get(neighbour)).status == "running"
        await runtime.cancel(neighbour)
        await completed(runtime, await submit(runtime, "call"))


@pytest.mark.every_engine
async def test_task_with_retries_runs_again_after_worker_death(tmp_path: Path, runtime: Runtime) -> None:
    mark = tmp_path / "mark"
    code = f"import os, pathlib\nmark = pathlib.Path({str(mark)!r})\nif not mark.exists():\n    mark.touch()\n    os.kill(os.getpid(), 9)\n"
    code += "print('second try')"
    task_id = await cell(runtime, code, retries=1)
    task = await ended(runtime, task_id)
    assert (task.status, task.attempt) == ("completed", 2)
    assert (await printed(runtime, task_id, "stderr")).startswith("[attempt 1 of 2: ")
    assert "second try" in await printed(runtime, task_id)


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.every_engine
async def test_exit_and_interrupt_raised_by_a_task_fail_it_and_keep_its_worker(runtime: Runtime) -> None:
    first = await value(runtime, await submit(runtime, "call", {**pickled(os.getpid), "burst": "one"}))
    for raises, error in ((sys.exit, "SystemExit"), (_interrupt, "KeyboardInterrupt")):
        assert (await failed(runtime, await submit(runtime, "call", {**pickled(raises), "burst": "one"}))).type == error
    assert await value(runtime, await submit(runtime, "call", {**pickled(os.getpid), "burst": "one"})) == first


async def test_timeout_counts_from_the_start(runtime: Runtime) -> None:
    timeout = slowness()
    holder = await cell(runtime, f"import time; time.sleep({2 * timeout})")
    waits_longer_than_that = await submit(runtime, "call", timeout=timeout)
    loops = await cell(runtime, "print('in', flush=True)\nwhile True: pass", timeout=timeout)
    await completed(runtime, holder)
    await completed(runtime, waits_longer_than_that)
    task = await ended(runtime, loops)
    assert (task.status, task.cancel_stage) == ("timed_out", "interrupt")
    assert f"{timeout:g} s" in (task.error or "")
    assert (task.execution_time or 0) >= timeout


async def test_task_larger_than_memory_is_rejected_with_sizes(runtime: Runtime) -> None:
    await ended(runtime, await submit(runtime, "call"))
    total = runtime.devices()[0].memory_total
    with pytest.raises(MemoryRefused) as refused:
        await submit(runtime, "memory_bandwidth", {"size_mb": total // 1_000_000})
    assert refused.value.available == total
    assert refused.value.needed > total
    assert str(refused.value).count(" GB") == 2


@pytest.mark.every_engine
async def test_task_over_memory_limit_is_stopped_alone(tmp_path: Path) -> None:
    grows = "import time\nhoard = []\nwhile True:\n    hoard.append(bytearray(20_000_000))\n    time.sleep(0.01)"

    async with runtime_in(tmp_path, cpu_slots=2) as runtime:
        neighbour = await cell(runtime, LAST_WORDS)
        task = await ended(runtime, await cell(runtime, grows, memory_limit=400_000_000, retries=2))
        assert (task.status, task.attempt) == ("failed", 1), "no retry of a task that is too large"
        assert task.failure is not None
        assert task.failure.kind == "memory"
        assert 400e6 < (task.failure.peak_memory or 0) < 3e9
        assert "400 MB" in task.failure.message
        assert (await runtime.tasks.get(neighbour)).status == "running"
        await runtime.cancel(neighbour)


async def test_too_large_graph_fails_before_allocation(runtime: Runtime) -> None:
    parameters = {"expression": "sum(outer(a, a))", "inputs": {"a": {"ones": [200_000]}}}
    message = (await failed(runtime, await submit(runtime, "compute", parameters))).message
    assert "memory" in message
    assert message.count(" GB") == 2, message


async def test_smaller_tasks_pass_task_that_waits_for_memory(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, cpu_slots=2, memory_wait=600.0) as runtime:
        holder = await cell(runtime, LAST_WORDS)
        await says(runtime, holder, "worker")
        # Hold nearly all free memory by an estimate, without using it.
        runtime.lanes.devices["device_0"].running[holder].needs = runtime.devices()[0].memory_available - 50_000_000
        waits = await submit(runtime, "memory_bandwidth", {"size_mb": 100})
        await completed(runtime, await submit(runtime, "call"))
        await waits_for(runtime, waits, "memory")
        assert (await runtime.tasks.get(waits)).status == "pending"
        await runtime.cancel(holder)
        await completed(runtime, waits)


async def test_task_that_never_fits_idle_lane_fails_with_sizes(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, memory_wait=0.2) as runtime:
        await ended(runtime, await submit(runtime, "call"))
        # Nearly the machine's whole memory: less than all, and more than is free.
        total, free = runtime.devices()[0].memory_total, runtime.devices()[0].memory_available
        kind = operation("memory_bandwidth")
        a_thousand = kind.memory(kind.validate({"size_mb": 1000}))
        assert a_thousand is not None
        size = (free + (total - free) // 2) * 1000 // a_thousand
        failure = await failed(runtime, await submit(runtime, "memory_bandwidth", {"size_mb": size}))
        assert failure.kind == "memory"
        assert failure.message.count("GB") == 2


async def test_invalid_request_names_field(runtime: Runtime) -> None:
    with pytest.raises(UnknownOperation, match="matrix_multiply"):
        await submit(runtime, "nope")
    with pytest.raises(InvalidRequest) as wrong:
        await submit(runtime, "python", {"code": 7, "colour": "red"})
    assert {detail["field"] for detail in wrong.value.details} == {"parameters.code", "parameters.colour"}
    with pytest.raises(InvalidRequest, match="not a valid name"):
        await submit(runtime, "python", {"outputs": ["not a name"]})
    with pytest.raises(InvalidRequest, match="base64"):
        await submit(runtime, "call", {"pickled": "?"})
    with pytest.raises(InvalidRequest, match="burst"):
        await submit(runtime, "call", {"burst": "x" * 101})
    for name, given in (("interpreter", "/a\0b"), ("directory", "\0"), ("path", ["/a", "\0"])):
        with pytest.raises(InvalidRequest, match=f"world.{name}.*NUL"):
            await submit(runtime, "python", {"world": {name: given}})
    with pytest.raises(InvalidRequest, match="absolute"):
        await submit(runtime, "python", {"world": {"interpreter": "python3"}})


async def test_untrusted_caller_may_only_compute_for_a_limited_time(runtime: Runtime) -> None:
    stranger = Caller(None, may_execute=False, trusted=False)
    with pytest.raises(NotAllowed, match="token"):
        await runtime.submit(TaskRequest(operation="python", parameters={"code": "1"}), stranger)
    task = await runtime.submit(TaskRequest(operation="matrix_multiply", parameters={"size": 64}, timeout=9999), stranger)
    assert task.timeout == runtime.settings.untrusted_timeout
    with pytest.raises(InvalidRequest, match="login"):
        await runtime.submit(TaskRequest(operation="matrix_multiply", parameters={"size": 8192, "iterations": 10_000}), stranger)


async def test_missing_backend_is_reported_with_command(tmp_path: Path) -> None:
    # An environment whose mlx is broken, as on Linux without a backend: its `mlx` can't be imported.
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')\n")
    interpreter = python_that(tmp_path, f"PYTHONPATH={tmp_path}:{Path(__file__).parents[2]}")
    async with runtime_in(tmp_path / "data", interpreter=interpreter) as runtime:
        with pytest.raises(Unavailable, match=r"pip install 'openruntime-jupyter\[cpu\]'"):
            await submit(runtime, "matrix_multiply")
        assert (runtime.health().status, runtime.devices()) == ("degraded", [])
        assert "libmlx.so" in runtime.health().problems[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can reset the peak that the kernel reports")
async def test_peak_memory_is_that_of_the_task_and_not_of_its_worker(runtime: Runtime) -> None:
    hoard = "import subprocess, sys\nhoard = bytearray(700_000_000)\nhoard[::4096] = bytes(len(hoard[::4096]))\n"
    hoard += "subprocess.run([sys.executable, '-c', ''])\ndel hoard"  # the kernel counts the child's copy of these pages too
    await completed(runtime, await cell(runtime, hoard, session="one"))
    failure = await failed(runtime, await cell(runtime, "import os; os.abort()", session="one"))
    assert failure.signal == signal.SIGABRT
    assert (failure.peak_memory or 0) < 400e6
    assert "MB" not in failure.message or failure.peak_memory
