"""Session of a runtime on this host: one engine of worker processes, which lives as long as the connection."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import platform
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from openruntime_jupyter import __version__
from openruntime_jupyter.agent.arrays import HostArrays
from openruntime_jupyter.agent.folder import SessionFolder, remove_left_folders
from openruntime_jupyter.agent.guard import Guard
from openruntime_jupyter.agent.places import JobPlaces
from openruntime_jupyter.agent.relay import Relay
from openruntime_jupyter.agent.state import HostState, platform_name
from openruntime_jupyter.agent.turns import Turns
from openruntime_jupyter.engines.hosts.link import ByteStream, Link, LinkClosed
from openruntime_jupyter.engines.hosts.messages import (
    PROTOCOL,
    DeviceHolder,
    Discard,
    Ended,
    EndSession,
    Halt,
    Hello,
    InvalidMessage,
    MakeRoom,
    Message,
    Ping,
    Pong,
    Refused,
    Run,
    SessionEnded,
    Started,
    StoredModels,
    Unload,
    Unloaded,
    Welcome,
    decode,
    encode,
)
from openruntime_jupyter.engines.hosts.shared_folders import prove
from openruntime_jupyter.engines.local import LocalEngine, LocalOptions
from openruntime_jupyter.engines.process_groups import boot_id
from openruntime_jupyter.engines.protocol import (
    DeviceReport,
    DeviceTaken,
    Died,
    Job,
    Measurements,
    Outcome,
    SessionUse,
    Stage,
    Stopped,
    StopReason,
)
from openruntime_jupyter.errors import ArrayNotFound, EngineError, ModelNotFound, NoBackend, StorageUnavailable
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.metrics.sampler import Meters
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import Failure, FailureKind
from openruntime_jupyter.schemas.values import ModelSource

log = logging.getLogger(__name__)

HELLO_SECONDS = 30.0
"""Time for the runtime to introduce itself."""

LEASE_SECONDS = 60.0
"""Time for the runtime to see that this host leases files in a shared folder."""

MODELS_SECONDS = 10.0
"""Interval in which the host's folders of models are read."""

STATE_SECONDS = 1.0
CHANGED_SECONDS = 0.25
"""Interval of state reports, and the shorter one after a job has started or ended."""

UNLOAD_POLL = 0.05
UNLOAD_POLLS = 200
"""Interval in seconds in which the end of a worker that makes room is expected, and the number of looks."""

END_SHARE = 0.2
"""Share of the time of silence in which all workers are ended after it. The runtime counts the host as lost later than that."""

GUARD_SHARE = 1.2
"""Share of the time of silence after which the guard kills this process, because it is suspended."""


class RefusedRuntime(Exception):
    """This host can't run tasks for the runtime; `remedy` is what to do here."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


async def serve(stream: ByteStream, data_dir: Path, environment: Mapping[str, str], *, listen: bool = False) -> None:
    """Serve one runtime over `stream` until the connection ends; never raises for what the runtime sends.

    Parameters
    ----------
    data_dir : data folder of this user on this host
    environment : environment variables of workers
    listen : accept further connections from processes that call `arrays.hand_over`
    """
    link = Link(stream)
    try:
        hello = await _hello(link)
        session = await Session.open(link, hello, data_dir, environment)
        try:
            if listen:
                session.arrays.listen()
            await session.serve()
        finally:
            await session.close()
    except RefusedRuntime as problem:
        link.send(*encode(Refused(str(problem), problem.remedy)))
    except (LinkClosed, InvalidMessage, asyncio.TimeoutError) as problem:
        log.warning("The runtime did not introduce itself: %s", str(problem) or "it does not respond")
    finally:
        await link.close()


async def _hello(link: Link) -> Hello:
    hello = decode(*await asyncio.wait_for(link.receive(), HELLO_SECONDS))
    if not isinstance(hello, Hello):
        raise InvalidMessage(f"{type(hello).__name__} instead of a greeting")
    if (hello.protocol, hello.version) == (PROTOCOL, __version__):
        return hello
    remedy = f"{sys.executable} -m pip install openruntime-jupyter=={hello.version}"
    if hello.version != __version__:
        raise RefusedRuntime(f"It has openruntime-jupyter {__version__}, and this runtime is version {hello.version}", remedy)
    reason = (
        f"It has another build of openruntime-jupyter {__version__}: its protocol is {PROTOCOL}, and that of this runtime {hello.protocol}"
    )
    raise RefusedRuntime(reason, f"{remedy} --force-reinstall")


@dataclass(slots=True)
class _Running:
    job: Job
    relay: Relay
    copies: dict[str, int]
    parameters: int | None
    waiting: asyncio.Task[Any] | None = None
    """Set until the engine has the job."""
    begun: bool = False
    """True once the engine has the job."""
    stop_reason: StopReason | None = None


class Session:
    """Engine for one runtime, and the messages from and to it. `open` makes a session."""

    def __init__(self, link: Link, hello: Hello, folder: SessionFolder, data_dir: Path, environment: Mapping[str, str]) -> None:
        settings = hello.settings
        models_dirs = tuple(Path(each).expanduser() for each in settings.models_dirs)
        on_host = Settings(
            data_dir=data_dir,
            embedded=True,
            cpu_slots=settings.cpu_slots,
            gpu_slots=settings.gpu_slots,
            array_seconds=0.0,
            models_dirs=models_dirs,
        )
        machine = Machine()
        self.arrays = HostArrays(on_host, folder.path, folder.payloads, machine)
        self._catalog = ModelCatalog(on_host)
        self._places = JobPlaces(folder.path / "work", shares_files=False)
        self._proofs = hello.proofs
        self._link = link
        self._settings = settings
        self._folder = folder
        self._engine = LocalEngine(
            LocalOptions(
                payloads=folder.payloads,
                temporary=folder.temporary,
                groups=data_dir / "workers",
                arrays=self.arrays,
                cancel_grace=settings.cancel_grace,
                spare_workers=settings.spare_workers,
                idle_worker_seconds=settings.idle_worker_seconds,
                start_timeout=settings.start_timeout,
                max_models=settings.max_models,
                secret_variables=frozenset(settings.secret_variables),
                environment=environment,
                session_ended=self._session_ended,
            )
        )
        facts = {"runtime": hello.runtime, "label": hello.label}
        self._turns = Turns(on_host.locks, settings.device_lock, partial(on_host.slots_of, cores=machine.cores), facts, self._report_holder)
        self._devices: dict[str, DeviceReport] = {}
        self._state: HostState | None = None
        self._meters = Meters()
        self._runs: dict[int, _Running] = {}
        self._held: set[str] = set()
        """Tasks whose output waits for the link."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._answered = self._renewed = _now()
        self._guard: Guard | None = None

    @classmethod
    async def open(cls, link: Link, hello: Hello, data_dir: Path, environment: Mapping[str, str]) -> Session:
        """Return a new session; raise `RefusedRuntime` if its folder can't be used."""
        facts = {"runtime": hello.runtime, "label": hello.label, "pid": os.getpid()}
        try:
            folder = await asyncio.get_running_loop().run_in_executor(None, SessionFolder, data_dir, facts)
        except OSError as problem:
            raise RefusedRuntime(
                f"Its data folder {data_dir} can't be used ({problem.strerror or problem})",
                f"make {data_dir} writable for this user and no other, or choose another by OPENRUNTIME_DATA_DIR",
            ) from problem
        return cls(link, hello, folder, data_dir, environment)

    # Life

    async def serve(self) -> None:
        """Welcome the runtime and serve it until its connection ends or it is silent. Raises `RefusedRuntime`."""
        loop = asyncio.get_running_loop()
        receiving = loop.create_task(self._receive())
        opening = loop.create_task(self._open())
        tasks = {receiving, opening}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                return
            welcome = opening.result()
            self._answered = self._renewed = _now()
            self._send(welcome)
            tasks |= {loop.create_task(work) for work in (self._report_state(), self._report_models(), self._end_in_silence())}
            done, _ = await asyncio.wait(tasks - {opening}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _open(self) -> Welcome:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, remove_left_folders, self._folder.path.parent)
        await self._engine.end_left_processes()
        await self.arrays.open()
        await self._engine.start()
        try:
            devices = await self._engine.devices()
        except NoBackend as problem:
            raise RefusedRuntime(str(problem), f"{sys.executable} -m pip install 'openruntime-jupyter[cpu]'") from problem
        except EngineError as problem:
            raise RefusedRuntime(str(problem)) from problem
        try:
            self._guard = await Guard.start(GUARD_SHARE * self._settings.silence)
        except OSError as problem:
            raise RefusedRuntime(f"It can't start processes ({problem.strerror})") from problem
        self._devices = {f"device_{number}": device for number, device in enumerate(devices)}
        self._state = HostState(devices, self._meters)
        machine = self._state.machine
        proofs, leases = await loop.run_in_executor(None, prove, self._proofs)
        for descriptor in leases:
            loop.call_later(LEASE_SECONDS, os.close, descriptor)
        self._places = JobPlaces(self._folder.path / "work", shares_files=bool(proofs))
        return Welcome(
            version=__version__,
            python=platform.python_version(),
            platform=platform_name(),
            boot_id=boot_id(),
            cores=machine.cores,
            memory=machine.total,
            devices=tuple(devices),
            folder=self.arrays.folder,
            proofs=proofs,
        )

    async def close(self) -> None:
        """End all workers and remove the session's folder."""
        guard = [self._guard.stop()] if self._guard is not None else []
        await asyncio.gather(self._engine.stop(END_SHARE * self._settings.silence), *guard)
        for run in self._runs.values():
            if run.waiting is not None:
                run.waiting.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for task in self._tasks:
            task.cancel()
        await self.arrays.stop()
        self._turns.close()
        if self._state is not None:
            self._state.close()
        await asyncio.get_running_loop().run_in_executor(None, self._folder.remove)

    async def _receive(self) -> None:
        while True:
            try:
                self._take(decode(*await self._link.receive()))
            except LinkClosed:
                return
            except InvalidMessage as problem:
                log.warning("The runtime sent an invalid message: %s", problem)
                return

    async def _end_in_silence(self) -> None:
        """Return once the runtime may count this host as lost soon, because no ping proves that it has received a recent answer."""
        while True:
            # Neither clock alone counts a sleep of the machine on every system.
            silent = max(now - before for now, before in zip(_now(), self._renewed, strict=True))
            left = self._settings.silence - silent
            if left <= 0:
                log.error("The runtime has been silent for %.1f s: its tasks are ended", silent)
                return
            await asyncio.sleep(min(left, self._settings.silence / 20))

    async def _report_state(self) -> None:
        while True:
            self._changed.clear()
            if not self._link.full:
                self._send_state()
            await asyncio.sleep(CHANGED_SECONDS)
            try:
                await asyncio.wait_for(self._changed.wait(), STATE_SECONDS - CHANGED_SECONDS)
            except asyncio.TimeoutError:
                continue

    def _send_state(self) -> None:
        if self._state is not None:
            self._send(self._state.read(self._engine, {number: run.job.task_id for number, run in self._runs.items()}))

    async def _report_models(self) -> None:
        reported: list[ModelSource] = []
        while True:
            await self._catalog.refresh()
            found = self._catalog.known()
            if found != reported:
                reported = found
                self._send(StoredModels(tuple(found)))
            await asyncio.sleep(MODELS_SECONDS)

    def _send(self, message: Message) -> None:
        self._link.send(*encode(message), lazily=isinstance(message, Started))

    def _begin_measurement(self, job: Job) -> None:
        if job.device_type == "gpu":
            self._meters.begin(job.task_id, job.lane)

    def _report_holder(self, lane: str, holder: str | None) -> None:
        self._send(DeviceHolder(lane, holder))

    def _session_ended(self, use: SessionUse, reason: str) -> None:
        self._send(SessionEnded(use, reason))

    # Messages

    def _take(self, message: Message) -> None:
        if isinstance(message, Run):
            if message.number in self._runs:
                raise InvalidMessage(f"two jobs have the number {message.number}")
            started = partial(self._begin_measurement, message.job)
            hold = partial(self._hold_output, message.job.task_id)
            relay = Relay(message.number, self._send, self._settings.max_output_bytes, lambda: self._link.full, hold, started)
            run = _Running(message.job, relay, message.copies, message.parameters)
            self._runs[message.number] = run
            self._keep(self._run(message.number, run))
        elif isinstance(message, Halt):
            self._halt(message.number, message.reason)
        elif isinstance(message, Ping):
            # This ping shows that the runtime has received the last answer.
            self._renewed, self._answered = self._answered, _now()
            if self._guard is not None:
                self._guard.renew()
            self._send(Pong())
        elif isinstance(message, EndSession):
            self._engine.end_session(message.session_id, message.reason)
        elif isinstance(message, MakeRoom):
            self._keep(self._make_room(message))
        elif isinstance(message, Discard):
            self._keep(self.arrays.discard(message.copies, message.results, message.payloads))
        elif isinstance(message, Unload):
            self._keep(self._unload(message))
        else:
            raise InvalidMessage(f"{type(message).__name__} is a message of agents")

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _hold_output(self, task_id: str) -> None:
        """Let a task wait at its next output until the link has drained."""
        self._engine.hold_output(task_id, True)
        self._held.add(task_id)
        if len(self._held) == 1:
            self._keep(self._release_output())

    async def _release_output(self) -> None:
        await self._link.drained()
        held, self._held = self._held, set()
        for task_id in held:
            self._engine.hold_output(task_id, False)

    def _halt(self, number: int, reason: StopReason) -> None:
        run = self._runs.get(number)
        if run is None:
            return
        run.stop_reason = run.stop_reason or reason
        if run.begun:
            self._engine.halt(run.job.task_id, reason)
        elif run.waiting is not None:
            run.waiting.cancel()

    async def _run(self, number: int, run: _Running) -> None:
        try:
            outcome = await self._outcome(run)
        except asyncio.CancelledError:  # while its parameters were read
            outcome = Stopped(run.stop_reason or StopReason.ENDED, Stage.QUEUE, Measurements())
        except Exception as problem:  # a fault must end this task only
            log.exception("The engine failed on %s", run.job.task_id)
            outcome = _fault(f"The engine failed: {problem!r}")
        finally:
            del self._runs[number]
        run.relay.flush()
        if run.job.model is not None or run.job.session is not None:  # what they keep is known once the task has ended
            self._send_state()
        self._send(Ended(number, outcome))
        self._changed.set()
        await self._places.leave(run.job)

    async def _outcome(self, run: _Running) -> Outcome:
        job = run.job
        device = self._devices.get(job.lane)
        if device is None:
            return _fault(f"This host has no device {job.lane}")
        if run.stop_reason is not None:  # a halt that came with the job
            return Stopped(run.stop_reason, Stage.QUEUE, Measurements())
        run.waiting = asyncio.current_task()
        try:
            self.arrays.prepare(job, run.copies)
            if run.parameters is not None:
                job.parameters = await self.arrays.parameters(run.parameters)
            if job.model is not None:
                job.model = dataclasses.replace(job.model, source=self._known(job.model.source))
            self._places.adapt(job)
            with self._turns.take(job.lane, device, job) as taken:
                if not taken:
                    return DeviceTaken()
                run.waiting, run.begun = None, True
                self._changed.set()
                outcome = await self._engine.run(job, run.relay)
                outcome.measurements.gpu_utilization = self._meters.end(job.task_id)
            return await self.arrays.finish(job, outcome)
        except (ArrayNotFound, ModelNotFound, OSError, StorageUnavailable) as problem:
            failure = Failure(kind=FailureKind.NOT_STARTED, message=str(problem), type=type(problem).__name__)
            return Died(failure, retry=False, no_worker=True)
        finally:
            self.arrays.release(job.task_id)

    def _stored(self, model: ModelSource) -> ModelSource | None:
        """Return the model of this host that is a copy of the runtime's, or None."""
        if model.kind == "hub":
            return model
        return next((each for each in self._catalog.known() if each.is_copy(model)), None)

    def _known(self, model: ModelSource) -> ModelSource:
        """Return the model of this host that is a copy of the runtime's; raise `ModelNotFound`."""
        source = self._stored(model)
        if source is None:
            raise ModelNotFound(f"The host no longer has the model {model.name}")
        return source

    async def _make_room(self, message: MakeRoom) -> None:
        name = self._engine.models.make_room(message.lane, message.keep and self._stored(message.keep))
        for _ in range(UNLOAD_POLLS):
            if not any((each.lane, each.model) == (message.lane, name) for each in self._engine.workers()):
                break
            await asyncio.sleep(UNLOAD_POLL)
        self._send_state()
        self._send(Unloaded(message.ask, () if name is None else (name,)))

    async def _unload(self, message: Unload) -> None:
        self._send(Unloaded(message.ask, tuple(await self._engine.models.unload(message.name))))
        self._changed.set()


def _now() -> tuple[float, float]:
    return time.monotonic(), time.time()


def _fault(what: str) -> Died:
    message = f"{what}. This is a bug in openruntime; the log of the agent has the traceback."
    return Died(Failure(kind=FailureKind.NOT_STARTED, message=message), retry=False)
