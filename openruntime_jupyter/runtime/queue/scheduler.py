"""Scheduler: each slot of each lane runs the most urgent task of its queues that can start, then the next. Discovery opens the lanes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from openruntime_jupyter.engines import failures
from openruntime_jupyter.engines.protocol import (
    Completed,
    DeviceReport,
    DeviceTaken,
    Died,
    Engine,
    HostDevices,
    HostLoss,
    Job,
    Measurements,
    NeedsMemory,
    Outcome,
    RaisedError,
    Stage,
    Stopped,
    StopReason,
)
from openruntime_jupyter.errors import ArrayNotFound, EngineError, NoBackend, StorageUnavailable, TaskConflict, Unavailable
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.arrays.store import ArrayStore, result_name
from openruntime_jupyter.runtime.metrics.gpu import Gpu
from openruntime_jupyter.runtime.metrics.sampler import Meters
from openruntime_jupyter.runtime.queue.admission import Admission
from openruntime_jupyter.runtime.queue.device_lock import DeviceLock
from openruntime_jupyter.runtime.queue.lane import Lane
from openruntime_jupyter.runtime.queue.lanes import Lanes
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.entry import Entry, QueueKey, Stream
from openruntime_jupyter.runtime.tasks.registry import TaskRegistry
from openruntime_jupyter.runtime.tasks.sessions import Sessions
from openruntime_jupyter.schemas.arrays import ArrayReference
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.system import Worker
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, PerformanceMetrics, Progress, TaskResult, TaskState
from openruntime_jupyter.schemas.tasks import Payload as PayloadInfo
from openruntime_jupyter.schemas.values import ResponsePiece
from openruntime_jupyter.time_left import TimeLeft

log = logging.getLogger(__name__)

MEMORY_POLL = 0.25
"""Seconds between checks of tasks that can't start yet, such as those that wait for memory."""

RETRY_ELSEWHERE = 10.0
"""Seconds during which another device is preferred for a task whose worker died or did not start."""

Ended = Completed | RaisedError | Died | Stopped | NeedsMemory
"""Outcome of a job that has reached a worker, or can't."""

MOST_MOVES = 2
"""Maximum number of devices from which a task is moved because they start no worker for it, and of hosts that are lost while it runs."""


class Scheduler:
    """Slots of the lanes, and the tasks in them. The registry records each change of a task's state."""

    def __init__(
        self,
        settings: Settings,
        lanes: Lanes,
        admission: Admission,
        device_lock: DeviceLock,
        registry: TaskRegistry,
        meters: Meters,
        worker_stats: WorkerStats,
        arrays: ArrayStore,
        sessions: Sessions,
    ) -> None:
        self._lanes = lanes
        self._settings = settings
        self._admission = admission
        self._device_lock = device_lock
        self._registry = registry
        self._meters = meters
        self._worker_stats = worker_stats
        self._arrays = arrays
        self._sessions = sessions
        self._slots: set[asyncio.Task[None]] = set()
        self._held: dict[str, asyncio.Event] = {}
        """Tasks that may still run on a lost host, each with an event that ends its wait."""
        self._stopping = False

    # Lanes

    def join(self, lane: Lane) -> None:
        """Open the lane of a device: it serves its queues from now on. Raises `ValueError` if a lane with its id is open."""
        self._lanes.join(lane)
        self._open(lane)

    def join_remote(self, lane: Lane) -> None:
        """Open the lane of operations that need no device."""
        self._lanes.join_remote(lane)
        self._open(lane)

    def leave(self, lane_id: str) -> None:
        """Close the lane of a device. Its running tasks continue, and its waiting ones stay queued for other lanes or until it joins again.

        Raises `KeyError` if no such lane is open.
        """
        self._lanes.leave(lane_id)

    def _open(self, lane: Lane) -> None:
        for slot in range(lane.slots):
            task = asyncio.get_running_loop().create_task(self._serve(lane, slot), name=f"{lane.id}.{slot}")
            self._slots.add(task)
            task.add_done_callback(self._slots.discard)
            task.add_done_callback(_log_crash)

    # Requests

    def enqueue(self, entry: Entry) -> None:
        """Queue the task. While the runtime stops, it stays pending for the next runtime, and its waiters are released."""
        if self._stopping:
            entry.done.reach()
        else:
            self._lanes.queue_of(entry).add(entry)

    async def cancel(self, entry: Entry) -> None:
        """Cancel the task in any state, and return when it has ended."""
        if entry.state is TaskState.PENDING and self._withdraw(entry):
            entry.cancel_stage = Stage.QUEUE.value
            await self._end(entry, TaskState.CANCELLED, failures.cancelled(Stage.QUEUE))
        elif not entry.state.terminal:
            entry.stop_reason = StopReason.CANCELLED
            if (lane := self._lanes.lane_of(entry)) is not None:
                lane.engine.halt(entry.task_id, StopReason.CANCELLED)
            elif entry.task_id in self._held:
                self._held[entry.task_id].set()
        await entry.done.wait()

    def _withdraw(self, entry: Entry) -> bool:
        """Take a pending task out of its queue; return False if it is not there."""
        removed = self._lanes.queue_of(entry).remove(entry)
        if removed and entry.session is not None:
            self._sessions.remove_task(entry.session)
        return removed

    def reprioritise(self, entry: Entry, priority: int) -> None:
        """Change a pending task's priority; raise `TaskConflict` for any other task."""
        queue = self._lanes.queue_of(entry)
        if entry.state is not TaskState.PENDING or not queue.remove(entry):
            raise TaskConflict(f"{entry.task_id} is {entry.state}: only a pending task's priority can be changed")
        entry.priority = priority
        entry.key = QueueKey.of(entry.submitted_mono, priority, self._settings.aging_seconds, entry.key.sequence)
        queue.add(entry)

    async def stop(self) -> list[Entry]:
        """Start no more tasks, and return the pending ones, removed from the queues. The engine ends running tasks."""
        self._stopping = True
        for released in self._held.values():
            released.set()
        return self._lanes.take_all()

    async def close(self, deadline: float) -> None:
        """Stop the slots after the engine has ended their tasks."""
        for lane in self._lanes:
            lane.wake()
        slots = tuple(self._slots)
        if slots:
            await asyncio.wait(slots, timeout=deadline)
        for task in slots:
            task.cancel()
        await asyncio.gather(*slots, return_exceptions=True)

    # Slots

    async def _serve(self, lane: Lane, slot: int) -> None:
        shared = self._device_lock.shared(lane)
        while lane.open and not self._stopping:
            if lane.idle:
                await lane.wait()
                continue
            try:
                await self._take_turn(lane, slot, shared)
            except Exception:  # a bug must not cost the lane its slot
                log.exception("A slot of %s failed: this is a bug in openruntime", lane.id)
                await asyncio.sleep(MEMORY_POLL)

    async def _take_turn(self, lane: Lane, slot: int, shared: bool) -> None:
        if shared:
            await self._device_lock.acquire(lane, slot)
        elif lane.holder() is not None:
            await self._device_lock.wait_for_host(lane)
        try:
            entry = lane.take(self._admission.blocked_reason) if not self._stopping else None
            if entry is not None:
                if shared:
                    self._device_lock.show(lane, slot, entry)
                await self._execute(lane, entry)
        finally:
            if shared:
                self._device_lock.release(lane, slot)
        if entry is None and lane.open:
            await self._wait_until_one_fits(lane)

    async def _wait_until_one_fits(self, lane: Lane) -> None:
        lane.pass_on()
        entry = lane.head_timed_out(self._settings.memory_wait)
        if entry is not None and entry.needs is not None and self._withdraw(entry):
            free = self._admission.free(lane)
            await self._end(entry, TaskState.FAILED, failures.no_memory(entry.needs, free, self._settings.memory_wait))
            return
        await lane.wait(MEMORY_POLL)

    async def _execute(self, lane: Lane, entry: Entry) -> None:
        self._lanes.begin(lane, entry)
        if entry.session is not None:
            entry.session.task_id, entry.session.device = entry.task_id, lane.id
        try:
            entry.attempt += 1
            entry.started, entry.started_mono = time.time(), time.monotonic()
            entry.waiting_for = None
            entry.device_used = lane.id
            entry.transition(TaskState.RUNNING)
            if not await self._registry.record(entry):
                return
            # The task may have been cancelled while its state was written.
            rejected = self._sessions.rejection(entry.session, entry.session_number) if entry.session is not None else None
            outcome: Outcome
            if entry.stop_reason is not None:
                outcome = Stopped(entry.stop_reason, Stage.QUEUE, Measurements())
            elif rejected is not None:
                outcome = Died(rejected, retry=False)
            else:
                outcome = await self._run(lane, entry)
        except Exception as problem:  # a bug must end this task, not the lane
            log.exception("The engine failed on %s", entry.task_id)
            outcome = Died(failures.fault(f"The engine failed: {problem!r}"), retry=False)
        finally:
            self._lanes.end(lane, entry)
            if entry.session is not None:
                self._sessions.end_task(entry.session, entry.session_number, entry.worker is not None)
            lane.wake(only_blocked=True)
        try:
            await (self._return_to_queue(entry) if isinstance(outcome, DeviceTaken) else self._conclude(lane, entry, outcome))
        except Exception as problem:  # a bug must not block waiters
            log.exception("The end of %s could not be recorded", entry.task_id)
            try:
                if not entry.state.terminal:
                    await self._end(entry, TaskState.FAILED, failures.fault(f"The end of the task could not be recorded: {problem!r}"))
            finally:
                entry.done.reach()

    async def _run(self, lane: Lane, entry: Entry) -> Outcome:
        observer = AttemptObserver(entry, lane, self._registry, self._meters)
        try:
            return await lane.engine.run(self._job(lane, entry), observer)
        finally:
            observer.close()

    def _job(self, lane: Lane, entry: Entry) -> Job:
        return Job(
            task_id=entry.task_id,
            operation=entry.operation,
            parameters=entry.parameters,
            lane=lane.id,
            device_type=lane.device.type,
            device_index=lane.device.index,
            memory_total=self._admission.total(lane),
            memory_largest=self._lanes.queue_of(entry).memory,
            memory_limit=entry.memory_limit or self._settings.memory_limit or int(0.9 * lane.machine.total),
            memory_reserved=entry.needs or 0,
            threads=max(1, lane.machine.cores // len(lane.running)),
            payload_name=f"{entry.task_id}.{entry.attempt}",
            interpreter=entry.interpreter,
            environment=entry.environment,
            private=entry.private,
            burst=entry.burst if entry.session is None else None,
            session=entry.session.use if entry.session is not None else None,
            arrays=entry.arrays,
            array_name=result_name(entry.task_id, entry.attempt) if entry.returns_arrays else None,
            model=entry.model,
            name=entry.name,
        )

    async def _conclude(self, lane: Lane, entry: Entry, outcome: Ended) -> None:
        entry.execution_time = time.monotonic() - (entry.started_mono or time.monotonic())
        self._measure(lane, entry, outcome)
        if lane.problem is not None and not isinstance(outcome, Died | Stopped):
            lane.recover()
        arrays: list[ArrayReference] = []
        if outcome.arrays if isinstance(outcome, Completed) else entry.returns_arrays:
            arrays, outcome = await self._keep_arrays(entry, outcome)
        if isinstance(outcome, Completed):
            lane.durations.add(entry.kind, entry.execution_time)
            payload = None
            if outcome.payload is not None or outcome.payload_stored:
                payload = PayloadInfo(size=outcome.payload_size, encoding=outcome.encoding)
                self._registry.keep_payload(entry, outcome)
            entry.result = TaskResult(
                execution_time=outcome.measurements.execution_time,
                device_used=lane.id,
                output=outcome.output,
                payload=payload,
                arrays=arrays,
            )
            await self._end(entry, TaskState.COMPLETED, None)
        elif isinstance(outcome, RaisedError):
            await self._end(entry, TaskState.FAILED, outcome.failure)
        elif isinstance(outcome, Stopped):
            entry.cancel_stage = outcome.stage.value
            await self._end(entry, *failures.stopped(outcome, entry.timeout, entry.memory_limit))
        elif isinstance(outcome, NeedsMemory):  # it waits in the queue until that is free
            entry.needs = outcome.needs
            await self._return_to_queue(entry)
        else:
            await self._repeat_or_fail(lane, entry, outcome)

    async def _return_to_queue(self, entry: Entry) -> None:
        """Queue a task again that has not begun, as if it had not been taken out of the queue."""
        if entry.session is not None and not entry.session.tasks:
            entry.session.device = None  # it has no variables there
        entry.attempt -= 1
        entry.device_used = None
        await self._requeue(entry)

    async def _repeat_or_fail(self, lane: Lane, entry: Entry, outcome: Died) -> None:
        """Move a task that no worker began to another device, or retry it after its worker died, or fail it."""
        if outcome.host_loss is not None:
            await self._move_or_fail(entry, outcome, outcome.host_loss)
        elif outcome.no_worker and self._may_move(lane, entry):
            log.warning("%s starts no worker for %s, which is moved to another device: %s", lane.id, entry.task_id, outcome.failure.message)
            lane.fail(outcome.failure.message)
            self._avoid(lane, entry)
            entry.attempt -= 1
            await self._requeue(entry)
        elif outcome.retry and self._may_repeat(entry) and entry.attempt <= entry.retries:
            self._avoid(lane, entry)
            entry.output.note(f"[attempt {entry.attempt} of {entry.retries + 1}: {outcome.failure.message}; it runs again]\n")
            self._registry.output_changed(entry)
            await self._requeue(entry)
        else:
            if outcome.no_worker:  # the task is at fault, and not the devices
                self._recover(entry)
            await self._end(entry, TaskState.FAILED, outcome.failure)

    async def _move_or_fail(self, entry: Entry, outcome: Died, loss: HostLoss) -> None:
        """Queue a task again whose host was lost, if the task had not begun or has retries. A move does not count as an attempt."""
        if entry.stop_reason is StopReason.CANCELLED:
            entry.cancel_stage = Stage.KILL.value
            await self._end(entry, TaskState.CANCELLED, failures.cancelled_with(loss.host))
            return
        if not self._may_repeat(entry) or (loss.begun and (not entry.retries or entry.moves >= MOST_MOVES)):
            await self._end(entry, TaskState.FAILED, outcome.failure)
            return
        if loss.begun:
            entry.moves += 1
            entry.output.note(f"[{outcome.failure.message}; it runs again on another host]\n")
            self._registry.output_changed(entry)
            entry.waiting_for = f"the host {loss.host}, which may still run it"
            released = self._held[entry.task_id] = asyncio.Event()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(released.wait(), loss.safe_in)
            del self._held[entry.task_id]
        if self._stopping:
            await self._end(entry, TaskState.FAILED, outcome.failure)
            return
        entry.waiting_for = None
        entry.attempt -= 1
        await self._requeue(entry)

    def _may_repeat(self, entry: Entry) -> bool:
        """Return whether the task may start again after its worker died. Not in a session, whose variables are lost."""
        return entry.session is None and not self._stopping and entry.stop_reason is None

    def _may_move(self, lane: Lane, entry: Entry) -> bool:
        """Return whether another device should run a task for which this lane started no worker."""
        avoids = (*entry.avoids, lane.id)
        return self._may_repeat(entry) and len(avoids) <= MOST_MOVES and self._lanes.queue_of(entry).served_besides(lane, avoids)

    @staticmethod
    def _avoid(lane: Lane, entry: Entry) -> None:
        """Prefer another device for the next attempt."""
        entry.avoids = tuple(dict.fromkeys((*entry.avoids, lane.id)))
        entry.avoids_until = time.monotonic() + RETRY_ELSEWHERE

    def _recover(self, entry: Entry) -> None:
        """Use the devices again that the task was moved from."""
        for lane_id in entry.avoids:
            if lane_id in self._lanes.devices:
                self._lanes.devices[lane_id].recover()

    async def _keep_arrays(self, entry: Entry, outcome: Ended) -> tuple[list[ArrayReference], Ended]:
        """Store the arrays that the attempt returned, or remove those that it left. The task fails if they do not fit."""
        if not isinstance(outcome, Completed):
            if isinstance(outcome, Died | Stopped):
                try:
                    await self._arrays.discard(result_name(entry.task_id, entry.attempt))
                except OSError as problem:  # retention removes them later
                    log.warning("What %s left of its arrays could not be removed: %s", entry.task_id, problem)
            return [], outcome
        try:
            return await self._arrays.adopt(entry.owner, outcome.arrays), outcome
        except (StorageUnavailable, ArrayNotFound, OSError) as problem:
            message = f"The result can't be stored. {problem}"
            return [], RaisedError(Failure(kind=FailureKind.RAISED, message=message, type=type(problem).__name__), outcome.measurements)

    async def _requeue(self, entry: Entry) -> None:
        entry.execution_time = entry.started = entry.started_mono = entry.progress = None
        if entry.tokens is not None:
            entry.tokens.restart()
        entry.transition(TaskState.PENDING)
        if not await self._registry.record(entry):
            return
        if entry.stop_reason is not None:  # cancelled during the write
            await self._end(entry, TaskState.CANCELLED, failures.cancelled(Stage.QUEUE))
        else:
            self._lanes.queue_of(entry).add(entry)

    def _measure(self, lane: Lane, entry: Entry, outcome: Outcome) -> None:
        measurements = outcome.measurements
        ran = entry.execution_time or 0.0
        measured = measurements.gpu_utilization if lane.host else self._meters.end(entry.task_id)
        if entry.worker is not None:
            self._worker_stats.add_run(entry.worker, ran, measurements, measured)
        entry.metrics = PerformanceMetrics(
            execution_time_ms=round(1000 * ran, 3),
            memory_used_mb=round(measurements.mlx_peak / 1e6, 3) if measurements.mlx_peak is not None else None,
            gpu_utilization=measured if self._lanes.has_gpu else 0.0,
            peak_memory_mb=round(measurements.resident_peak / 1e6, 3) if measurements.resident_peak is not None else None,
            device_time_s=round((entry.metrics.device_time_s or 0.0) + ran, 6),
        )

    async def _end(self, entry: Entry, state: TaskState, failure: Failure | None) -> None:
        entry.failure = failure
        entry.waiting_for = None
        entry.transition(state)
        entry.finished = entry.changed
        if entry.wait:  # recorded before waiters run: its write is not awaited
            entry.done.reach()
        await self._registry.record(entry)
        if entry.arrays:
            self._arrays.release(entry.task_id, entry.arrays, keep=state in (TaskState.FAILED, TaskState.TIMED_OUT))
        if entry.tokens is not None:
            entry.tokens.close()
        entry.done.reach()
        entry.wake_readers()


def _log_crash(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("A slot of the queue ended; this is a fault in openruntime", exc_info=task.exception())


class AttemptObserver:
    """Observer of one running attempt."""

    def __init__(self, entry: Entry, lane: Lane, registry: TaskRegistry, meters: Meters) -> None:
        self._entry = entry
        self._lane = lane
        self._registry = registry
        self._meters = meters
        self._timer: asyncio.TimerHandle | None = None
        self._time_left = TimeLeft()

    def started(self, worker: str) -> None:
        """Start the running time; again for another worker."""
        self.close()
        entry = self._entry
        entry.worker = worker
        entry.waiting_for = None
        entry.started, entry.started_mono = time.time(), time.monotonic()
        lane = self._lane
        if lane.device.type == "gpu" and not lane.host:
            self._meters.begin(entry.task_id, lane.id)
        if entry.timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(entry.timeout, lane.engine.halt, entry.task_id, StopReason.TIMED_OUT)
        if entry.stop_reason is not None:
            lane.engine.halt(entry.task_id, entry.stop_reason)

    def close(self) -> None:
        """Stop the timeout at the end of the attempt."""
        if self._timer is not None:
            self._timer.cancel()

    def waiting(self, reason: str | None) -> None:
        """Keep the reason for users."""
        self._entry.waiting_for = reason

    def progressed(self, progress: dict[str, Any]) -> None:
        """Keep progress, with the estimated remaining time."""
        entry = self._entry
        n, total = progress["n"], progress.get("total")
        entry.progress_mono = time.monotonic()
        remaining = self._time_left.report(n, total, entry.progress_mono)
        entry.progress = Progress(n=n, total=total, message=progress.get("message"), remaining=remaining)
        self._registry.progressed(entry)

    def printed(self, stream: Stream, text: str, omitted: int = 0) -> None:
        """Add a piece of text to the output, after `omitted` characters that are left out."""
        self._entry.output.print(stream, text, omitted)
        self._registry.output_changed(self._entry)

    def displayed(self, item: dict[str, Any]) -> None:
        """Add a display to the output, or change earlier output."""
        self._entry.output.apply(item)
        self._registry.output_changed(self._entry)

    def generated(self, piece: ResponsePiece) -> None:
        """Publish a piece of a response at once, and add its text to the output, which is stored."""
        entry = self._entry
        index = 0 if entry.tokens is None else entry.tokens.add(piece)
        if not piece.text:
            return
        if entry.tokens is not None:
            self._registry.generated(entry, index, piece.text)
        entry.output.print("stdout", piece.text)
        self._registry.output_changed(entry)


class DeviceDiscovery:
    """Opens the device lanes once a worker has reported its devices, and passes the GPUs to `set_gpus`."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        machine: Machine,
        lanes: Lanes,
        scheduler: Scheduler,
        set_gpus: Callable[[Sequence[Gpu]], None],
    ) -> None:
        self.problem: EngineError | None = None
        """Why no device was found."""
        self.tasks: list[asyncio.Task[Any]] = []
        """Running discovery, to be cancelled at the stop."""
        self._settings = settings
        self._engine = engine
        self._machine = machine
        self._lanes = lanes
        self._scheduler = scheduler
        self._set_gpus = set_gpus
        self._opened = False
        """True once the local lanes are open."""
        self._of_host: dict[str, list[str]] = {}
        """Ids of the open lanes of each other host."""

    def begin(self) -> None:
        """Start the discovery in the background, and watch other hosts."""
        self._engine.watch(self._lanes.expect, self._join, self._leave, lambda: self._lanes.pending)
        self._begin()

    def _begin(self) -> None:
        opening = asyncio.get_running_loop().create_task(self._open(None))
        opening.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.tasks = [opening]

    async def need(self, interpreter: str | None) -> None:
        """Wait until devices are known; raise `Unavailable` with advice if none is found.

        After a failure the next call tries again: the missing package may be installed by now.
        """
        if self._lanes.known:
            return
        if self.tasks[0].done():
            self._begin()
        try:
            await asyncio.shield(self.tasks[0])
        except EngineError as problem:
            if isinstance(problem, NoBackend) and interpreter is not None:
                # The caller's environment may have the package that the server's lacks.
                await self._open(interpreter)
                return
            raise Unavailable(str(problem), retry_after=None if isinstance(problem, NoBackend) else 30.0) from problem

    async def _open(self, interpreter: str | None) -> None:
        try:
            found = await self._engine.devices(interpreter)
        except EngineError as problem:
            self.problem = problem
            log.warning("%s", problem)
            raise
        if self._opened:
            return
        self._opened = True
        self._lanes.open_queues()
        lanes = [self._lane(number, report) for number, report in enumerate(found)]
        for lane in lanes:
            self._scheduler.join(lane)
        gpus = [(lane.id, lane.device) for lane in lanes if lane.device.type == "gpu"]
        self._set_gpus([Gpu(lane_id, device.index, device.name, device.capabilities) for lane_id, device in gpus])
        self.problem = None

    def _lane(self, number: int, report: DeviceReport, host: HostDevices | None = None) -> Lane:
        aging, durations = self._settings.aging_seconds, self._lanes.durations(report.type, report.name)
        machine = self._machine if host is None else host.machine
        slots = self._settings.slots_of(report.type, machine.cores)
        if host is None:
            return Lane(f"device_{number}", report, slots, aging, self._engine, machine, durations)
        lane_id = f"{host.name}.device_{number}"
        return Lane(lane_id, report, slots, aging, host, machine, durations, host.python, partial(host.holder, lane_id))

    def _join(self, host: HostDevices) -> None:
        """Open the lanes of another host."""
        lanes = [self._lane(number, report, host) for number, report in enumerate(host.devices)]
        opened = self._of_host[host.name] = []
        for lane in lanes:
            self._scheduler.join(lane)
            opened.append(lane.id)
        self.problem = None

    def _leave(self, name: str) -> None:
        for lane_id in self._of_host.pop(name, ()):
            self._scheduler.leave(lane_id)


FORGET_AT = 200
"""Number of records from which those of dead workers are dropped, and then when there are twice as many as were left."""


@dataclass(slots=True)
class _Record:
    tasks: int = 0
    seconds: float = 0.0
    mlx_peak: int | None = None
    resident_peak: int | None = None
    metered_seconds: float = 0.0
    metered: float = 0.0


class WorkerStats:
    """Sums of task measurements by worker."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._records: dict[str, _Record] = {}
        self._forget_at = FORGET_AT

    def add_run(self, worker: str, seconds: float, measurements: Measurements, gpu_utilization: float | None) -> None:
        """Add an ended task that used the worker for `seconds`, with the GPU's mean utilization in percent."""
        record = self._records.get(worker)
        if record is None:
            self._forget()
            record = self._records[worker] = _Record()
        record.tasks += 1
        record.seconds += seconds
        record.mlx_peak = _larger(record.mlx_peak, measurements.mlx_peak)
        record.resident_peak = _larger(record.resident_peak, measurements.resident_peak)
        if gpu_utilization is not None:
            record.metered_seconds += seconds
            record.metered += seconds * gpu_utilization

    def report(self) -> list[Worker]:
        """Return the live workers, oldest first."""
        return [
            Worker(
                id=each.name,
                device=each.lane,
                state=each.state,
                interpreter=each.interpreter,
                started_at=timestamp(each.started),
                task_id=each.task_id,
                model=each.model,
                session=each.session.id if each.session is not None else None,
                session_name=each.session.name if each.session is not None else None,
                resident_bytes=each.resident,
                tasks=record.tasks,
                device_time_s=round(record.seconds, 6),
                resident_peak_bytes=_larger(record.resident_peak, each.resident),
                mlx_peak_bytes=record.mlx_peak,
                gpu_utilization=round(record.metered / record.metered_seconds, 1) if record.metered_seconds else None,
            )
            for each in sorted(self._engine.workers(), key=lambda each: each.started)
            for record in (self._records.get(each.name, _Record()),)
        ]

    def _forget(self) -> None:
        if len(self._records) >= self._forget_at:
            living = {each.name for each in self._engine.workers()}
            self._records = {name: record for name, record in self._records.items() if name in living}
            self._forget_at = max(FORGET_AT, 2 * len(self._records))


def _larger(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return max(other, one)
