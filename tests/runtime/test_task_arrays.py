"""Arrays as inputs and results of tasks on real workers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from openruntime_jupyter.arrays import conversion, pickling
from openruntime_jupyter.errors import ArrayNotFound, InvalidRequest, MemoryRefused, NotAllowed
from openruntime_jupyter.runtime.arrays import spool
from openruntime_jupyter.runtime.arrays import store as array_store
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.schemas.tasks import TaskRequest
from tests.runtime.array_support import put
from tests.runtimes import ME, busy, cell, completed, ended, runtime_in, says, submit, until

LARGE = 300_000
"""Number of elements that is too large for a pickle with any type of at least four bytes."""


def files(runtime: Runtime) -> list[str]:
    """Return the names of all array files."""
    return sorted(path.name for place in runtime.arrays._spool.places for path in place.folder.iterdir() if path.is_file())


@pytest.fixture
def runtime(runtime: Runtime, jp_asyncio_loop: asyncio.AbstractEventLoop) -> Iterator[Runtime]:
    """The shared runtime, without arrays of other tests."""
    yield runtime

    async def clean() -> None:
        for each in runtime.arrays.page().arrays:
            with contextlib.suppress(ArrayNotFound):  # its file is gone
                await runtime.arrays.remove(each.id)
        runtime.arrays.release_memory(1)
        await until(lambda: not files(runtime), what="the end of the arrays")

    jp_asyncio_loop.run_until_complete(clean())


async def value(runtime: Runtime, task_id: str) -> Any:
    """Return the result of a task as a local client reads it."""
    task = await completed(runtime, task_id)
    assert task.result is not None
    data, encoding = await runtime.tasks.payload(task_id)
    assert encoding == (pickling.OUTSIDE if task.result.arrays else pickling.PLAIN)
    views = [conversion.view(str((await runtime.arrays.info(each.id)).path), each.id) for each in task.result.arrays]
    return pickling.unpack(data if isinstance(data, bytes) else data.read_bytes(), views)


async def call(runtime: Runtime, function: Any, *args: Any, **fields: Any) -> str:
    """Submit a call with its large arguments as arrays, and return its id."""
    sent: list[Any] = []
    data = pickling.pack((function, args, {}), lambda array, layout: sent.append(array))
    ids = [(await put(runtime.arrays, np.asarray(conversion.as_numpy(each)))).id for each in sent]
    parameters = {"pickled": base64.b64encode(data).decode(), "arrays": [{"array": each} for each in ids]}
    return await submit(runtime, "call", parameters, **fields)


@pytest.mark.parametrize("memory", ["small", "read-only"])
async def test_arrays_travel_without_a_usable_memory_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_tmpfs: Path, memory: str
) -> None:
    monkeypatch.setattr(spool, "MEMORY", small_tmpfs)
    if memory == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", small_tmpfs], check=True)
    async with runtime_in(tmp_path / "data") as runtime:
        sent = np.arange(2_500_000, dtype=np.float64)  # 20 MB
        found = await value(runtime, await call(runtime, lambda large: [large * 2, large[:100_000].copy()], sent))
        assert (found[0] == sent * 2).all()
        assert (found[1] == sent[:100_000]).all()
        assert runtime.arrays.problem is None


async def test_cell_gets_input_arrays_with_their_types(runtime: Runtime) -> None:
    a = await put(runtime.arrays, np.ones((2, 2)))
    m = await put(runtime.arrays, mx.array([1, 2]))
    code = "a[0] = 5\nx = (type(a).__module__, type(m).__module__, a.sum(), m.sum().item(), plain)"
    inputs = {"a": {"array": a.id}, "m": {"array": m.id}, "plain": {"array": 3, "other": 1}}
    found = await value(runtime, await submit(runtime, "python", {"code": code, "inputs": inputs, "outputs": ["x"]}))
    assert found["x"] == ("numpy", "mlx.core", 12.0, 3, {"array": 3, "other": 1})
    assert conversion.view(str(a.path), a.id).sum() == 4, "the cell changed a copy"


async def test_nested_arrays_travel_outside_the_pickle(runtime: Runtime) -> None:
    def work(first: Any, nested: Any) -> Any:
        import mlx.core as mx

        return {
            "double": first * 2,
            "same": [first, first],
            "nested": nested["x"][::-1],
            "mlx": mx.arange(300_000).astype(mx.bfloat16),
        }

    first = np.arange(LARGE, dtype=np.float32)
    nested = {"x": np.arange(LARGE, dtype=">i4").reshape(2, -1).T}
    task_id = await call(runtime, work, first, nested)
    found = await value(runtime, task_id)
    assert (found["double"] == first * 2).all()
    assert found["same"][0] is found["same"][1]
    assert (found["nested"] == nested["x"][::-1]).all()
    assert mx.array_equal(found["mlx"], mx.arange(LARGE).astype(mx.bfloat16))
    task = await runtime.tasks.get(task_id)
    assert task.result is not None
    assert task.result.payload is not None
    assert task.result.payload.size < 10_000
    assert [(each.dtype, each.kind, each.shape) for each in task.result.arrays] == [
        ("float32", "numpy", [LARGE]),
        ("float32", "numpy", [LARGE]),
        ("uint8", "buffer", [4 * LARGE]),
        ("bfloat16", "mlx", [LARGE]),
    ]


async def test_task_leases_its_arrays_until_its_end(runtime: Runtime) -> None:
    blocker = await busy(runtime)
    info = await put(runtime.arrays, np.ones(10))
    task_id = await submit(runtime, "python", {"code": "x = a.sum()", "inputs": {"a": {"array": info.id}}, "outputs": ["x"]})
    assert (await runtime.arrays.info(info.id)).leases == 1
    await runtime.arrays.remove(info.id)
    with pytest.raises(InvalidRequest, match=f"unknown array {info.id}"):
        await submit(runtime, "compute", {"expression": "x", "inputs": {"x": {"array": info.id}}})
    await runtime.cancel(blocker)
    assert (await value(runtime, task_id))["x"] == 10
    await until(lambda: not files(runtime), what="deletion of the input")


async def test_lease_and_files_end_with_the_task(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_store, "RETRY_KEPT_SECONDS", 0.0)
    codes = {
        "cancelled": "import time\nprint('here', flush=True)\ntime.sleep(60)",
        "failed": "print('here', flush=True)\nraise ValueError",
        "killed": "import os, time\nprint('here', flush=True)\ntime.sleep(0.2)\nos.kill(os.getpid(), 9)",
    }

    async def swept() -> bool:
        await runtime.arrays.sweep()
        return not files(runtime)

    for end, code in codes.items():
        info = await put(runtime.arrays, np.ones(10))
        task_id = await submit(runtime, "python", {"code": code, "inputs": {"a": {"array": info.id}}})
        await says(runtime, task_id, "here")
        if end == "cancelled":
            await runtime.cancel(task_id)
        assert (await ended(runtime, task_id)).status == ("cancelled" if end == "cancelled" else "failed")
        assert (await runtime.arrays.info(info.id)).leases == 0
        await runtime.arrays.remove(info.id)
        await until(swept, what="deletion of the input, which the worker releases after its result")


async def test_memory_shortage_frees_the_kept_inputs_of_a_failed_task(runtime: Runtime) -> None:
    info = await put(runtime.arrays, np.ones(10))
    task_id = await submit(runtime, "python", {"code": "raise ValueError", "inputs": {"a": {"array": info.id}}})
    await runtime.arrays.remove(info.id)
    assert (await ended(runtime, task_id)).status == "failed"
    await runtime.arrays.sweep()
    assert files(runtime), "kept for a retry"
    assert runtime.arrays.release_memory(1)
    await until(lambda: not files(runtime), what="deletion of the input")


async def test_worker_killed_while_storing_result_leaves_no_files(runtime: Runtime) -> None:
    class Stuck:
        def __reduce__(self) -> Any:
            import os
            import time

            os.write(1, b"stored half\n")
            time.sleep(60)
            return str, ()

    def work() -> Any:
        import os

        import numpy as np

        os.write(1, b"pid %d end\n" % os.getpid())
        return [np.ones(300_000), np.ones(300_000), stuck()]

    stuck = Stuck

    task_id = await call(runtime, work)
    await says(runtime, task_id, "stored half")
    assert [name.removeprefix(task_id.replace("task", "arr")) for name in files(runtime)] == [".1.0.part", ".1.1.part"]
    output = await runtime.tasks.output(task_id)
    pid = int("".join(item.text or "" for item in output.items).split()[1])
    os.kill(pid, signal.SIGKILL)
    assert (await ended(runtime, task_id)).status == "failed"
    assert not files(runtime)


async def test_rejected_result_leaves_no_arrays(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, array_bytes=2_000_000) as runtime:
        for code, message in (
            ("x = np.ones(200_000)\nimport threading\ny = threading.Lock()", "The output 'y' of type lock can't be sent back"),
            ("x = y = np.ones(300_000)", "2.42 MB does not fit: the current limit is 2.00 MB"),
        ):
            task = await ended(runtime, await submit(runtime, "python", {"code": f"import numpy as np\n{code}", "outputs": ["x", "y"]}))
            assert task.status == "failed"
            assert message in (task.error or "")
            assert not files(runtime)


async def test_invalid_and_too_large_inputs_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with runtime_in(tmp_path, untrusted_timeout=1.0) as runtime:
        for bad in ("../../etc/passwd", "", "a/b", "x" * 300, 3):
            with pytest.raises(InvalidRequest):
                await submit(runtime, "compute", {"expression": "x", "inputs": {"x": {"array": bad}}})
        info = await put(runtime.arrays, np.ones(1_000_000, np.float32))
        inputs = {"x": {"array": info.id}}
        stranger = Caller(None, may_execute=False, trusted=False)
        parameters = {"expression": "sum(exp(x))", "inputs": inputs, "iterations": 10_000}
        with pytest.raises(InvalidRequest, match="without a login"):
            await runtime.submit(TaskRequest(operation="compute", parameters=parameters), stranger)
        with pytest.raises(NotAllowed):
            await runtime.submit(TaskRequest(operation="python", parameters={"inputs": inputs}), stranger)
        monkeypatch.setattr(runtime._admission, "total", lambda lane: 5000)
        with pytest.raises(MemoryRefused, match=r"4\.00 MB"):
            await submit(runtime, "compute", {"expression": "sum(x)", "inputs": inputs})


async def test_repeated_request_finds_task_after_its_arrays_are_deleted(runtime: Runtime) -> None:
    info = await put(runtime.arrays, np.ones(10))
    request = TaskRequest(operation="compute", parameters={"expression": "sum(x)", "inputs": {"x": {"array": info.id}}}, wait=False)
    first = await runtime.submit(request, ME, "key")
    await runtime.arrays.remove(info.id)
    await ended(runtime, first.task_id)
    assert (await runtime.submit(request, ME, "key")).task_id == first.task_id


async def test_next_server_has_arrays_of_pending_tasks_and_results(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        done = await submit(runtime, "python", {"code": "import numpy as np\nx = np.arange(300_000)", "outputs": ["x"]}, wait=False)
        await ended(runtime, done)
        await busy(runtime)
        info, loose = await put(runtime.arrays, np.full(10, 3.0)), await put(runtime.arrays, np.ones(10))
        parameters = {"expression": "sum(x)", "inputs": {"x": {"array": info.id}}}
        waiting = await submit(runtime, "compute", parameters, wait=False)
    async with runtime_in(tmp_path) as runtime:
        task = await ended(runtime, waiting)
        assert task.result is not None, task.error
        assert task.result.output["value"] == 30.0
        assert runtime.arrays.known(loose.id) is None
        assert (await value(runtime, done))["x"].sum() == sum(range(300_000))
        await runtime.purge(done)
        await runtime.arrays.remove(info.id)
        assert not files(runtime)
        folders = [place.root for place in runtime.arrays._spool.places]
    assert not [folder for folder in folders if folder.exists()]


async def test_missing_input_file_fails_task_with_advice(runtime: Runtime) -> None:
    blocker = await busy(runtime)
    info = await put(runtime.arrays, np.ones(10))
    waiting = await submit(runtime, "compute", {"expression": "sum(x)", "inputs": {"x": {"array": info.id}}})
    Path(str(info.path)).unlink()
    await runtime.cancel(blocker)
    task = await ended(runtime, waiting)
    assert task.status == "failed"
    assert f"The array {info.id} no longer exists" in (task.error or "")
    assert "Send it again" in (task.error or "")
    await completed(runtime, await cell(runtime, "1"))
