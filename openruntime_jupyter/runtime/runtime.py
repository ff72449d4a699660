"""Runtime: composition of queue, workers, history, metrics and events, hosted by a server or a kernel."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from openruntime_jupyter import __version__
from openruntime_jupyter.engines.inline import InlineEngine, Runner
from openruntime_jupyter.engines.protocol import Engine
from openruntime_jupyter.errors import (
    InvalidRequest,
    StorageUnavailable,
    TaskConflict,
)
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.operations.registry import left_out, operations
from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.runtime.events.bus import EventBus
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
from openruntime_jupyter.runtime.tasks.recovery import Recovery
from openruntime_jupyter.runtime.tasks.registry import TaskRegistry
from openruntime_jupyter.runtime.tasks.sessions import Sessions
from openruntime_jupyter.runtime.tasks.submission import Caller, TaskSubmission
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.system import Device, Health, Metrics, OperationInfo, SystemMetrics
from openruntime_jupyter.schemas.tasks import Task, TaskOrder, TaskPage, TaskRequest, TaskState

__all__ = ["Caller", "Runtime"]

log = logging.getLogger(__name__)

FIRST_SWEEP_SECONDS = 60.0
SWEEP_SECONDS = 600.0
"""Seconds between deletions of expired tasks and recoveries of dead runtimes' tasks."""


class Runtime:
    """Composition root: builds every part of a runtime, starts and stops them.

    It is built and used on one event loop. Handlers use its parts: `submission`, `batches`, `results`, `tasks`, `arrays`, `sessions`,
    `metrics_service`, `engine` and `history`.

    Parameters
    ----------
    settings
        Settings; None for the defaults.
    engine
        Engine of the device lanes; None for worker processes on this machine.
    inline
        Runners of operations that need no device, by operation name.
    """

    def __init__(self, settings: Settings | None = None, engine: Engine | None = None, inline: Mapping[str, Runner] | None = None) -> None:
        self.settings = settings or Settings()
        self.id = make_id("rt")
        self.version = __version__
        self.started_at = time.monotonic()
        self.bus = EventBus()
        self.history = History(self.settings, self.id)
        self._machine = Machine()
        self.arrays = ArrayStore(self.settings, self.id, self._machine)
        self.catalog = ModelCatalog(self.settings)
        self.sessions = Sessions(self.settings, lambda: self.engine)
        self.engine = engine or local_engine(self.settings, self.arrays, self.sessions.worker_ended)
        self._inline = InlineEngine(inline, self.settings.cancel_grace) if inline else None
        self.metrics_service = MetricsService(self.settings, self._machine, self.history, self.bus, self.metrics, self.engine.workers)
        self._admission = Admission(self._machine, self.engine, self.metrics_service.fresh, self.arrays.give_up)
        self.worker_stats = WorkerStats(self.engine)
        self.tasks = TaskRegistry(self.settings, self.history, self.bus, self.metrics_service.counters)
        self._device_lock = DeviceLock(self.settings, self.id)
        self.scheduler = Scheduler(
            self.settings,
            self._admission,
            self._device_lock,
            self.tasks,
            self.metrics_service.meters,
            self.worker_stats,
            self.arrays,
            self.sessions,
        )
        self._devices = DeviceDiscovery(self.settings, self.engine, self.scheduler, self.metrics_service.set_gpus)
        self.submission = TaskSubmission(
            self.settings,
            self.id,
            self.history,
            self.tasks,
            self.scheduler,
            self._admission,
            self._devices.need,
            self.arrays,
            self.sessions,
            self.catalog.resolve,
        )
        self._recovery = Recovery(self.history, self.tasks, self.submission)
        self.batches = BatchSubmission(self.submission, self.history, self.tasks)
        self.results = BatchResults(self.history, self.tasks)
        self.notices: list[str] = []
        """Problems of other parts, for `/health`."""
        self._started = False
        self._stopping = False
        self._background: set[asyncio.Task[Any]] = set()

    # Start and stop

    async def start(self) -> None:
        """Open the history, start the workers, and queue the pending tasks of dead runtimes.

        Raises `StorageUnavailable` where the data folder can't be used.
        """
        loop = asyncio.get_running_loop()
        make_folders(self.settings)
        self._started = True
        if self._inline is not None:
            self.scheduler.open_remote(remote_lane(self.settings, self._inline))
        self.metrics_service.start()
        await self.engine.start()
        await loop.run_in_executor(None, self.arrays.open)
        try:
            taken_over = await loop.run_in_executor(None, self.history.open)
        except StorageUnavailable as problem:  # /health reports it, and asynchronous tasks are rejected until the history can be written
            log.warning("%s", problem)
            taken_over = []
        self._devices.begin()
        self._keep(self._recovery.take(taken_over))
        self._keep(self._sweep())
        self._keep(self.arrays.run_sweeper(self._knows))

    async def stop(self, deadline: float = 5.0) -> None:
        """Stop within `deadline` seconds, without raising.

        Order: reject submissions; remove pending tasks from the lanes; end workers and prompts; close the slots; record the pending tasks
        (asynchronous ones stay pending on disk, for the next runtime); metrics; arrays; history; registry; device locks; sessions; events.
        A failing step is logged, and the next one runs.
        """
        if self._stopping or not self._started:
            return
        self._stopping = True
        self.submission.close()
        ends = time.monotonic() + deadline
        waiting: list[Entry] = []

        async def take_waiting() -> None:
            waiting.extend(await self.scheduler.stop())

        steps = (
            take_waiting,
            lambda: self._end_work(max(0.5, (ends - time.monotonic()) * 0.6)),
            lambda: self.scheduler.close(max(0.2, (ends - time.monotonic()) * 0.5)),
            lambda: self._leave_waiting(waiting),
            self._end_background,
            self.metrics_service.stop,
            self.arrays.stop,
            lambda: self.history.close(max(0.5, ends - time.monotonic())),
        )
        for step in steps:
            try:
                await step()
            except Exception:  # a failing step must not prevent the others
                log.exception("A step of the stop failed")
        self.tasks.close()
        self._device_lock.close()
        self.sessions.close()
        self.bus.close()

    async def _leave_waiting(self, waiting: list[Entry]) -> None:
        for entry in waiting:
            if entry.wait or self.settings.embedded:
                entry.failure = failures.interrupted("The runtime was stopped before it started.")
                entry.finished = time.time()
                entry.transition(TaskState.INTERRUPTED)
                await self.tasks.record(entry)
                self.arrays.release(entry.task_id, entry.arrays)
            entry.done.reach()

    async def _end_work(self, deadline: float) -> None:
        inline = [self._inline.stop(deadline)] if self._inline is not None else []
        await asyncio.gather(self.engine.stop(deadline), *inline)

    async def _end_background(self) -> None:
        tasks = [*self._devices.coming, *self._background]
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
            except StorageUnavailable as problem:  # /health reports it already
                log.warning("The history could not be swept: %s", problem)

    async def _knows(self, task_id: str) -> bool:
        return self.tasks.find(task_id) is not None or await self.history.get(task_id) is not None

    # Tasks

    async def submit(self, request: TaskRequest, caller: Caller, idempotency_key: str | None = None) -> Task:
        """Queue a task and return its record; see `TaskSubmission.submit`."""
        return await self.tasks.get(await self.submission.submit(request, caller, idempotency_key))

    async def list_tasks(
        self,
        limit: int = 100,
        before: str | None = None,
        offset: int = 0,
        states: list[TaskState] | None = None,
        operation: str | None = None,
        owner: str | None = None,
        order: TaskOrder = "newest",
    ) -> TaskPage:
        """Return a page of the tasks of all this user's runtimes, newest first, or with `order="next"` the pending tasks in queue order.

        Raises `InvalidRequest` where `before` is unknown, and for filters together with that order.
        """
        if order == "newest":
            return await self.tasks.page(limit, before, offset, states, operation, owner)
        if before is not None or operation is not None or owner is not None or states not in (None, [TaskState.PENDING]):
            raise InvalidRequest.of("order", "`next` lists all pending tasks: only `limit` and `offset` go with it")
        # Pending tasks of the user's other runtimes follow, the oldest first.
        here = self.scheduler.pending
        tasks = [entry.record(parameters=False) for entry in self.scheduler.next_up(limit, offset)]
        others, elsewhere = await self.history.waiting_elsewhere(here, limit - len(tasks), max(0, offset - here))
        return TaskPage(tasks=[*tasks, *others], total_count=here + elsewhere, next_before=None, timestamp=timestamp(time.time()))

    async def cancel(self, task_id: str) -> Task:
        """Cancel a task and return its record at the end. An ended task is returned unchanged; another runtime's raises `TaskConflict`."""
        entry = self.tasks.find(task_id)
        if entry is None:
            await self._recovery.cancel(task_id)
            task = await self.tasks.get(task_id)
            if not task.status.terminal:
                raise TaskConflict(f"{task_id} belongs to another runtime on this machine ({task.runtime}): cancel it there")
            return task
        if not entry.state.terminal:
            await self.scheduler.cancel(entry)
        return await self.tasks.get(task_id)

    async def reprioritise(self, task_id: str, priority: int) -> Task:
        """Change the priority of a pending task; raise `TaskConflict` for any other."""
        entry = self.tasks.find(task_id)
        if entry is None:
            moved = await self._recovery.reprioritise(task_id, priority)
            task = await self.tasks.get(task_id)
            if moved:
                return task
            where = "" if task.here else " and belongs to another runtime"
            raise TaskConflict(f"{task_id} is {task.status}{where}: only a pending task's priority can be changed")
        self.scheduler.reprioritise(entry, priority)
        await self.tasks.record(entry)
        return entry.record()

    async def purge(self, task_id: str) -> None:
        """Delete an ended task with its output and payload; raise `TaskConflict` for any other."""
        task = await self.tasks.get(task_id)
        if not task.status.terminal:
            raise TaskConflict(f"{task_id} is {task.status}: cancel it first")
        entry = self.tasks.find(task_id)
        if entry is not None:
            await entry.done.wait(None)  # a write of its end may be pending
        self.tasks.forget(task_id)
        await self.history.delete(task_id)
        await self.arrays.forget(task_id)

    # State

    @property
    def active(self) -> bool:
        """True while tasks are running or pending."""
        return bool(self.scheduler.running or self.scheduler.pending)

    def devices(self) -> list[Device]:
        """Return the devices; empty until the first worker has reported them."""
        return views.devices(self.scheduler.lanes.values(), self._admission, self.metrics_service.latest)

    def metrics(self) -> Metrics:
        """Return the current metrics."""
        return Metrics(**self._metrics_fields())

    def system_metrics(self) -> SystemMetrics:
        """Return the current metrics, with uptime."""
        uptime = views.uptime(time.monotonic() - self.started_at)
        return SystemMetrics(**self._metrics_fields(), uptime=uptime, timestamp=timestamp(time.time()))

    def _metrics_fields(self) -> dict[str, Any]:
        self.tasks.tell_states()  # so that the counters include all changes
        return views.metrics(self.scheduler, self.metrics_service.latest, self.metrics_service.counters.answered)

    def memory(self) -> Memory:
        """Return the memory of the machine, or of the container."""
        return self._machine.memory()

    async def unload(self, name: str | None = None) -> list[str]:
        """Unload the model `name`, or all idle models, and return their names once their memory is free.

        Raises `TaskConflict` where that model answers a prompt now, and `ModelNotFound` where it is not in memory.
        """
        source = self.catalog.named(name) if name is not None else None
        return await unload(self.engine, name if source is None else source.name)

    def health(self) -> Health:
        """Return the health status and the problems."""
        # A notice reports a past event: it does not degrade the status.
        wrong = [problem for problem in (self.history.problem, self._devices.problem, self.arrays.problem) if problem]
        problems = [str(problem) for problem in (*wrong, self.history.notice, *left_out(), *self.notices) if problem]
        status = "stopping" if self._stopping else "degraded" if wrong else "starting" if not self.scheduler.lanes else "healthy"
        return Health(
            status=status,
            timestamp=timestamp(time.time()),
            version=self.version,
            devices=len(self.scheduler.lanes),
            metrics=self.metrics(),
            problems=problems,
            runtime=self.id,
        )

    def operations(self) -> list[OperationInfo]:
        """Return every operation with its schema."""
        return views.operations(operations())
