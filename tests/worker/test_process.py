"""What a worker is as a process: its session, its environment, what it has open, and whom it sees end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.engines.exit_report import OomWatch
from openruntime_jupyter.engines.worker_process import worker_environment
from tests.runtimes import cell, ended, live, pickled, runtime_in, says, submit, value

ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what only Linux has")


def _itself() -> dict[str, Any]:
    """What a task sees of its process."""
    import stat
    import tempfile
    from pathlib import Path

    null, given = os.stat(os.devnull), os.fstat(0)
    return {
        "own session": os.getsid(0) == os.getpid() == os.getpgid(0),
        "stdin": stat.S_ISCHR(given.st_mode) and given.st_rdev == null.st_rdev,
        "temporary": tempfile.gettempdir(),
        "safe path": "" not in sys.path and os.getcwd() not in sys.path,
        "told subprocesses": "PYTHONSAFEPATH" in os.environ,
        "tunables": os.environ.get("GLIBC_TUNABLES"),
        "score": Path("/proc/self/oom_score_adj").read_text().strip() if sys.platform.startswith("linux") else None,
        "open": [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink() and entry.exists()]
        if sys.platform.startswith("linux")
        else [],
    }


def test_a_worker_has_a_session_of_its_own_no_stdin_and_a_private_folder(tmp_path: Path) -> None:
    (tmp_path / "not_inherited").write_text("x")

    async def body() -> None:
        with (tmp_path / "not_inherited").open() as file:
            os.set_inheritable(file.fileno(), True)
            async with runtime_in(tmp_path / "data") as runtime:
                seen = await value(runtime, await submit(runtime, "call", pickled(_itself)))
        assert seen["own session"]
        assert seen["stdin"]
        assert seen["safe path"]
        assert not seen["told subprocesses"]
        assert os.path.realpath(seen["temporary"]) == os.path.realpath(tmp_path / "data" / "tmp")
        assert [place for place in seen["open"] if str(tmp_path) in place] == [], "nothing that the runtime has open"

    live(body())


@ON_LINUX
def test_on_linux_a_worker_is_the_first_to_go_when_memory_runs_out_and_has_large_pages(tmp_path: Path) -> None:
    async def body() -> None:
        async with runtime_in(tmp_path) as runtime:
            seen = await value(runtime, await submit(runtime, "call", pickled(_itself)))
        assert seen["score"] == "800"
        assert "glibc.malloc.hugetlb=1" in seen["tunables"]

    live(body())


@ON_LINUX
def test_what_the_user_has_tuned_of_the_allocator_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, wanted in (
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ):
        monkeypatch.setenv("GLIBC_TUNABLES", given)
        assert worker_environment(os.environ, tmp_path)["GLIBC_TUNABLES"] == wanted


def test_where_the_system_has_no_pidfd_a_workers_end_is_seen_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)

    async def body() -> None:
        async with runtime_in(tmp_path) as runtime:
            for _ in range(2):
                task_id = await cell(runtime, "import os\nprint('in', flush=True)\nos.kill(os.getpid(), 9)")
                task = await ended(runtime, task_id)
                assert task.failure is not None
                assert (task.failure.kind, task.failure.signal) == ("worker_died", signal.SIGKILL)
            code = (
                "import time\nwhile True:\n    try:\n        print('in', flush=True)\n        time.sleep(9)\n    except BaseException: pass"
            )
            holder = await cell(runtime, code)
            await says(runtime, holder, "in")
            assert (await runtime.cancel(holder)).cancel_stage in ("terminate", "kill")

    live(body())


def test_a_workers_end_is_seen_though_a_child_of_its_task_holds_its_output(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, time\nsubprocess.Popen(['sleep', '600'], start_new_session=True, close_fds=False)\n"
        "print('last words', flush=True)\nos.kill(os.getpid(), 9)"
    )

    async def body() -> None:
        async with runtime_in(tmp_path) as runtime:
            task = await ended(runtime, await cell(runtime, f"{code}"))
            assert task.failure is not None
            assert (task.failure.kind, task.failure.signal) == ("worker_died", signal.SIGKILL)
            assert "last words" in (task.failure.last_output or "")
            assert (await ended(runtime, await submit(runtime, "call"))).status == "completed"

    try:
        live(body())
    finally:
        import psutil

        for child in psutil.process_iter(["cmdline", "environ"]):
            if child.info["cmdline"] == ["sleep", "600"] and str(tmp_path) in str((child.info["environ"] or {}).get("TMPDIR")):
                child.kill()


def test_a_kill_is_laid_at_the_systems_door_only_if_it_killed_within_the_last_seconds() -> None:
    now, count = [1000.0], [7]
    watch = OomWatch(lambda: count[0], lambda: now[0])
    assert not watch.struck(), "nothing was seen before"
    watch.look()
    assert not watch.struck()
    count[0] += 1
    assert watch.struck()
    for _ in range(10):  # tasks go on, and the kill is long past
        now[0] += 0.5
        watch.look()
    assert not watch.struck()
    count[0] += 1
    now[0] += 3600.0  # nothing ran for an hour, in which others were killed
    watch.look()
    assert not watch.struck()
    count[0] += 1
    assert watch.struck()


def test_a_system_that_does_not_tell_of_its_kills_is_accused_of_none() -> None:
    watch = OomWatch(lambda: None)
    watch.look()
    assert not watch.struck()


def test_what_a_thread_of_an_ended_task_tells_reaches_no_other_task(tmp_path: Path) -> None:
    leaves = """
import threading, time
from openruntime_jupyter.current_task import current

def go_on(mine=current(), time=time):  # the cell's variables end with it
    while True:
        mine.progress(99, 100, 'of the task before')
        mine.display({'text/plain': 'of the task before'})
        time.sleep(0.01)

threading.Thread(target=go_on, daemon=True).start()
"""

    async def body() -> None:
        async with runtime_in(tmp_path) as runtime:
            assert (await ended(runtime, await cell(runtime, leaves))).status == "completed"
            following = await cell(runtime, "import time; time.sleep(0.5)")
            task = await ended(runtime, following)
            assert task.progress is None
            assert (await runtime.tasks.output(following)).items == []

    live(body())


def test_what_a_worker_loaded_at_its_start_is_never_looked_through_for_garbage_and_what_a_task_leaves_is(tmp_path: Path) -> None:
    async def body() -> Any:
        async with runtime_in(tmp_path) as runtime:
            return await value(runtime, await submit(runtime, "call", pickled(_garbage)))

    enabled, frozen, collected = live(body())
    assert enabled
    assert frozen > 10_000
    assert collected


def _garbage() -> tuple[bool, int, bool]:
    import gc
    import weakref

    class Node:
        """Something that refers to itself."""

    node: Any = Node()
    node.itself = node
    left = weakref.ref(node)
    del node
    gc.collect()
    return gc.isenabled(), gc.get_freeze_count(), left() is None
