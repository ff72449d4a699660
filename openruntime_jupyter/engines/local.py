"""Local engine, which runs tasks in worker processes on the same machine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from openruntime_jupyter.engines.failures import Death, oom_watch
from openruntime_jupyter.engines.model_pool import ModelPool
from openruntime_jupyter.engines.pool import Pool
from openruntime_jupyter.engines.process_groups import ProcessGroups, end_left_groups
from openruntime_jupyter.engines.protocol import (
    Completed,
    DeviceReport,
    Died,
    HostDevices,
    Job,
    JobFiles,
    Measurements,
    NeedsMemory,
    Observer,
    Outcome,
    RaisedError,
    SessionUse,
    Stage,
    Stopped,
    StopReason,
    StoredArray,
    WorkerReport,
)
from openruntime_jupyter.engines.worker_process import Watchdog, WorkerProcess, resident_bytes, start_ready, worker_environment
from openruntime_jupyter.errors import ArrayNotFound, EngineError, InterpreterError, NoBackend, StorageUnavailable
from openruntime_jupyter.local_models.language_model import loading
from openruntime_jupyter.schemas.base import dumps
from openruntime_jupyter.schemas.hosts import Host
from openruntime_jupyter.schemas.tasks import Failure, FailureKind
from openruntime_jupyter.schemas.values import ModelSource, piece_of
from openruntime_jupyter.worker.devices import no_backend
from openruntime_jupyter.worker.frames import INLINE_PAYLOAD, BrokenFrame, Kind

log = logging.getLogger(__name__)

LARGE = 512 << 20
"""Peak memory in bytes above which a task's slot is released only after its process has ended and freed the memory."""

MAX_WORKERS = 5
"""Maximum number of workers that a job is given, one after the other, if none of them begins it."""

ACK_SECONDS = 1.0
"""Time after which workers are checked for jobs that they have not read, and interval of that check."""


class ArrayFiles(Protocol):
    """Files of stored arrays on this machine."""

    def path_of(self, array_id: str) -> str:
        """Return the file of an array; raise `ArrayNotFound` if it is unknown."""

    def places(self) -> list[tuple[str, int, int]]:
        """Return the folders for results, best first, each with its free bytes and its free bytes without releasing free blocks."""


NEXT_STAGE = {Stage.INTERRUPT: (Stage.TERMINATE, signal.SIGTERM), Stage.TERMINATE: (Stage.KILL, signal.SIGKILL)}

STAGE_OF = {int(number): stage for stage, number in NEXT_STAGE.values()}
"""Stage by the signal that ended a worker."""


WHY = {
    StopReason.CANCELLED: "was cancelled and did not answer the interrupt",
    StopReason.TIMED_OUT: "ran longer than its timeout and did not answer the interrupt",
    StopReason.MEMORY: "exceeded its memory limit",
    StopReason.ENDED: "was stopped with the runtime",
}
"""Reason for a signal to a task's worker."""


class Attempt:
    """Attempt at a job; its future `outcome` is resolved exactly once."""

    def __init__(self, job: Job, observer: Observer, grace: float, check: bool = True) -> None:
        self.job = job
        self._check = check
        self.worker: WorkerProcess | None = None
        self.arrays: dict[str, Any] | None = None
        """Array files and folders for the worker."""
        self.resident_peak = 0
        self.has_kernel_peak = False
        """The peak that the kernel reports at the worker's end is that of this attempt."""
        self.keeps_model = False
        """The worker still has the model loaded."""
        self.retire = False
        """The worker must not be used again."""
        self.not_begun = False
        """The worker ended before it read the job, so another worker may run it."""
        self.declined = False
        """The worker rejected the task because files that it had imported have changed."""
        self.imported: list[str] = []
        """Installed modules that the task imported."""
        self._observer = observer
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Outcome] = self._loop.create_future()
        self._reason: StopReason | None = None
        self._stage = Stage.QUEUE
        self._timer: asyncio.TimerHandle | None = None
        self._given = 0.0
        self._acknowledged = False
        self._loading: str | None = None
        """Name of the model that the worker is loading."""

    def begin(self, worker: WorkerProcess, parameters_file: str | None, payload_file: str) -> None:
        """Send the job to `worker`."""
        job = self.job
        self.worker = worker
        if not worker.fresh:  # the earlier output of a new worker may explain its end
            worker.stdout.begin()
            worker.stderr.begin()
        # A new worker that was started after another one declined has no old imports. A session keeps its imports.
        check = self._check if worker.fresh else job.session is None
        worker.fresh, worker.burst = False, job.burst
        worker.listener = self
        worker.dead.add_done_callback(self._died)
        body: dict[str, Any] = {
            "task_id": job.task_id,
            "operation": job.operation,
            "device": {"type": job.device_type, "index": job.device_index},
            "memory_total": job.memory_total,
            "memory_largest": job.memory_largest,
            "memory_reserved": job.memory_reserved,
            "threads": job.threads,
            "payload_file": payload_file,
            "arrays": self.arrays,
            "private": job.private,
            "burst": job.burst is not None,
            "check": check and job.private,
            "session": job.session is not None,
            "folder": job.folder,
            "model": dataclasses.asdict(job.model.source) if job.model is not None else None,
        }
        if parameters_file is not None:
            encoded = dumps({**body, "parameters_file": parameters_file})
        else:
            encoded = dumps(body)[:-1] + b',"parameters":' + job.parameters + b"}"
        self._observer.started(worker.name)  # before sending, so that the measured run time is not too short
        worker.send(Kind.RUN, encoded)
        self._given = time.monotonic()

    def kill_if_suspended(self) -> None:
        """Kill a worker that a signal or debugger stopped before it read the job, which was sent at least `ACK_SECONDS` ago."""
        worker = self.worker
        if worker is None or self.outcome.done() or self._reason is not None or self._acknowledged:
            return
        if time.monotonic() - self._given < ACK_SECONDS:
            return
        unread = worker.unread
        if unread is not False and worker.stopped:
            worker.killed_by_us = "it was suspended (SIGSTOP, or a debugger)"
            worker.signal_group(signal.SIGKILL)
        elif not unread:
            self._acknowledged = True

    def release(self) -> None:
        """Detach from the worker; called once the outcome is known."""
        if self._timer is not None:
            self._timer.cancel()
        if self.worker is not None:
            self.worker.hold_output(False)
            self.worker.stdout.finish_text()
            self.worker.stderr.finish_text()
            self.worker.listener = None
            self.worker.dead.remove_done_callback(self._died)

    def reject(self, message: str) -> None:
        """Fail the task with `message` if it has no worker yet."""
        if self.worker is None:
            self._resolve(Died(Failure(kind=FailureKind.NOT_STARTED, message=message), retry=False))

    def halt(self, reason: StopReason) -> None:
        """Stop the task by an interrupt, then SIGTERM, then SIGKILL, each after a grace period; over the memory limit kill at once."""
        if self._reason is not None or self.outcome.done():
            return
        self._reason = reason
        self.hold_output(False)
        if self.worker is None:
            self._resolve(Stopped(reason, Stage.QUEUE, Measurements()))
        elif reason is StopReason.MEMORY:
            self._stage = Stage.KILL
            self._signal(self.worker, signal.SIGKILL)
        else:
            self._stage = Stage.INTERRUPT
            self.worker.interrupt(self.job.task_id)
            self._timer = self._loop.call_later(self._grace, self._escalate)

    def hold_output(self, held: bool) -> None:
        """Stop reading the output of the task, or continue. A task that is being stopped is always read, because its end must be seen."""
        if self.worker is not None and not (held and (self._reason is not None or self.outcome.done())):
            self.worker.hold_output(held)

    def _escalate(self) -> None:
        if self.outcome.done() or self.worker is None or not self.worker.alive or self._stage not in NEXT_STAGE:
            return
        self._stage, number = NEXT_STAGE[self._stage]
        self._signal(self.worker, number)
        self._timer = self._loop.call_later(self._grace, self._escalate)

    def _signal(self, worker: WorkerProcess, number: int) -> None:
        if self._reason is not None:
            worker.killed_by_us = worker.killed_by_us or f"{self.job.task_id} {WHY[self._reason]}"
        worker.signal_group(number)

    def printed(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        """Pass output of the task to the observer."""
        self._acknowledged = True
        self._observer.printed(stream, text)

    def frame(self, kind: Kind, body: dict[str, Any], payload: bytes) -> None:
        """Handle a frame of the worker."""
        if self.outcome.done():
            return
        self._acknowledged = True
        if kind is Kind.PROGRESS:
            model = self.job.model.source.name if self.job.model is not None else None
            self._loading = model if model is not None and body["message"] == loading(model) else None
            self._observer.progressed(body)
        elif kind is Kind.TOKEN:
            self._observer.generated(piece_of(body))
        elif kind is Kind.DISPLAY:
            self._observer.displayed(body)
        elif kind is Kind.DECLINED:
            self.declined, self.not_begun, self.retire = body["changed"], True, True
            self._resolve(Died(Failure(kind=FailureKind.NOT_STARTED, message=body["reason"])))
        elif body["task_id"] == self.job.task_id:
            self._finish(kind, body, payload)

    def _finish(self, kind: Kind, body: dict[str, Any], payload: bytes) -> None:
        self.retire, self.keeps_model, self.imported = body["retire"], body["keeps"], body["imported"]
        sizes = (body["mlx_peak"] or 0, body["resident"] or 0, body.get("payload_size") or 0, body.get("needs", 0))
        if not all(0 <= number < 2**63 for number in (body["execution_time"], *sizes)):
            raise BrokenFrame(f"impossible measurements: {body['execution_time']} s, {sizes} bytes")
        measurements = Measurements(body["execution_time"], body["mlx_peak"], max(self.resident_peak, body["resident"] or 0) or None)
        if kind is Kind.RESULT:
            size = body["payload_size"]
            stored = body["payload_file"]
            inline = payload if size is not None and not stored else None
            self._resolve(Completed(body["output"], measurements, inline, stored, size or 0, body["encoding"], _stored(body["arrays"])))
        elif kind is Kind.NEEDS_MEMORY:
            self._resolve(NeedsMemory(body["needs"], measurements))
        elif body["interrupted"] and self._reason is not None:
            self._resolve(Stopped(self._reason, Stage.INTERRUPT, measurements))
        else:
            message = f"{body['type']}: {body['message']}" if body["message"] else body["type"]
            self._resolve(
                RaisedError(Failure(kind=FailureKind.RAISED, message=message, type=body["type"], traceback=body["traceback"]), measurements)
            )

    def _died(self, future: asyncio.Future[Death]) -> None:
        if self.outcome.done() or self.worker is None:
            return
        death = future.result()
        self.not_begun = self.not_begun or (self.worker.left_frames and not self._acknowledged)
        peak = max((death.peak or 0) if self.has_kernel_peak else 0, self.resident_peak) or None
        measurements = Measurements(resident_peak=peak)
        failure = self.worker.failure(death, peak, self._loading)
        if self._reason is not None and self._stage is not Stage.QUEUE:
            self._resolve(Stopped(self._reason, STAGE_OF.get(death.signal or 0, self._stage), measurements, failure))
        else:
            self._resolve(Died(failure, measurements))

    def _resolve(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


def _stored(arrays: list[dict[str, Any]]) -> tuple[StoredArray, ...]:
    if not arrays:
        return ()
    return tuple(StoredArray(each["id"], tuple(each["shape"]), each["dtype"], each["kind"], each["place"]) for each in arrays)


@dataclass(slots=True)
class LocalOptions:
    """Options of a local engine. Times are in seconds; the folders must exist and be private."""

    payloads: Path
    temporary: Path
    groups: Path | None = None
    """Folder in which all runtimes of the user record the process groups of their workers; None: not recorded."""
    arrays: ArrayFiles | None = None
    blas: str = ""
    cancel_grace: float = 0.5
    spare_workers: int = 1
    idle_worker_seconds: float = 300.0
    start_timeout: float = 60.0
    max_models: int = 2
    secret_variables: frozenset[str] = frozenset()
    interpreter: str = field(default_factory=lambda: sys.executable)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """Environment variables of workers, before the changes of a task's caller."""
    own_variables: tuple[tuple[str, str | None], ...] = ()
    """Changes to `environment` for tasks whose caller specifies none, as sorted pairs."""
    session_ended: Callable[[SessionUse, str], None] = lambda use, reason: None
    """Called with the reason when a session's worker ends without `end_session`."""


class LocalEngine:
    """Engine with a pool of worker processes per lane and interpreter."""

    problem = None
    """Why hosts are missing: it has none."""

    def __init__(self, options: LocalOptions) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._watchdog = Watchdog(self._past_limit, oom_watch.read)
        self._groups = ProcessGroups(options.groups) if options.groups is not None else None
        self._payloads = str(options.payloads)
        self._pools: dict[tuple[str, str], Pool] = {}
        self._workers: set[WorkerProcess] = set()
        self._attempts: dict[str, Attempt] = {}
        self._reports: dict[str, asyncio.Task[list[DeviceReport]]] = {}
        self._generation = 0
        self._warm = {"python", "call"}
        """Operations whose slow imports new workers run in advance."""
        self._sessions: dict[str, tuple[SessionUse, WorkerProcess]] = {}
        self.models = ModelPool(options.max_models, 4 * options.cancel_grace, resident_bytes)
        self._stopping = False
        self._reaper: asyncio.TimerHandle | None = None
        self._ack_timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Start the watchdog, and the first worker without waiting for it."""
        self._watchdog.ensure_running()
        self._discovery(self._options.interpreter)
        self._schedule_reaper()

    async def end_left_processes(self) -> None:
        """End processes that tasks of dead runtimes have left."""
        if self._options.groups is not None:
            await self._loop.run_in_executor(None, end_left_groups, self._options.groups)

    async def stop(self, deadline: float) -> None:
        """End every worker within `deadline` seconds.

        No new workers start. Idle workers leave and busy ones are interrupted; those still running at half the deadline are killed. The
        watchdog stops last, because it is needed until then.
        """
        self._stopping = True
        for timer in (self._reaper, self._ack_timer):
            if timer is not None:
                timer.cancel()
        for pool in self._pools.values():
            pool.close()
        self.models.close()
        for attempt in tuple(self._attempts.values()):
            attempt.halt(StopReason.ENDED)
        for worker in tuple(self._workers):
            worker.leave()
        await self._wait_for_exits(deadline / 2)
        for worker in tuple(self._workers):
            worker.killed_by_us = worker.killed_by_us or "the runtime stopped"
            worker.signal_group(signal.SIGKILL)
        await self._wait_for_exits(deadline / 2)
        discoveries = tuple(self._reports.values())
        for discovery in discoveries:
            discovery.cancel()
        await asyncio.gather(*discoveries, return_exceptions=True)
        self._watchdog.stop(1.0)
        if self._groups is not None and not self._workers:
            self._groups.close()

    async def _wait_for_exits(self, seconds: float) -> None:
        dead = [worker.dead for worker in self._workers]
        if dead:
            await asyncio.wait(dead, timeout=seconds)

    # Devices

    async def devices(self, interpreter: str | None = None) -> list[DeviceReport]:
        """Return the devices of this interpreter's workers; raise `EngineError` or a subclass if none starts."""
        return await asyncio.shield(self._discovery(interpreter or self._options.interpreter))

    def _discovery(self, interpreter: str) -> asyncio.Task[list[DeviceReport]]:
        task = self._reports.get(interpreter)
        if task is None or (task.done() and not task.cancelled() and task.exception() is not None):
            task = self._loop.create_task(self._discover(interpreter))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._reports[interpreter] = task
        return task

    async def _discover(self, interpreter: str) -> list[DeviceReport]:
        worker = await start_ready(partial(self._start_worker, interpreter, {}, describe=True), self._options.start_timeout)
        hello = worker.hello.result()
        if hello["problem"] is not None:
            worker.leave()
            raise NoBackend(no_backend(interpreter, hello["problem"]))
        reports = [
            DeviceReport(
                type=device["type"],
                index=device["index"],
                name=device["name"],
                memory=device["memory"],
                capabilities=tuple(device["capabilities"]),
                mlx_version=hello["mlx"],
                blas=hello["blas"] if device["type"] == "cpu" else None,
                advice=hello["advice"] if device["type"] == "cpu" else None,
            )
            for device in hello["devices"]
        ]
        if any("cuda" in report.capabilities for report in reports):
            worker.leave()  # querying the devices created a CUDA context, which holds half a gigabyte of GPU memory
        else:
            self._pool("device_0", interpreter).adopt(worker)
        return reports

    def watch(
        self,
        found: Callable[[str], None],
        joined: Callable[[HostDevices], None],
        left: Callable[[str], None],
        pending: Callable[[], int],
    ) -> None:
        """There are no other hosts."""

    # Running

    async def run(self, job: Job, observer: Observer) -> Outcome:
        """Run the job and return its outcome; a worker that cannot be started is an outcome as well."""
        outcome, begun = await self._try(job, observer, check=True)
        for _ in range(MAX_WORKERS - 1):
            if begun:
                break
            outcome, begun = await self._try(job, observer, check=False)
        if not begun and isinstance(outcome, Died):
            outcome.no_worker = True
        return outcome

    async def _try(self, job: Job, observer: Observer, check: bool) -> tuple[Outcome, bool]:
        """Return the outcome of one attempt, and False if its worker ended before it started the job or declined it."""
        if self._stopping:
            return Stopped(StopReason.ENDED, Stage.QUEUE, Measurements()), True
        session = self._sessions.get(job.session.id) if job.session is not None else None
        attempt = Attempt(job, observer, self._options.cancel_grace, check)
        self._attempts[job.task_id] = attempt
        if self._ack_timer is None:
            self._ack_timer = self._loop.call_later(ACK_SECONDS, self._check_attempts)
        pool = self._pool(job.lane, job.interpreter or self._options.interpreter)
        if job.model is None:  # imports for models are slow, and most workers never need them
            self._warm.add(job.operation)
        try:
            attempt.arrays = self._arrays(job)
            kept = self.models.take(job) if job.model is not None else None
            if session is not None:
                kept = session[1]
            worker = kept or pool.take_idle(job) or await self._next_worker(pool, attempt)
            if worker is None:
                return await attempt.outcome, True
            if job.model is not None and kept is None:
                self.models.adopt(job, worker)
            if job.session is not None and kept is None:
                self._open_session(job.session, worker)
            outcome = await self._run_on(worker, pool, attempt)
            if job.session is not None and not attempt.declined:  # another worker would not have its variables
                return outcome, True
            return outcome, not (attempt.not_begun and isinstance(outcome, Died))
        except (EngineError, ArrayNotFound, StorageUnavailable, OSError) as problem:
            failure = Failure(kind=FailureKind.NOT_STARTED, message=str(problem), type=type(problem).__name__)
            no_worker = isinstance(problem, EngineError) and not isinstance(problem, InterpreterError)
            return Died(failure, retry=False, no_worker=no_worker), True
        finally:
            del self._attempts[job.task_id]

    def _check_attempts(self) -> None:
        # One timer for all attempts, because most end long before it fires.
        self._ack_timer = self._loop.call_later(ACK_SECONDS, self._check_attempts) if self._attempts else None
        self._watchdog.ensure_running()
        for attempt in tuple(self._attempts.values()):
            attempt.kill_if_suspended()

    async def _next_worker(self, pool: Pool, attempt: Attempt) -> WorkerProcess | None:
        """Return the next worker for this attempt, or None if the attempt was stopped before."""
        taking = self._loop.create_task(pool.take(attempt.job))
        waited: set[asyncio.Future[Any]] = {taking, attempt.outcome}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not attempt.outcome.done():
            return await taking
        taking.cancel()
        with contextlib.suppress(asyncio.CancelledError, EngineError):
            pool.give_back(await taking)
        return None

    async def _run_on(self, worker: WorkerProcess, pool: Pool, attempt: Attempt) -> Outcome:
        job = attempt.job
        parameters_file = None
        if len(job.parameters) > INLINE_PAYLOAD:
            parameters_file = self._options.temporary / f"{job.payload_name}.parameters"
            try:
                await self._loop.run_in_executor(None, _write, parameters_file, job.parameters)
            except OSError as problem:
                parameters_file.unlink(missing_ok=True)
                self._hand_back(worker, pool, attempt)
                raise StorageUnavailable(
                    f"The parameters of {len(job.parameters):,} bytes can't be stored in {parameters_file.parent} ({problem.strerror}): "
                    "free some space there, or choose another `data_dir`"
                ) from problem
            if attempt.outcome.done():  # stopped in between, before the worker got the job
                parameters_file.unlink(missing_ok=True)
                self._hand_back(worker, pool, attempt)
                return attempt.outcome.result()
        # Without a reset the kernel's peak includes earlier tasks, which a fresh worker has not.
        attempt.has_kernel_peak = self._watchdog.watch(worker.pid, job.task_id, job.memory_limit) or worker.fresh
        try:
            attempt.begin(worker, str(parameters_file) if parameters_file else None, f"{self._payloads}/{job.payload_name}")
            outcome = await attempt.outcome
        finally:
            attempt.resident_peak = max(attempt.resident_peak, self._watchdog.unwatch(worker.pid))
            attempt.release()
            if parameters_file is not None:
                parameters_file.unlink(missing_ok=True)
        peak = max(outcome.measurements.resident_peak or 0, attempt.resident_peak)
        outcome.measurements.resident_peak = peak or None
        ends = self._hand_back(worker, pool, attempt)
        if ends and peak >= LARGE:
            await asyncio.wait([worker.dead], timeout=4 * self._options.cancel_grace)
        return outcome

    def _hand_back(self, worker: WorkerProcess, pool: Pool, attempt: Attempt) -> bool:
        """Keep the worker for other tasks or end it. Return whether it ends."""
        job = attempt.job
        if worker.fresh and not worker.signalled and not self._stopping:  # it never got the job
            self._forget_session(worker)
            pool.give_back(worker)
            return False
        if attempt.declined:
            pool.forget_imports()
            self._forget_session(worker)
        elif job.private and job.environment.kernel is not None:  # callers without a kernel id cannot be distinguished
            pool.record_imports(job.environment, attempt.imported)
        if job.session is not None and not (self._stopping or attempt.declined):
            if worker.signalled and (use := self._forget_session(worker)) is not None:  # it may still receive a signal
                self._options.session_ended(use, f"The worker was stopped: {worker.killed_by_us}")
                worker.signal_group(signal.SIGKILL)
            pool.keep_spares_soon()
            return worker.signalled
        if self._stopping or attempt.retire or (job.private and job.burst is None):
            self.models.mark_ending(worker)
            self._dismiss(worker)
            pool.keep_spares_soon()
            return True
        if worker.signalled:  # it may still receive a signal, so it is not reused
            self.models.mark_ending(worker)
            worker.signal_group(signal.SIGKILL)
            pool.keep_spares_soon()
            return True
        if job.model is not None:
            self.models.release(job, attempt.keeps_model)
        else:
            pool.give_back(worker)
        return False

    # Sessions

    def _open_session(self, use: SessionUse, worker: WorkerProcess) -> None:
        self._sessions[use.id] = (use, worker)
        worker.dead.add_done_callback(lambda _: self._session_died(worker))

    def _session_died(self, worker: WorkerProcess) -> None:
        if (use := self._forget_session(worker)) is not None:
            self._options.session_ended(use, worker.failure(worker.dead.result()).message)

    def _forget_session(self, worker: WorkerProcess) -> SessionUse | None:
        use = next((use for use, each in self._sessions.values() if each is worker), None)
        if use is not None:
            del self._sessions[use.id]
        return use

    def session_worker(self, session_id: str) -> tuple[str | None, int | None]:
        """Return the name of the session's worker and its resident bytes; None for unknown values."""
        if session_id not in self._sessions:
            return None, None
        worker = self._sessions[session_id][1]
        return worker.name, resident_bytes(worker.pid)

    def end_session(self, session_id: str, reason: str) -> None:
        """End the worker of a session, and the task that it runs; `reason` completes "The worker was stopped: …"."""
        for attempt in tuple(self._attempts.values()):
            if attempt.job.session is not None and attempt.job.session.id == session_id:
                attempt.reject(f"The task did not start: {reason}")
        if session_id not in self._sessions:
            return
        _, worker = self._sessions.pop(session_id)
        worker.killed_by_us = worker.killed_by_us or reason
        if worker.listener is None:
            self._dismiss(worker)
        else:
            worker.signal_group(signal.SIGKILL)

    def _dismiss(self, worker: WorkerProcess) -> None:
        """End an idle worker; kill it if something that a task left behind, such as a thread, keeps it running."""
        worker.leave()
        self._loop.call_later(self._options.cancel_grace * 4, worker.signal_group, signal.SIGKILL)

    def _arrays(self, job: Job) -> dict[str, Any] | None:
        """Return the array files and folders for the worker; raise `ArrayNotFound` for an unknown input."""
        files, given = self._options.arrays, job.files or JobFiles()
        if files is None or (job.array_name is None and not job.arrays):
            return None
        inputs = {each: given.inputs.get(each) or files.path_of(each) for each in job.arrays}
        return {"inputs": inputs, "name": job.array_name, "places": given.places or files.places()}

    def halt(self, task_id: str, reason: StopReason) -> None:
        """Stop a task in stages."""
        attempt = self._attempts.get(task_id)
        if attempt is not None:
            attempt.halt(reason)

    def hold_output(self, task_id: str, held: bool) -> None:
        """Stop reading the output of a task, which then waits at its next output, or continue."""
        attempt = self._attempts.get(task_id)
        if attempt is not None:
            attempt.hold_output(held)

    def allocated(self, task_id: str) -> int:
        """Return the bytes by which the worker of this task has grown since the task began, as last read by the watchdog."""
        attempt = self._attempts.get(task_id)
        return self._watchdog.growth(attempt.worker.pid) if attempt is not None and attempt.worker is not None else 0

    def resident(self, task_id: str) -> int | None:
        """Return the resident bytes of the worker that runs this task, as last read by the watchdog; None before its first reading."""
        attempt = self._attempts.get(task_id)
        return self._watchdog.resident(attempt.worker.pid) if attempt is not None and attempt.worker is not None else None

    # Workers

    def workers(self) -> list[WorkerReport]:
        """Return the running workers."""
        busy = {id(attempt.worker): attempt.job.task_id for attempt in self._attempts.values()}
        models = {id(worker): name for worker, name in self.models.workers()}
        sessions = {id(worker): use for use, worker in self._sessions.values()}
        return [
            WorkerReport(
                name=worker.name,
                state="busy" if id(worker) in busy else "idle" if worker.hello.done() else "starting",
                resident=resident_bytes(worker.pid),
                started=worker.started,
                interpreter=worker.interpreter,
                lane=worker.lane,
                task_id=busy.get(id(worker)),
                model=models.get(id(worker)),
                session=sessions.get(id(worker)),
            )
            for worker in self._workers
            if not worker.dead.done()
        ]

    def hosts(self) -> list[Host]:
        """Return the other machines: none."""
        return []

    def stored_models(self) -> dict[str, list[ModelSource]]:
        """Return the models of other hosts: none."""
        return {}

    def _pool(self, lane: str, interpreter: str) -> Pool:
        key = (lane, interpreter)
        if key not in self._pools:
            options = self._options
            self._pools[key] = Pool(
                lane,
                interpreter,
                self._start_worker,
                self._dismiss,
                options.start_timeout,
                options.spare_workers,
                self._busy,
                options.own_variables,
            )
        return self._pools[key]

    def _busy(self) -> list[tuple[WorkerProcess, Job]]:
        return [(attempt.worker, attempt.job) for attempt in self._attempts.values() if attempt.worker is not None]

    def _start_worker(self, interpreter: str, variables: Mapping[str, str | None], describe: bool = False) -> WorkerProcess:
        if self._stopping:
            raise EngineError("The runtime is stopping")
        self._generation += 1
        try:
            self._options.temporary.mkdir(mode=0o700, parents=True, exist_ok=True)  # another program may have removed it
        except OSError as problem:
            raise EngineError(f"Cannot create the folder {self._options.temporary} for workers: {problem.strerror}") from problem
        environment = worker_environment(self._options.environment, self._options.temporary, self._options.secret_variables, variables)
        arguments = [self._options.blas, "describe" if describe else "", ",".join(sorted(self._warm))]
        worker = WorkerProcess(interpreter, self._generation, environment, str(self._options.temporary), arguments)
        if self._groups is not None:
            self._groups.add(worker.pid)
        self._workers.add(worker)
        worker.dead.add_done_callback(lambda _: self._on_worker_ended(worker))
        return worker

    def _on_worker_ended(self, worker: WorkerProcess) -> None:
        self._workers.discard(worker)
        attempt = next((attempt for attempt in self._attempts.values() if attempt.worker is worker), None)
        if attempt is not None:
            attempt.resident_peak = max(attempt.resident_peak, self._watchdog.unwatch(worker.pid))
        self._watchdog.forget(worker.pid)

    def _past_limit(self, task_id: str) -> None:
        self._loop.call_soon_threadsafe(self.halt, task_id, StopReason.MEMORY)

    def _schedule_reaper(self) -> None:
        pause = min(max(self._options.idle_worker_seconds / 4, 1.0), 30.0)
        self._reaper = self._loop.call_later(pause, self._retire_idle)

    def _retire_idle(self) -> None:
        for (_, interpreter), pool in self._pools.items():
            pool.retire(self._options.idle_worker_seconds, self._options.spare_workers if interpreter == self._options.interpreter else 0)
        self._schedule_reaper()


def _write(path: Path, data: bytes) -> None:
    """Write a file; remove it if the write fails."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
