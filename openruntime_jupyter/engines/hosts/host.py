"""Host of an engine over hosts: connects to its agent, again after each loss, and knows why it can't."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from openruntime_jupyter.engines.hosts.connection import Connection, HostsOptions, connect
from openruntime_jupyter.engines.hosts.finder import HostUnreachable, HostUnusable, Way
from openruntime_jupyter.engines.hosts.link import Link, LinkClosed
from openruntime_jupyter.engines.hosts.messages import InvalidMessage
from openruntime_jupyter.schemas import hosts
from openruntime_jupyter.schemas.base import construct_unchecked, timestamp

log = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds until the next attempts to connect. The last pause is repeated."""


class Host:
    """Host with its way, and with its connection while there is one.

    Parameters
    ----------
    where : connections by the tasks that they run, which this host's one updates
    joined, left : called with the new connection, and after its end
    in_use : called with True when tasks, sessions or models are on the host, and with False when none is
    """

    def __init__(
        self,
        way: Way,
        options: HostsOptions,
        where: dict[str, Connection],
        joined: Callable[[Connection], None],
        left: Callable[[Connection], None],
        in_use: Callable[[bool], None],
    ) -> None:
        self.name = way.name
        self.connection: Connection | None = None
        self.state: hosts.HostState = "connecting"
        self.problem: str | None = None
        """Why it is not ready."""
        self._way = way
        self._options = options
        self._where = where
        self._joined = joined
        self._left = left
        self._in_use = in_use
        self._advice: str | None = None
        self._since = time.time()
        self._boot: str | None = None
        """Id of the host's last start."""
        self._leaving = False
        self._changed = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._stay_connected(), name=f"host {self.name}")

    def find(self, way: Way) -> None:
        """Use this way from now on, at once if it has another address."""
        before, self._way = self._way, way
        if before.address != way.address and self.connection is not None:
            self.connection.close(f"it has a new address: {way.address}")
        self._changed.set()

    async def leave(self, reason: str) -> None:
        """Close the connection and connect no more."""
        self._leaving = True
        if self.connection is not None:
            self.connection.close(reason)
            await asyncio.wait({self._task}, timeout=self._options.lost)
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _stay_connected(self) -> None:
        failures = 0
        while True:
            self._changed.clear()
            try:
                if await self._connect():
                    failures = 0
            except (HostUnusable, HostUnreachable) as problem:
                self._become("refused" if isinstance(problem, HostUnusable) else "lost", str(problem), problem.remedy)
            except asyncio.TimeoutError:
                self._become("lost", "its agent does not respond")
            except InvalidMessage as problem:
                self._become("lost", f"its agent sent an invalid message ({problem})")
            except (OSError, LinkClosed) as problem:
                self._become("lost", str(problem) or type(problem).__name__)
            except Exception as problem:  # a fault must not end the attempts
                log.exception("The connection to the host %s failed", self.name)
                self._become("lost", f"{problem!r}: this is a fault in openruntime; the log has the traceback")
            if self._leaving:
                return
            pause = PAUSES[min(failures, len(PAUSES) - 1)]
            failures += 1
            try:
                await asyncio.wait_for(self._changed.wait(), pause)
            except asyncio.TimeoutError:
                continue
            failures = 0

    async def _connect(self) -> bool:
        """Connect, and stay connected until the end. Return True; raises what `Way.connect` and `connect` raise."""
        link = Link(await self._way.connect())
        try:
            connection = await connect(self._way, link, self._options, self._where, self._set_silent, self._in_use)
        except BaseException:
            await link.close()
            raise
        if self._boot not in (None, connection.welcome.boot_id):
            log.warning("The host %s was restarted: its sessions and loaded models are lost", self.name)
        self._boot = connection.welcome.boot_id
        serving = asyncio.get_running_loop().create_task(connection.serve())
        await asyncio.sleep(0)  # if it was cancelled before its first step, it would not end the connection
        self.connection = connection
        self._become("ready")
        try:
            self._joined(connection)
            reason = await asyncio.shield(serving)
            self._become("lost", reason)
        finally:
            serving.cancel()
            await asyncio.wait({serving})
            self._left(connection)  # first, so that its lanes take no task while it closes
            await connection.disconnect()
            self.connection = None
        return True

    def _set_silent(self, silent: bool) -> None:
        self._become("silent" if silent else "ready", "it does not respond" if silent else None)

    def _become(self, state: hosts.HostState, problem: str | None = None, advice: str | None = None) -> None:
        if problem is not None and problem != self.problem and not self._leaving:
            log.warning("The host %s is %s: %s", self.name, state, problem)
        if state != self.state:
            self._since = time.time()
        self.state, self.problem, self._advice = state, problem, advice

    def view(self) -> hosts.Host:
        """Return the host as users see it. The metrics read all hosts each second, and validating 1,000 of them would take 16 ms."""
        connection = self.connection
        welcome = connection.welcome if connection is not None else None
        memory = connection.machine.memory() if connection is not None else None
        return construct_unchecked(
            hosts.Host,
            {
                "name": self.name,
                "state": self.state,
                "address": self._way.address,
                "problem": self.problem,
                "advice": self._advice,
                "devices": [],
                "slots": 0,
                "running": 0,
                "memory_total": memory and memory.total,
                "memory_available": memory and memory.available,
                "cores": connection and connection.machine.cores,
                "cpu_utilization": connection and connection.machine.cpu_percent(),
                "models": [model.name for model in connection.stored_models] if connection is not None else [],
                "python": welcome and welcome.python,
                "version": welcome and welcome.version,
                "mlx_version": connection.devices[0].mlx_version if connection is not None and connection.devices else None,
                "platform": welcome and welcome.platform,
                "round_trip_s": connection and connection.round_trip,
                "shares_folder": connection and bool(connection.shared),
                "since": timestamp(self._since),
            },
        )
