"""Asynchronous client. Requests run in threads; one event subscription serves the waits of all tasks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from openruntime_jupyter.client.futures import Completions
from openruntime_jupyter.client.handles import Output, PromptHandle, TaskHandle
from openruntime_jupyter.client.transport.watch import CONNECTED
from openruntime_jupyter.schemas.ai import AgentList, Conversation, ConversationInfo, ModelList, WorkflowInfo
from openruntime_jupyter.schemas.sessions import Session
from openruntime_jupyter.schemas.system import Device, Health, OperationInfo, SystemMetrics
from openruntime_jupyter.schemas.tasks import Task, TaskPage, TaskState

if TYPE_CHECKING:
    from typing_extensions import Self

    from openruntime_jupyter.client.client import Client

Result = TypeVar("Result")


MOST_UNREAD = 10_000
"""Buffered messages per watcher."""


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
        await asyncio.wait_for(done, timeout)
        return await asyncio.to_thread(self._handle.result, 0) if future.cancelled() else future.result()

    def __await__(self) -> Any:
        return self.result().__await__()

    async def task(self) -> Task:
        """Return the current record."""
        return await asyncio.to_thread(lambda: self._handle.task)

    async def status(self) -> TaskState:
        """Return the current state."""
        return (await self.task()).status

    async def output(self) -> Output:
        """Return the output so far."""
        return await asyncio.to_thread(lambda: self._handle.output)

    async def cancel(self) -> Task:
        """Cancel the task and return its final record."""
        return await asyncio.to_thread(self._handle.cancel)

    async def set_priority(self, priority: int) -> Task:
        """Change the priority of the pending task. Raises `TaskConflict` once it has started."""
        return await asyncio.to_thread(self._handle.set_priority, priority)

    def __repr__(self) -> str:
        return f"<Async{self._handle!r}>".replace("<Async<", "<Async").replace(">>", ">")


class AsyncPromptHandle(AsyncTaskHandle):
    """Handle of an AI task for coroutines. Awaiting it returns the `Reply`; `async for piece in handle` streams the text."""

    def __init__(self, handle: PromptHandle, completions: Completions) -> None:
        super().__init__(handle, completions)
        self._prompt = handle

    @property
    def left_out(self) -> int | None:
        """Return the number of conversation turns that did not fit the context; see `PromptHandle`."""
        return self._prompt.left_out

    async def __aiter__(self) -> AsyncIterator[str]:
        """Stream the text. Raises the errors of `result` at the end. Leaving the loop does not cancel the task."""
        loop = asyncio.get_running_loop()
        received: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        left = threading.Event()

        def read() -> None:
            end: BaseException | None = None
            try:
                for piece in self._prompt:
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


class AsyncClient:
    """Asynchronous counterpart of `Client`, available as `client.aio`. Cancelling `run` or `call` cancels the task."""

    def __init__(self, client: Client, completions: Completions | None = None) -> None:
        self.client = client
        self._completions = completions or Completions(client.backend)

    def with_options(self, **changes: Any) -> AsyncClient:
        """Return a client with other submission options; see `Client.with_options`."""
        return AsyncClient(self.client.with_options(**changes), self._completions)

    async def submit(self, operation: str, /, **parameters: Any) -> AsyncTaskHandle:
        """Submit a task; see `Client.submit`."""
        return await self._submitted(partial(self.client.submit, operation, **parameters))

    async def run(self, operation: str, /, **parameters: Any) -> Any:
        """Run a task and return its output; see `Client.run`."""
        return await self._finish(await self.submit(operation, **parameters))

    async def submit_call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AsyncTaskHandle:
        """Submit a function call; see `Client.submit_call`."""
        return await self._submitted(partial(self.client.submit_call, function, *args, **kwargs))

    async def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run `function(*args, **kwargs)` in a worker and return its value; see `Client.call`."""
        return await self._finish(await self.submit_call(function, *args, **kwargs))

    async def map(self, function: Callable[[Any], Any], iterable: Iterable[Any], /, **options: Any) -> list[Any]:
        """Return `function(item)` for each item, in order; see `Client.map`."""
        return await asyncio.to_thread(partial(self.client.map, function, iterable, **options))

    async def task(self, task_id: str) -> AsyncTaskHandle:
        """Return the handle of a task, an `AsyncPromptHandle` for AI tasks. Raises `TaskNotFound`."""
        return self._handle(await asyncio.to_thread(self.client.task, task_id))

    async def ask(self, prompt: str, /, workflow: str = "model_inference", **parameters: Any) -> AsyncPromptHandle:
        """Submit a prompt; see `Client.ask`."""
        await asyncio.to_thread(self._completions.open)
        handle = await asyncio.to_thread(partial(self.client.ask, prompt, workflow, **parameters))
        return AsyncPromptHandle(handle, self._completions)

    async def agents(self) -> AgentList:
        """Return the available agents."""
        return await asyncio.to_thread(self.client.agents)

    async def workflows(self) -> list[WorkflowInfo]:
        """Return the available workflows."""
        return await asyncio.to_thread(self.client.workflows)

    async def models(self) -> ModelList:
        """Return the available models and remote providers."""
        return await asyncio.to_thread(self.client.models)

    async def unload(self, name: str) -> list[str]:
        """Free the memory of an idle model; see `Client.unload`."""
        return await asyncio.to_thread(self.client.unload, name)

    async def conversations(self, owner: str | None = None) -> list[ConversationInfo]:
        """Return the conversations; see `Client.conversations`."""
        return await asyncio.to_thread(self.client.conversations, owner)

    async def conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Return a conversation with its turns; see `Client.conversation`."""
        return await asyncio.to_thread(self.client.conversation, name, owner)

    async def delete_conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Delete a conversation; see `Client.delete_conversation`."""
        return await asyncio.to_thread(self.client.delete_conversation, name, owner)

    async def tasks(self, **filters: Any) -> TaskPage:
        """Return a page of tasks; see `Client.tasks`."""
        return await asyncio.to_thread(partial(self.client.tasks, **filters))

    async def cancel(self, task_id: str) -> Task:
        """Cancel a task and return its final record."""
        return await asyncio.to_thread(self.client.cancel, task_id)

    async def again(self, task_id: str, **options: Any) -> AsyncTaskHandle:
        """Submit the work of a task again; see `Client.again`."""
        return await self._submitted(partial(self.client.again, task_id, **options))

    async def sessions(self) -> list[Session]:
        """Return all sessions, most recently used first. `with_options(session=NAME)` runs tasks in one."""
        return await asyncio.to_thread(self.client.sessions)

    async def restart_session(self, session: str) -> Session:
        """End the worker of a session (name or id); its next task starts with an empty namespace."""
        return await asyncio.to_thread(self.client.restart_session, session)

    async def free_session(self, session: str) -> Session:
        """End a session (name or id), free its memory and return its last record."""
        return await asyncio.to_thread(self.client.free_session, session)

    async def devices(self) -> list[Device]:
        """Return the compute devices."""
        return await asyncio.to_thread(self.client.devices)

    async def metrics(self) -> SystemMetrics:
        """Return the current metrics."""
        return await asyncio.to_thread(self.client.metrics)

    async def health(self) -> Health:
        """Return the health report."""
        return await asyncio.to_thread(self.client.health)

    async def operations(self) -> list[OperationInfo]:
        """Return the available operations."""
        return await asyncio.to_thread(self.client.operations)

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
        await asyncio.to_thread(self.client.close)

    def let_go(self) -> None:
        """Unsubscribe from events once all waits have ended."""
        self._completions.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _submitted(self, submit: Callable[[], TaskHandle]) -> AsyncTaskHandle:
        await asyncio.to_thread(self._completions.open)
        return self._handle(await asyncio.to_thread(submit))

    def _handle(self, handle: TaskHandle) -> AsyncTaskHandle:
        if isinstance(handle, PromptHandle):
            return AsyncPromptHandle(handle, self._completions)
        return AsyncTaskHandle(handle, self._completions)

    async def _finish(self, handle: AsyncTaskHandle) -> Any:
        try:
            return await handle.result()
        except asyncio.CancelledError:
            await asyncio.shield(handle.cancel())
            raise
