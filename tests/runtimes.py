"""Real runtime with real workers on the event loop of the test."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import pytest
from jupyter_core.utils import ensure_event_loop

from openruntime_jupyter.engines.hosts.finder import HostsSetup
from openruntime_jupyter.engines.local import LocalEngine, LocalOptions
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import Failure, Task, TaskRequest

ME = Caller("me")

Value = TypeVar("Value")


@asynccontextmanager
async def runtime_in(
    folder: Path, *, interpreter: str | None = None, hosts: HostsSetup | None = None, **settings: Any
) -> AsyncIterator[Runtime]:
    """Start a runtime with its data in `folder` and stop it at the end. By default it has one slot and no spare workers.

    `interpreter` is the Python of its workers, by default that of this process; `hosts` are other hosts that run its tasks.
    """
    settings.setdefault("cpu_slots", 1)
    settings.setdefault("spare_workers", 0)
    chosen = Settings(data_dir=folder, **settings)
    engine = interpreter and LocalEngine(LocalOptions(chosen.payloads, chosen.temporary, interpreter=interpreter))
    runtime = Runtime(chosen, engine or None, hosts=hosts)
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.stop()


@pytest.fixture(scope="module", autouse=True)
def jp_asyncio_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Event loop of all tests of a module, so that they can share a runtime."""
    loop = ensure_event_loop(prefer_selector_loop=True)
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def runtime(jp_asyncio_loop: asyncio.AbstractEventLoop, engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Runtime with one slot and no spares, which the independent tests of a module share."""
    context = runtime_in(tmp_path_factory.mktemp("runtime"))
    yield jp_asyncio_loop.run_until_complete(context.__aenter__())
    jp_asyncio_loop.run_until_complete(context.__aexit__(None, None, None))


def live(body: Coroutine[Any, Any, Value]) -> Value:
    """Run the coroutine of a test in a new event loop."""
    return asyncio.run(body)


def python_that(folder: Path, start: str) -> str:
    """Write a script that runs this Python after `start`, such as a condition or variables, and return its path."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\n{start} exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return str(script)


async def submit(runtime: Runtime, operation: str, parameters: dict[str, Any] | None = None, **fields: Any) -> str:
    """Submit a task and return its id."""
    return (await runtime.submit(TaskRequest(operation=operation, parameters=parameters or {}, **fields), ME)).task_id


async def cell(runtime: Runtime, code: str, **fields: Any) -> str:
    """Submit a `python` task and return its id."""
    return await submit(runtime, "python", {"code": code}, **fields)


ENDLESS = "import time\nprint('in', flush=True)\nwhile True: time.sleep(0.01)"


async def busy(runtime: Runtime, code: str = ENDLESS, **fields: Any) -> str:
    """Submit a cell, by default one that runs until it is stopped, wait until it prints `in`, and return its id."""
    task_id = await cell(runtime, code, **fields)
    await says(runtime, task_id, "in")
    return task_id


def pickled(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Return the parameters of a `call`. The function is pickled by value, so workers need not import the tests."""
    module = sys.modules[function.__module__]
    if module.__name__.startswith("tests."):
        cloudpickle.register_pickle_by_value(module)
    return {"pickled": base64.b64encode(cloudpickle.dumps((function, arguments, {}))).decode()}


async def ended(runtime: Runtime, task_id: str, seconds: float = 90.0) -> Task:
    """Wait for the end of a task and return it. Raise AssertionError after `seconds`."""
    task = await runtime.tasks.wait(task_id, seconds)
    assert task.status.terminal, f"{task_id} is still {task.status} after {seconds} s"
    return task


async def completed(runtime: Runtime, task_id: str, seconds: float = 90.0) -> Task:
    """Wait for a task that must complete and return it."""
    task = await ended(runtime, task_id, seconds)
    assert task.status == "completed", task.failure
    return task


async def failed(runtime: Runtime, task_id: str, seconds: float = 90.0) -> Failure:
    """Wait for a task that must fail and return its failure."""
    task = await ended(runtime, task_id, seconds)
    assert task.status == "failed", task.status
    assert task.failure is not None
    return task.failure


async def output_of(runtime: Runtime, operation: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run an operation that must complete and return its output."""
    task = await completed(runtime, await submit(runtime, operation, parameters))
    assert task.result is not None
    return task.result.output


async def value(runtime: Runtime, task_id: str) -> Any:
    """Return the result of a completed `call`, or the outputs of a cell."""
    await completed(runtime, task_id)
    data, _ = await runtime.tasks.payload(task_id)
    return cloudpickle.loads(data if isinstance(data, bytes) else data.read_bytes())


async def printed(runtime: Runtime, task_id: str, name: str = "stdout") -> str:
    """Return the output of a task so far in this stream."""
    output = await runtime.tasks.output(task_id)
    return "".join(item.text or "" for item in output.items if item.name == name)


async def until(condition: Callable[[], Any], seconds: float = 60.0, what: str = "the condition") -> Any:
    """Poll and return the first true value of `condition()`, a function or coroutine function."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert asyncio.get_running_loop().time() < deadline, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.01)


async def waits_for(runtime: Runtime, task_id: str, text: str, seconds: float = 60.0) -> None:
    """Wait until the pending task waits for something whose description contains `text`."""

    async def there() -> bool:
        return text in ((await runtime.tasks.get(task_id)).waiting_for or "")

    await until(there, seconds, f"{task_id} waits for {text!r}")


async def says(runtime: Runtime, task_id: str, text: str, seconds: float = 60.0) -> None:
    """Wait until the task has printed `text`, so that its code is running."""

    async def there() -> bool:
        return text in await printed(runtime, task_id)

    await until(there, seconds, f"{task_id} prints {text!r}")
