"""Worker processes: session, environment, open files, and detection of their end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.engines.failures import OomWatch
from openruntime_jupyter.engines.worker_process import worker_environment
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.worker.resident import Resident, own_peak
from tests.runtimes import busy, cell, completed, failed, pickled, printed, runtime_in, submit, value

ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what only Linux has")


def _itself() -> dict[str, Any]:
    """Return what a task sees of its process."""
    import gc
    import stat
    import tempfile
    import weakref
    from pathlib import Path

    class Node:
        """Object in a reference cycle."""

    node: Any = Node()
    node.itself = node
    left = weakref.ref(node)
    del node
    gc.collect()
    null, given = os.stat(os.devnull), os.fstat(0)
    return {
        "own session": os.getsid(0) == os.getpid() == os.getpgid(0),
        "stdin": stat.S_ISCHR(given.st_mode) and given.st_rdev == null.st_rdev,
        "temporary": tempfile.gettempdir(),
        "safe path": "" not in sys.path and os.getcwd() not in sys.path,
        "safe path of subprocesses": "PYTHONSAFEPATH" in os.environ,
        "tunables": os.environ.get("GLIBC_TUNABLES"),
        "score": Path("/proc/self/oom_score_adj").read_text().strip() if sys.platform.startswith("linux") else None,
        "collects": (gc.isenabled(), gc.get_freeze_count() > 10_000, left() is None),
        "open": [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink() and entry.exists()]
        if sys.platform.startswith("linux")
        else [],
    }


async def test_process_of_worker_is_isolated_and_prepared(tmp_path: Path) -> None:
    (tmp_path / "not_inherited").write_text("x")

    with (tmp_path / "not_inherited").open() as file:
        os.set_inheritable(file.fileno(), True)
        async with runtime_in(tmp_path / "data") as runtime:
            seen = await value(runtime, await submit(runtime, "call", pickled(_itself)))
    assert seen["own session"]
    assert seen["stdin"]
    assert seen["safe path"]
    assert not seen["safe path of subprocesses"]
    assert os.path.realpath(seen["temporary"]) == os.path.realpath(tmp_path / "data" / "tmp")
    assert [place for place in seen["open"] if str(tmp_path) in place] == [], "nothing that the runtime has open"
    assert seen["collects"] == (True, True, True), "garbage, but not the modules loaded at start"
    if sys.platform.startswith("linux"):
        assert seen["score"] == "800", "the out-of-memory killer takes it first"
        assert "glibc.malloc.hugetlb=1" in seen["tunables"]


@ON_LINUX
def test_allocator_settings_of_user_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, wanted in (
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ):
        monkeypatch.setenv("GLIBC_TUNABLES", given)
        assert worker_environment(os.environ, tmp_path)["GLIBC_TUNABLES"] == wanted


async def test_end_of_worker_is_detected_without_pidfd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)

    async with runtime_in(tmp_path) as runtime:
        failure = await failed(runtime, await cell(runtime, "import os\nos.kill(os.getpid(), 9)"))
        assert (failure.kind, failure.signal) == ("worker_died", signal.SIGKILL)
        code = "import time\nwhile True:\n    try:\n        print('in', flush=True)\n        time.sleep(9)\n    except BaseException: pass"
        holder = await busy(runtime, code)
        assert (await runtime.cancel(holder)).cancel_stage in ("terminate", "kill")


async def test_end_of_worker_is_detected_while_child_holds_output(runtime: Runtime) -> None:
    code = (
        "import os, subprocess\nchild = subprocess.Popen(['sleep', '600'], start_new_session=True, close_fds=False)\n"
        "print('last words', child.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    task_id = await cell(runtime, code)
    failure = await failed(runtime, task_id)
    os.kill(int((await printed(runtime, task_id)).split()[2]), signal.SIGKILL)
    assert (failure.kind, failure.signal) == ("worker_died", signal.SIGKILL)
    assert "last words" in (failure.last_output or "")
    await completed(runtime, await submit(runtime, "call"))


def test_oom_kill_is_reported_only_if_recent() -> None:
    now, count = [1000.0], [7]
    watch = OomWatch(lambda: count[0], lambda: now[0])
    assert not watch.detected_kill(), "nothing was seen before"
    watch.read()
    assert not watch.detected_kill()
    count[0] += 1
    assert watch.detected_kill()
    for _ in range(10):  # tasks continue long after the kill
        now[0] += 0.5
        watch.read()
    assert not watch.detected_kill()
    count[0] += 1
    now[0] += 3600.0  # an idle hour in which other processes were killed
    watch.read()
    assert not watch.detected_kill()
    count[0] += 1
    assert watch.detected_kill()


def test_unknown_oom_count_reports_no_oom_kill() -> None:
    watch = OomWatch(lambda: None)
    watch.read()
    assert not watch.detected_kill()


async def test_messages_of_old_thread_do_not_reach_other_task(runtime: Runtime) -> None:
    leaves = """
import threading, time
from openruntime_jupyter.current_task import current

def go_on(mine=current(), time=time):  # the variables of the cell end with it
    while True:
        mine.progress(99, 100, 'of the task before')
        mine.display({'text/plain': 'of the task before'})
        time.sleep(0.01)

threading.Thread(target=go_on, daemon=True).start()
"""
    await completed(runtime, await cell(runtime, leaves))
    following = await cell(runtime, "import time; time.sleep(0.5)")
    assert (await completed(runtime, following)).progress is None
    assert (await runtime.tasks.output(following)).items == []


def test_resident_memory_is_the_present_one_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    hoard = bytearray(300_000_000)
    hoard[::4096] = bytes(len(hoard[::4096]))
    del hoard
    for file in (Resident.FILE, "/there/is/no/such/file"):  # as on macOS
        monkeypatch.setattr(Resident, "FILE", file)
        assert 1e6 < Resident().bytes() < own_peak() - 200e6
