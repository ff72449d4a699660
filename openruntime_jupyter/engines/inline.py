"""Inline engine, which runs coroutines on the runtime's loop, for I/O-bound work."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic_core import from_json

from openruntime_jupyter.engines.protocol import (
    Completed,
    DeviceReport,
    Died,
    Job,
    Measurements,
    Observer,
    Outcome,
    RaisedError,
    Stage,
    Stopped,
    StopReason,
)
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.schemas.tasks import Failure, FailureKind
from openruntime_jupyter.schemas.values import ResponsePiece, ToolCallPiece

log = logging.getLogger(__name__)

LANE = "remote"
"""Lane of this engine; it is not a device, because nothing is computed locally."""

REPORT = DeviceReport(type="remote", index=0, name="remote models", memory=None, capabilities=(), mlx_version="")


class InlineContext:
    """Context of a running coroutine."""

    def __init__(self, task_id: str, observer: Observer) -> None:
        self.task_id = task_id
        self._observer = observer

    def token(self, text: str) -> None:
        """Report a piece of generated text."""
        if text:
            self._observer.generated(ResponsePiece(text))

    def reasoning(self, text: str) -> None:
        """Report a piece of the reasoning before a generated text."""
        if text:
            self._observer.generated(ResponsePiece(reasoning=text))

    def tool_call(self, piece: ToolCallPiece) -> None:
        """Report a piece of a tool call."""
        self._observer.generated(ResponsePiece(call=piece))

    def progress(self, n: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress."""
        self._observer.progressed({"n": n, "total": total, "message": message})


Runner = Callable[[dict[str, Any], InlineContext], Awaitable[dict[str, Any]]]
"""Implementation of an operation, from parameters to JSON-serializable output. It may be cancelled like any coroutine."""


class InlineEngine:
    """Engine for the operations of `runners`. A coroutine that ignores its cancellation is cancelled again every `grace` seconds."""

    def __init__(self, runners: Mapping[str, Runner], grace: float = 0.5) -> None:
        self._runners = runners
        self._grace = grace
        self._running: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._reasons: dict[str, StopReason] = {}
        self._stopping = False

    async def stop(self, deadline: float) -> None:
        """Cancel all running coroutines and wait for them."""
        self._stopping = True
        for task_id in tuple(self._running):
            self.halt(task_id, StopReason.ENDED)
        if self._running:
            await asyncio.wait(set(self._running.values()), timeout=deadline)

    async def run(self, job: Job, observer: Observer) -> Outcome:
        """Run the coroutine and return its outcome."""
        if self._stopping:
            return Stopped(StopReason.ENDED, Stage.QUEUE, Measurements())
        runner = self._runners.get(job.operation)
        if runner is None:
            message = f"Unknown operation {job.operation!r}: it belongs to another release of openruntime-jupyter"
            return Died(Failure(kind=FailureKind.NOT_STARTED, message=message), retry=False)
        observer.started(LANE)
        began = time.perf_counter()
        task = asyncio.ensure_future(runner(from_json(job.parameters), InlineContext(job.task_id, observer)))
        self._running[job.task_id] = task
        try:
            await asyncio.wait({task})
            return self._outcome(task, job, Measurements(time.perf_counter() - began))
        finally:
            task.cancel()
            del self._running[job.task_id]
            self._reasons.pop(job.task_id, None)

    def _outcome(self, task: asyncio.Future[dict[str, Any]], job: Job, measurements: Measurements) -> Outcome:
        if task.cancelled():
            return Stopped(self._reasons.get(job.task_id, StopReason.ENDED), Stage.INTERRUPT, measurements)
        problem = task.exception()
        if problem is None:
            return Completed(task.result(), measurements)
        kind = type(problem).__name__
        if isinstance(problem, OpenRuntimeError):
            message = str(problem)
        else:
            log.error("%s failed", job.task_id, exc_info=problem)
            message = f"{kind}: {problem}. This is a fault in openruntime; the log has the traceback."
        return RaisedError(Failure(kind=FailureKind.RAISED, message=message, type=kind), measurements)

    def halt(self, task_id: str, reason: StopReason) -> None:
        """Cancel the coroutine."""
        if task_id in self._running and task_id not in self._reasons:
            self._reasons[task_id] = reason
            self._cancel(task_id)

    def _cancel(self, task_id: str) -> None:
        task = self._running.get(task_id)
        if task is not None:
            task.cancel()
            asyncio.get_running_loop().call_later(self._grace, self._cancel, task_id)
