"""The runtime: queue, workers, history, figures and events, composed; what a server or a kernel hosts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openruntime_jupyter import __version__
from openruntime_jupyter.engines.inline import InlineEngine, Runner
from openruntime_jupyter.engines.protocol import Engine, ModelReport, WorkerReport
from openruntime_jupyter.errors import (
    InvalidRequest,
    OpenRuntimeError,
    StorageUnavailable,
    TaskConflict,
)
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.operations.registry import left_out, operations
from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.runtime.events.bus import EventBus
from openruntime_jupyter.runtime.events.tokens import TokenPiece
from openruntime_jupyter.runtime.factory import local_engine, make_folders, remote_lane, unload
from openruntime_jupyter.runtime.ids import make_id
from openruntime_jupyter.runtime.metrics.service import MetricsService
from openruntime_jupyter.runtime.queue.admission import Admission
from openruntime_jupyter.runtime.queue.device_discovery import DeviceDiscovery
from openruntime_jupyter.runtime.queue.device_lock import DeviceLock
from openruntime_jupyter.runtime.queue.scheduler import Scheduler
from openruntime_jupyter.runtime.queue.worker_stats import WorkerStats
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.runtime.system_probe import Machine, Memory
from openruntime_jupyter.runtime.tasks import failures, views
from openruntime_jupyter.runtime.tasks.batch import BatchResults, BatchSubmission
from openruntime_jupyter.runtime.tasks.entry import Entry
from openruntime_jupyter.runtime.tasks.queries import TaskQueries
from openruntime_jupyter.runtime.tasks.recovery import Recovery
from openruntime_jupyter.runtime.tasks.registry import TaskRegistry
from openruntime_jupyter.runtime.tasks.sessions import Sessions
from openruntime_jupyter.runtime.tasks.submission import TaskSubmission
from openruntime_jupyter.runtime.tasks.validation import Caller
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.system import Device, Health, Metrics, MetricsHistory, OperationInfo, SystemMetrics, Timeframe
from openruntime_jupyter.schemas.tasks import Ended, Task, TaskOrder, TaskOutput, TaskPage, TaskRequest, TaskState

__all__ = ["Caller", "Runtime"]

log = logging.getLogger(__name__)

FIRST_SWEEP_SECONDS = 60.0
SWEEP_SECONDS = 600.0
"""How often ended tasks past the retention are deleted, and the tasks of runtimes that died meanwhile are taken over."""


class Runtime:
    """Every method is called on the loop that `start` was called on."""

    def __init__(self, settings: Settings | None = None, engine: Engine | None = None, inline: Mapping[str, Runner] | None = None) -> None:
        self.settings = settings or Settings()
        self.id = make_id("rt")
        self.version = __version__
        self.bus = EventBus()
        self.history = History(self.settings, self.id)
        self.started_at = time.monotonic()
        self._machine = Machine()
        self.arrays = ArrayStore(self.settings, self.id, self._machine)
        self.catalog = ModelCatalog(self.settings)
        self._engine = engine
        self.sessions = Sessions(self.settings, self._started_engine)
        self._inline = InlineEngine(inline, self.settings.cancel_grace) if inline else None
        self.notices: list[str] = []
        """What else `/health` is to tell: of parts that the runtime knows nothing of."""
        self._stopping = False
        self._background: set[asyncio.Task[Any]] = set()

    def _started_engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    # Life

    async def start(self) -> None:
        """Open the history and begin to start workers; what another runtime left waiting is queued once devices are known."""
        loop = asyncio.get_running_loop()
        make_folders(self.settings)
        if self._engine is None:
            self._engine = local_engine(self.settings, self.arrays, self.sessions.worker_ended)
        self.instruments = MetricsService(self.settings, self._machine, self.history, self.bus, self.metrics, self._engine.workers)
        self._admission = Admission(self._machine, self._engine, self.instruments.fresh, self.arrays.give_up)
        self.worker_stats = WorkerStats(self._engine)
        self._registry = TaskRegistry(self.settings, self.history, self.bus, self.instruments.counters)
        self._device_lock = DeviceLock(self.settings, self.id)
        self._scheduler = Scheduler(
            self.settings,
            self._admission,
            self._device_lock,
            self._registry.record,
            self._registry.keep_payload,
            self._registry,
            self.instruments.meters,
            self.worker_stats,
            self.arrays,
            self.sessions,
        )
        self._queries = TaskQueries(self._registry, self.history, self._scheduler)
        self._lanes = DeviceDiscovery(self.settings, self._engine, self._scheduler, self.instruments.set_gpus)
        self._submission = TaskSubmission(
            self.settings,
            self.id,
            self.history,
            self._registry,
            self._scheduler,
            self._admission,
            self._lanes.need,
            self.arrays,
            self.sessions,
            self.catalog.resolve,
        )
        self._recovery = Recovery(self.history, self._registry, self._submission)
        self._batches = BatchSubmission(self._submission, self.history, self._registry)
        self._results = BatchResults(self._queries, self.history, self._registry)
        if self._inline is not None:
            self._scheduler.open_remote(remote_lane(self.settings, self._inline))
        self.instruments.start()
        await self._engine.start()
        await loop.run_in_executor(None, self.arrays.open)
        try:
            taken_over = await loop.run_in_executor(None, self.history.open)
        except StorageUnavailable as problem:  # /health tells it, and asynchronous tasks are refused until it is mended
            log.warning("%s", problem)
            taken_over = []
        self._lanes.begin()
        self._keep(self._recovery.take(taken_over))
        self._keep(self._sweep())
        self._keep(self.arrays.run_sweeper(self._knows))

    async def stop(self, deadline: float = 5.0) -> None:
        """Undo everything within `deadline` seconds; never raises.

        Order: refuse what is new; take what waits out of the lanes; end the workers and prompts, and with them what runs; the slots; record
        what waited (asynchronous tasks stay pending on disk, for the next runtime); instruments; arrays; history; turns; events. Each step
        that fails is logged, and the next one is done all the same.
        """
        if self._stopping or self._engine is None:
            return
        self._stopping = True
        self._submission.close()
        ends = time.monotonic() + deadline
        waiting: list[Entry] = []

        async def take_waiting() -> None:
            waiting.extend(await self._scheduler.stop())

        steps = (
            take_waiting,
            lambda: self._end_work(max(0.5, (ends - time.monotonic()) * 0.6)),
            lambda: self._scheduler.close(max(0.2, (ends - time.monotonic()) * 0.5)),
            lambda: self._leave_waiting(waiting),
            self._end_background,
            self.instruments.stop,
            self.arrays.stop,
            lambda: self.history.close(max(0.5, ends - time.monotonic())),
        )
        for step in steps:
            try:
                await step()
            except Exception:  # a step that fails must not keep the others from being done
                log.exception("A step of the stop failed")
        self._registry.close()
        self._device_lock.close()
        self.sessions.close()
        self.bus.close()

    async def _leave_waiting(self, waiting: list[Entry]) -> None:
        for entry in waiting:
            if entry.wait or self.settings.embedded:
                entry.failure = failures.interrupted("The runtime was stopped before it started.")
                entry.finished = time.time()
                entry.transition(TaskState.INTERRUPTED)
                await self._registry.record(entry)
                self.arrays.release(entry.task_id, entry.arrays)
            entry.done.reach()

    async def _end_work(self, deadline: float) -> None:
        assert self._engine is not None
        inline = [self._inline.stop(deadline)] if self._inline is not None else []
        await asyncio.gather(self._engine.stop(deadline), *inline)

    async def _end_background(self) -> None:
        tasks = [*self._lanes.coming, *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _keep(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _sweep(self) -> None:
        pause = FIRST_SWEEP_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = SWEEP_SECONDS
            try:
                self._keep(self._recovery.take(await self.history.take_over()))
                await self.history.sweep()
            except StorageUnavailable as problem:  # told by /health already; the next sweep may find it mended
                log.warning("The history could not be swept: %s", problem)

    async def _knows(self, task_id: str) -> bool:
        return self._registry.find(task_id) is not None or await self.history.get(task_id) is not None

    # Tasks

    async def submit(self, request: TaskRequest, caller: Caller, idempotency_key: str | None = None) -> Task:
        """Queue a task and return its record; an asynchronous one (`request.wait` false) is on disk by then.

        Raises `InvalidRequest` and its kinds, `NotAllowed`, `QueueFull`, `Stopping`, `StorageUnavailable`. The same
        `idempotency_key` of the same owner gives the same task.
        """
        return await self._queries.get(await self.enqueue(request, caller, idempotency_key))

    async def enqueue(self, request: TaskRequest, caller: Caller, idempotency_key: str | None = None, same: str | None = None) -> str:
        """`submit` for whoever needs only the id; `same` is the fingerprint of what the request was made from, if it was made."""
        return await self._submission.submit(request, caller, idempotency_key, same)

    async def earlier(self, caller: Caller, idempotency_key: str, same: str) -> str | None:
        """The task that this key stands for already, None where for none; raises `InvalidRequest` where it was another request's."""
        return await self._submission.earlier(caller, idempotency_key, same)

    async def submit_many(
        self, requests: Sequence[Any], caller: Caller, idempotency_key: str | None = None, *, durable: bool = True
    ) -> list[Task | OpenRuntimeError]:
        """Queue a task for each of `requests` (`TaskRequest`s as JSON), in one transaction; see `BatchSubmission.submit`."""
        return await self._batches.submit(requests, caller, idempotency_key, durable=durable)

    async def collect(self, task_ids: Sequence[str], at_least: int = 1, wait: float = 0.0) -> list[Ended]:
        """Return the tasks among `task_ids` that have ended, with small payloads; see `BatchResults.collect`."""
        return await self._results.collect(task_ids, at_least, wait)

    async def wait(self, task_id: str, timeout: float | None = None, parameters: bool = True) -> Task:
        """The task when it has ended, or as it is after `timeout` seconds; raises `TaskNotFound`."""
        return await self._queries.wait(task_id, timeout, parameters)

    async def get(self, task_id: str, parameters: bool = True) -> Task:
        """The task, whichever runtime of this user holds it, with its parameters or without; raises `TaskNotFound`."""
        return await self._queries.get(task_id, parameters)

    async def tasks(
        self,
        limit: int = 100,
        before: str | None = None,
        offset: int = 0,
        states: list[TaskState] | None = None,
        operation: str | None = None,
        owner: str | None = None,
        order: TaskOrder = "newest",
    ) -> TaskPage:
        """Tasks of all this user's runtimes, newest first; or with `order="next"` those that wait, the next to run first.

        Raises `InvalidRequest` where `before` names none, and for filters beside that order.
        """
        if order == "newest":
            return await self._queries.tasks(limit, before, offset, states, operation, owner)
        if before is not None or operation is not None or owner is not None or states not in (None, [TaskState.PENDING]):
            raise InvalidRequest.of("order", "`next` lists all that wait: it goes with `limit` and `offset`, and with no filter")
        return await self._queries.next_up(limit, offset)

    async def output(self, task_id: str, since: int = 0, wait: float = 0.0, record: bool = False) -> TaskOutput:
        """Return what it showed after cursor `since`, after up to `wait` seconds for something new; `record` adds the task's record."""
        shown = await self._queries.output(task_id, since, wait)
        return shown.model_copy(update={"task": await self.get(task_id, parameters=False)}) if record else shown

    def tokens(self, task_id: str, since: int = 0) -> AsyncIterator[TokenPiece]:
        """The text that a model writes for it, after `since` characters, until it ends; raises `TaskNotFound`."""
        return self._queries.tokens(task_id, since)

    async def payload(self, task_id: str) -> tuple[bytes | Path, str]:
        """The opaque result and its encoding; raises `TaskNotFound` where there is none."""
        return await self._queries.payload(task_id)

    async def cancel(self, task_id: str) -> Task:
        """Stop it; returns when it has ended. A terminal task is returned unchanged; another runtime's raises `TaskConflict`."""
        entry = self._registry.find(task_id)
        if entry is None:
            await self._recovery.cancel(task_id)
            task = await self.get(task_id)
            if not task.status.terminal:
                raise TaskConflict(f"{task_id} belongs to another runtime on this machine ({task.runtime}): cancel it there")
            return task
        if not entry.state.terminal:
            await self._scheduler.cancel(entry)
        return await self.get(task_id)

    async def reprioritise(self, task_id: str, priority: int) -> Task:
        """Change a pending task's priority; raises `TaskConflict` for any other."""
        entry = self._registry.find(task_id)
        if entry is None:
            moved = await self._recovery.reprioritise(task_id, priority)
            task = await self.get(task_id)
            if moved:
                return task
            where = "" if task.here else " and belongs to another runtime"
            raise TaskConflict(f"{task_id} is {task.status}{where}: only a pending task's priority can be changed")
        self._scheduler.reprioritise(entry, priority)
        await self._registry.record(entry)
        return entry.record()

    async def purge(self, task_id: str) -> None:
        """Erase an ended task with its output and payload; raises `TaskConflict` for one that has not ended."""
        task = await self.get(task_id)
        if not task.status.terminal:
            raise TaskConflict(f"{task_id} is {task.status}: cancel it first")
        entry = self._registry.find(task_id)
        if entry is not None:
            await entry.done.wait(None)  # its end may be on its way to the disk, and would be kept after this
        self._registry.forget(task_id)
        await self.history.delete(task_id)
        await self.arrays.forget(task_id)

    # Figures

    @property
    def active(self) -> bool:
        """Whether tasks run or wait."""
        return bool(self._scheduler.running or self._scheduler.pending)

    def devices(self) -> list[Device]:
        """What there is to compute on; empty until the first worker has said so."""
        return views.devices(self._scheduler.lanes.values(), self._admission, self.instruments.latest)

    def metrics(self) -> Metrics:
        """The figures of now."""
        return Metrics(**self._figures())

    def system_metrics(self) -> SystemMetrics:
        """The figures of now, with uptime."""
        uptime = views.uptime(time.monotonic() - self.started_at)
        return SystemMetrics(**self._figures(), uptime=uptime, timestamp=timestamp(time.time()))

    def _figures(self) -> dict[str, Any]:
        self._registry.tell_states()  # what has happened counts
        return views.metrics(self._scheduler, self.instruments.latest, self.instruments.counters.answered)

    async def metrics_history(self, timeframe: Timeframe, points: int = 300, runtime: str | None = None) -> MetricsHistory:
        """The figures of the last `timeframe` in at most `points` points: of one of this user's runtimes, or of all together."""
        return await self.instruments.metrics_recorder.tell(timeframe, points, runtime)

    def memory(self) -> Memory:
        """The machine's memory now, or the container's."""
        return self._machine.memory()

    def workers(self) -> list[WorkerReport]:
        """The workers that there are now."""
        return self._engine.workers() if self._engine is not None else []

    def models(self) -> list[ModelReport]:
        """The models that are in memory now, the longest unused first."""
        return self._engine.models() if self._engine is not None else []

    async def unload(self, name: str | None = None) -> list[str]:
        """Unload the model of that name, or all that are idle; returns their names once their memory is free.

        Raises `TaskConflict` where that model answers a prompt now, and `ModelNotFound` where it is not in memory.
        """
        assert self._engine is not None
        source = self.catalog.named(name) if name is not None else None
        return await unload(self._engine, name if source is None else source.name)

    def health(self) -> Health:
        """Whether all is well, and what is not."""
        # A notice tells what happened and is over: it does not make the runtime worse.
        wrong = [problem for problem in (self.history.problem, self._lanes.problem, self.arrays.problem) if problem]
        problems = [str(problem) for problem in (*wrong, self.history.notice, *left_out(), *self.notices) if problem]
        status = "stopping" if self._stopping else "degraded" if wrong else "starting" if not self._scheduler.lanes else "healthy"
        return Health(
            status=status,
            timestamp=timestamp(time.time()),
            version=self.version,
            devices=len(self._scheduler.lanes),
            metrics=self.metrics(),
            problems=problems,
            runtime=self.id,
        )

    def operations(self) -> list[OperationInfo]:
        """Every operation with its schema."""
        return views.operations(operations())
