"""The Python face of a runtime for coroutines: questions go through threads, waits through one watch for all tasks."""

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

Answer = TypeVar("Answer")


MOST_UNREAD = 10_000
"""Messages that wait for one who watches."""


class AsyncTaskHandle:
    """One task of one runtime, for coroutines. Awaiting it gives its result."""

    def __init__(self, handle: TaskHandle, completions: Completions) -> None:
        self._handle = handle
        self._completions = completions

    @property
    def id(self) -> str:
        """The task's id."""
        return self._handle.id

    async def result(self, timeout: float | None = None) -> Any:
        """What the task returned, once it has ended; see `TaskHandle.result`.

        Cancelling the wait does nothing to the task. Raises `asyncio.TimeoutError` if it has not ended after `timeout` seconds.
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
        """The record as it is now."""
        return await asyncio.to_thread(lambda: self._handle.task)

    async def status(self) -> TaskState:
        """Its state as it is now."""
        return (await self.task()).status

    async def output(self) -> Output:
        """What it printed and displayed so far."""
        return await asyncio.to_thread(lambda: self._handle.output)

    async def cancel(self) -> Task:
        """Stop it; returns its record once it has ended."""
        return await asyncio.to_thread(self._handle.cancel)

    async def set_priority(self, priority: int) -> Task:
        """Change the priority while it waits; raises `TaskConflict` once it was started."""
        return await asyncio.to_thread(self._handle.set_priority, priority)

    def __repr__(self) -> str:
        return f"<Async{self._handle!r}>".replace("<Async<", "<Async").replace(">>", ">")


class AsyncPromptHandle(AsyncTaskHandle):
    """One AI task, for coroutines. Awaiting it gives its `Reply`; `async for piece in handle` the text as it is written."""

    def __init__(self, handle: PromptHandle, completions: Completions) -> None:
        super().__init__(handle, completions)
        self._prompt = handle

    @property
    def left_out(self) -> int | None:
        """See `PromptHandle`."""
        return self._prompt.left_out

    async def __aiter__(self) -> AsyncIterator[str]:
        """The text piece by piece; at the end raises what `result` raises. Leaving the loop cancels nothing."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        left = threading.Event()

        def read() -> None:
            end: BaseException | None = None
            try:
                for piece in self._prompt:
                    if left.is_set():
                        return
                    _on(loop, heard.put_nowait, piece)
            except BaseException as problem:
                end = problem
            _on(loop, heard.put_nowait, end)

        # A daemon: the end of the program does not wait for a model that is silent.
        threading.Thread(target=read, name=f"openruntime-read-{self.id}", daemon=True).start()
        try:
            while (piece := await heard.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            left.set()


def _on(loop: asyncio.AbstractEventLoop, call: Callable[[Any], None], argument: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(call, argument)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


class AsyncClient:
    """`client.aio`: what `Client` does, for coroutines. One that is cancelled while it waits in `run` or `call` cancels its task."""

    def __init__(self, client: Client, completions: Completions | None = None) -> None:
        self.client = client
        self._completions = completions or Completions(client.backend)

    def with_options(self, **changes: Any) -> AsyncClient:
        """The same runtime with other options for what is submitted; see `Client.with_options`."""
        return AsyncClient(self.client.with_options(**changes), self._completions)

    async def submit(self, operation: str, /, **parameters: Any) -> AsyncTaskHandle:
        """Queue one task; see `Client.submit`."""
        return await self._submitted(partial(self.client.submit, operation, **parameters))

    async def run(self, operation: str, /, **parameters: Any) -> Any:
        """Do one task and return its output; see `Client.run`."""
        return await self._finish(await self.submit(operation, **parameters))

    async def submit_call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AsyncTaskHandle:
        """Queue a call; see `Client.submit_call`."""
        return await self._submitted(partial(self.client.submit_call, function, *args, **kwargs))

    async def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Have a worker compute `function(*args, **kwargs)`; see `Client.call`."""
        return await self._finish(await self.submit_call(function, *args, **kwargs))

    async def map(self, function: Callable[[Any], Any], iterable: Iterable[Any], /, **options: Any) -> list[Any]:
        """`function(item)` for each item, in order; see `Client.map`."""
        return await asyncio.to_thread(partial(self.client.map, function, iterable, **options))

    async def task(self, task_id: str) -> AsyncTaskHandle:
        """The task of that id; an AI task is an `AsyncPromptHandle`. Raises `TaskNotFound`."""
        return self._handle(await asyncio.to_thread(self.client.task, task_id))

    async def ask(self, prompt: str, /, workflow: str = "model_inference", **parameters: Any) -> AsyncPromptHandle:
        """Ask a model; see `Client.ask`."""
        await asyncio.to_thread(self._completions.open)
        handle = await asyncio.to_thread(partial(self.client.ask, prompt, workflow, **parameters))
        return AsyncPromptHandle(handle, self._completions)

    async def agents(self) -> AgentList:
        """The roles that a model can be given."""
        return await asyncio.to_thread(self.client.agents)

    async def workflows(self) -> list[WorkflowInfo]:
        """What a prompt can be for."""
        return await asyncio.to_thread(self.client.workflows)

    async def models(self) -> ModelList:
        """The models that can be asked, and the remote providers."""
        return await asyncio.to_thread(self.client.models)

    async def unload(self, name: str) -> list[str]:
        """Free the memory of an idle model; see `Client.unload`."""
        return await asyncio.to_thread(self.client.unload, name)

    async def conversations(self, owner: str | None = None) -> list[ConversationInfo]:
        """Conversations; see `Client.conversations`."""
        return await asyncio.to_thread(self.client.conversations, owner)

    async def conversation(self, name: str, owner: str | None = None) -> Conversation:
        """What was said in one; see `Client.conversation`."""
        return await asyncio.to_thread(self.client.conversation, name, owner)

    async def delete_conversation(self, name: str, owner: str | None = None) -> Conversation:
        """Erase one; see `Client.delete_conversation`."""
        return await asyncio.to_thread(self.client.delete_conversation, name, owner)

    async def tasks(self, **filters: Any) -> TaskPage:
        """A page of tasks; see `Client.tasks`."""
        return await asyncio.to_thread(partial(self.client.tasks, **filters))

    async def cancel(self, task_id: str) -> Task:
        """Stop the task of that id; returns its record once it has ended."""
        return await asyncio.to_thread(self.client.cancel, task_id)

    async def again(self, task_id: str, **options: Any) -> AsyncTaskHandle:
        """Queue the same work as that task's once more; see `Client.again`."""
        return await self._submitted(partial(self.client.again, task_id, **options))

    async def sessions(self) -> list[Session]:
        """Return every session of the runtime, the last used first; `with_options(session=NAME)` runs tasks in one."""
        return await asyncio.to_thread(self.client.sessions)

    async def restart_session(self, session: str) -> Session:
        """End the worker of a session (name or id); its next task starts with an empty namespace."""
        return await asyncio.to_thread(self.client.restart_session, session)

    async def free_session(self, session: str) -> Session:
        """End a session (name or id) and give its memory back; return what it was."""
        return await asyncio.to_thread(self.client.free_session, session)

    async def devices(self) -> list[Device]:
        """What MLX computes on."""
        return await asyncio.to_thread(self.client.devices)

    async def metrics(self) -> SystemMetrics:
        """The figures of now."""
        return await asyncio.to_thread(self.client.metrics)

    async def health(self) -> Health:
        """Whether all is well."""
        return await asyncio.to_thread(self.client.health)

    async def operations(self) -> list[OperationInfo]:
        """The kinds of work there are."""
        return await asyncio.to_thread(self.client.operations)

    async def watch(self, topics: Iterable[str] = ("task_update",)) -> AsyncIterator[dict[str, Any]]:
        """What happens, as it happens; see `Client.watch`. One who is `MOST_UNREAD` messages behind gets `connected` with `gap` instead."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        def hear(message: dict[str, Any]) -> None:
            if heard.qsize() >= MOST_UNREAD:
                while not heard.empty():
                    heard.get_nowait()
                heard.put_nowait({"type": CONNECTED, "gap": True})
            heard.put_nowait(message)

        watch = self.client.watch(topics, lambda message: _on(loop, hear, message))
        try:
            while True:
                yield await heard.get()
        finally:
            watch.close()

    async def close(self) -> None:
        """Let go of the connection; tasks go on."""
        self.let_go()
        await asyncio.to_thread(self.client.close)

    def let_go(self) -> None:
        """Hear of no more ends than those that are waited for."""
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
