"""Real runtime with real workers on the event loop of the test."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle

from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import Task, TaskRequest

ME = Caller("me")

Value = TypeVar("Value")


@asynccontextmanager
async def runtime_in(folder: Path, **settings: Any) -> AsyncIterator[Runtime]:
    """Start a runtime with its data in `folder` and stop it at the end. By default it has one slot and no spare workers."""
    settings.setdefault("cpu_slots", 1)
    settings.setdefault("spare_workers", 0)
    runtime = Runtime(Settings(data_dir=folder, **settings))
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.stop()


def live(body: Coroutine[Any, Any, Value]) -> Value:
    """Run the coroutine of a test in a new event loop."""
    return asyncio.run(body)


async def submit(runtime: Runtime, operation: str, parameters: dict[str, Any] | None = None, **fields: Any) -> str:
    """Submit a task and return its id."""
    return (await runtime.submit(TaskRequest(operation=operation, parameters=parameters or {}, **fields), ME)).task_id


async def cell(runtime: Runtime, code: str, **fields: Any) -> str:
    """Submit a `python` task and return its id."""
    return await submit(runtime, "python", {"code": code}, **fields)


ENDLESS = "import time\nprint('in', flush=True)\nwhile True: time.sleep(0.01)"


async def busy(runtime: Runtime, **fields: Any) -> str:
    """Submit a cell that runs until it is stopped, wait until it runs, and return its id."""
    task_id = await cell(runtime, ENDLESS, **fields)
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


async def value(runtime: Runtime, task_id: str) -> Any:
    """Return the result of a completed `call`, or the outputs of a cell."""
    task = await ended(runtime, task_id)
    assert task.status == "completed", task.failure
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


async def says(runtime: Runtime, task_id: str, text: str, seconds: float = 60.0) -> None:
    """Wait until the task has printed `text`, so that its code is running."""

    async def there() -> bool:
        return text in await printed(runtime, task_id)

    await until(there, seconds, f"{task_id} prints {text!r}")
