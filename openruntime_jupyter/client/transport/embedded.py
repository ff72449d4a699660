"""Embedded runtime: hosted by this process, on an event loop in a separate thread.

It starts at first use and stops when the interpreter exits. If the process is killed, the workers detect it and exit.
"""

from __future__ import annotations

import asyncio
import atexit
import getpass
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout  # a separate class before Python 3.11
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from openruntime_jupyter.arrays.array_file import check_bounds
from openruntime_jupyter.client.transport.events import BusEvents, Listening
from openruntime_jupyter.client.transport.forks import reset_in_child
from openruntime_jupyter.client.transport.prompts_embedded import EmbeddedPrompts
from openruntime_jupyter.client.transport.protocol import LONGEST_WAIT
from openruntime_jupyter.client.transport.watch import Tell, Watch
from openruntime_jupyter.errors import ArrayNotFound, NotConnected, OpenRuntimeError
from openruntime_jupyter.imports import load
from openruntime_jupyter.operations.base import invalid
from openruntime_jupyter.operations.registry import describe_operations
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.arrays import ArrayInfo
from openruntime_jupyter.schemas.insights import Insights, InsightsRequest, MetricType, WordingChoice
from openruntime_jupyter.schemas.sessions import Session
from openruntime_jupyter.schemas.system import Device, Health, MetricsHistory, OperationInfo, SystemMetrics, Timeframe, Worker
from openruntime_jupyter.schemas.tasks import Ended, Task, TaskOrder, TaskOutput, TaskPage, TaskRequest, TaskState
from openruntime_jupyter.schemas.values import ArrayKind

if TYPE_CHECKING:
    from openruntime_jupyter.ai.config import AiConfig
    from openruntime_jupyter.ai.service import AiService
    from openruntime_jupyter.runtime.runtime import Caller, Runtime

STOP_SECONDS = 5.0
"""Seconds that interpreter exit waits for the runtime to stop."""

STOPPED = "The runtime of this process was stopped: use it again to start a new one"

FORKED = (
    "A forked child can't use the runtime of its parent: use the spawn start method (multiprocessing.get_context('spawn')), or "
    "connect() to a server in the child (jupyter openruntime starts one)"
)

# Runs before `concurrent.futures` shuts down its executors, which stopping needs. `atexit` functions run after that shutdown.
at_exit: Callable[[Callable[[], object]], object] = getattr(threading, "_register_atexit", atexit.register)

Result = TypeVar("Result")


class EmbeddedBackend:
    """`Backend` with a runtime in this process. Most programs use `embedded()`, the shared instance."""

    where = "embedded"
    local = True

    def __init__(self, settings: Settings | None = None, ai: AiConfig | None = None) -> None:
        self._settings = settings or Settings(embedded=True, label=_label())
        self._ai = ai
        self._lock = threading.Lock()
        self._hosted: _Hosted | None = None
        self._hosting = False
        self._of_parent: _Hosted | None = None
        self._events = BusEvents(self._listen)
        reset_in_child(self)

    def after_fork(self) -> None:
        """Reset the state in a forked child. The runtime stays in the parent, because its threads are not forked."""
        global _forked_from_host
        self._lock = threading.Lock()
        if self._hosting:
            # Referenced so that no destructor runs: sockets, workers and files belong to the parent.
            self._of_parent, self._hosted, self._hosting = self._hosted, None, False
            _forked_from_host = True

    @property
    def started(self) -> bool:
        """Return whether the runtime is running. If not, the next request starts it."""
        return self._hosted is not None

    def submit(self, request: dict[str, Any], key: str, wait: float = 0.0) -> Task:
        """Submit a task and return its record."""

        async def submit(runtime: Runtime) -> Task:
            task_id = await runtime.submission.submit(_asynchronous(request), _caller(), key)
            return await (runtime.tasks.wait(task_id, wait, parameters=False) if wait > 0 else runtime.tasks.get(task_id, parameters=False))

        return self._ask(submit)

    def submit_followed(self, request: dict[str, Any], key: str, wait: float) -> TaskOutput:
        """Submit a task and return its output with the record."""

        async def submit(runtime: Runtime) -> TaskOutput:
            return await runtime.tasks.output(await runtime.submission.submit(_asynchronous(request), _caller(), key), 0, wait, record=True)

        return self._ask(submit)

    def submit_many(self, requests: list[dict[str, Any]], key: str, durable: bool = True) -> list[Task | OpenRuntimeError]:
        """Submit a batch of tasks and return their records or errors."""
        return self._ask(lambda runtime: runtime.batches.submit(requests, _caller(), key, durable=durable))

    def collect(self, task_ids: list[str], at_least: int = 1, wait: float = 0.0) -> list[Ended]:
        """Return the ended tasks with their results."""
        return self._ask(lambda runtime: runtime.results.collect(task_ids, at_least, max(0.0, min(wait, LONGEST_WAIT))))

    def get(self, task_id: str, parameters: bool = True) -> Task:
        """Return the task's current record."""
        return self._ask(lambda runtime: runtime.tasks.get(task_id, parameters))

    def wait(self, task_id: str, seconds: float) -> Task:
        """Wait for the task's end and return its record."""
        return self._ask(lambda runtime: runtime.tasks.wait(task_id, max(0.0, min(seconds, LONGEST_WAIT)), parameters=False))

    def cancel(self, task_id: str) -> Task:
        """Cancel the task and return its final record."""
        return self._ask(lambda runtime: runtime.cancel(task_id))

    def reprioritise(self, task_id: str, priority: int) -> Task:
        """Change the priority of a pending task."""
        return self._ask(lambda runtime: runtime.reprioritise(task_id, priority))

    def purge(self, task_id: str) -> None:
        """Delete an ended task with its output and result."""
        self._ask(lambda runtime: runtime.purge(task_id))

    def output(self, task_id: str, since: int = 0, wait: float = 0.0, record: bool = False) -> TaskOutput:
        """Return the output of the task after `since`."""
        return self._ask(lambda runtime: runtime.tasks.output(task_id, since, max(0.0, min(wait, LONGEST_WAIT)), record))

    def payload(self, task_id: str) -> tuple[bytes, str]:
        """Return the pickled result and its encoding."""
        data, encoding = self._ask(lambda runtime: runtime.tasks.payload(task_id))
        return data.read_bytes() if isinstance(data, Path) else data, encoding

    def allocate(self, shape: list[int], dtype: str, kind: ArrayKind) -> ArrayInfo:
        """Allocate space for an array."""
        layout = check_bounds(shape, dtype, kind)
        return self._ask(lambda runtime: runtime.arrays.allocate(layout, _caller().owner))

    def array_ready(self, array_id: str) -> ArrayInfo:
        """Mark the array's file as complete."""
        return self._ask(lambda runtime: runtime.arrays.ready(array_id))

    def put_array(self, array_id: str, pieces: Iterable[bytes], size: int) -> ArrayInfo:
        """Copy the contents into the array's file, which is local unless it was removed."""
        raise ArrayNotFound(f"The array {array_id} was deleted: its file is missing")

    def array(self, array_id: str) -> ArrayInfo:
        """Return the metadata of an array."""
        return self._ask(lambda runtime: runtime.arrays.info(array_id))

    def get_array(self, array_id: str) -> Iterator[bytes]:
        """Yield the array's file in chunks. The file is local unless it was removed."""
        raise ArrayNotFound(f"The array {array_id} was deleted: its file is missing")

    def delete_array(self, array_id: str) -> None:
        """Release an array."""
        self._ask(lambda runtime: runtime.arrays.remove(array_id))

    def tasks(
        self,
        limit: int = 100,
        before: str | None = None,
        states: list[str] | None = None,
        operation: str | None = None,
        owner: str | None = None,
        *,
        offset: int = 0,
        order: TaskOrder = "newest",
    ) -> TaskPage:
        """Return a page of tasks."""
        wanted = [TaskState(state) for state in states] if states is not None else None
        return self._ask(lambda runtime: runtime.list_tasks(limit, before, offset, wanted, operation, owner, order))

    def devices(self) -> list[Device]:
        """Return the compute devices."""
        return self._ask(_read(lambda runtime: runtime.devices()))

    def workers(self) -> list[Worker]:
        """Return the worker processes."""
        return self._ask(_read(lambda runtime: runtime.worker_stats.report()))

    def sessions(self) -> list[Session]:
        """Return all sessions."""
        return self._ask(_read(lambda runtime: runtime.sessions.list()))

    def restart_session(self, session_id: str) -> Session:
        """Restart the session's worker."""
        return self._ask(_read(lambda runtime: runtime.sessions.restart(session_id)))

    def free_session(self, session_id: str) -> Session:
        """End the session and return its last record."""
        return self._ask(_read(lambda runtime: runtime.sessions.free(session_id)))

    def metrics(self) -> SystemMetrics:
        """Return the current metrics."""
        return self._ask(_read(lambda runtime: runtime.system_metrics()))

    def health(self) -> Health:
        """Return the health report."""
        return self._ask(_read(lambda runtime: runtime.health()))

    def operations(self) -> list[OperationInfo]:
        """Return the available operations."""
        return describe_operations()

    def metrics_history(self, timeframe: Timeframe, points: int) -> MetricsHistory:
        """Return the recorded metrics of a timeframe."""
        return self._ask(lambda runtime: runtime.metrics_service.history(timeframe, points))

    def insights(self, metric_type: MetricType, timeframe: Timeframe, wording: WordingChoice = "none") -> Insights:
        """Return findings about the recorded history."""
        # Imported here and not on the loop, because importing NumPy is slow.
        from openruntime_jupyter.ai.insights.report import insights

        try:
            request = InsightsRequest(metric_type=metric_type, timeframe=timeframe, wording=wording)
        except ValidationError as problem:
            raise invalid(problem) from None
        return self._ask_ai(lambda ai: insights(ai.runtime, request, ai.rewriters(_caller())))

    def watch(self, topics: Iterable[str], tell: Tell) -> Watch:
        """Subscribe to events. Starts the runtime if needed."""
        with self._lock:
            self._started()
        return self._events.watch(topics, tell)

    def _listen(self, topics: frozenset[str]) -> Listening | None:
        with self._lock:
            return None if self._hosted is None else Listening(self._hosted.loop, self._hosted.ai.runtime.bus, topics)

    @property
    def prompts(self) -> EmbeddedPrompts:
        """Return the interface for models and prompts."""
        return EmbeddedPrompts(self._ask_ai, _caller)

    def close(self) -> None:
        """Do nothing: the runtime is shared by all clients of the process and stops with it."""

    def stop(self, deadline: float = STOP_SECONDS) -> None:
        """Stop the runtime and its workers within `deadline` seconds, even if tasks run. Never raises. A later use starts a new one."""
        with self._lock:
            hosted, self._hosted = self._hosted, None
        if hosted is None or not hosted.thread.is_alive():
            return
        stopping = asyncio.run_coroutine_threadsafe(_stop(hosted, deadline), hosted.loop)
        try:
            stopping.result(deadline + 1)
        except (FutureTimeout, CancelledError, RuntimeError):
            # The process exits anyway, and workers detect that their parent is gone.
            stopping.cancel()
        hosted.loop.call_soon_threadsafe(hosted.loop.stop)
        hosted.thread.join(1)
        with self._lock:
            self._hosting = self._hosted is not None

    def _ask(self, call: Callable[[Runtime], Coroutine[Any, Any, Result]]) -> Result:
        return self._ask_ai(lambda ai: call(ai.runtime))

    def _ask_ai(self, call: Callable[[AiService], Coroutine[Any, Any, Result]]) -> Result:
        with self._lock:  # so that `stop` ends all earlier requests, and no request goes to a closed loop
            hosted = self._started()
            answer = asyncio.run_coroutine_threadsafe(call(hosted.ai), hosted.loop)
        try:
            return answer.result()
        except CancelledError:
            raise NotConnected(STOPPED) from None
        finally:
            answer.cancel()  # an interrupt must not leave a coroutine on the loop

    def _started(self) -> _Hosted:
        if self._hosted is None:
            refuse_in_child()
            if self._events.tells_here():
                raise NotConnected(STOPPED)  # an event callback must not restart a stopped runtime
            self._hosted = self._start()
        return self._hosted

    def _start(self) -> _Hosted:
        self._hosting = True
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_serve, args=(loop,), name="openruntime", daemon=True)
        thread.start()
        try:
            ai = asyncio.run_coroutine_threadsafe(_start_runtime(self._settings, self._ai), loop).result()
        except BaseException:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(1)
            self._hosting = False
            raise
        at_exit(self.stop)
        return _Hosted(loop, thread, ai)


@dataclass(frozen=True)
class _Hosted:
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    ai: AiService


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.wait(left, timeout=1))
    finally:
        loop.close()


async def _start_runtime(settings: Settings, config: AiConfig | None) -> AiService:
    host: Callable[[Settings, AiConfig | None], AiService] = load("openruntime_jupyter.ai.service").host
    ai = host(settings, config)
    try:
        await ai.runtime.start()
    except BaseException:
        await ai.runtime.stop(STOP_SECONDS)
        raise
    return ai


async def _stop(hosted: _Hosted, deadline: float) -> None:
    await hosted.ai.runtime.stop(deadline)
    await hosted.ai.close()


def _asynchronous(request: dict[str, Any]) -> TaskRequest:
    try:
        return TaskRequest.model_validate({**request, "wait": False})
    except ValidationError as problem:
        raise invalid(problem, known=TaskRequest.model_fields) from None


def _caller() -> Caller:
    from openruntime_jupyter.runtime.runtime import Caller

    try:
        owner = getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        owner = f"user {os.getuid()}"
    return Caller(owner=owner)


def _label() -> str:
    notebook = os.environ.get("JPY_SESSION_NAME")
    return Path(notebook).name if notebook else f"process {os.getpid()}"


def _read(read: Callable[[Runtime], Result]) -> Callable[[Runtime], Coroutine[Any, Any, Result]]:
    async def ask(runtime: Runtime) -> Result:
        return read(runtime)

    return ask


_embedded: EmbeddedBackend | None = None
_embedded_lock = threading.Lock()
_forked_from_host = False
"""True in a forked child of a process that hosted a runtime.

Such a child must not open the history: SQLite counts its file locks per process, and a fork inherits the counts without the locks, so
both processes could write at once (https://www.sqlite.org/howtocorrupt.html, "Carrying an open database file across a fork").
"""


def embedded() -> EmbeddedBackend:
    """Return the runtime of this process.

    Raises `NotConnected` in a forked child of a process that hosts one.
    """
    global _embedded
    refuse_in_child()
    with _embedded_lock:
        if _embedded is None:
            _embedded = EmbeddedBackend()
        return _embedded


def refuse_in_child() -> None:
    """Raise `NotConnected` in a forked child of a process that hosts a runtime."""
    if _forked_from_host:
        raise NotConnected(FORKED)


def _forget() -> None:
    global _embedded, _embedded_lock
    _embedded, _embedded_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
