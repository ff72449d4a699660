"""The runtime without a server: hosted by this process, on a loop in a thread of its own.

It starts at first use and ends with the process: the interpreter's exit stops it, and where the process is killed its workers
notice.
"""

from __future__ import annotations

import asyncio
import atexit
import getpass
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout  # its own class before Python 3.11
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
"""How long the process's end waits for the runtime to stop."""

STOPPED = "the runtime of this process was stopped: use it again to start a new one"

FORKED = (
    "a fork of a process that hosts a runtime can't use it: use the spawn start method (multiprocessing.get_context('spawn')), or "
    "connect() to a server in the child (jupyter openruntime starts one)"
)

# Before executors refuse work, which they do ahead of everything that `atexit` calls: stopping needs them.
at_exit: Callable[[Callable[[], object]], object] = getattr(threading, "_register_atexit", atexit.register)

Answer = TypeVar("Answer")


class EmbeddedBackend:
    """A `Backend` whose runtime lives in this process. Most programs want `embedded()`, which gives the one of the process."""

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
        """See `Forkable`. The runtime stays the parent's: its loop and its threads did not come along."""
        global _forked_from_host
        self._lock = threading.Lock()
        if self._hosting:
            # Kept, so that none of its destructors runs: sockets, workers and files belong to the parent.
            self._of_parent, self._hosted, self._hosting = self._hosted, None, False
            _forked_from_host = True

    @property
    def started(self) -> bool:
        """Whether the runtime is there already: the next question starts it otherwise."""
        return self._hosted is not None

    def submit(self, request: dict[str, Any], key: str, wait: float = 0.0) -> Task:
        """See `Backend.submit`."""

        async def submit(runtime: Runtime) -> Task:
            task_id = await runtime.submission.submit(_asynchronous(request), _caller(), key)
            return await (runtime.tasks.wait(task_id, wait, parameters=False) if wait > 0 else runtime.tasks.get(task_id, parameters=False))

        return self._ask(submit)

    def submit_followed(self, request: dict[str, Any], key: str, wait: float) -> TaskOutput:
        """See `Backend.submit_followed`."""

        async def submit(runtime: Runtime) -> TaskOutput:
            return await runtime.tasks.output(await runtime.submission.submit(_asynchronous(request), _caller(), key), 0, wait, record=True)

        return self._ask(submit)

    def submit_many(self, requests: list[dict[str, Any]], key: str, durable: bool = True) -> list[Task | OpenRuntimeError]:
        """See `Backend.submit_many`."""
        return self._ask(lambda runtime: runtime.batches.submit(requests, _caller(), key, durable=durable))

    def collect(self, task_ids: list[str], at_least: int = 1, wait: float = 0.0) -> list[Ended]:
        """See `Backend.collect`."""
        return self._ask(lambda runtime: runtime.results.collect(task_ids, at_least, max(0.0, min(wait, LONGEST_WAIT))))

    def get(self, task_id: str, parameters: bool = True) -> Task:
        """See `Backend.get`."""
        return self._ask(lambda runtime: runtime.tasks.get(task_id, parameters))

    def wait(self, task_id: str, seconds: float) -> Task:
        """See `Backend.wait`."""
        return self._ask(lambda runtime: runtime.tasks.wait(task_id, max(0.0, min(seconds, LONGEST_WAIT)), parameters=False))

    def cancel(self, task_id: str) -> Task:
        """See `Backend.cancel`."""
        return self._ask(lambda runtime: runtime.cancel(task_id))

    def reprioritise(self, task_id: str, priority: int) -> Task:
        """See `Backend.reprioritise`."""
        return self._ask(lambda runtime: runtime.reprioritise(task_id, priority))

    def purge(self, task_id: str) -> None:
        """See `Backend.purge`."""
        self._ask(lambda runtime: runtime.purge(task_id))

    def output(self, task_id: str, since: int = 0, wait: float = 0.0, record: bool = False) -> TaskOutput:
        """See `Backend.output`."""
        return self._ask(lambda runtime: runtime.tasks.output(task_id, since, max(0.0, min(wait, LONGEST_WAIT)), record))

    def payload(self, task_id: str) -> tuple[bytes, str]:
        """See `Backend.payload`."""
        data, encoding = self._ask(lambda runtime: runtime.tasks.payload(task_id))
        return data.read_bytes() if isinstance(data, Path) else data, encoding

    def allocate(self, shape: list[int], dtype: str, kind: ArrayKind) -> ArrayInfo:
        """See `Backend.allocate`."""
        layout = check_bounds(shape, dtype, kind)
        return self._ask(lambda runtime: runtime.arrays.allocate(layout, _caller().owner))

    def array_ready(self, array_id: str) -> ArrayInfo:
        """See `Backend.array_ready`."""
        return self._ask(lambda runtime: runtime.arrays.ready(array_id))

    def put_array(self, array_id: str, pieces: Iterable[bytes], size: int) -> ArrayInfo:
        """See `Backend.put_array`; here the file is always at hand, unless it was removed."""
        raise ArrayNotFound(f"The array {array_id} is gone: its file was removed")

    def array(self, array_id: str) -> ArrayInfo:
        """See `Backend.array`."""
        return self._ask(lambda runtime: runtime.arrays.info(array_id))

    def get_array(self, array_id: str) -> Iterator[bytes]:
        """See `Backend.get_array`; here the file is always at hand, unless it was removed."""
        raise ArrayNotFound(f"The array {array_id} is gone: its file was removed")

    def delete_array(self, array_id: str) -> None:
        """See `Backend.delete_array`."""
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
        """See `Backend.tasks`."""
        wanted = [TaskState(state) for state in states] if states is not None else None
        return self._ask(lambda runtime: runtime.list_tasks(limit, before, offset, wanted, operation, owner, order))

    def devices(self) -> list[Device]:
        """See `Backend.devices`."""
        return self._ask(_said(lambda runtime: runtime.devices()))

    def workers(self) -> list[Worker]:
        """See `Backend.workers`."""
        return self._ask(_said(lambda runtime: runtime.worker_stats.report()))

    def sessions(self) -> list[Session]:
        """See `Backend.sessions`."""
        return self._ask(_said(lambda runtime: runtime.sessions.list()))

    def restart_session(self, session_id: str) -> Session:
        """See `Backend.restart_session`."""
        return self._ask(_said(lambda runtime: runtime.sessions.restart(session_id)))

    def free_session(self, session_id: str) -> Session:
        """See `Backend.free_session`."""
        return self._ask(_said(lambda runtime: runtime.sessions.free(session_id)))

    def metrics(self) -> SystemMetrics:
        """See `Backend.metrics`."""
        return self._ask(_said(lambda runtime: runtime.system_metrics()))

    def health(self) -> Health:
        """See `Backend.health`."""
        return self._ask(_said(lambda runtime: runtime.health()))

    def operations(self) -> list[OperationInfo]:
        """See `Backend.operations`."""
        return self._ask(_said(lambda runtime: runtime.operations()))

    def metrics_history(self, timeframe: Timeframe, points: int) -> MetricsHistory:
        """See `Backend.metrics_history`."""
        return self._ask(lambda runtime: runtime.metrics_service.history(timeframe, points))

    def insights(self, metric_type: MetricType, timeframe: Timeframe, wording: WordingChoice = "none") -> Insights:
        """See `Backend.insights`."""
        # Here, and not on the loop: NumPy takes its time.
        from openruntime_jupyter.ai.insights.response import insights

        try:
            request = InsightsRequest(metric_type=metric_type, timeframe=timeframe, wording=wording)
        except ValidationError as problem:
            raise invalid(problem) from None
        return self._ask_ai(lambda ai: insights(ai.runtime, request, ai.worders(_caller())))

    def watch(self, topics: Iterable[str], tell: Tell) -> Watch:
        """See `Backend.watch`. It starts the runtime."""
        with self._lock:
            self._started()
        return self._events.watch(topics, tell)

    def _listen(self, topics: frozenset[str]) -> Listening | None:
        with self._lock:
            return None if self._hosted is None else Listening(self._hosted.loop, self._hosted.ai.runtime.bus, topics)

    @property
    def prompts(self) -> EmbeddedPrompts:
        """See `Backend.prompts`."""
        return EmbeddedPrompts(self._ask_ai, _caller)

    def close(self) -> None:
        """Nothing is held but the runtime, which other clients of this process use too: it ends with the process."""

    def stop(self, deadline: float = STOP_SECONDS) -> None:
        """Stop the runtime and its workers within `deadline` seconds, whatever runs; never raises. A later use starts a new one."""
        with self._lock:
            hosted, self._hosted = self._hosted, None
        if hosted is None or not hosted.thread.is_alive():
            return
        stopping = asyncio.run_coroutine_threadsafe(_stop(hosted, deadline), hosted.loop)
        try:
            stopping.result(deadline + 1)
        except (FutureTimeout, CancelledError, RuntimeError):
            # The process ends either way; workers see their parent go.
            stopping.cancel()
        hosted.loop.call_soon_threadsafe(hosted.loop.stop)
        hosted.thread.join(1)
        with self._lock:
            self._hosting = self._hosted is not None

    def _ask(self, question: Callable[[Runtime], Coroutine[Any, Any, Answer]]) -> Answer:
        return self._ask_ai(lambda ai: question(ai.runtime))

    def _ask_ai(self, question: Callable[[AiService], Coroutine[Any, Any, Answer]]) -> Answer:
        with self._lock:  # so that `stop` ends all that was asked before it, and nothing is asked of a loop that has ended
            hosted = self._started()
            answer = asyncio.run_coroutine_threadsafe(question(hosted.ai), hosted.loop)
        try:
            return answer.result()
        except CancelledError:
            raise NotConnected(STOPPED) from None
        finally:
            answer.cancel()  # an interrupt leaves nothing behind on the loop

    def _started(self) -> _Hosted:
        if self._hosted is None:
            refuse_in_child()
            if self._events.tells_here():
                raise NotConnected(STOPPED)  # a dashboard that looks at what it hears must not undo a `stop`
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
    host: Callable[[Settings, AiConfig | None], AiService] = load("openruntime_jupyter.ai.factory").host
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
    except (KeyError, OSError):  # a container's user without a name
        owner = f"user {os.getuid()}"
    return Caller(owner=owner)


def _label() -> str:
    notebook = os.environ.get("JPY_SESSION_NAME")
    return Path(notebook).name if notebook else f"process {os.getpid()}"


def _said(read: Callable[[Runtime], Answer]) -> Callable[[Runtime], Coroutine[Any, Any, Answer]]:
    async def ask(runtime: Runtime) -> Answer:
        return read(runtime)

    return ask


_embedded: EmbeddedBackend | None = None
_embedded_lock = threading.Lock()
_forked_from_host = False
"""Whether this process is a fork of one that hosted a runtime then.

It must not open the history: SQLite counts its locks on a file in the process, and a fork has the counts but not the locks, so both
would write at once (https://www.sqlite.org/howtocorrupt.html, "Carrying an open database file across a fork").
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
