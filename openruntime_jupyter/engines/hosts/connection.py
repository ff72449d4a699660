"""Connection to the agent of a host: it runs the jobs of that host's lanes, and ends when the link or the agent does."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import re
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from openruntime_jupyter import __version__
from openruntime_jupyter.arrays.array_layout import BadTensor, Layout
from openruntime_jupyter.engines.hosts.arrays import ArrayTransfer
from openruntime_jupyter.engines.hosts.finder import HostUnusable, Way
from openruntime_jupyter.engines.hosts.link import Link, LinkClosed
from openruntime_jupyter.engines.hosts.machine import HostMachine
from openruntime_jupyter.engines.hosts.messages import (
    PROTOCOL,
    DeviceHolder,
    Discard,
    Displayed,
    Ended,
    EndSession,
    EngineSettings,
    Generated,
    Halt,
    Hello,
    InvalidMessage,
    MakeRoom,
    Message,
    Ping,
    Pong,
    Printed,
    Progressed,
    Refused,
    Run,
    RunState,
    SessionEnded,
    Started,
    State,
    StoredModels,
    Unload,
    Unloaded,
    Welcome,
    decode,
    encode,
)
from openruntime_jupyter.engines.hosts.shared_folders import SharedFolders
from openruntime_jupyter.engines.local import ArrayFiles
from openruntime_jupyter.engines.protocol import (
    Completed,
    DeviceReport,
    Died,
    HostLoss,
    Job,
    JobFiles,
    Measurements,
    ModelReport,
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
from openruntime_jupyter.errors import ArrayNotFound, EngineError, InvalidRequest, StorageUnavailable
from openruntime_jupyter.schemas.tasks import Failure, FailureKind
from openruntime_jupyter.schemas.values import ModelSource, ResponsePiece
from openruntime_jupyter.worker.frames import INLINE_PAYLOAD

log = logging.getLogger(__name__)

T = TypeVar("T")

HELLO_SECONDS = 30.0
"""Time for an agent to respond, in addition to that for the start of its first worker."""

PINGS = 10
"""Pings in the time after which a silent agent ends its tasks."""

SILENT_PINGS = 3
"""Unanswered pings after which a host counts as silent."""


@dataclass(slots=True)
class HostsOptions:
    """Options of an engine over hosts. Times are in seconds.

    A host is lost `lost` seconds after its last answered ping. By then its agent has ended its tasks, because that happens after
    `settings.silence`, which is shorter.
    """

    runtime: str
    payloads: Path
    """Folder for the results of jobs, by `payload_name`."""
    files: ArrayFiles
    """Files of this runtime's arrays."""
    share_folders: bool = True
    """Whether hosts that share the folders of the arrays use them."""
    label: str = ""
    settings: EngineSettings = dataclasses.field(default_factory=EngineSettings)
    lost: float = 15.0
    session_ended: Callable[[SessionUse, str], None] = lambda use, reason: None
    """Called with the reason when a session's worker ends without `end_session`."""


class _Cut(Exception):
    """Transfer that was stopped, with the outcome of its job."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


class _Running:
    """Job that runs on the host."""

    def __init__(self, job: Job, observer: Observer) -> None:
        self.job = job
        self.observer = observer
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.files = JobFiles()
        """Array files that the host shares."""
        self.halted: StopReason | None = None
        self.sent = False
        """True once the agent has got the job."""
        self._transfer: asyncio.Task[Any] | None = None
        self._cut: Outcome | None = None

    async def transfer(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of a transfer; raise `_Cut` if the job is stopped before."""
        self._transfer = asyncio.get_running_loop().create_task(work)
        try:
            return await asyncio.shield(self._transfer)
        except asyncio.CancelledError:
            if self._cut is not None:
                raise _Cut(self._cut) from None
            self._transfer.cancel()
            raise
        finally:
            self._transfer = None

    def cut(self, outcome: Outcome) -> bool:
        """Stop the transfer for this job; return False without one."""
        if self._transfer is None:
            return False
        self._cut = outcome
        return self._transfer.cancel()

    def end(self, outcome: Outcome) -> None:
        """Resolve the outcome, once."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class Connection:
    """Runner of the jobs of one host, from the agent's welcome until the connection ends.

    `where` maps the running tasks of all hosts to their connections. `shared` are the folders of arrays that the host shares, each with
    True if leases of files hold between both machines. `silent` and `in_use` are called when that changes. A host is in use while it runs
    jobs or keeps sessions or models.
    """

    def __init__(
        self,
        name: str,
        link: Link,
        welcome: Welcome,
        options: HostsOptions,
        transfer: ArrayTransfer,
        shared: dict[str, bool],
        where: dict[str, Connection],
        silent: Callable[[bool], None],
        in_use: Callable[[bool], None],
    ) -> None:
        self.name = name
        self.welcome = welcome
        self.machine = HostMachine(welcome.memory, welcome.cores)
        self.round_trip: float | None = None
        """Seconds from the last answered ping to its answer."""
        self.ended: str | None = None
        """Why the connection has ended; None while it lasts."""
        self.python = ".".join(welcome.python.split(".")[:2])
        """Minor version of the host's Python."""
        self.stored_models: tuple[ModelSource, ...] = ()
        """Language models in the host's folders."""
        self.shared = shared
        self._link = link
        self._options = options
        self._arrays = transfer
        self._where = where
        self._silent = silent
        self._in_use = in_use
        self._used = False
        self._state = State(welcome.memory, welcome.memory, None)
        self._numbers = itertools.count(1)
        self._runs: dict[int, _Running] = {}
        self._of_task: dict[str, int] = {}
        self._asks: dict[int, asyncio.Future[list[str]]] = {}
        self._sessions: dict[str, SessionUse] = {}
        self._holders: dict[str, str | None] = {}
        self._leaving: dict[str, str] = {}
        """Names of the models that are unloaded to make room, by lane."""
        self._pinged = time.monotonic()
        self._answered = asyncio.Event()
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def devices(self) -> list[DeviceReport]:
        """Devices of the host; their lanes there are `device_0`, `device_1` and so on."""
        return list(self.welcome.devices)

    def holder(self, lane: str) -> str | None:
        """Return who uses the device of a lane in another runtime of the host, so that no job starts on it; None if one can."""
        return self._holders.get(lane)

    def _local(self, lane: str) -> str:
        return lane.removeprefix(f"{self.name}.")

    def _global(self, lane: str) -> str:
        return f"{self.name}.{lane}"

    def _send(self, message: Message) -> None:
        self._link.send(*encode(message))

    # Life

    async def serve(self) -> str:
        """Handle messages until the connection ends, and return the reason. `disconnect` closes it then."""
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Future[str]] = {loop.create_task(self._receive()), loop.create_task(self._ping()), self._closed}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._end(done.pop().result())
        finally:
            self._end("the runtime closed the connection")
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return self.ended or ""

    async def disconnect(self) -> None:
        """Close what an ended connection has open, which may take some seconds where the host does not respond."""
        await self._arrays.close()
        await self._link.close()

    def close(self, reason: str) -> None:
        """End the connection; `serve` returns soon."""
        if not self._closed.done():
            self._closed.set_result(reason)

    async def _receive(self) -> str:
        while True:
            try:
                self._take(decode(*await self._link.receive()))
            except LinkClosed as problem:
                return str(problem)
            except InvalidMessage as problem:
                return f"its agent sent an invalid message ({problem})"
            except Exception as problem:  # whatever it sent, other hosts must not be affected
                log.exception("A message of the host %s could not be handled", self.name)
                return f"its agent sent a message that can't be handled ({problem!r})"

    async def _ping(self) -> str:
        """Ping the agent: each ping follows the answer to the last one. Return when the host is lost."""
        pause = self._options.settings.silence / PINGS
        while True:
            self._answered.clear()
            self._pinged = time.monotonic()
            self._send(Ping())
            if not await self._answer(SILENT_PINGS * pause):
                self._set_silent(True)
                if not await self._answer(self._pinged + self._options.lost - time.monotonic()):
                    return f"it has not responded for {self._options.lost:g} s"
                self._set_silent(False)
            self.round_trip = time.monotonic() - self._pinged
            await asyncio.sleep(pause)

    async def _answer(self, seconds: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._answered.wait(), max(0.0, seconds))
        return self._answered.is_set()

    def _set_silent(self, silent: bool) -> None:
        for run in self._runs.values():
            run.observer.waiting(f"the host {self.name}, which does not respond" if silent else None)
        self._silent(silent)

    def _end(self, reason: str) -> None:
        """Resolve everything that waits for the agent."""
        if self.ended is not None:
            return
        self.ended = reason
        for run in self._runs.values():
            run.cut(self._loss(begun=run.sent, running=not run.outcome.done()))
            run.end(self._loss(begun=run.sent))
        for ask in self._asks.values():
            if not ask.done():
                ask.set_result([])
        for use in self._sessions.values():
            self._options.session_ended(use, f"The host {self.name} was lost: {reason}")
        self._note_use()

    def _loss(self, *, begun: bool, running: bool = True) -> Died:
        safe_in = max(0.0, self._pinged + self._options.lost - time.monotonic()) if begun and running else 0.0
        message = f"The host {self.name} was lost while it ran: {self.ended or 'its agent was stopped'}"
        return Died(Failure(kind=FailureKind.WORKER_DIED, message=message), host_loss=HostLoss(self.name, begun, safe_in))

    # Messages

    def _take(self, message: Message) -> None:
        if isinstance(message, Started | Progressed | Printed | Displayed | Generated | Ended):
            run = self._runs.get(message.number)
            if run is not None:
                self._report(run, message)
        elif isinstance(message, Pong):
            self._answered.set()
        elif isinstance(message, State | DeviceHolder | StoredModels):
            self._note(message)
        elif isinstance(message, SessionEnded):
            if self._sessions.pop(message.session.id, None) is not None:
                self._options.session_ended(message.session, message.reason)
        elif isinstance(message, Unloaded):
            ask = self._asks.get(message.ask)
            if ask is not None and not ask.done():
                ask.set_result(list(message.names))
        else:
            raise InvalidMessage(f"{type(message).__name__} is a message of runtimes")

    def _note(self, message: State | DeviceHolder | StoredModels) -> None:
        """Keep what the agent says about its host."""
        if isinstance(message, State):
            self._state = message
            self.machine.update(message)
            self._note_use()
        elif isinstance(message, DeviceHolder):
            self._holders[self._global(message.lane)] = message.holder
        else:
            self.stored_models = message.models

    def _report(self, run: _Running, message: Started | Progressed | Printed | Displayed | Generated | Ended) -> None:
        observer = run.observer
        if isinstance(message, Started):
            observer.started(f"{self.name}/{message.worker}")
        elif isinstance(message, Progressed):
            observer.progressed({"n": message.n, "total": message.total, "message": message.message})
        elif isinstance(message, Printed):
            observer.printed(message.stream, message.text, message.omitted)
        elif isinstance(message, Displayed):
            observer.displayed(message.item)
        elif isinstance(message, Generated):
            observer.generated(ResponsePiece(message.text, message.reasoning, message.call))
        else:
            if isinstance(message.outcome, Completed):
                _check_results(run, message.outcome.arrays)
            run.end(message.outcome)

    # Jobs

    async def run(self, job: Job, observer: Observer) -> Outcome:
        """Run the job and return its outcome; the loss of the host is an outcome as well."""
        if self.ended is not None:
            return self._loss(begun=False)
        run, number = _Running(job, observer), next(self._numbers)
        self._runs[number], self._of_task[job.task_id], self._where[job.task_id] = run, number, self
        if job.session is not None:
            self._sessions[job.session.id] = job.session
        self._note_use()
        try:
            outcome = await self._run(run, number)
        finally:
            del self._runs[number], self._of_task[job.task_id], self._where[job.task_id]
            self._note_use()
        if isinstance(outcome, Stopped) and outcome.reason is StopReason.ENDED and run.halted is None:
            return self._loss(begun=True, running=False)  # the agent leaves
        return outcome

    async def _run(self, run: _Running, number: int) -> Outcome:
        job = run.job
        copies: dict[str, int] = {}
        parameters: int | None = None
        discard = Discard()
        try:
            run.files, others = self._shared_files(job)
            files = run.files
            if others:
                copies = await run.transfer(self._arrays.send(others))
            if len(job.parameters) > INLINE_PAYLOAD:  # a large frame would delay pings
                parameters = await run.transfer(self._arrays.send_parameters(job.parameters))
                job = dataclasses.replace(job, parameters=b"")
            job = dataclasses.replace(job, lane=self._local(job.lane), files=files)
            if run.halted is not None:  # just when the last transfer had ended, so that nothing was cut
                return Stopped(run.halted, Stage.QUEUE, Measurements())
            self._send(Run(number, job, copies, parameters))
            run.sent = True
            outcome = await run.outcome
            if not isinstance(outcome, Completed):
                return self._explain(job, outcome)
            if files.places is None:
                discard.results = tuple(array.id for array in outcome.arrays)
            if outcome.payload_stored:
                discard.payloads = (job.payload_name,)
            return await run.transfer(self._fetch(job, outcome, files)) if outcome.arrays or outcome.payload_stored else outcome
        except _Cut as cut:
            return cut.outcome
        except (ArrayNotFound, EngineError, InvalidRequest, StorageUnavailable, OSError) as problem:
            return self._not_sent(problem)
        finally:
            discard.copies = (*self._arrays.outdated(copies), *([] if parameters is None else [parameters]))
            if discard != Discard():
                self._send(discard)

    def _shared_files(self, job: Job) -> tuple[JobFiles, list[str]]:
        """Return the files of the job's arrays that the host shares, and the ids of the other arrays. Raises `ArrayNotFound`."""
        # Without leases, variables of a session could use the file of an array that is deleted.
        shared = {folder for folder, leases in self.shared.items() if leases or job.session is None}
        if not shared:
            return JobFiles(), list(job.arrays)
        paths = {each: self._options.files.path_of(each) for each in job.arrays}
        inputs = {each: path for each, path in paths.items() if str(Path(path).parent) in shared}
        places = self._options.files.places() if job.array_name is not None else []
        return JobFiles(inputs, tuple(place for place in places if place[0] in shared) or None), [
            each for each in paths if each not in inputs
        ]

    def _not_sent(self, problem: Exception) -> Died:
        """Return the outcome of a job whose inputs could not be sent."""
        message = str(problem) if isinstance(problem, ArrayNotFound | EngineError) else f"{problem} (on the host {self.name})"
        failure = Failure(kind=FailureKind.NOT_STARTED, message=message, type=type(problem).__name__)
        return Died(failure, retry=False, no_worker=not isinstance(problem, ArrayNotFound))

    async def _fetch(self, job: Job, outcome: Completed, files: JobFiles) -> Outcome:
        """Fetch what the job has returned, and return its outcome with the places of the arrays on this machine."""
        try:
            if files.places is not None:
                folders = [place[0] for place in self._options.files.places()]
                numbers = [folders.index(place[0]) for place in files.places]
                arrays = tuple(dataclasses.replace(array, place=numbers[array.place]) for array in outcome.arrays)
            else:
                arrays = await self._arrays.fetch(outcome.arrays)
            if outcome.payload_stored:
                await self._arrays.fetch_payload(job.payload_name, outcome.payload_size)
        except (ArrayNotFound, EngineError, StorageUnavailable, OSError) as problem:
            message = str(problem) if isinstance(problem, EngineError) else f"The result can't be stored. {problem}"
            failure = Failure(kind=FailureKind.RAISED, message=message, type=type(problem).__name__)
            return RaisedError(failure, outcome.measurements)
        return dataclasses.replace(outcome, arrays=arrays)

    def _explain(self, job: Job, outcome: Outcome) -> Outcome:
        """Add to the failure of an import that the host does not have the caller's files."""
        if not isinstance(outcome, RaisedError) or outcome.failure.type != "ModuleNotFoundError":
            return outcome
        if job.environment.path is not None and not self.shared:
            outcome.failure.message += (
                f". The task ran on the host {self.name}, which does not share the caller's files: install the module there, or "
                "define what it has in the notebook"
            )
        return outcome

    def discard_array(self, array_id: str) -> None:
        """Delete the host's copy of an array that is deleted on this machine."""
        copy = self._arrays.forget(array_id)
        if copy is not None:
            self._send(Discard(copies=(copy,)))

    def _note_use(self) -> None:
        used = self.ended is None and bool(self._runs or self._sessions or self._state.models)
        if used != self._used:
            self._used = used
            self._in_use(used)

    def halt(self, task_id: str, reason: StopReason) -> None:
        """Stop a running task in stages."""
        number = self._of_task.get(task_id)
        if number is not None:
            run = self._runs[number]
            run.halted = run.halted or reason
            if not run.cut(Stopped(reason, Stage.INTERRUPT if run.sent else Stage.QUEUE, Measurements())) and run.sent:
                self._send(Halt(number, reason))

    async def stop(self, deadline: float) -> None:
        """Stop all jobs and wait for their ends, for `deadline` seconds."""
        for task_id in tuple(self._of_task):
            self.halt(task_id, StopReason.ENDED)
        waited = [run.outcome for run in self._runs.values()]
        if waited:
            await asyncio.wait(waited, timeout=deadline)
        for run in self._runs.values():
            run.end(Stopped(StopReason.ENDED, Stage.KILL, Measurements()))

    # Reports of the agent

    def memory_of(self, task_id: str) -> RunState:
        """Return the memory of the worker that runs the task."""
        return self._state.runs.get(self._of_task.get(task_id, 0)) or RunState(0, None)

    def workers(self) -> list[WorkerReport]:
        """Return the workers of the host."""
        return [
            dataclasses.replace(each, name=f"{self.name}/{each.name}", lane=self._global(each.lane) if each.lane is not None else None)
            for each in self._state.workers
        ]

    def models(self) -> list[ModelReport]:
        """Return the models that workers of the host keep, least recently used first."""
        return [dataclasses.replace(each, lane=self._global(each.lane)) for each in self._state.models]

    def make_room(self, lane: str, keep: ModelSource | None) -> str | None:
        """Start unloading the least recently used idle model of this lane except `keep`. Return its name, or None.

        The name stays the same until the memory is free and the agent has reported it, so that no second model is unloaded for that.
        """
        if lane in self._leaving:
            return self._leaving[lane]
        kept = keep.name if keep is not None else None
        name = next((each.name for each in self.models() if each.lane == lane and each.state == "idle" and each.name != kept), None)
        if name is not None and self.ended is None:
            self._leaving[lane] = name
            ask = next(self._numbers)
            self._asks[ask] = answer = asyncio.get_running_loop().create_future()
            answer.add_done_callback(lambda _: (self._leaving.pop(lane), self._asks.pop(ask)))
            self._send(MakeRoom(ask, self._local(lane), keep))
        return name

    async def unload(self, name: str | None) -> list[str]:
        """Unload the idle models of that name, or all; return their names once their workers have ended."""
        if self.ended is not None:
            return []
        ask = next(self._numbers)
        self._asks[ask] = asyncio.get_running_loop().create_future()
        try:
            self._send(Unload(ask, name))
            return await self._asks[ask]
        finally:
            del self._asks[ask]

    def session_worker(self, session_id: str) -> WorkerReport | None:
        """Return the worker of a session."""
        return next((each for each in self.workers() if each.session is not None and each.session.id == session_id), None)

    def end_session(self, session_id: str, reason: str) -> None:
        """End the worker of a session, and the task that it runs."""
        if self._sessions.pop(session_id, None) is not None:
            self._send(EndSession(session_id, reason))


def _check_results(run: _Running, arrays: tuple[StoredArray, ...]) -> None:
    """Raise `InvalidMessage` unless the result arrays have names of their attempt, which are file names here, and valid layouts."""
    name, places = run.job.array_name, run.files.places
    if len({array.id for array in arrays}) < len(arrays):
        raise InvalidMessage("two result arrays have one name")
    for array in arrays:
        if name is None or re.fullmatch(rf"{re.escape(name)}\.[0-9]{{1,9}}", array.id) is None:
            raise InvalidMessage(f"{array.id[:100]!r} is not the name of a result array of {run.job.task_id}")
        if places is not None and array.place not in range(len(places)):
            raise InvalidMessage(f"the result array {array.id} has the unknown place {array.place}")
        try:
            Layout(array.shape, array.dtype, array.kind)
        except BadTensor as problem:
            raise InvalidMessage(f"the result array {array.id} is invalid: {problem}") from problem


async def connect(
    way: Way,
    link: Link,
    options: HostsOptions,
    where: dict[str, Connection],
    silent: Callable[[bool], None],
    in_use: Callable[[bool], None],
) -> Connection:
    """Introduce this runtime to the agent of a host and return the connection; for the callbacks see `Connection`.

    Raises `HostUnusable` if the agent refuses, and `LinkClosed`, `InvalidMessage` or `asyncio.TimeoutError`.
    """
    settings = options.settings
    folders = [folder for folder, _, _ in options.files.places()] if options.share_folders else []
    offered = await asyncio.to_thread(SharedFolders.offer, folders)
    try:
        link.send(*encode(Hello(PROTOCOL, __version__, options.runtime, options.label, settings, tuple(offered.contents))))
        answer = decode(*await asyncio.wait_for(link.receive(), HELLO_SECONDS + settings.start_timeout))
        if isinstance(answer, Refused):
            raise HostUnusable(answer.reason, answer.remedy)
        if not isinstance(answer, Welcome):
            raise InvalidMessage(f"{type(answer).__name__} instead of a welcome")
        shared = await asyncio.to_thread(offered.verify, answer.proofs)
    finally:
        offered.remove()
    transfer = ArrayTransfer(way.name, partial(way.connect_for_arrays, answer.folder), options.files, options.payloads)
    return Connection(way.name, link, answer, options, transfer, shared, where, silent, in_use)
