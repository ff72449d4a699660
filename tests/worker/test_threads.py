"""What a thread prints that its task has left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from openruntime_jupyter.runtime.runtime import Runtime
from tests.runtimes import cell, ended, live, printed, runtime_in, says, until

# The thread says that it has printed in a file, and prints on until there is another: no output tells a test that there was none.
GOES_ON = """
import pathlib, sys, threading, time
here = pathlib.Path({folder!r})
def chatter(number=0, here=here, sys=sys, time=time):  # a cell's variables go with it
    while not (here / "stop").exists():
        print("stray", number)
        sys.stderr.write("stray error\\n")
        number += 1
        (here / "number").write_text(str(number))
        time.sleep(0.01)
"""
WAYS = {
    "a thread": "threading.Thread(target=chatter, daemon=True).start()",
    "a thread of a thread": (
        "def later(chatter=chatter, time=time, threading=threading):\n"
        "    time.sleep(0.2)\n    threading.Thread(target=chatter, daemon=True).start()\n"
        "threading.Thread(target=later).start()"
    ),
    "a timer": "threading.Timer(0.01, chatter).start()",
    "a pool": "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\nwork = pool.submit(chatter)",
}
SECOND = "import pathlib, time\nprint('second')\nwhile not pathlib.Path({end!r}).exists(): time.sleep(0.01)"
WAIT = "\nwhile not (here / 'number').exists(): time.sleep(0.01)"


async def goes_on(folder: Path) -> None:
    """Wait until the thread has printed three times more."""

    def number() -> int:
        return int((folder / "number").read_text() or 0) if (folder / "number").exists() else 0

    before = number()
    await until(lambda: number() > before + 3, 60, "the thread goes on")


async def both(runtime: Runtime, task_id: str) -> str:
    return await printed(runtime, task_id) + await printed(runtime, task_id, "stderr")


@pytest.mark.parametrize("way", WAYS)
def test_what_a_thread_that_a_task_left_behind_prints_is_in_no_other_tasks_output(tmp_path: Path, way: str) -> None:
    async def body() -> None:
        async with runtime_in(tmp_path / "data") as runtime:
            first = await cell(runtime, GOES_ON.format(folder=str(tmp_path)) + WAYS[way] + ("" if "of a thread" in way else WAIT))
            assert (await ended(runtime, first)).status == "completed"
            await goes_on(tmp_path)
            second = await cell(runtime, SECOND.format(end=str(tmp_path / "end")))
            await says(runtime, second, "second")
            await goes_on(tmp_path)
            (tmp_path / "end").touch()
            assert (await ended(runtime, second)).status == "completed"
            assert await both(runtime, second) == "second\n"
            if "of a thread" not in way:
                assert "stray 0" in await printed(runtime, first), "while its task runs it is heard"
            (tmp_path / "stop").touch()

    live(body())


def test_what_such_a_thread_shows_or_says_of_its_progress_is_no_other_tasks(tmp_path: Path) -> None:
    tells = (
        "from IPython.display import HTML, display\nfrom openruntime_jupyter import progress\n"
        "def tell(display=display, HTML=HTML, progress=progress):\n    display(HTML('stray'))\n    progress(1, 2, 'stray')\n"
        "def chatter(tell=tell, here=here, time=time):\n    number = 0\n    while not (here / 'stop').exists():\n"
        "        tell()\n        number += 1\n        (here / 'number').write_text(str(number))\n        time.sleep(0.01)\n"
        "threading.Thread(target=chatter, daemon=True).start()"
    )

    async def body() -> None:
        async with runtime_in(tmp_path / "data") as runtime:
            first = await done(runtime, GOES_ON.format(folder=str(tmp_path)) + tells + WAIT)
            assert any((item.data or {}).get("text/html") == "stray" for item in (await runtime.output(first)).items)
            await goes_on(tmp_path)
            second = await cell(runtime, SECOND.format(end=str(tmp_path / "end")))
            await says(runtime, second, "second")
            await goes_on(tmp_path)
            (tmp_path / "end").touch()
            assert (await ended(runtime, second)).progress is None
            assert [item.text for item in (await runtime.output(second)).items] == ["second\n"]
            (tmp_path / "stop").touch()

    live(body())


def test_the_task_says_of_which_threads_nothing_more_will_be_heard(tmp_path: Path) -> None:
    async def body() -> None:
        async with runtime_in(tmp_path / "data") as runtime:
            start = "thread = threading.Thread(target=chatter, name='chatter', daemon=True)\nthread.start()"
            first = await cell(runtime, GOES_ON.format(folder=str(tmp_path)) + start + WAIT)
            await ended(runtime, first)
            assert "[the thread chatter goes on: what it prints from now on is left out]\n" in await printed(runtime, first, "stderr")
            (tmp_path / "stop").touch()
            silent = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\nprint('done')"
            assert await both(runtime, await done(runtime, silent)) == "done\n", "of one that says nothing nothing is said"
            joined = "import threading\nthread = threading.Thread(target=print, args=('in it',))\nthread.start()\nthread.join()"
            assert await both(runtime, await done(runtime, joined)) == "in it\n"

    live(body())


def test_a_pool_that_an_earlier_task_made_prints_for_whoever_hands_work_in(tmp_path: Path) -> None:
    make = (
        "import sys, types\nfrom concurrent.futures import ThreadPoolExecutor\nfrom multiprocessing.pool import ThreadPool\n"
        "sys.modules['shared'] = types.SimpleNamespace(pool=ThreadPoolExecutor(1), other=ThreadPool(1))\n"
    )
    use = "import shared\nshared.pool.submit(print, {0!r}).result()\nshared.other.apply(print, ({1!r},))"

    async def body() -> None:
        async with runtime_in(tmp_path) as runtime:
            assert (
                await both(
                    runtime,
                    await done(
                        runtime,
                        make.replace("import sys", "import sys, os")
                        + use.replace("import shared", "shared = sys.modules['shared']").format("one", "two"),
                    ),
                )
                == "one\ntwo\n"
            )
            assert await both(runtime, await done(runtime, use.format("three", "four"))) == "three\nfour\n"

    live(body())


async def done(runtime: Runtime, code: str) -> str:
    """The id of a task that has completed with this code."""
    task = await ended(runtime, await cell(runtime, code))
    assert task.status == "completed", task.failure
    return task.task_id


def test_a_child_process_of_a_thread_prints_though_another_thread_was_printing_when_it_was_made(tmp_path: Path) -> None:
    code = (
        "import os, sys, threading, time\n"
        "from openruntime_jupyter.worker.threads import turns\n"
        "def hold():\n    with turns.speaking:\n        held.set()\n        time.sleep(0.5)\n"
        "def fork():\n    pid = os.fork()\n    if pid == 0:\n        print('from the child', flush=True)\n        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "held = threading.Event()\nthreading.Thread(target=hold).start()\nheld.wait()\n"
        "thread = threading.Thread(target=fork)\nthread.start()\nthread.join()"
    )

    async def body() -> None:
        async with runtime_in(tmp_path) as runtime:
            assert "from the child" in await printed(runtime, await done(runtime, code))

    live(body())
