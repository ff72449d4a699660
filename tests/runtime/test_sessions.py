"""Sessions: workers whose variables stay from one task to the next, with real workers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from openruntime_jupyter.engines.local import LocalEngine
from openruntime_jupyter.engines.protocol import DeviceReport
from openruntime_jupyter.errors import InvalidRequest, SessionEnded, SessionNotFound, Unavailable
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.schemas.system import Session
from openruntime_jupyter.schemas.tasks import TaskRequest
from tests.runtimes import busy, cell, completed, ended, failed, pickled, printed, runtime_in, says, submit, until, value

WAIT_FOR = "import os, time\nprint('in', flush=True)\nwhile not os.path.exists({path!r}): time.sleep(0.01)"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    try:
        print('in', flush=True)
        while True: time.sleep(0.01)
    except KeyboardInterrupt:
        pass
"""


async def show(runtime: Runtime, expression: str, **fields: Any) -> str:
    """Return the shown value of an expression in the session `train`."""
    task = await completed(runtime, await cell(runtime, expression, **{"session": "train", **fields}))
    assert task.result is not None
    return str(task.result.output["value"])


async def run(runtime: Runtime, code: str, **fields: Any) -> None:
    await completed(runtime, await cell(runtime, code, **{"session": "train", **fields}))


def only(runtime: Runtime) -> Session:
    (session,) = runtime.sessions.list()
    return session


async def session_pid(runtime: Runtime) -> int:
    return int(await show(runtime, "__import__('os').getpid()"))


@pytest.fixture
def runtime(runtime: Runtime, jp_asyncio_loop: asyncio.AbstractEventLoop) -> Iterator[Runtime]:
    """The shared runtime, without sessions of other tests."""
    yield runtime

    async def free() -> None:
        for each in runtime.sessions.list():
            runtime.sessions.free(each.id)

    jp_asyncio_loop.run_until_complete(free())


def has_ended(runtime: Runtime) -> Callable[[], bool]:
    return lambda: only(runtime).state == "ended"


def in_notebook(path: str, **more: Any) -> dict[str, Any]:
    return {"notebook": path, "kernel": f"kernel of {path}", **more}


@pytest.mark.every_engine
async def test_variables_and_modules_stay_between_tasks(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "counted.py").write_text("print('imported')\n")
    await run(runtime, f"import os, sys\nsys.path.insert(0, {os.fspath(tmp_path / 'lib')!r})\nos.chdir({os.fspath(tmp_path)!r})\nx = 40")
    await run(runtime, "import counted, random\nrandom.seed(0)\nx += 2")
    assert await show(runtime, "x, os.getcwd() == " + repr(os.fspath(tmp_path))) == "(42, True)"
    again = await cell(runtime, "import counted\nfirst = random.random()", session="train")
    await completed(runtime, again)
    assert "imported" not in await printed(runtime, again)
    assert await show(runtime, "first") == "0.8444218515250481"
    assert only(runtime).tasks == 5


@pytest.mark.every_engine
async def test_calls_find_variables_of_the_session(runtime: Runtime) -> None:
    await run(runtime, "model = {'weights': 7}")
    first = await value(runtime, await submit(runtime, "call", pickled(_uses_model), session="train"))
    assert first[0] == 7
    assert await value(runtime, await submit(runtime, "call", pickled(_uses_model), session="train")) == first
    assert (await failed(runtime, await submit(runtime, "call", pickled(_uses_model)))).type == "NameError"


def _uses_model() -> tuple[int, int]:
    return model["weights"], os.getpid()  # type: ignore[name-defined] # noqa: F821


async def test_tasks_of_one_session_run_in_turn(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async with runtime_in(tmp_path / "data", cpu_slots=3) as runtime:
        first = await busy(runtime, WAIT_FOR.format(path=os.fspath(gate)) + "\nx = 1", session="train")
        second = await cell(runtime, "x += 1", session="train")
        beside, other = await cell(runtime, "1"), await cell(runtime, "1", session="other")
        await completed(runtime, beside)
        await completed(runtime, other)
        waiting = await runtime.tasks.get(second)
        assert waiting.status == "pending"
        assert waiting.waiting_for == f"the session 'train', which runs {first}"
        assert ("train", "busy", first) in [(each.name, each.state, each.task_id) for each in runtime.sessions.list()]
        gate.touch()
        await completed(runtime, second)
        assert await show(runtime, "x") == "2"


async def test_idle_session_holds_no_slot_and_changes_no_other_task(runtime: Runtime) -> None:
    await run(runtime, "import builtins, os\nbuiltins.left = os.environ['LEFT'] = 'behind'")
    code = "import builtins, os\nassert not hasattr(builtins, 'left') and 'LEFT' not in os.environ"
    await completed(runtime, await cell(runtime, code))
    (worker,) = [each for each in runtime.worker_stats.report() if each.session is not None]
    assert (worker.session, worker.state, worker.id) == (only(runtime).id, "idle", only(runtime).worker)
    assert (only(runtime).resident_bytes or 0) > 10_000_000


async def test_limit_counts_open_sessions_and_names_them(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, max_sessions=2) as runtime:

        def session_id(name: str) -> str:
            return next(each.id for each in runtime.sessions.list() if each.name == name)

        pid = await session_pid(runtime)
        await run(runtime, "x = 1", session="two")
        with pytest.raises(Unavailable, match=r"2 sessions are open \(train, two\), and at most 2 .*max_sessions.*free"):
            await cell(runtime, "x = 1", session="three")
        await run(runtime, "x = 2", session="two")
        runtime.sessions.free(session_id("two"))
        await run(runtime, "x = 1", session="three")
        assert {each.name for each in runtime.sessions.list()} == {"train", "three"}
        os.kill(pid, signal.SIGKILL)
        await until(lambda: any(each.state == "ended" for each in runtime.sessions.list()))
        await run(runtime, "x = 1", session="four")
        runtime.sessions.restart(session_id("train"))
        with pytest.raises(Unavailable, match="max_sessions"):
            await cell(runtime, "1", session="train")


async def test_rejected_first_task_leaves_no_session(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, max_sessions=0) as runtime:
        with pytest.raises(InvalidRequest, match="max_sessions is 0"):
            await cell(runtime, "1", session="train")
        with pytest.raises(InvalidRequest, match="only python and call"):
            await submit(runtime, "compute", {"expression": "1"}, session="train")
        with pytest.raises(InvalidRequest, match="not a valid name"):
            await cell(runtime, "1", session=" ")
        assert runtime.sessions.list() == []


async def test_idle_time_ends_the_session_but_not_while_a_task_waits(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async with runtime_in(tmp_path / "data", session_idle_seconds=0.3) as runtime:
        pid = await session_pid(runtime)
        holder = await cell(runtime, WAIT_FOR.format(path=os.fspath(gate)))
        waiting = await cell(runtime, "x = 1", session="train")
        await says(runtime, holder, "in")
        await asyncio.sleep(0.6)
        assert only(runtime).state == "idle"
        gate.touch()
        await completed(runtime, waiting)
        assert only(runtime).expires_at is not None
        await until(has_ended(runtime))
        await until(lambda: not psutil.pid_exists(pid))
        assert only(runtime).expires_at is None
        with pytest.raises(SessionEnded, match=r"not used for .* \(session_idle_seconds\).*restart train"):
            await cell(runtime, "1", session="train")


@pytest.mark.every_engine
async def test_worker_killed_while_busy_fails_its_task(runtime: Runtime) -> None:
    pid = await session_pid(runtime)
    task_id = await busy(runtime, session="train")
    behind = await cell(runtime, "1", session="train")
    os.kill(pid, signal.SIGKILL)
    assert (await failed(runtime, task_id)).kind == "worker_died"
    failure = await failed(runtime, behind)
    assert failure.kind == "not_started"
    assert "The session 'train' can't run this task: The worker was killed by signal 9" in failure.message
    assert has_ended(runtime)()


async def test_stopped_worker_is_not_replaced_by_an_empty_one(runtime: Runtime) -> None:
    os.kill(await session_pid(runtime), signal.SIGSTOP)
    failure = await failed(runtime, await cell(runtime, "1", session="train"))
    assert failure.kind == "worker_died"
    assert "SIGSTOP" in failure.message
    assert "SIGSTOP" in (only(runtime).reason or "")


async def test_retries_never_run_in_an_emptied_session(runtime: Runtime) -> None:
    await run(runtime, "x = 1")
    task = await ended(runtime, await cell(runtime, "import os\nos.kill(os.getpid(), 9)", session="train", retries=3))
    assert (task.status, task.attempt) == ("failed", 1)


@pytest.mark.every_engine
async def test_restart_ends_running_task_and_rejects_pending_ones(runtime: Runtime) -> None:
    running = await busy(runtime, session="train")
    waiting = await cell(runtime, "x = 'never'", session="train")
    runtime.sessions.restart(only(runtime).id)
    after = await cell(runtime, "y = 1", session="train")
    assert "its session was restarted" in ((await ended(runtime, running)).error or "")
    failure = await failed(runtime, waiting)
    assert failure.kind == "not_started"
    assert "it was restarted after this task was submitted" in failure.message
    await completed(runtime, after)
    assert await show(runtime, "'time' in globals(), 'x' in globals(), y") == "(False, False, 1)"
    assert only(runtime).tasks == 2, "tasks before the restart do not count"
    with pytest.raises(SessionNotFound, match=r"open sessions: train \(session_"):
        runtime.sessions.restart("session_nosuch")


async def test_restart_while_its_worker_starts(runtime: Runtime) -> None:
    await completed(runtime, await submit(runtime, "compute", {"expression": "1"}))
    first = await cell(runtime, "x = 1", session="train")
    await until(lambda: only(runtime).state == "busy")
    assert only(runtime).worker is None
    runtime.sessions.restart(only(runtime).id)
    task = await ended(runtime, first)
    assert (task.status, task.error) == ("failed", "The task did not start: its session was restarted")
    assert await show(runtime, "'x' in globals()") == "False"


@pytest.mark.every_engine
async def test_free_ends_the_session_and_its_task(runtime: Runtime) -> None:
    pid = await session_pid(runtime)
    task_id = await busy(runtime, session="train")
    waiting = await cell(runtime, "1", session="train")
    freed = runtime.sessions.free(only(runtime).id)
    assert (freed.name, freed.state) == ("train", "busy")
    assert runtime.sessions.list() == []
    assert "its session was freed" in ((await ended(runtime, task_id)).error or "")
    assert "it was freed" in ((await ended(runtime, waiting)).error or "")
    await until(lambda: not psutil.pid_exists(pid))
    with pytest.raises(SessionEnded, match="freed"):
        await cell(runtime, "1", session=freed.id)
    assert await show(runtime, "'time' in globals()") == "False"


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
@pytest.mark.every_engine
async def test_cancel_by_kill_ends_the_session(runtime: Runtime, how: str) -> None:
    await run(runtime, "x = 1")
    timeout = 0.5 if how == "timed out" else None
    task_id = await cell(runtime, STUBBORN, session="train", timeout=timeout)
    if timeout is None:
        await says(runtime, task_id, "in")
        assert (await runtime.cancel(task_id)).cancel_stage == "kill"
    task = await ended(runtime, task_id)
    assert task.status == ("timed_out" if timeout else "cancelled")
    reason = only(runtime).reason or ""
    assert ("ran longer than its timeout" if timeout else "was cancelled") in reason
    assert task_id in reason
    assert "out of memory" not in reason
    with pytest.raises(SessionEnded, match="did not answer the interrupt"):
        await cell(runtime, "x", session="train")


async def test_memory_limit_ends_the_session(runtime: Runtime) -> None:
    await run(runtime, "x = 1")
    grows = "import time\nheld = [bytearray(b'x') * 1_000_000 for _ in range(600)]\ntime.sleep(60)"
    task = await ended(runtime, await cell(runtime, grows, session="train", memory_limit=300_000_000))
    assert (task.status, task.failure and task.failure.kind) == ("failed", "memory")
    assert f"{task.task_id} exceeded its memory limit" in (only(runtime).reason or "")


async def test_large_task_does_not_wait_for_its_worker(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, cancel_grace=5.0) as runtime:
        await run(runtime, "x = bytearray(b'x') * 600_000_000")
        task = await ended(runtime, await cell(runtime, "len(x)", session="train"))
        assert (task.execution_time or 0.0) < 5.0


async def test_notebooks_and_owners_have_separate_sessions(runtime: Runtime) -> None:
    for notebook in ("a.ipynb", "b.ipynb"):
        code = {"code": f"x = {notebook!r}", "world": in_notebook(notebook)}
        await completed(runtime, await submit(runtime, "python", code, session="train"))
    for notebook in ("a.ipynb", "b.ipynb"):
        code = {"code": "y = x", "outputs": ["y"], "world": in_notebook(notebook)}
        assert await value(runtime, await submit(runtime, "python", code, session="train")) == {"y": notebook}
    assert {(each.name, each.notebook) for each in runtime.sessions.list()} == {("train", "a.ipynb"), ("train", "b.ipynb")}
    request = TaskRequest(operation="python", parameters={"code": "x", "world": in_notebook("a.ipynb")}, session="train")
    other = await runtime.submit(request, Caller("other"))
    assert "NameError" in ((await ended(runtime, other.task_id)).error or "")
    mine = next(each for each in runtime.sessions.list() if each.owner == "me")
    with pytest.raises(SessionEnded):
        await runtime.submit(request.model_copy(update={"session": mine.id}), Caller("other"))


async def test_waiting_task_of_a_dead_runtime_fails(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        await run(runtime, "x = 1")
        await busy(runtime)
        waiting = await cell(runtime, "x += 1", session="train", wait=False)
    async with runtime_in(tmp_path) as runtime:
        task = await ended(runtime, waiting)
        assert (task.status, task.attempt) == ("failed", 0)
        assert "its runtime was restarted" in (task.error or "")
        assert runtime.sessions.list() == []


async def test_modules_are_reloaded_only_on_request(tmp_path: Path, runtime: Runtime) -> None:
    module = tmp_path / "lib" / "settings_of_training.py"
    module.parent.mkdir()
    module.write_text("RATE = 1")
    await run(runtime, f"import sys\nsys.path.insert(0, {os.fspath(module.parent)!r})\nimport settings_of_training as s")
    module.write_text("RATE = 2")
    assert await show(runtime, "s.RATE") == "1"
    await run(runtime, "%load_ext autoreload\n%autoreload 2")
    module.write_text("RATE = 34")
    assert await show(runtime, "s.RATE") == "34"
    module.write_text("RATE = 567")
    call = await submit(runtime, "call", pickled(_rate), session="train")
    assert await value(runtime, call) == 567


def _rate() -> int:
    return s.RATE  # type: ignore[name-defined] # noqa: F821


@pytest.mark.not_over("agent", "dask", reason="gives this machine a second device")
async def test_session_serves_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = LocalEngine.devices

    async def two(self: LocalEngine, interpreter: str | None = None) -> list[DeviceReport]:
        (first,) = await devices(self, interpreter)
        return [first, replace(first, name="the same once more")]

    monkeypatch.setattr(LocalEngine, "devices", two)

    async with runtime_in(tmp_path) as runtime:
        await run(runtime, "x = 1", device_preference="device_0")
        task = await ended(runtime, await cell(runtime, "x += 1", session="train", device_preference="device_1"))
        assert (task.status, task.device_used) == ("completed", "device_1")
        assert await show(runtime, "x", device_preference="device_0") == "2"


async def test_cancelled_first_task_leaves_an_empty_session(runtime: Runtime) -> None:
    holder = await busy(runtime)
    task = await runtime.cancel(await cell(runtime, "1", session="train"))
    await runtime.cancel(holder)
    assert (only(runtime).tasks, only(runtime).worker, only(runtime).state) == (0, None, "idle")
    assert await show(runtime, "6 * 7", session=task.session) == "42"
