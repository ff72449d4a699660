"""Embedded runtime: hosted by this process, on an event loop in a separate thread.

It starts at first use and stops when the interpreter exits. If the process is killed, the workers detect it and exit.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout  # a separate class before Python 3.11
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from openruntime_jupyter.arrays.array_file import open_for_reading
from openruntime_jupyter.client.notebook_file import notebook
from openruntime_jupyter.client.transport.embedded_handlers import HANDLERS, Call, store_array
from openruntime_jupyter.client.transport.forks import reset_in_child
from openruntime_jupyter.client.transport.protocol import LONGEST_WAIT
from openruntime_jupyter.client.transport.watch import CONNECTED, DISCONNECTED, Events, OnMessage, Watch
from openruntime_jupyter.errors import NotConnected, StorageUnavailable
from openruntime_jupyter.imports import load
from openruntime_jupyter.operations.base import validated
from openruntime_jupyter.runtime.events import EventBus, Subscription
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.arrays import ArrayInfo
from openruntime_jupyter.schemas.endpoints import GET_ARRAY, Endpoint
from openruntime_jupyter.schemas.values import TokenPiece

if TYPE_CHECKING:
    from openruntime_jupyter.ai.config import AiConfig
    from openruntime_jupyter.ai.service import AiService

log = logging.getLogger(__name__)

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


PIECE = 1 << 20
"""Size in bytes of a chunk of an array file."""

ABSENT_POLL = 0.5
"""Seconds between polls for a stopped runtime."""

Message = dict[str, Any]


class Listening:
    """Subscription on the runtime's loop. Any thread can read messages from `received`; None marks the end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bus: EventBus, topics: frozenset[str]) -> None:
        self.received: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._loop = loop
        self._topics = topics
        self._subscription: Subscription | None = None
        self._listens = asyncio.run_coroutine_threadsafe(self._listen(bus), loop)
        self._listens.add_done_callback(lambda _: self.received.put(None))

    async def _listen(self, bus: EventBus) -> None:
        self._subscription, _ = bus.subscribe(self._topics)
        self.received.put({"type": CONNECTED, "gap": True})
        try:
            async for event in self._subscription:
                self.received.put({**event.body, "id": event.id})
        finally:
            self._subscription.close()

    def change(self, topics: frozenset[str]) -> None:
        """Change the subscribed topics."""
        self._topics = topics

        def on_the_loop() -> None:
            if self._subscription is not None:
                self._subscription.change(self._topics)

        if not self._listens.done():
            self._loop.call_soon_threadsafe(on_the_loop)

    def end(self) -> None:
        """Unsubscribe."""
        self._listens.cancel()


class BusEvents(Events):
    """Events of an embedded runtime. `listen(topics)` subscribes to the current runtime and returns None without one."""

    def __init__(self, listen: Callable[[frozenset[str]], Listening | None]) -> None:
        super().__init__()
        self._begin = listen
        self._listening: Listening | None = None
        self._wake = threading.Event()

    def after_fork(self) -> None:
        """Reset the state in a forked child; see `Forkable`."""
        super().after_fork()
        self._listening, self._wake = None, threading.Event()

    def _listen(self) -> None:
        topics = self.wanted()
        listening = self._begin(topics)
        if listening is None:
            self._wake.wait(ABSENT_POLL)
            self._wake.clear()
            return
        with self._lock:
            self._listening = listening
            if self.wanted() != topics:
                self._topics_changed()
            if not self._watches:
                listening.end()
        while (message := listening.received.get()) is not None:
            self.dispatch(message)
        with self._lock:
            self._listening = None
        if self.anybody():
            self.dispatch({"type": DISCONNECTED, "error": "The runtime of this process was stopped"})
            self._wake.wait(ABSENT_POLL)

    def _topics_changed(self) -> None:
        if self._listening is not None:
            self._listening.change(self.wanted())

    def _leave(self) -> None:
        self._wake.set()
        with self._lock:
            listening = self._listening
        if listening is not None:
            listening.end()


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

    def call(
        self,
        endpoint: Endpoint[Result],
        *ids: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        wait: float = 0.0,
    ) -> Result:
        """Call an endpoint on the runtime's loop, with the same validation as over HTTP."""
        wanted = {name: value for name, value in (query or {}).items() if value is not None}
        asked = validated(endpoint.query, wanted) if endpoint.query is not None else None
        sent = validated(endpoint.body, body or {}) if endpoint.body is not None else None
        given = asked, sent, key, max(0.0, min(wait, LONGEST_WAIT))

        async def handle(service: AiService) -> Result:
            answer = HANDLERS[endpoint](Call(service, *given), *ids)
            return cast("Result", await answer if isinstance(answer, Awaitable) else answer)

        return self._run(handle)

    def upload(self, array_id: str, pieces: Callable[[], Iterable[bytes]], size: int) -> ArrayInfo:
        """Store an array."""
        return self._run(lambda service: store_array(service.runtime.arrays, array_id, pieces()))

    def download(self, array_id: str) -> Iterator[bytes]:
        """Yield the safetensors file of an array in chunks."""
        info = self.call(GET_ARRAY, array_id)
        with os.fdopen(open_for_reading(str(info.path), array_id), "rb") as file:
            while piece := file.read(PIECE):
                yield piece

    def tokens(self, task_id: str, since: int = 0) -> Iterator[tuple[int, str]]:
        """Stream the text of an AI task."""

        async def texts(service: AiService) -> AsyncGenerator[TokenPiece, None]:
            async for piece in service.runtime.tasks.tokens(task_id, since):
                if isinstance(piece, TokenPiece):
                    yield piece

        async def begin(service: AiService) -> AsyncGenerator[TokenPiece, None]:
            await service.runtime.tasks.get(task_id, parameters=False)
            return texts(service)

        pieces = self._run(begin)

        async def following(_: AiService) -> TokenPiece | None:
            return await anext(pieces, None)

        async def end(_: AiService) -> None:
            await pieces.aclose()

        try:
            while (piece := self._run(following)) is not None:
                yield piece.index, piece.text
        finally:
            self._run(end)

    def watch(self, topics: Iterable[str], on_message: OnMessage) -> Watch:
        """Subscribe to events. Starts the runtime if needed."""
        with self._lock:
            self._started()
        return self._events.watch(topics, on_message)

    def _listen(self, topics: frozenset[str]) -> Listening | None:
        with self._lock:
            return None if self._hosted is None else Listening(self._hosted.loop, self._hosted.ai.runtime.bus, topics)

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

    def _run(self, call: Callable[[AiService], Coroutine[Any, Any, Result]]) -> Result:
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
            if self._events.on_event_thread():
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
    settings, problem = _with_folder(settings)
    ai = host(settings, config)
    if problem is not None:
        ai.runtime.notices.append(problem)
    try:
        await ai.runtime.start()
    except BaseException:
        await ai.runtime.stop(STOP_SECONDS)
        raise
    return ai


def _with_folder(settings: Settings) -> tuple[Settings, str | None]:
    """Return the settings, with a temporary data folder if theirs cannot be used, and the reason."""
    try:
        load("openruntime_jupyter.runtime.runtime").make_folders(settings)
        if os.access(settings.data_dir, os.W_OK):
            return settings, None
        reason = f"The data folder {settings.data_dir} is read-only: make it writable, or choose another by OPENRUNTIME_DATA_DIR"
    except StorageUnavailable as problem:
        reason = str(problem)
    try:
        folder = Path(tempfile.mkdtemp(prefix="openruntime-"))
    except OSError as problem:
        raise StorageUnavailable(f"{reason}. A temporary one cannot be made either ({problem})") from problem
    at_exit(lambda: shutil.rmtree(folder, ignore_errors=True))
    log.warning("%s. Tasks are kept until this process ends.", reason)
    return replace(settings, data_dir=folder, models_dir=settings.models), f"{reason}. Until then tasks are kept until this process ends."


async def _stop(hosted: _Hosted, deadline: float) -> None:
    await hosted.ai.runtime.stop(deadline)
    await hosted.ai.close()


def _label() -> str:
    file = notebook()
    return Path(file).name if file else f"process {os.getpid()}"


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
