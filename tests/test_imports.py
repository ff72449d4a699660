"""Test imports of the package from two threads, around a fork, and of what a local runtime needs."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib, importlib.machinery, itertools, sys, threading, time

P = "openruntime_jupyter"


class Pause:
    '''Import hook that pauses one thread at the start of a module.'''

    def __init__(self, thread_name, module, reached, proceed):
        self.thread_name, self.module, self.reached, self.proceed = thread_name, module, reached, proceed

    def find_spec(self, name, path=None, target=None):
        if name != self.module or threading.current_thread().name != self.thread_name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module

        def begin(module):
            self.reached.set()
            self.proceed.wait()
            run(module)

        spec.loader.exec_module = begin
        return spec


def forget():
    for name in [name for name in sys.modules if name == P or name.startswith(P + ".")]:
        del sys.modules[name]


def waits(thread):
    '''Return True if a thread waits for an import of another one.'''
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and frame.f_code.co_filename == "<frozen importlib._bootstrap>" and frame.f_code.co_name == "acquire"


def order(first, pause, second):
    '''Return the errors if one thread imports `first` and pauses at `pause` while another imports `second`.'''
    forget()
    problems, reached, proceed = [], threading.Event(), threading.Event()

    def load(module):
        try:
            importlib.import_module(module)
        except BaseException as problem:
            problems.append(f"{first} at {pause}, {second}: {problem!r}")
        finally:
            reached.set()

    hook = Pause("first", pause, reached, proceed)
    sys.meta_path.insert(0, hook)
    try:
        one = threading.Thread(target=load, args=(first,), name="first")
        two = threading.Thread(target=load, args=(second,), name="second")
        one.start()
        reached.wait()
        two.start()
        while two.is_alive() and not waits(two):
            time.sleep(0.0005)
        proceed.set()
        one.join()
        two.join()
    finally:
        sys.meta_path.remove(hook)
    return problems


def loaded_by(module):
    forget()
    importlib.import_module(module)
    return sorted(name for name in sys.modules if name.startswith(P + "."))


operations = [P + ".operations" + end for end in ("", ".base", ".inputs", ".call")]
orders = [(a, pause, b) for a, b in itertools.permutations(operations, 2) for pause in loaded_by(a) if pause.startswith(operations[0])]
commands, discovery = P + ".notebook.commands", P + ".client.discovery"
for a, b in ((commands, discovery), (discovery, commands)):
    there = loaded_by(a)
    orders += [(a, pause, b) for pause in (*there[:: len(there) // 4], *operations[:3])]
problems = [problem for each in orders for problem in order(*each)]
print(len(orders), *problems, sep="\\n")
"""

WHILE_ANOTHER_IMPORTS = """
import importlib, os, sys, threading
from openruntime_jupyter import imports

begun, proceed = threading.Event(), threading.Event()


class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "colorsys":
            begun.set()
            proceed.wait()


sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=imports.load, args=("colorsys",))
thread.start()
begun.wait()
os.register_at_fork(before=proceed.set)  # handlers before a fork run last registered first
child = os.fork()
if child == 0:
    import colorsys
    imports.load("openruntime_jupyter.errors")
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
imports.load("openruntime_jupyter.errors")
thread.join()
"""

STUCK = """
import os, threading
from openruntime_jupyter import imports

imports.PATIENCE = 0.01
held, forked = threading.Event(), threading.Event()


def hold():
    with imports._lock:
        held.set()
        forked.wait()


thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    imports.load("openruntime_jupyter.errors")
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
forked.set()
thread.join()
imports.load("openruntime_jupyter.errors")
"""


def run(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_two_threads_import_in_any_order() -> None:
    orders, *problems = run(PROGRAM)
    assert int(orders) > 40
    assert not problems


def test_fork_waits_for_import_on_another_thread() -> None:
    assert run(WHILE_ANOTHER_IMPORTS) == ["0"]


def test_fork_does_not_wait_without_end() -> None:
    assert run(STUCK) == ["0"]


ONLY_LOCAL = """
import asyncio, sys, tempfile
from pathlib import Path
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings

async def main(folder):
    runtime = Runtime(Settings(data_dir=Path(folder)))
    await runtime.start()
    await runtime.stop()

with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(folder))
parts = ("openruntime_jupyter.engines.hosts.", "openruntime_jupyter.agent", "distributed")
print(sorted(name for name in sys.modules if name.startswith(parts)))
"""


def test_local_runtime_imports_no_engine_over_hosts() -> None:
    done = subprocess.run([sys.executable, "-c", ONLY_LOCAL], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "['openruntime_jupyter.engines.hosts.finder', 'openruntime_jupyter.engines.hosts.machine']\n"
