"""Forked children of a process that uses a runtime: each host, each way to use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import Home, Server

PROGRAM = """
import asyncio, contextlib, json, multiprocessing, os, queue, sys, threading, time
from openruntime_jupyter import connect

where = sys.argv[1:]
fork = multiprocessing.get_context("fork")
client = connect(*where)
handle = client.submit_call(len, [1, 2])
executor = client.executor()
executor.submit(len, [1]).result(60)
asyncio.run(client.aio.call(len, [1]))
heard = queue.SimpleQueue()
watch = client.watch(["task_update"], heard.put)


def watches(using):
    ended = queue.SimpleQueue()
    with using.watch(["task_update"], ended.put):
        task = using.submit_call(len, [1, 2])
        while True:
            data = ended.get(timeout=30).get("data", {})
            if data.get("task_id") == task.id and data.get("status") == "completed":
                return 2


def held(use):
    '''Fork while another thread of the parent holds every lock.'''
    locks = [client.backend._lock, client.backend._events._lock, client.aio._completions._lock, executor._completions._lock]
    locked, forked = threading.Event(), threading.Event()

    def hold():
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            locked.set()
            forked.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    try:
        return in_child(use)
    finally:
        forked.set()
        thread.join()


def in_child(use):
    '''What `use` returns or raises in a forked child, and how the child ends.'''
    results = fork.SimpleQueue()

    def child():
        try:
            results.put(use())
        except BaseException as problem:
            results.put(f"{type(problem).__name__}: {problem}")

    process = fork.Process(target=child)
    begun = time.monotonic()
    process.start()
    process.join(30)
    if process.is_alive():
        process.kill()
        return ["hangs"]
    return [results.get(), process.exitcode, time.monotonic() - begun]


def exits():
    '''A child that ends as a program does, with the interpreter's exit hooks.'''
    child = os.fork()
    if child == 0:
        sys.exit(7)
    return [None, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]


def every_way():
    return [client.call(len, [1, 2]), executor.submit(len, [1, 2]).result(30), watches(client), asyncio.run(client.aio.call(len, [1, 2]))]


told = {
    "call": in_child(lambda: client.call(len, [1, 2])),
    "new client": in_child(lambda: connect(*where).call(len, [1, 2])),
    "handle": in_child(handle.result),
    "watch": in_child(lambda: watches(client)),
    "inherited watch": in_child(watch.close),
    "async": in_child(lambda: asyncio.run(client.aio.call(len, [1, 2]))),
    "executor": in_child(lambda: executor.submit(len, [1, 2]).result(30)),
    "map": in_child(lambda: client.map(abs, [-1, -2])),
    "close": in_child(client.close),
    "locks": held(lambda: client.call(len, [1, 2])),
    "exit": exits(),
}
if client.where != "embedded":
    told["locks, every way"] = held(every_way)
told["parent"] = [every_way()]
slow = executor.submit(time.sleep, 600)
called = []
slow.add_done_callback(called.append)
told["future"] = in_child(lambda: slow.result(30))
told["callback"] = in_child(lambda: len(called))
slow.cancel()
told["parent's future"] = [slow.cancelled(), len(called)]
watch.close()
executor.shutdown()
print(json.dumps(told))
"""

Told = dict[str, list[object]]


def tell(home: Path, *where: str) -> Told:
    command = [sys.executable, "-c", PROGRAM, *where]
    done = subprocess.run(command, env=Home(home).environment(), capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    told: Told = json.loads(done.stdout)
    return told


@pytest.fixture(scope="module")
def of_server(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Results of forked children that use a server."""
    return tell(tmp_path_factory.mktemp("home"), server.url, str(server.token))


@pytest.fixture(scope="module")
def of_host(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Results of forked children whose parent hosts the runtime."""
    return tell(tmp_path_factory.mktemp("home"), "embedded")


@pytest.mark.parametrize(
    ("way", "value"),
    [
        *((way, 2) for way in ("call", "new client", "handle", "watch", "async", "executor", "locks")),
        ("map", [1, 2]),
        ("locks, every way", [2, 2, 2, 2]),
    ],
)
def test_forked_child_uses_server(way: str, value: object, of_server: Told) -> None:
    assert of_server[way][:2] == [value, 0]


@pytest.mark.parametrize("way", ["call", "new client", "handle", "watch", "async", "executor", "map", "locks"])
def test_forked_child_of_host_gets_advice_at_once(way: str, of_host: Told) -> None:
    problem, code, seconds = of_host[way]
    assert str(problem).startswith("NotConnected: A forked child can't use the runtime")
    assert "use the spawn start method" in str(problem)
    assert "connect() to a server in the child" in str(problem)
    assert code == 0
    assert isinstance(seconds, float)
    assert seconds < 10


@pytest.mark.parametrize("host", ["of_server", "of_host"])
def test_parent_and_its_workers_go_on(host: str, request: pytest.FixtureRequest) -> None:
    told: Told = request.getfixturevalue(host)
    assert told["parent"] == [[2, 2, 2, 2]]
    assert told["parent's future"] == [True, 1]


@pytest.mark.parametrize("host", ["of_server", "of_host"])
def test_child_closes_and_exits_without_parents_runtime(host: str, request: pytest.FixtureRequest) -> None:
    told: Told = request.getfixturevalue(host)
    assert told["close"][:2] == [None, 0]
    assert told["inherited watch"][:2] == [None, 0]
    assert told["exit"] == [None, 7]


@pytest.mark.parametrize("host", ["of_server", "of_host"])
def test_inherited_future_fails_with_advice(host: str, request: pytest.FixtureRequest) -> None:
    told: Told = request.getfixturevalue(host)
    assert str(told["future"][0]).startswith("NotConnected: This future belongs to the parent process")
    assert told["callback"][0] == 0


@pytest.mark.parametrize("before", ["", "client.health(); client.backend.stop()"], ids=["never started", "stopped"])
def test_child_hosts_runtime_if_parent_does_not(tmp_path: Path, before: str) -> None:
    program = (
        f"import os; from openruntime_jupyter import connect; client = connect('embedded'); {before}\n"
        "if os.fork() == 0:\n"
        "    value = client.call(len, [1, 2]); client.backend.stop(); os._exit(value)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]), client.backend.started)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=Home(tmp_path).environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("2 False\n", 0), done.stderr
