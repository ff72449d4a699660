"""The workers of one lane and one interpreter: those that idle, those that start, and spares so that a kill costs no start."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from openruntime_jupyter.engines.worker_process import WorkerProcess
from openruntime_jupyter.errors import EngineError

log = logging.getLogger(__name__)

Start = Callable[[str, "frozenset[str]"], WorkerProcess]


class Pool:
    """Hands out workers that have said hello, and keeps `spares` idle. `start(interpreter, warm)` begins a new one."""

    def __init__(self, lane: str, interpreter: str, start: Start, start_timeout: float, spares: int = 1) -> None:
        self.lane = lane
        self.interpreter = interpreter
        self.used: set[str] = set()
        """Operations that were asked for here, for new workers to warm up."""
        self._start = start
        self._start_timeout = start_timeout
        self._spares = spares
        self._idle: deque[WorkerProcess] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._waiting: deque[tuple[asyncio.Future[WorkerProcess], bool]] = deque()
        self._closed = False

    def adopt(self, worker: WorkerProcess) -> None:
        """Take a worker that said hello elsewhere."""
        worker.lane = self.lane
        self.give_back(worker)

    def take_idle(self, fresh: bool = False) -> WorkerProcess | None:
        """A worker at once, or None; with `fresh` one that has never had a task."""
        passed: list[WorkerProcess] = []
        found = None
        while self._idle and found is None:
            worker = self._idle.pop()
            if not worker.lives:
                continue
            if fresh and not worker.fresh:
                passed.append(worker)
            else:
                found = worker
        self._idle.extend(reversed(passed))
        if found is not None:
            self.keep_spares()
        return found

    async def take(self, fresh: bool = False) -> WorkerProcess:
        """The next worker that is ready, as `take_idle`; raises `EngineError` if one can't be started."""
        if (worker := self.take_idle(fresh)) is not None:
            return worker
        future: asyncio.Future[WorkerProcess] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, fresh))
        self.keep_spares()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give_back(future.result())
            raise

    def give_back(self, worker: WorkerProcess) -> None:
        """A worker is free again."""
        if not worker.lives:
            self.keep_spares()
            return
        if self._waiting:
            self._waiting = deque(each for each in self._waiting if not each[0].done())
            for each in self._waiting:
                future, fresh = each
                if worker.fresh or not fresh:
                    self._waiting.remove(each)
                    future.set_result(worker)
                    return
        worker.idle_since = time.monotonic()
        self._idle.append(worker)

    def keep_spares(self) -> None:
        """Start what is missing: one for each who waits, whom none of the idle ones suits, and as many as lack to the spares."""
        lacking = self._spares - len(self._idle)
        if lacking <= 0 and not self._waiting:
            return
        wanted = sum(not future.done() for future, _ in self._waiting) + max(0, lacking)
        while not self._closed and len(self._starting) < wanted:
            task = asyncio.get_running_loop().create_task(self._start_one())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start_one(self) -> None:
        try:
            worker = self._start(self.interpreter, frozenset(self.used))
            worker.lane = self.lane
            try:
                await asyncio.wait_for(asyncio.shield(worker.hello), self._start_timeout)
            except asyncio.TimeoutError:
                worker.killed_by_us = f"it was not ready after {self._start_timeout:g} s"
                worker.signal_group(9)
                raise EngineError(f"The worker of {self.interpreter} was not ready after {self._start_timeout:g} s") from None
        except EngineError as problem:
            self._failed(problem)
        except Exception as problem:  # a fault of ours must not leave anybody waiting
            log.exception("A worker could not be started")
            self._failed(EngineError(f"A worker of {self.interpreter} can't be started: {problem!r}. This is a fault in openruntime."))
        else:
            self.give_back(worker)

    def _failed(self, problem: EngineError) -> None:
        for each in self._waiting:
            future, _ = each
            if not future.done():
                self._waiting.remove(each)
                future.set_exception(problem)
                return
        log.warning("A spare worker did not start: %s", problem)

    def retire(self, idle_seconds: float, keep: int) -> list[WorkerProcess]:
        """Workers idle for longer than that, but for `keep` of them; they are no longer handed out."""
        now = time.monotonic()
        old: list[WorkerProcess] = []
        while len(self._idle) > keep and now - self._idle[0].idle_since >= idle_seconds:
            old.append(self._idle.popleft())
        return old

    def close(self) -> None:
        """Start nothing more, and end what waits."""
        self._closed = True
        for future, _ in self._waiting:
            if not future.done():
                future.set_exception(EngineError("The runtime is being stopped."))
        for task in self._starting:
            task.cancel()
