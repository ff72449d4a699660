"""Worker processes of one device and interpreter: shared, spare, and reused within a burst of calls.

Three kinds of idle workers:

- *Shared* workers have run built-in operations only. Those leave nothing behind, so any task of a built-in operation may follow.
- *Spare* workers have never run a task. A private task (a cell or a call) always gets one, or a new process. A spare may be prepared
  for an execution environment: it has then imported installed packages that earlier tasks of the same kernel imported.
- *Burst* workers have run a call of one burst (one `map`, or one function on an executor) and wait a moment for the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from openruntime_jupyter.engines.protocol import ExecutionEnvironment, Job
from openruntime_jupyter.engines.worker_process import WorkerProcess, start_ready
from openruntime_jupyter.errors import EngineError

log = logging.getLogger(__name__)

BURST_SECONDS = 2.0
"""Time that a worker waits for the next call of its burst: longer than a client takes to send more."""

SPARE_SECONDS = 0.25
"""Idle time after which a used spare is replaced. Starting one slows short tasks down: with an immediate start, an empty cell took
three times as long, and so do the first built-in operations."""

LATEST_SPARE_SECONDS = 2.0
"""Time after which a used spare is replaced even without idle time."""

WAITING_BURST_SECONDS = 0.1
"""Time that a call of a burst waits for a worker of that burst before another one is started for it."""

PREPARED = 2
"""Number of kernels with a prepared spare, most recently used first. Each spare holds 60 MB and its imports."""

NO_ENVIRONMENT = ExecutionEnvironment()
"""Environment of tasks whose caller specifies none."""

MAX_IMPORTS = 3_000
"""Module names remembered for a kernel."""

Variables = tuple[tuple[str, "str | None"], ...]
Start = Callable[[str, Mapping[str, "str | None"]], WorkerProcess]


@dataclass(slots=True)
class _Waiter:
    job: Job
    future: asyncio.Future[WorkerProcess]


@dataclass(slots=True)
class _Known:
    """Modules that tasks of an execution environment imported, in import order, and the time of its last task."""

    modules: dict[str, None] = field(default_factory=dict)
    used: float = field(default_factory=time.monotonic)


class Pool:
    """Idle workers of one lane and interpreter.

    Parameters
    ----------
    start
        `start(interpreter, variables)` starts a worker process with these environment variables changed.
    dismiss
        Ends an idle worker.
    start_timeout
        Seconds that a worker may take until it is ready.
    spares
        Number of spares besides the prepared ones.
    busy
        Returns the workers that are running tasks, with their jobs.
    own
        Changed environment variables of tasks that specify none.
    """

    def __init__(
        self,
        lane: str,
        interpreter: str,
        start: Start,
        dismiss: Callable[[WorkerProcess], None],
        start_timeout: float,
        spares: int = 1,
        busy: Callable[[], Iterable[tuple[WorkerProcess, Job]]] = tuple,
        own: Variables = (),
    ) -> None:
        self.lane = lane
        self.interpreter = interpreter
        self._start = start
        self._dismiss = dismiss
        self._start_timeout = start_timeout
        self._spares = spares
        self._busy = busy
        self._own = own
        self._shared: deque[WorkerProcess] = deque()
        self._idle: list[WorkerProcess] = []
        self._preparing: dict[WorkerProcess, float] = {}
        """Spares that are importing, with their start times. They are not handed out."""
        self._bursts: dict[str, list[WorkerProcess]] = {}
        self._known: OrderedDict[ExecutionEnvironment, _Known] = OrderedDict()
        self._starting: dict[asyncio.Task[None], Variables] = {}
        self._waiting: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._burst_timer: asyncio.TimerHandle | None = None
        self._latest = 0.0
        self._closed = False

    def adopt(self, worker: WorkerProcess) -> None:
        """Add a worker that was started elsewhere."""
        worker.lane = self.lane
        self.give_back(worker)

    # Handing out

    def take_idle(self, job: Job) -> WorkerProcess | None:
        """Return an idle suitable worker for the job, or None."""
        found = self._take_alive(job)
        if found is not None:
            self._forget_idle(found)
            if found.fresh or self._timer is not None:
                self.keep_spares_soon()
        return found

    def _take_alive(self, job: Job) -> WorkerProcess | None:
        if job.burst is not None:
            for worker in reversed(self._bursts.get(job.burst, ())):
                if worker.alive:
                    return worker
        if not job.private:
            for worker in reversed(self._shared):
                if worker.alive:
                    return worker
        suited = [worker for worker in self._idle if worker.alive and self._suits(worker, job)]
        return max(suited, key=lambda worker: worker.environment is not None, default=None)

    def _suits(self, worker: WorkerProcess, job: Job) -> bool:
        """Return whether this worker may run the job."""
        if not worker.fresh:
            return worker.burst == job.burst if worker.burst is not None else not job.private
        if worker.environment is not None:
            return job.private and worker.environment == job.environment
        return worker.variables == self._variables_of(job)

    def _variables_of(self, job: Job) -> Variables:
        """Return the changed environment variables for starting the job's worker."""
        return self._own if not job.private or job.environment == NO_ENVIRONMENT else job.environment.variables

    async def take(self, job: Job) -> WorkerProcess:
        """Return the next suitable worker for the job; raise `EngineError` if none can be started."""
        if (worker := self.take_idle(job)) is not None:
            return worker
        waiter = _Waiter(job, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        if job.burst is not None and any(worker.burst == job.burst for worker, _ in self._busy()):
            asyncio.get_running_loop().call_later(WAITING_BURST_SECONDS, self._start_for_waiting)
        else:
            self._start_for_waiting()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self.give_back(waiter.future.result())
            raise

    def give_back(self, worker: WorkerProcess) -> None:
        """Return an idle worker to the pool, or pass it to a waiting task."""
        if not worker.alive:
            self.keep_spares()
            return
        self._waiting = deque(each for each in self._waiting if not each.future.done())
        for waiter in self._waiting:
            if self._suits(worker, waiter.job):
                self._waiting.remove(waiter)
                waiter.future.set_result(worker)
                return
        worker.idle_since = time.monotonic()
        if not worker.fresh and self._timer is not None:
            self.keep_spares_soon()
        if worker.fresh:
            self._idle.append(worker)
            if self._timer is None:
                self.keep_spares()
            elif worker.variables:
                self._prepare_known()
            if worker.variables and worker.environment is None:  # its task got another worker or was cancelled
                self._idle.remove(worker)
                self._dismiss(worker)
        elif worker.burst is not None:
            self._bursts.setdefault(worker.burst, []).append(worker)
            self._end_bursts_in(BURST_SECONDS)
        else:
            self._shared.append(worker)

    def _end_bursts_in(self, seconds: float) -> None:
        if self._burst_timer is None:
            self._burst_timer = asyncio.get_running_loop().call_later(seconds, self._end_bursts)

    def _end_bursts(self) -> None:
        """Dismiss the workers that waited too long for a call of their burst. One timer serves all, because most get one at once."""
        self._burst_timer = None
        now = time.monotonic()
        for worker in [worker for burst in self._bursts.values() for worker in burst if now - worker.idle_since >= BURST_SECONDS]:
            self._forget_idle(worker)
            self._dismiss(worker)
        if self._bursts:
            oldest = min(worker.idle_since for burst in self._bursts.values() for worker in burst)
            self._end_bursts_in(oldest + BURST_SECONDS - now)

    def _forget_idle(self, worker: WorkerProcess) -> None:
        if worker.fresh:
            self._idle.remove(worker)
        elif worker.burst is not None:
            burst = self._bursts[worker.burst]
            burst.remove(worker)
            if not burst:
                del self._bursts[worker.burst]
        else:
            self._shared.remove(worker)

    # Spares

    def keep_spares_soon(self) -> None:
        """Start the missing spares once no task of this pool has started or ended for `SPARE_SECONDS` and no shared worker is busy."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._latest = loop.time() + LATEST_SPARE_SECONDS
        else:
            self._timer.cancel()
        self._timer = loop.call_at(min(loop.time() + SPARE_SECONDS, self._latest), self._keep_spares_if_quiet)

    def _keep_spares_if_quiet(self) -> None:
        shared = any(worker.lane == self.lane and not job.private for worker, job in self._busy())
        if shared and asyncio.get_running_loop().time() < self._latest:
            self.keep_spares_soon()
        else:
            self.keep_spares()

    def keep_spares(self) -> None:
        """Start the missing workers: one for each waiting task, the spares, and one for each environment with known imports."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._idle = [worker for worker in self._idle if worker.alive]
        self._prepare_known()
        wanted = self._wanted_by_waiting()
        plain = sum(worker.environment is None and not worker.variables for worker in self._idle)
        wanted[()] = wanted.get((), 0) + max(0, self._spares - plain)
        for environment in self._known:
            if self._spare_of(environment) is None:
                wanted[environment.variables] = wanted.get(environment.variables, 0) + 1
        self._start_missing(wanted)

    def _start_for_waiting(self) -> None:
        """Start a worker for each waiting task."""
        self._start_missing(self._wanted_by_waiting())

    def _wanted_by_waiting(self) -> dict[Variables, int]:
        wanted: dict[Variables, int] = {}
        for waiter in self._waiting:
            if not waiter.future.done():
                variables = self._variables_of(waiter.job)
                wanted[variables] = wanted.get(variables, 0) + 1
        return wanted

    def _start_missing(self, wanted: dict[Variables, int]) -> None:
        """Start processes until the wanted number with each set of environment variables is starting."""
        if self._closed:
            return
        for variables, number in wanted.items():
            for _ in range(number - sum(each == variables for each in self._starting.values())):
                task = asyncio.get_running_loop().create_task(self._start_one(variables))
                self._starting[task] = variables
                task.add_done_callback(lambda done: self._starting.pop(done, None))

    def record_imports(self, environment: ExecutionEnvironment, modules: list[str]) -> None:
        """Record the installed modules that a task in this environment imported, and keep a spare that has imported them."""
        known = self._known.get(environment)
        if known is None:
            if not self._spares or not (modules or environment.variables):
                return
            known = self._known[environment] = _Known()
        self._known.move_to_end(environment)
        known.used = time.monotonic()
        for name in modules[: max(0, MAX_IMPORTS - len(known.modules))]:
            known.modules[name] = None
        while len(self._known) > (PREPARED if self._spares else 0):
            self._drop_known(next(iter(self._known)))
        self.keep_spares_soon()

    def forget_imports(self) -> None:
        """Dismiss every spare, because files of imported modules have changed."""
        for environment in tuple(self._known):
            self._drop_known(environment)
        for worker in self._idle:
            self._dismiss(worker)
        self._idle.clear()

    def _drop_known(self, environment: ExecutionEnvironment | None) -> None:
        if environment is None or self._known.pop(environment, None) is None:
            return
        for worker in [each for each in (*self._idle, *self._preparing) if each.environment == environment]:
            self._preparing.pop(worker, None)
            if worker in self._idle:
                self._idle.remove(worker)
            self._dismiss(worker)

    def _spare_of(self, environment: ExecutionEnvironment) -> WorkerProcess | None:
        return next((worker for worker in (*self._idle, *self._preparing) if worker.environment == environment), None)

    def _plain(self, variables: Variables) -> WorkerProcess | None:
        """Return an idle spare with these variables that was prepared for no environment."""
        return next((worker for worker in self._idle if worker.environment is None and worker.variables == variables), None)

    def _prepare_known(self) -> None:
        """Have one spare of each known environment import the modules of its earlier tasks."""
        for environment, known in self._known.items():
            spare = self._spare_of(environment) or self._plain(environment.variables)
            if spare in self._idle and spare.prepare(environment, list(known.modules)):
                self._idle.remove(spare)
                self._preparing[spare] = time.monotonic()
                spare.prepared.add_done_callback(partial(self._prepared, spare))

    def _prepared(self, worker: WorkerProcess, done: asyncio.Future[None]) -> None:
        """Return a spare to the pool after its imports. If it ended while importing, forget the imports of its environment."""
        if self._preparing.pop(worker, None) is None or self._closed:
            return
        if worker.alive and not done.cancelled():
            self.give_back(worker)
        else:
            self._drop_known(worker.environment)

    async def _start_one(self, variables: Variables) -> None:
        def start() -> WorkerProcess:
            worker = self._start(self.interpreter, dict(variables))
            worker.variables, worker.lane = variables, self.lane
            return worker

        try:
            worker = await start_ready(start, self._start_timeout)
        except EngineError as problem:
            self._failed(problem)
        except Exception as problem:  # a bug here must not leave tasks waiting
            log.exception("Starting a worker failed")
            self._failed(EngineError(f"Cannot start a worker of {self.interpreter}: {problem!r}. This is a fault in openruntime."))
        else:
            if (task := asyncio.current_task()) is not None:
                self._starting.pop(task, None)  # it has started and counts as a spare
            self.give_back(worker)

    def _failed(self, problem: EngineError) -> None:
        for waiter in self._waiting:
            if not waiter.future.done():
                self._waiting.remove(waiter)
                waiter.future.set_exception(problem)
                return
        log.warning("A spare worker did not start: %s", problem)

    # Ends

    def retire(self, idle_seconds: float, keep: int) -> None:
        """Dismiss workers that were idle for longer than `idle_seconds`, except `keep` of them."""
        now = time.monotonic()
        for environment in [each for each, known in self._known.items() if now - known.used >= idle_seconds]:
            self._drop_known(environment)
        for worker in [each for each, begun in self._preparing.items() if now - begun >= self._start_timeout]:
            self._drop_known(worker.environment)
        old = [worker for worker in (*self._shared, *self._idle) if now - worker.idle_since >= idle_seconds]
        kept = len(self._shared) + len(self._idle) - len(old)
        for worker in old[: len(old) - max(0, keep - kept)] if keep > kept else old:
            self._forget_idle(worker)
            self._dismiss(worker)

    def close(self) -> None:
        """Stop starting workers, and fail the waiting tasks."""
        self._closed = True
        for timer in (self._timer, self._burst_timer):
            if timer is not None:
                timer.cancel()
        for waiter in self._waiting:
            if not waiter.future.done():
                waiter.future.set_exception(EngineError("The runtime is stopping"))
        for task in self._starting:
            task.cancel()
