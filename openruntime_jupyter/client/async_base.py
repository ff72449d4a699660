"""Asynchronous client. Requests run in threads; one event subscription serves the waits of all tasks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import cached_property, partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from openruntime_jupyter.client.ai_response import Reply, ToolRun
from openruntime_jupyter.client.array_data import Arrays
from openruntime_jupyter.client.base import BaseClient
from openruntime_jupyter.client.code.futures import Completions
from openruntime_jupyter.client.handles import Output, PromptHandle, TaskHandle, after_cancel
from openruntime_jupyter.client.interruption import awaited, kernel_stops_soon_async, pulse, shown_as_line
from openruntime_jupyter.client.transport.retry import UNLIMITED, Limit, current_limit
from openruntime_jupyter.client.transport.watch import CONNECTED
from openruntime_jupyter.errors import NotConnected, OpenRuntimeError, Unavailable
from openruntime_jupyter.schemas.arrays import ArrayInfo, ArrayPage
from openruntime_jupyter.schemas.tasks import OutputItem, Task, TaskState

if TYPE_CHECKING:
    from typing_extensions import Self

Params = ParamSpec("Params")
Result = TypeVar("Result")

MOST_UNREAD = 10_000
"""Buffered messages per watcher."""


async def in_background(function: Callable[Params, Result], /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
    """Call a function in a thread. The stop button of a notebook ends the wait for it."""
    limit = current_limit() if current_limit() is not UNLIMITED else Limit()
    try:
        with pulse(), limit.applied():
            return await asyncio.to_thread(function, *args, **kwargs)
    except asyncio.CancelledError:
        limit.cancel()
        raise shown_as_line(asyncio.CancelledError("the request was interrupted")) from None


class AsyncTaskHandle:
    """Handle of a task for coroutines. Awaiting it returns the result."""

    def __init__(self, handle: TaskHandle, completions: Completions) -> None:
        self._handle = handle
        self._completions = completions

    @property
    def id(self) -> str:
        """Return the task's id."""
        return self._handle.id

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the task and return its result; see `TaskHandle.result`.

        Cancelling the wait does not cancel the task. Raises `asyncio.TimeoutError` if the task has not ended after `timeout` seconds.
        """
        future = self._completions.future(self._handle)
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        future.add_done_callback(lambda _: _on(loop, _settle, done))
        try:
            with pulse():
                await asyncio.wait_for(done, timeout)
        except asyncio.CancelledError:
            raise shown_as_line(asyncio.CancelledError(f"{self.id} continues to run: cancel() of its handle stops it")) from None
        return await in_background(self._handle.result, 0) if future.cancelled() else future.result()

    def __await__(self) -> Any:
        return self.result().__await__()

    async def task(self) -> Task:
        """Return the current record."""
        return await in_background(lambda: self._handle.task)

    async def status(self) -> TaskState:
        """Return the current state."""
        return (await self.task()).status

    async def output(self) -> Output:
        """Return the output so far."""
        return await in_background(lambda: self._handle.output)

    async def cancel(self) -> Task:
        """Cancel the task and return its final record."""
        return await in_background(self._handle.cancel)

    async def iter_output(self) -> AsyncIterator[OutputItem]:
        """Yield the output until the task's end; see `TaskHandle.iter_output`."""
        items = self._handle.iter_output()
        while (item := await in_background(next, items, None)) is not None:
            yield item

    async def payload(self) -> bytes:
        """Return the opaque result of Python code; see `TaskHandle.payload`."""
        return await in_background(self._handle.payload)

    async def set_priority(self, priority: int) -> Task:
        """Change the priority of the pending task. Raises `TaskConflict` once it has started."""
        return await in_background(self._handle.set_priority, priority)

    def __repr__(self) -> str:
        return f"<Async{self._handle!r}>".replace("<Async<", "<Async").replace(">>", ">")


class AsyncPromptHandle(AsyncTaskHandle):
    """Handle of an AI task for coroutines. Awaiting it returns the `Reply`; `async for piece in handle` streams the text."""

    def __init__(self, handle: PromptHandle, completions: Completions) -> None:
        super().__init__(handle, completions)
        self._prompt = handle
        self._one_at_a_time = asyncio.Lock()

    @property
    def calls(self) -> tuple[ToolRun, ...]:
        """Return the calls of Python functions so far."""
        return self._prompt.calls

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the task and return the response; see `PromptHandle.result`.

        Coroutine functions of `tools` run on the event loop, other functions in threads.
        """
        return self._prompt.result_of(await self.reply(timeout))

    async def reply(self, timeout: float | None = None) -> Reply:
        """Wait for the task and return the `Reply`; see `PromptHandle.reply`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            current = AsyncTaskHandle(self._prompt.round(), self._completions)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            reply = Reply.of(current.id, await current.result(left))
            if not await self._continue(reply):
                return self._prompt.finished(reply)

    async def _continue(self, reply: Reply) -> bool:
        """Return whether a reply has calls, after running them and submitting the next round."""
        rounds = self._prompt.rounds
        if rounds is None or not rounds.continues(reply):
            return False
        async with self._one_at_a_time:
            if reply.task_id == self._prompt.id:  # else another coroutine has done it
                if rounds.recorded != reply.task_id:
                    rounds.record(reply, [await rounds.run_async(call, in_background) for call in reply.tool_calls])
                self._prompt.follow(await in_background(rounds.submit))
        return True

    @property
    def left_out(self) -> int | None:
        """Return the number of conversation turns that did not fit the context; see `PromptHandle`."""
        return self._prompt.left_out

    async def __aiter__(self) -> AsyncIterator[str]:
        """Stream the text, of all rounds. Raises the errors of `result` at the end. Leaving the loop does not cancel the task."""
        while True:
            async for piece in self._stream_round():
                yield piece
            if self._prompt.rounds is None or not await self._continue(Reply.of(self.id, await in_background(self._prompt.round().result))):
                return

    async def _stream_round(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        received: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        left = threading.Event()

        def read() -> None:
            end: BaseException | None = None
            try:
                for piece in self._prompt.stream_round():
                    if left.is_set():
                        return
                    _on(loop, received.put_nowait, piece)
            except BaseException as problem:
                end = problem
            _on(loop, received.put_nowait, end)

        # A daemon thread: a stalled model must not block interpreter exit.
        threading.Thread(target=read, name=f"openruntime-read-{self.id}", daemon=True).start()
        try:
            while (piece := await received.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            left.set()


def _on(loop: asyncio.AbstractEventLoop, call: Callable[[Any], None], argument: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed and has no waiters
        loop.call_soon_threadsafe(call, argument)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def in_thread(
    method: Callable[Concatenate[BaseClient, Params], Result],
) -> Callable[Concatenate[BaseAsyncClient, Params], Coroutine[Any, Any, Result]]:
    """Return the coroutine method that runs a method of `Client` in a thread, with its signature and docstring."""

    @wraps(method)
    async def call(self: BaseAsyncClient, /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
        return await in_background(method, self.client, *args, **kwargs)

    return call


class AsyncArrays:
    """Arrays of a runtime by name, for coroutines; see `Arrays`."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    async def put(self, name: str, value: Any, *, shape: Sequence[int] | None = None, dtype: str | None = None) -> ArrayInfo:
        """Send an array under a name; see `Arrays.put`."""
        return await in_background(self._arrays.put, name, value, shape=shape, dtype=dtype)

    async def get(self, name: str) -> Any:
        """Return an array. Raises `ArrayNotFound`."""
        return await in_background(self._arrays.get, name)

    async def reserve(self, shape: Sequence[int], dtype: str) -> ArrayInfo:
        """Reserve space for an array; see `Arrays.reserve`."""
        return await in_background(self._arrays.reserve, shape, dtype)

    async def mark_ready(self, name: str) -> ArrayInfo:
        """Mark a reserved array as complete; see `Arrays.mark_ready`."""
        return await in_background(self._arrays.mark_ready, name)

    async def info(self, name: str) -> ArrayInfo:
        """Return the metadata of an array. Raises `ArrayNotFound`."""
        return await in_background(self._arrays.info, name)

    async def list(self) -> ArrayPage:
        """Return the metadata of all arrays, newest first."""
        return await in_background(self._arrays.list)

    async def delete(self, name: str) -> ArrayInfo:
        """Delete an array and return its metadata. Raises `ArrayNotFound`."""
        return await in_background(self._arrays.delete, name)


class BaseAsyncClient:
    """Asynchronous counterpart of `BaseClient`, available as `client.aio`. Cancelling `run` cancels the task."""

    def __init__(self, client: BaseClient, completions: Completions | None = None) -> None:
        self.client = client
        self._completions = completions or Completions(client.backend)

    def with_options(self, **changes: Any) -> Self:
        """Return a client with other submission options; see `Client.with_options`."""
        return type(self)(self.client.with_options(**changes), self._completions)

    async def submit(self, operation: str, /, **parameters: Any) -> AsyncTaskHandle:
        """Submit a task; see `Client.submit`."""
        return await self._submitted(partial(self.client.submit, operation, **parameters))

    async def run(self, operation: str, /, **parameters: Any) -> Any:
        """Run a task and return its output; see `Client.run`."""
        return await self._finish(partial(self.client.submit, operation, **parameters))

    async def task(self, task_id: str) -> AsyncTaskHandle:
        """Return the handle of a task, an `AsyncPromptHandle` for AI tasks. Raises `TaskNotFound`."""
        return self._handle(await in_background(self.client.task, task_id))

    async def ask(self, prompt: str, /, workflow: str = "model_inference", **parameters: Any) -> AsyncPromptHandle:
        """Submit a prompt; see `Client.ask`."""
        await in_background(self._completions.open)
        handle = await in_background(partial(self.client.ask, prompt, workflow, **parameters))
        return AsyncPromptHandle(handle, self._completions)

    async def submit_batch(self, tasks: Iterable[Mapping[str, Any]]) -> list[AsyncTaskHandle | OpenRuntimeError]:
        """Submit many tasks; see `Client.submit_batch`."""
        await in_background(self._completions.open)
        outcomes = await in_background(self.client.submit_batch, tasks)
        return [each if isinstance(each, OpenRuntimeError) else self._handle(each) for each in outcomes]

    async def submit_for_output(self, operation: str, wait: float = 15.0, /, **parameters: Any) -> AsyncTaskHandle:
        """Submit a task and wait for its first output; see `Client.submit_for_output`."""
        return await self._submitted(partial(self.client.submit_for_output, operation, wait, **parameters))

    async def results(self, tasks: Iterable[AsyncTaskHandle | OpenRuntimeError]) -> list[Any]:
        """Wait for many tasks, and return for each in order its result or its error; see `Client.results`."""
        tasks = list(tasks)
        waited = await asyncio.gather(*(each.result() for each in tasks if isinstance(each, AsyncTaskHandle)), return_exceptions=True)
        ended = iter(waited)
        return [each if isinstance(each, OpenRuntimeError) else next(ended) for each in tasks]

    async def iter_tasks(self, **filters: Any) -> AsyncIterator[Task]:
        """Yield all tasks, newest first; see `Client.iter_tasks`."""
        tasks = self.client.iter_tasks(**filters)
        while (task := await in_background(next, tasks, None)) is not None:
            yield task

    @cached_property
    def arrays(self) -> AsyncArrays:
        """Return the arrays of the runtime by name: `await client.aio.arrays.get("weights")`."""
        return AsyncArrays(self.client.arrays)

    async def again(self, task_id: str, **options: Any) -> AsyncTaskHandle:
        """Submit the work of a task again; see `Client.again`."""
        return await self._submitted(partial(self.client.again, task_id, **options))

    agents = in_thread(BaseClient.agents)
    workflows = in_thread(BaseClient.workflows)
    models = in_thread(BaseClient.models)
    unload = in_thread(BaseClient.unload)
    conversations = in_thread(BaseClient.conversations)
    conversation = in_thread(BaseClient.conversation)
    delete_conversation = in_thread(BaseClient.delete_conversation)
    tasks = in_thread(BaseClient.tasks)
    cancel = in_thread(BaseClient.cancel)
    sessions = in_thread(BaseClient.sessions)
    restart_session = in_thread(BaseClient.restart_session)
    free_session = in_thread(BaseClient.free_session)
    find_session = in_thread(BaseClient.find_session)
    devices = in_thread(BaseClient.devices)
    hosts = in_thread(BaseClient.hosts)
    workers = in_thread(BaseClient.workers)
    metrics = in_thread(BaseClient.metrics)
    metrics_history = in_thread(BaseClient.metrics_history)
    insights = in_thread(BaseClient.insights)
    health = in_thread(BaseClient.health)
    operations = in_thread(BaseClient.operations)

    async def watch(self, topics: Iterable[str] = ("task_update",)) -> AsyncIterator[dict[str, Any]]:
        """Yield events; see `Client.watch`. A watcher `MOST_UNREAD` messages behind gets `connected` with `gap` instead."""
        loop = asyncio.get_running_loop()
        received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        def receive(message: dict[str, Any]) -> None:
            if received.qsize() >= MOST_UNREAD:
                while not received.empty():
                    received.get_nowait()
                received.put_nowait({"type": CONNECTED, "gap": True})
            received.put_nowait(message)

        watch = self.client.watch(topics, lambda message: _on(loop, receive, message))
        try:
            while True:
                yield await received.get()
        finally:
            watch.close()

    async def close(self) -> None:
        """Close the connection. Tasks keep running."""
        self.let_go()
        await in_background(self.client.close)

    def let_go(self) -> None:
        """Unsubscribe from events once all waits have ended."""
        self._completions.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _submitted(self, submit: Callable[[], TaskHandle]) -> AsyncTaskHandle:
        await in_background(self._completions.open)
        return self._handle(await in_background(submit))

    def _handle(self, handle: TaskHandle) -> AsyncTaskHandle:
        if isinstance(handle, PromptHandle):
            return AsyncPromptHandle(handle, self._completions)
        return AsyncTaskHandle(handle, self._completions)

    async def _finish(self, submit: Callable[[], TaskHandle]) -> Any:
        task_ids: list[str] = []

        def submit_awaited() -> TaskHandle:
            handle = submit()
            task_ids.append(handle.id)
            awaited.update(task_ids)
            return handle

        limit = Limit(self.client.options.deadline)
        with limit.applied():
            submitted = asyncio.ensure_future(self._submitted(submit_awaited))
        try:
            with pulse():
                handle = await asyncio.wait_for(asyncio.shield(submitted), limit.left())
            return await handle.result(limit.left())
        except (asyncio.TimeoutError, Unavailable, NotConnected):
            if not limit.ended:
                raise
            became = await _cancelled(submitted, self.client.leave)
            raise TimeoutError(f"no result within {self.client.options.deadline:g} s: {became}") from None
        except asyncio.CancelledError:
            limit.cancel()
            raise shown_as_line(asyncio.CancelledError(await asyncio.shield(_cancelled(submitted, self.client.leave)))) from None
        finally:
            awaited.difference_update(task_ids)


async def _cancelled(submitted: asyncio.Future[AsyncTaskHandle], leave: Callable[[str], str]) -> str:
    """Cancel a task, whose submission may still be under way, unless the kernel stops. Return what became of it."""
    try:
        handle = await submitted
        if await kernel_stops_soon_async():
            return leave(handle.id)
        return after_cancel(await handle.cancel())
    except OpenRuntimeError as problem:
        return f"the task could not be cancelled ({problem})"
