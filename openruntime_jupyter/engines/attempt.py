"""One attempt at a job on a worker: it handles the worker's frames, the outcome, and stopping in stages."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import time
from typing import Any, Literal

from openruntime_jupyter.engines.exit_report import died
from openruntime_jupyter.engines.protocol import (
    Completed,
    Died,
    Figures,
    Job,
    Observer,
    Outcome,
    RaisedError,
    Stage,
    Stopped,
    StopReason,
    StoredArray,
)
from openruntime_jupyter.engines.worker_process import Death, WorkerProcess
from openruntime_jupyter.schemas.tasks import Failure, FailureKind
from openruntime_jupyter.worker.codec import dumps
from openruntime_jupyter.worker.frames import Kind

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
        self._check = check and job.private
        self.worker: WorkerProcess | None = None
        self.arrays: dict[str, Any] | None = None
        """Array files and folders for the worker."""
        self.resident_peak = 0
        self.keeps_model = False
        """The worker still has the model loaded."""
        self.spent = False
        """The worker must not be used again."""
        self.never_begun = False
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

    def begin(self, worker: WorkerProcess, parameters_file: str | None, payload_file: str) -> None:
        """Send the job to `worker`."""
        job = self.job
        self.worker = worker
        if not worker.fresh:  # the earlier output of a new worker may explain its end
            worker.stdout.begin()
            worker.stderr.begin()
        worker.fresh, worker.burst = False, job.burst
        worker.listener = self
        worker.dead.add_done_callback(self._died)
        body: dict[str, Any] = {
            "task_id": job.task_id,
            "operation": job.operation,
            "device": {"type": job.device_type, "index": job.device_index},
            "memory_total": job.memory_total,
            "threads": job.threads,
            "payload_file": payload_file,
            "arrays": self.arrays,
            "private": job.private,
            "burst": job.burst is not None,
            "check": self._check,
            "session": job.session is not None,
            "model": dataclasses.asdict(job.model.source) if job.model is not None else None,
        }
        if parameters_file is not None:
            encoded = dumps({**body, "parameters_file": parameters_file})
        else:
            encoded = dumps(body)[:-1] + b',"parameters":' + job.parameters + b"}"
        self._observer.started(worker.name)  # before sending, so that the measured run time is not too short
        worker.send(Kind.RUN, encoded)
        self._given = time.monotonic()

    def is_unacknowledged(self, seconds: float) -> bool:
        """Return whether the job was sent at least `seconds` ago and the worker has not responded to it yet."""
        if self.worker is None or self.outcome.done() or self._reason is not None or self._acknowledged:
            return False
        return time.monotonic() - self._given >= seconds

    def look(self) -> None:
        """Kill a worker that was stopped by a signal or debugger before it read the job; a worker that is only slow is not affected."""
        worker = self.worker
        assert worker is not None
        unread = worker.unread
        if unread is not False and worker.stopped:
            self.never_begun = bool(unread)
            worker.killed_by_us = "it was suspended (SIGSTOP, or a debugger)"
            worker.signal_group(signal.SIGKILL)
        elif not unread:
            self._acknowledged = True

    def release(self) -> None:
        """Detach from the worker; called once the outcome is known."""
        if self._timer is not None:
            self._timer.cancel()
        if self.worker is not None:
            self.worker.stdout.finish_text()
            self.worker.stderr.finish_text()
            self.worker.listener = None
            self.worker.dead.remove_done_callback(self._died)

    def refuse(self, message: str) -> None:
        """Fail the task with `message` if it has no worker yet."""
        if self.worker is None:
            self._resolve(Died(Failure(kind=FailureKind.NOT_STARTED, message=message), retry=False))

    def halt(self, reason: StopReason) -> None:
        """Stop the task by an interrupt, then SIGTERM, then SIGKILL, each after a grace period; over the memory limit kill at once."""
        if self._reason is not None or self.outcome.done():
            return
        self._reason = reason
        if self.worker is None:
            self._resolve(Stopped(reason, Stage.QUEUE, Figures()))
        elif reason is StopReason.MEMORY:
            self._stage = Stage.KILL
            self._signal(self.worker, signal.SIGKILL)
        else:
            self._stage = Stage.INTERRUPT
            self.worker.interrupt(self.job.task_id)
            self._timer = self._loop.call_later(self._grace, self._escalate)

    def _escalate(self) -> None:
        if self.outcome.done() or self.worker is None or self.worker.ended or self._stage not in NEXT_STAGE:
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
            self._observer.progressed(body)
        elif kind is Kind.TOKEN:
            self._observer.generated(body["text"])
        elif kind is Kind.DISPLAY:
            self._observer.displayed(body)
        elif kind is Kind.DECLINED:
            self.declined = self.never_begun = self.spent = True
            self._resolve(Died(Failure(kind=FailureKind.NOT_STARTED, message=body["reason"])))
        elif body["task_id"] == self.job.task_id:
            self._finish(kind, body, payload)

    def _finish(self, kind: Kind, body: dict[str, Any], payload: bytes) -> None:
        self.spent, self.keeps_model, self.imported = body["spent"], body["keeps"], body["imported"]
        figures = Figures(body["execution_time"], body["mlx_peak"], max(self.resident_peak, body["resident"] or 0) or None)
        if kind is Kind.RESULT:
            size = body["payload_size"]
            stored = body["payload_file"]
            inline = payload if size is not None and not stored else None
            self._resolve(Completed(body["output"], figures, inline, stored, size or 0, body["encoding"], _stored(body["arrays"])))
        elif body["interrupted"] and self._reason is not None:
            self._resolve(Stopped(self._reason, Stage.INTERRUPT, figures))
        else:
            message = f"{body['type']}: {body['message']}" if body["message"] else body["type"]
            self._resolve(
                RaisedError(Failure(kind=FailureKind.RAISED, message=message, type=body["type"], traceback=body["traceback"]), figures)
            )

    def _died(self, future: asyncio.Future[Death]) -> None:
        if self.outcome.done() or self.worker is None:
            return
        death = future.result()
        peak = max(death.peak or 0, self.resident_peak) or None
        figures = Figures(resident_peak=peak)
        failure = died(self.worker, death, peak)
        if self._reason is not None and self._stage is not Stage.QUEUE:
            self._resolve(Stopped(self._reason, STAGE_OF.get(death.signal or 0, self._stage), figures, failure))
        else:
            self._resolve(Died(failure, figures))

    def _resolve(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


def _stored(arrays: list[dict[str, Any]]) -> tuple[StoredArray, ...]:
    if not arrays:
        return ()
    return tuple(StoredArray(each["id"], tuple(each["shape"]), each["dtype"], each["kind"], each["place"]) for each in arrays)
