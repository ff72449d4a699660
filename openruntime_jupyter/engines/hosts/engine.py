"""Engine over hosts: the local engine, if this machine runs tasks, and the agents of the hosts that a finder reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from openruntime_jupyter.engines.failures import fault
from openruntime_jupyter.engines.hosts.connection import Connection, HostsOptions
from openruntime_jupyter.engines.hosts.finder import Finder, Way
from openruntime_jupyter.engines.hosts.host import Host
from openruntime_jupyter.engines.protocol import (
    DeviceReport,
    Died,
    Engine,
    HostDevices,
    Job,
    LoadedModels,
    ModelReport,
    Observer,
    Outcome,
    StopReason,
    WorkerReport,
)
from openruntime_jupyter.errors import EngineError
from openruntime_jupyter.schemas import hosts
from openruntime_jupyter.schemas.values import ModelSource

log = logging.getLogger(__name__)

DEMAND_SECONDS = 1.0
"""Interval in which the finder gets the number of pending tasks."""


class HostsEngine:
    """Engine over the hosts of `finder`, and `local`, the engine that runs tasks here; None if only hosts run tasks."""

    def __init__(self, local: Engine | None, finder: Finder, options: HostsOptions) -> None:
        self._local = local
        self._finder = finder
        self._options = options
        self._hosts: dict[str, Host] = {}
        self._where: dict[str, Connection] = {}
        """Connections to the hosts that run tasks, by task id."""
        self._local_problem: EngineError | None = None
        self._found: Callable[[str], None] = lambda name: None
        self._joined: Callable[[HostDevices], None] = lambda devices: None
        self._left: Callable[[str], None] = lambda name: None
        self._pending: Callable[[], int] = lambda: 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        """Ends of connections to hosts that have left."""
        self.models: LoadedModels = _Models(local, self._connections, self._of_lane)

    @property
    def problem(self) -> str | None:
        """Reason why hosts are missing or no tasks run here, for `/health`; None without a problem."""
        problems = [str(problem) for problem in (self._finder.problem, self._local_problem) if problem]
        return ". ".join(problems) or None

    def _connections(self) -> list[Connection]:
        return [host.connection for host in tuple(self._hosts.values()) if host.connection is not None]

    def _of_lane(self, lane: str) -> Connection | None:
        host = self._hosts.get(lane.rpartition(".")[0])
        return host.connection if host is not None else None

    # Life

    async def start(self) -> None:
        """Start the local workers, and look for hosts."""
        if self._local is not None:
            await self._local.start()
        _keep(self._tasks, self._finder.watch(self._find, self._lose))
        _keep(self._tasks, self._tell_demand())

    async def end_left_processes(self) -> None:
        """End processes that tasks of dead runtimes have left on this machine. Agents do the same on theirs."""
        if self._local is not None:
            await self._local.end_left_processes()

    async def stop(self, deadline: float) -> None:
        """End every worker within `deadline` seconds, and leave the hosts."""
        ends = time.monotonic() + deadline
        for task in self._tasks:
            task.cancel()
        local = [self._local.stop(deadline)] if self._local is not None else []
        await asyncio.gather(*local, *(each.stop(0.6 * deadline) for each in self._connections()))
        left = [host.leave("the runtime stopped") for host in self._hosts.values()]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*left, *self._leaving, self._finder.close()), max(0.2, ends - time.monotonic()))

    async def _tell_demand(self) -> None:
        while True:
            self._finder.demand(self._pending())
            await asyncio.sleep(DEMAND_SECONDS)

    # Hosts

    def watch(
        self,
        found: Callable[[str], None],
        joined: Callable[[HostDevices], None],
        left: Callable[[str], None],
        pending: Callable[[], int],
    ) -> None:
        """Report the hosts and their devices from now on."""
        self._found, self._joined, self._left, self._pending = found, joined, left, pending
        for name in self._hosts:
            found(name)
        for connection in self._connections():
            joined(connection)

    def _find(self, way: Way) -> None:
        host = self._hosts.get(way.name)
        if host is not None:
            host.find(way)
        else:
            name = way.name
            in_use = partial(self._finder.hold, name)
            self._hosts[name] = Host(way, self._options, self._where, self._join, self._leave, in_use)
            self._found(name)

    def _lose(self, name: str, reason: str) -> None:
        host = self._hosts.pop(name, None)
        if host is not None:
            _keep(self._leaving, host.leave(reason))

    def _join(self, connection: Connection) -> None:
        self._joined(connection)

    def _leave(self, connection: Connection) -> None:
        self._left(connection.name)

    def hosts(self) -> list[hosts.Host]:
        """Return the hosts by name, without what the lanes know: devices, slots and running tasks."""
        return [self._hosts[name].view() for name in sorted(self._hosts)]

    async def devices(self, interpreter: str | None = None) -> list[DeviceReport]:
        """Return the local devices, none if only hosts run tasks or this machine can't."""
        if self._local is None:
            return []
        try:
            return await self._local.devices(interpreter)
        except EngineError as problem:
            log.warning("This machine runs no tasks: %s", problem)
            self._local_problem = problem
            return []

    # Jobs

    async def run(self, job: Job, observer: Observer) -> Outcome:
        """Run the job on the host of its lane, or on this machine."""
        runner = self._of_lane(job.lane) or self._local
        if runner is None:
            return Died(fault(f"No host has the lane {job.lane}"), retry=False)
        return await runner.run(job, observer)

    def halt(self, task_id: str, reason: StopReason) -> None:
        """Stop a running task in stages."""
        runner = self._where.get(task_id) or self._local
        if runner is not None:
            runner.halt(task_id, reason)

    def stored_models(self) -> dict[str, tuple[ModelSource, ...]]:
        """Return the language models in the folders of the hosts, by host."""
        return {each.name: each.stored_models for each in self._connections()}

    def discard_array(self, array_id: str) -> None:
        """Delete the hosts' copies of an array that is deleted on this machine."""
        for connection in self._connections():
            connection.discard_array(array_id)

    def allocated(self, task_id: str) -> int:
        """Return the bytes by which the worker of this task has grown since the task began; 0 if unknown."""
        connection = self._where.get(task_id)
        if connection is not None:
            return connection.memory_of(task_id).allocated
        return self._local.allocated(task_id) if self._local is not None else 0

    def resident(self, task_id: str) -> int | None:
        """Return the resident bytes of the worker that runs this task; None if unknown."""
        connection = self._where.get(task_id)
        if connection is not None:
            return connection.memory_of(task_id).resident
        return self._local.resident(task_id) if self._local is not None else None

    def workers(self) -> list[WorkerReport]:
        """Return the running workers of all hosts."""
        local = self._local.workers() if self._local is not None else []
        return [*local, *(worker for each in self._connections() for worker in each.workers())]

    def session_worker(self, session_id: str) -> tuple[str | None, int | None]:
        """Return the name of the session's worker and its resident bytes; None for unknown values."""
        for connection in self._connections():
            worker = connection.session_worker(session_id)
            if worker is not None:
                return worker.name, worker.resident
        return self._local.session_worker(session_id) if self._local is not None else (None, None)

    def end_session(self, session_id: str, reason: str) -> None:
        """End the worker of a session, and the task that it runs."""
        for connection in self._connections():
            connection.end_session(session_id, reason)
        if self._local is not None:
            self._local.end_session(session_id, reason)


def _keep(tasks: set[asyncio.Task[None]], coroutine: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    task.add_done_callback(_log_crash)


def _log_crash(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("The search for hosts ended; this is a fault in openruntime", exc_info=task.exception())


class _Models:
    """Models that workers keep on all hosts."""

    def __init__(
        self, local: Engine | None, connections: Callable[[], list[Connection]], of_lane: Callable[[str], Connection | None]
    ) -> None:
        self._local = local
        self._connections = connections
        self._of_lane = of_lane

    def reports(self) -> list[ModelReport]:
        """Return the models, least recently used first."""
        local = self._local.models.reports() if self._local is not None else []
        found = [*local, *(model for each in self._connections() for model in each.models())]
        return sorted(found, key=lambda model: -(model.idle_seconds or 0.0))

    def lanes(self, model: ModelSource) -> list[str]:
        """Return the lanes whose workers keep this model."""
        local = self._local.models.lanes(model) if self._local is not None else []
        return [*local, *(each.lane for connection in self._connections() for each in connection.models() if each.name == model.name)]

    def holds(self, lane: str, model: ModelSource) -> int:
        """Return the bytes held by the worker that keeps this model; 0 if it is not loaded."""
        connection = self._of_lane(lane)
        if connection is not None:
            return next((each.resident or 0 for each in connection.models() if (each.lane, each.name) == (lane, model.name)), 0)
        return self._local.models.holds(lane, model) if self._local is not None else 0

    def make_room(self, lane: str, keep: ModelSource | None) -> str | None:
        """Start unloading the least recently used idle model of this lane except `keep`. Return its name, or None."""
        connection = self._of_lane(lane)
        if connection is not None:
            return connection.make_room(lane, keep)
        return self._local.models.make_room(lane, keep) if self._local is not None else None

    async def unload(self, name: str | None) -> list[str]:
        """Unload the idle models of that name, or all; return their names once their workers have ended."""
        local = [self._local.models.unload(name)] if self._local is not None else []
        found = await asyncio.gather(*local, *(each.unload(name) for each in self._connections()))
        return [unloaded for names in found for unloaded in names]
