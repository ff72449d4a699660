"""Runtime: composition of queue, workers, history, metrics and events, hosted by a server or a kernel."""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openruntime_jupyter import __version__
from openruntime_jupyter.engines.hosts.machine import HostMachine
from openruntime_jupyter.engines.inline import LANE, REPORT, InlineEngine, Runner
from openruntime_jupyter.engines.local import LocalEngine, LocalOptions
from openruntime_jupyter.engines.protocol import Engine
from openruntime_jupyter.errors import InvalidRequest, ModelNotFound, StorageUnavailable, TaskConflict
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.memory import Machine, Memory
from openruntime_jupyter.operations.registry import left_out
from openruntime_jupyter.runtime import locks
from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.runtime.events import EventBus
from openruntime_jupyter.runtime.hosts import hosts_of
from openruntime_jupyter.runtime.ids import make_id
from openruntime_jupyter.runtime.metrics.gpu import NOTHING, GpuReadings
from openruntime_jupyter.runtime.metrics.sampler import Sample
from openruntime_jupyter.runtime.metrics.service import MetricsService
from openruntime_jupyter.runtime.permissions import private_folder
from openruntime_jupyter.runtime.queue.admission import Admission
from openruntime_jupyter.runtime.queue.device_lock import DeviceLock
from openruntime_jupyter.runtime.queue.lane import Lane
from openruntime_jupyter.runtime.queue.lanes import Lanes
from openruntime_jupyter.runtime.queue.scheduler import DeviceDiscovery, Scheduler, WorkerStats
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.runtime.tasks.batch import BatchResults, BatchSubmission, cooperatively
from openruntime_jupyter.runtime.tasks.entry import Entry
from openruntime_jupyter.runtime.tasks.recovery import Recovery
from openruntime_jupyter.runtime.tasks.registry import TaskRegistry
from openruntime_jupyter.runtime.tasks.sessions import Sessions
from openruntime_jupyter.runtime.tasks.submission import Caller, TaskSubmission
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.hosts import Host
from openruntime_jupyter.schemas.queries import TasksQuery
from openruntime_jupyter.schemas.system import Device, Health, Metrics, SystemMetrics
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, Task, TaskPage, TaskRequest, TaskState
from openruntime_jupyter.start_environment import at_start, changed_by_now

if TYPE_CHECKING:
    from openruntime_jupyter.engines.hosts.finder import HostsSetup

__all__ = ["Caller", "Runtime"]

log = logging.getLogger(__name__)

FIRST_SWEEP_SECONDS = 60.0
SWEEP_SECONDS = 600.0
"""Seconds between deletions of expired tasks."""
RECOVERY_SECONDS = 10.0
"""Seconds between checks of the other runtimes' locks, each of which takes a fraction of a millisecond."""


def make_folders(settings: Settings) -> None:
    """Create the data folders with mode 0700; raise `StorageUnavailable` if they cannot be used or are not safe from other users."""
    try:
        for folder in (settings.data_dir, settings.payloads, settings.temporary):
            private_folder(folder)
    except OSError as problem:
        raise StorageUnavailable(
            f"The data folder {settings.data_dir} can't be used ({problem.strerror}): make it writable for this user and no other, "
            "or choose another by OPENRUNTIME_DATA_DIR",
            retry_after=None,
        ) from problem


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
    hosts
        Other hosts that run tasks; None for those of the settings.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        engine: Engine | None = None,
        inline: Mapping[str, Runner] | None = None,
        hosts: HostsSetup | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.id = make_id("rt")
        self.version = __version__
        self.started_at = time.monotonic()
        self.bus = EventBus()
        self.history = History(self.settings, self.id)
        self._machine = Machine()
        self.arrays = ArrayStore(self.settings, self.id, self._machine)
        self.sessions = Sessions(self.settings, lambda: self.engine)
        hosts = hosts or hosts_of(self.settings)
        self.engine = engine or (self._local_engine() if hosts is None else self._hosts_engine(hosts))
        self.catalog = ModelCatalog(self.settings, self.engine.stored_models)
        self._inline = InlineEngine(inline, self.settings.cancel_grace) if inline else None
        self.lanes = Lanes()
        self.metrics_service = MetricsService(
            self.settings, self._machine, self.history, self.bus, self.metrics, self.engine.workers, self._gpus_of_hosts
        )
        self._admission = Admission(self.engine, self._fresh_readings, self.arrays.release_memory)
        self.worker_stats = WorkerStats(self.engine)
        self.tasks = TaskRegistry(self.settings, self.history, self.bus, self.metrics_service.counters, self.lanes, self.engine.resident)
        self._device_lock = DeviceLock(self.settings, self.id)
        self.scheduler = Scheduler(
            self.settings,
            self.lanes,
            self._admission,
            self._device_lock,
            self.tasks,
            self.metrics_service.meters,
            self.worker_stats,
            self.arrays,
            self.sessions,
        )
        self._devices = DeviceDiscovery(
            self.settings, self.engine, self._machine, self.lanes, self.scheduler, self.metrics_service.set_gpus
        )
        self.submission = TaskSubmission(
            self.settings,
            self.id,
            self.history,
            self.tasks,
            self.lanes,
            self.scheduler,
            self._admission,
            self._devices.need,
            self.arrays,
            self.sessions,
            self.catalog,
        )
        self._recovery = Recovery(self.history, self.tasks, self.submission)
        self.history.on_replaced = self._write_again
        self.batches = BatchSubmission(self.submission, self.history, self.tasks)
        self.results = BatchResults(self.history, self.tasks)
        self.problems: list[str] = []
        """Problems of other parts that last until a restart, for `/health`."""
        self.notices: list[str] = []
        """Events of other parts that `/health` reports without a degraded status."""
        self._started = False
        self._stopping = False
        self._background: set[asyncio.Task[Any]] = set()

    def _local_engine(self) -> LocalEngine:
        settings = self.settings
        return LocalEngine(
            LocalOptions(
                payloads=settings.payloads,
                temporary=settings.temporary,
                groups=settings.data_dir / "workers",
                arrays=self.arrays,
                blas=settings.blas,
                cancel_grace=settings.cancel_grace,
                spare_workers=settings.spare_workers,
                idle_worker_seconds=settings.idle_worker_seconds,
                start_timeout=settings.start_timeout,
                max_models=settings.max_models,
                secret_variables=frozenset(settings.secret_variables),
                # A kernel's tasks bring the variables that changed since its start.
                session_ended=self.sessions.worker_ended,
                environment=at_start() if settings.embedded else dict(os.environ),
                own_variables=changed_by_now() if settings.embedded else (),
            )
        )

    def _hosts_engine(self, hosts: HostsSetup) -> Engine:
        from openruntime_jupyter.engines.hosts.connection import HostsOptions  # late: most runtimes have no other hosts
        from openruntime_jupyter.engines.hosts.engine import HostsEngine
        from openruntime_jupyter.engines.hosts.messages import EngineSettings

        settings = self.settings
        on_hosts = EngineSettings(
            cancel_grace=settings.cancel_grace,
            spare_workers=settings.spare_workers,
            idle_worker_seconds=settings.idle_worker_seconds,
            start_timeout=settings.start_timeout,
            max_models=settings.max_models,
            cpu_slots=settings.cpu_slots,
            gpu_slots=settings.gpu_slots,
            max_output_bytes=settings.max_output_bytes,
            secret_variables=settings.secret_variables,
            device_lock=settings.device_lock,
            models_dirs=tuple(map(_portable, settings.models_dirs)),
            silence=hosts.silence,
        )
        options = HostsOptions(
            runtime=self.id,
            payloads=settings.payloads,
            files=self.arrays,
            share_folders=hosts.share_folders,
            label=settings.label,
            settings=on_hosts,
            lost=hosts.lost,
            session_ended=self.sessions.worker_ended,
        )
        engine = HostsEngine(self._local_engine() if hosts.local else None, hosts.finder, options)
        self.arrays.on_deleted = engine.discard_array
        return engine

    # Start and stop

    async def start(self) -> None:
        """Open the history, start the workers, and queue the pending tasks of dead runtimes.

        Raises `StorageUnavailable` where the data folder can't be used.
        """
        loop = asyncio.get_running_loop()
        make_folders(self.settings)
        self._started = True
        if self._inline is not None:
            slots = self.settings.remote_slots
            self.scheduler.join_remote(Lane(LANE, REPORT, slots, self.settings.aging_seconds, self._inline, self._machine))
        self.metrics_service.start()
        await self.engine.end_left_processes()  # before their tasks are queued again
        await loop.run_in_executor(None, self.arrays.open)  # before agents are asked whether they share its folders
        await self.engine.start()
        try:
            taken_over = await loop.run_in_executor(None, self.history.open)
        except StorageUnavailable as problem:  # /health reports it, and asynchronous tasks are rejected until the history can be written
            log.warning("%s", problem)
            taken_over = []
        self._devices.begin()
        self._keep(self._recovery.take(taken_over))
        self._keep(self._recover(await loop.run_in_executor(None, locks.living, self.settings.runtimes)))
        self._keep(self._sweep())
        self._keep(self.arrays.run_sweeper(self._knows))

    async def stop(self, deadline: float = 5.0) -> None:
        """Stop within `deadline` seconds, without raising.

        Order: reject submissions; remove pending tasks from the queues; end workers and prompts; close the slots; record the pending tasks
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
                entry.failure = Failure(kind=FailureKind.INTERRUPTED, message="The runtime was stopped before it started.")
                entry.finished = time.time()
                entry.transition(TaskState.INTERRUPTED)
                await self.tasks.record(entry)
                self.arrays.release(entry.task_id, entry.arrays)
            entry.done.reach()

    async def _end_work(self, deadline: float) -> None:
        inline = [self._inline.stop(deadline)] if self._inline is not None else []
        await asyncio.gather(self.engine.stop(deadline), *inline)

    async def _end_background(self) -> None:
        tasks = [*self._devices.tasks, *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _keep(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _recover(self, alive: set[str]) -> None:
        """Take over the tasks of runtimes that end from now on; `alive` are those that live now."""
        while True:
            await asyncio.sleep(RECOVERY_SECONDS)
            earlier, alive = alive, await asyncio.get_running_loop().run_in_executor(None, locks.living, self.settings.runtimes)
            if earlier - alive:
                try:
                    await self._take_over()
                except StorageUnavailable as problem:  # /health reports it already, and the sweep tries again
                    log.warning("Tasks of a dead runtime could not be taken over: %s", problem)

    async def _take_over(self) -> None:
        await self.engine.end_left_processes()
        self._keep(self._recovery.take(await self.history.take_over()))

    async def _sweep(self) -> None:
        pause = FIRST_SWEEP_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = SWEEP_SECONDS
            try:
                await self._take_over()
                await self.history.sweep()
            except StorageUnavailable as problem:  # /health reports it already
                log.warning("The history could not be swept: %s", problem)

    def _write_again(self) -> None:
        self.tasks.write_again()
        self._recovery.write_again()

    async def _knows(self, task_id: str) -> bool:
        return self.tasks.find(task_id) is not None or await self.history.get(task_id, parameters=False) is not None

    # Tasks

    async def submit(self, request: TaskRequest, caller: Caller, idempotency_key: str | None = None) -> Task:
        """Queue a task and return its record; see `TaskSubmission.submit`."""
        return await self.tasks.get(await self.submission.submit(request, caller, idempotency_key))

    async def list_tasks(self, query: TasksQuery) -> TaskPage:
        """Return a page of the tasks of all this user's runtimes, newest first, or with `order="next"` the pending tasks in queue order.

        Raises `InvalidRequest` where `before` is unknown, and for other filters than `notebook`, `name` and `search` together with that
        order.
        """
        if query.order == "newest":
            return await self.tasks.page(query)
        if query.before or query.operation or query.owner or query.state not in (None, [TaskState.PENDING]):
            raise InvalidRequest.of(
                "order", "`next` lists pending tasks: only `limit`, `offset`, `notebook`, `name` and `search` go with it"
            )
        # Pending tasks of the user's other runtimes follow, the oldest first.
        pending = here = self.lanes.pending
        limit, offset, filters = query.limit, query.offset, (query.notebook, query.name, query.search)
        if filters == (None, None, None):
            entries = self.lanes.next_up(limit, offset)
        else:
            matching = [entry async for entry in cooperatively(self.lanes.next_up(pending)) if entry.matches(*filters)]
            matching = [entry for entry in matching if entry.state is TaskState.PENDING]
            entries, here = matching[offset : offset + limit], len(matching)
        tasks = [self.tasks.view(entry, parameters=False) for entry in entries]
        others, elsewhere = await self.history.waiting_elsewhere(pending, limit - len(tasks), max(0, offset - here), *filters)
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
        return self.tasks.view(entry)

    async def purge(self, task_id: str) -> None:
        """Delete an ended task with its output and payload; raise `TaskConflict` for any other."""
        task = await self.tasks.get(task_id, parameters=False)
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
        return bool(self.lanes.running or self.lanes.pending)

    def devices(self) -> list[Device]:
        """Return the devices; empty until the first worker has reported them."""
        return [view_device(lane, self._admission, self.metrics_service.latest) for lane in self.lanes.devices.values()]

    def hosts(self) -> list[Host]:
        """Return the other machines that run tasks of this runtime, with their devices."""
        lanes: dict[str, list[Lane]] = {}
        for lane in self.lanes.devices.values():
            lanes.setdefault(lane.host, []).append(lane)
        return [with_lanes(host, lanes.get(host.name, [])) for host in self.engine.hosts()]

    def metrics(self) -> Metrics:
        """Return the current metrics."""
        return Metrics(**self._metrics_fields())

    def system_metrics(self) -> SystemMetrics:
        """Return the current metrics, with uptime."""
        uptime = format_uptime(time.monotonic() - self.started_at)
        return SystemMetrics(**self._metrics_fields(), uptime=uptime, timestamp=timestamp(time.time()))

    def _metrics_fields(self) -> dict[str, Any]:
        self.tasks.updates.count()  # so that the counters include all changes
        sample = self.metrics_service.latest
        return {
            "gpu_utilization": self._gpu_utilization(),
            "memory_usage": sample.memory_usage,
            "active_tasks": self.lanes.running,
            "ai_tasks_processed": self.metrics_service.counters.answered,
            "cpu_utilization": sample.cpu_utilization,
            "pending_tasks": self.lanes.pending,
            "hosts": hosts_in_use(self.engine.hosts(), self.lanes.running_by_host()),
        }

    def _gpu_utilization(self) -> float | None:
        """Return the mean over the readable GPUs, in percent: 0.0 without a GPU, None if none is readable."""
        if not self.lanes.has_gpu:
            return 0.0
        sample = self.metrics_service.latest
        figures = [readings_of(lane, sample).utilization for lane in self.lanes.devices.values() if lane.device.type == "gpu"]
        known = [figure for figure in figures if figure is not None]
        return round(statistics.fmean(known), 1) if known else None

    def _gpus_of_hosts(self) -> dict[str, GpuReadings]:
        gpus = [lane for lane in self.lanes.devices.values() if lane.host and lane.device.type == "gpu"]
        return {lane.id: readings_of(lane, self.metrics_service.latest) for lane in gpus}

    def _fresh_readings(self, lane: Lane) -> GpuReadings:
        return readings_of(lane, self.metrics_service.latest) if lane.host else self.metrics_service.fresh(lane.id)

    def memory(self) -> Memory:
        """Return the memory of the machine, or of the container."""
        return self._machine.memory()

    async def unload(self, name: str | None = None) -> list[str]:
        """Unload the model `name`, or all idle models, and return their names once their memory is free.

        Raises `TaskConflict` where that model answers a prompt now, and `ModelNotFound` where it is not in memory.
        """
        await self.catalog.refresh()
        source = self.catalog.named(name) if name is not None else None
        if source is not None:
            name = source.name
        unloaded = await self.engine.models.unload(name)
        if name is None or unloaded:
            return unloaded
        loaded = self.engine.models.reports()
        busy = next((each.task_id for each in loaded if each.name == name and each.task_id is not None), None)
        if busy is not None:
            raise TaskConflict(f"The model {name!r} is answering {busy}: cancel that task or wait for it")
        names = ", ".join(each.name for each in loaded) or "none"
        raise ModelNotFound(f"The model {name!r} is not in memory. Models in memory: {names}")

    def health(self) -> Health:
        """Return the health status and the problems."""
        # A notice reports a past event: it does not degrade the status.
        hosts = self.engine.hosts()
        starting = not self.lanes.known or (not self.lanes.devices and any(host.state == "connecting" for host in hosts))
        left = None if starting or self.lanes.devices else "No device is available: tasks wait until one is"
        parts = (self.history.problem, self._devices.problem, self.arrays.problem, self.engine.problem, hosts_problem(hosts), left)
        wrong = [problem for problem in (*parts, *self.problems) if problem]
        problems = [str(problem) for problem in (*wrong, self.history.notice, *left_out(), *self.notices) if problem]
        status = "stopping" if self._stopping else "degraded" if wrong else "starting" if starting else "healthy"
        return Health(
            status=status,
            timestamp=timestamp(time.time()),
            version=self.version,
            devices=len(self.lanes.devices),
            metrics=self.metrics(),
            problems=problems,
            runtime=self.id,
        )


def _portable(folder: Path) -> str:
    """Return a folder as other hosts find it: relative to their user's home folder if it is in this user's."""
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def readings_of(lane: Lane, sample: Sample) -> GpuReadings:
    """Return the newest metrics of the lane's GPU: from `sample` on this machine, from its agent on a host."""
    if not isinstance(lane.machine, HostMachine):
        return sample.gpus.get(lane.id, NOTHING)
    found = lane.machine.gpu(_on_host(lane))
    if found is None:
        return NOTHING
    return GpuReadings(found.utilization, found.memory_total, found.memory_used, found.temperature, found.power)


def _gpu_problem(lane: Lane, sample: Sample) -> str | None:
    """Return why the lane's GPU can't be read; None if it can or no reason is known."""
    return lane.machine.gpu_problem(_on_host(lane)) if isinstance(lane.machine, HostMachine) else sample.problems.get(lane.id)


def _on_host(lane: Lane) -> str:
    """Return the id that the lane's device has on its host."""
    return lane.id.removeprefix(f"{lane.host}.")


def view_device(lane: Lane, admission: Admission, sample: Sample) -> Device:
    """Return a device as its workers reported it, with current memory in bytes and the readable metrics."""
    report, on_gpu = lane.device, lane.device.type == "gpu"
    figures = readings_of(lane, sample)
    cpu = lane.machine.cpu_percent() if isinstance(lane.machine, HostMachine) else sample.cpu_utilization
    if lane.shares_memory or figures.memory_total is None or figures.memory_used is None:
        available = admission.free(lane)
    else:  # the driver's figures of a GPU with its own memory include other programs' use
        available = max(0, min(figures.memory_total - figures.memory_used, admission.total(lane)))
    return Device(
        id=lane.id,
        name=report.name,
        type="gpu" if on_gpu else "cpu",
        status="unavailable" if lane.problem else "available" if lane.free_slots else "busy",
        capabilities=list(report.capabilities),
        memory_total=admission.total(lane),
        memory_available=available,
        utilization=figures.utilization if on_gpu else cpu,
        temperature_celsius=figures.temperature,
        power_watts=figures.power,
        slots=lane.slots,
        running=len(lane.running),
        pending=lane.pending,
        mlx_version=report.mlx_version,
        blas=report.blas,
        advice=lane.problem or report.advice or _gpu_problem(lane, sample),
    )


def with_lanes(host: Host, lanes: Sequence[Lane]) -> Host:
    """Return the host with the devices of its open lanes, their slots and their running tasks."""
    running = sum(len(lane.running) for lane in lanes)
    return host.model_copy(update={"devices": [lane.id for lane in lanes], "slots": sum(lane.slots for lane in lanes), "running": running})


MOST_NAMED = 5
"""Number of hosts that `/health` names."""
MOST_IN_LINE = 4
"""Number of hosts in the line of the metrics, which status bars show."""


def hosts_in_use(hosts: Sequence[Host], running: Mapping[str, int]) -> str | None:
    """Return the hosts with `running` tasks and those that can't be used in one line, such as `2 on mac2, gpu1 lost`; None without any."""
    unusable = {host.name: host.state for host in hosts if host.state not in ("ready", "connecting")}
    parts = [f"{number} on {name}" for name, number in sorted(running.items()) if name]
    parts += [f"{name} {state}" for name, state in unusable.items()]
    more = len(parts) - MOST_IN_LINE
    return ", ".join([*parts[:MOST_IN_LINE], *([f"{more} more"] if more > 0 else [])]) or None


def hosts_problem(hosts: Sequence[Host]) -> str | None:
    """Return which hosts can't be used, for `/health`; None if all can."""
    unusable = [f"{host.name} ({host.state})" for host in hosts if host.state not in ("ready", "connecting")]
    if not unusable:
        return None
    more = f" and {len(unusable) - MOST_NAMED:,} more" if len(unusable) > MOST_NAMED else ""
    which = f"{', '.join(unusable[:MOST_NAMED])}{more}"
    return f"These hosts run no tasks: {which}. `%openruntime hosts` and GET /hosts show why, and what to do"


def format_uptime(seconds: float) -> str:
    """Return a duration such as `"2h 15m"`, in its two largest units."""
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
