from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from openruntime_jupyter.errors import InvalidRequest, MemoryRefused, NotAllowed, UnknownOperation
from openruntime_jupyter.operations.registry import operation
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.schemas.tasks import TaskRequest
from tests.runtimes import ME, cell, completed, ended, failed, pickled, printed, runtime_in, says, submit, until
from tests.support import slowness

# The pid comes last: who kills on hearing it kills after the last words.
LAST_WORDS = "import os, time\nos.write(2, b'these are my last words\\n')\nprint('worker', os.getpid(), flush=True)\ntime.sleep(600)"


async def worker_pid(runtime: Runtime, task_id: str) -> int:
    await says(runtime, task_id, "worker")
    return int((await printed(runtime, task_id)).split()[1])


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


async def test_task_with_retries_runs_again_after_worker_death(tmp_path: Path, runtime: Runtime) -> None:
    mark = tmp_path / "mark"
    code = f"import os, pathlib\nmark = pathlib.Path({str(mark)!r})\nif not mark.exists():\n    mark.touch()\n    os.kill(os.getpid(), 9)\n"
    code += "print('second try')"
    task_id = await cell(runtime, code, retries=1)
    task = await ended(runtime, task_id)
    assert (task.status, task.attempt) == ("completed", 2)
    assert (await printed(runtime, task_id, "stderr")).startswith("[attempt 1 of 2: ")
    assert "second try" in await printed(runtime, task_id)


async def test_exit_code_of_worker_is_reported(runtime: Runtime) -> None:
    failure = await failed(runtime, await cell(runtime, "import os; os._exit(3)"))
    assert (failure.kind, failure.exit_code, failure.signal) == ("worker_died", 3, None)


async def test_sys_exit_fails_task_and_keeps_worker(runtime: Runtime) -> None:
    first = await submit(runtime, "call", {**pickled(os.getpid), "burst": "one"})
    task = await ended(runtime, await submit(runtime, "call", {**pickled(sys.exit, 3), "burst": "one"}))
    assert task.failure is not None
    assert (task.failure.type, task.status) == ("SystemExit", "failed")
    second = await submit(runtime, "call", {**pickled(os.getpid), "burst": "one"})
    outputs = [(await ended(runtime, task_id)).result for task_id in (first, second)]
    assert outputs[0] is not None
    assert outputs[1] is not None
    assert outputs[0].output["value"] == outputs[1].output["value"]


async def test_timeout_counts_from_the_start(runtime: Runtime) -> None:
    timeout = 1.5 * slowness()
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
    size = 200_000
    parameters = {"expression": "sum(outer(a, a))", "inputs": {"a": {"ones": [size]}}}
    task = await ended(runtime, await submit(runtime, "compute", parameters))
    assert task.status == "failed"
    assert "memory" in (task.error or "")
    assert (task.error or "").count(" GB") == 2, task.error


async def test_smaller_tasks_pass_task_that_waits_for_memory(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, cpu_slots=2, memory_wait=600.0) as runtime:
        holder = await cell(runtime, LAST_WORDS)
        await says(runtime, holder, "worker")
        # Hold nearly all free memory by an estimate, without using it.
        runtime.lanes["device_0"].running[holder].needs = runtime.devices()[0].memory_available - 50_000_000
        waits = await submit(runtime, "memory_bandwidth", {"size_mb": 100})
        passes = await submit(runtime, "call")
        await completed(runtime, passes)

        async def told() -> bool:
            return "memory" in ((await runtime.tasks.get(waits)).waiting_for or "")

        await until(told, what="memory in waiting_for")
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
    for name, value in (("interpreter", "/a\0b"), ("directory", "\0"), ("path", ["/a", "\0"])):
        with pytest.raises(InvalidRequest, match=f"world.{name}.*NUL"):
            await submit(runtime, "python", {"world": {name: value}})
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
    from openruntime_jupyter.engines.local import LocalEngine, LocalOptions
    from openruntime_jupyter.errors import Unavailable
    from openruntime_jupyter.runtime.runtime import Runtime
    from openruntime_jupyter.runtime.settings import Settings

    # An environment whose mlx is broken, as on Linux without a backend: its `mlx` can't be imported.
    broken = tmp_path / "broken"
    (broken / "mlx").mkdir(parents=True)
    (broken / "mlx" / "__init__.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')\n")
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH={broken}:{Path(__file__).parents[2]} exec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)

    settings = Settings(data_dir=tmp_path / "data")
    options = LocalOptions(payloads=settings.payloads, temporary=settings.temporary, interpreter=str(interpreter))
    runtime = Runtime(settings, LocalEngine(options))
    await runtime.start()
    try:
        with pytest.raises(Unavailable, match=r"pip install 'openruntime-jupyter\[cpu\]'"):
            await runtime.submit(TaskRequest(operation="matrix_multiply", parameters={}), ME)
        assert (runtime.health().status, runtime.devices()) == ("degraded", [])
        assert "libmlx.so" in runtime.health().problems[0]
    finally:
        await runtime.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems report the peak of the whole process")
async def test_peak_memory_is_that_of_the_task_and_not_of_its_worker(runtime: Runtime) -> None:
    hoard = "import subprocess, sys\nhoard = bytearray(700_000_000)\nhoard[::4096] = bytes(len(hoard[::4096]))\n"
    hoard += "subprocess.run([sys.executable, '-c', ''])\ndel hoard"  # the kernel counts the child's copy of these pages too
    await completed(runtime, await cell(runtime, hoard, session="one"))
    failure = await failed(runtime, await cell(runtime, "import os; os.abort()", session="one"))
    assert failure.signal == signal.SIGABRT
    assert (failure.peak_memory or 0) < 400e6
    assert "MB" not in failure.message or failure.peak_memory
