"""Hosts that are the workers of a Dask cluster. Dask says who is there and carries bytes; it schedules none of our tasks."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import re
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from openruntime_jupyter import __version__
from openruntime_jupyter.engines.hosts.finder import HostUnusable, InvalidHosts, Way, unreserved
from openruntime_jupyter.environment import is_loopback

log = logging.getLogger(__name__)

AGENT = "openruntime_jupyter.agent.dask"
"""Module that adds the operations `SESSION` and `ARRAYS` to a Dask worker."""
SESSION = "openruntime_session"
ARRAYS = "openruntime_arrays"

NO_PACKAGE = re.compile(r"No module named \\*'openruntime_jupyter\\*'")
"""Message of a Dask worker whose Python lacks this package. Dask may pass the error on as text, with quotes that are escaped."""

CONNECT_SECONDS = 10.0
LOAD_SECONDS = 60.0
"""Time in which a worker must import the agent, which a network file system may delay."""
POLL_SECONDS = 1.0
POLL_MANY_SECONDS = 10.0
MANY = 100
"""Number of workers from which they are polled every `POLL_MANY_SECONDS`: 1,000 workers are 1 MB of JSON."""
RECONNECT_SECONDS = 5.0
CLOSE_SECONDS = 5.0

MARKER_SECONDS = 25.0
"""Length of a marker task: the longest time for which Dask considers an idle host busy."""
RENEW_SECONDS = 12.0
"""Age at which a marker is replaced. With `POLL_MANY_SECONDS` it is less than `MARKER_SECONDS`."""
JOIN_SECONDS = 60.0
"""Time after which workers that were started and have not joined are reported."""
IDLE_SECONDS = 60.0
"""Time after which an idle host may be ended, where this runtime has started it."""

ENCRYPTED = ("tls", "wss", "inproc")
TLS_ADVICE = (
    "set up TLS in Dask's configuration (distributed.comm.tls) and use an address that begins with tls://, "
    "or set dask_insecure in a network that only you can reach"
)


def is_safe(address: str) -> bool:
    """Return whether other machines can neither read nor reach connections to this address, or they are encrypted."""
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    return parts.scheme in ENCRYPTED or is_loopback(parts.hostname or "")


class CommStream:
    """Byte stream over a comm of Dask: each message is one `Serialized` object with the bytes, which Dask neither copies nor unpickles."""

    def __init__(self, comm: Any) -> None:
        from distributed.protocol.serialize import Serialized

        self._comm = comm
        self._envelope: Any = Serialized  # untyped
        self._sent: Any = None
        """Future of the last bytes to be sent."""
        comm.deserialize = False

    async def read(self) -> bytes | memoryview:
        """Return the next bytes; `b""` at the end, which Dask does not tell from a lost connection."""
        try:
            received = await self._comm.read()
        except OSError:
            if self._comm.closed():
                return b""
            raise
        if not isinstance(received, self._envelope) or len(received.frames) != 1:
            raise OSError(f"the other side sent {type(received).__name__} instead of bytes")
        return memoryview(received.frames[0]).cast("B")

    async def write(self, data: bytes) -> None:
        """Send bytes, and return when those of the previous call are sent."""
        await self._comm.write(self._envelope({}, [data]))
        if (stream := getattr(self._comm, "stream", None)) is not None:
            # A comm returns before its bytes are sent, and would hold any number of them in memory.
            sent, self._sent = self._sent, stream.write(b"")
            if sent is not None:
                await sent

    async def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._comm.close(), CLOSE_SECONDS)
        self._comm.abort()


class Named:
    """Function that is pickled by its names alone, so that neither this process nor Dask's scheduler imports it."""

    def __init__(self, module: str, function: str | None = None) -> None:
        self._module, self._function = module, function

    def __reduce__(self) -> tuple[Any, ...]:
        if self._function is None:
            return importlib.import_module, (self._module,)
        return getattr, (Named(self._module), self._function)


class DaskWay:
    """Way to the agent in one Dask worker, which loads it first if it was not preloaded."""

    def __init__(self, name: str, address: str, client: Callable[[], Any], insecure: bool) -> None:
        self.name = name
        self.address = address
        self._client = client
        self._insecure = insecure

    async def connect(self) -> CommStream:
        """Load the agent and connect to it. Raises `HostUnusable`, or `OSError` for a worker that does not respond."""
        if not (self._insecure or is_safe(self.address)):
            raise HostUnusable("its connection would not be encrypted", TLS_ADVICE)
        await self._load()
        return await self._open(op=SESSION)

    async def connect_for_arrays(self, folder: str) -> CommStream:
        """Open a second comm, for files in `folder`. Raises `OSError`."""
        return await self._open(op=ARRAYS, folder=folder)

    async def _open(self, **message: Any) -> CommStream:
        from distributed.comm import core

        connect: Any = core.connect  # untyped
        comm = await connect(self.address, timeout=CONNECT_SECONDS, **self._client().security.get_connection_args("client"))
        try:
            await comm.write({**message, "reply": False}, serializers=["msgpack"])
        except BaseException:
            comm.abort()
            raise
        return CommStream(comm)

    async def _load(self) -> None:
        try:
            await self._run(Named(AGENT, "load"), LOAD_SECONDS)
        except asyncio.TimeoutError:
            raise OSError(f"the Dask worker {self.address} did not load the agent within {LOAD_SECONDS:g} s") from None
        except OSError:
            raise
        except Exception as problem:
            missing = NO_PACKAGE.search(repr(problem))
            reason = "it has no openruntime-jupyter" if missing else f"it can't load the agent ({problem!r})"
            advice = f"run `{await self._python()} -m pip install openruntime-jupyter=={__version__}` there, and restart the Dask worker"
            raise HostUnusable(reason, advice) from problem

    async def _python(self) -> str:
        """Return the path of the worker's Python. The worker needs no package for that."""
        try:
            return str(await self._run(eval, CONNECT_SECONDS, "__import__('sys').executable"))
        except Exception:  # the advice is right without the path
            return "python"

    async def _run(self, function: Any, seconds: float, *arguments: Any) -> Any:
        results = await asyncio.wait_for(self._client().run(function, *arguments, workers=[self.address]), seconds)
        if self.address not in results:
            raise OSError(f"the Dask worker {self.address} has left")
        return results[self.address]


class DaskFinder:
    """Finder of the workers of a Dask cluster, which it may start.

    Parameters
    ----------
    address : address of the scheduler, such as `tls://10.0.0.1:8786`; empty with `cluster`
    cluster : name of a class of clusters to start, such as `dask_jobqueue.SLURMCluster`
    arguments : its arguments; `minimum` and `maximum` are the numbers of workers between which the queue's length decides
    insecure : connect without encryption beyond this machine, too
    """

    def __init__(self, address: str, cluster: str = "", arguments: Mapping[str, Any] | None = None, insecure: bool = False) -> None:
        if address and not (insecure or is_safe(address)):
            raise InvalidHosts(f"dask_address: connections to {address} would not be encrypted: {TLS_ADVICE}")
        self.problem: str | None = None
        self._address = address
        self._class = cluster
        self._arguments = dict(arguments or {})
        self._insecure = insecure
        self._client: Any = None
        self._size: ClusterSize | None = None
        self._members: dict[str, DaskWay] = {}
        """Ways by the names that Dask has for its workers."""
        self._busy: set[str] = set()
        """Names of hosts where tasks run."""
        self._markers: dict[str, tuple[Any, float]] = {}
        """Marker tasks by host, with the time of their start."""
        self._number = 0
        self._watching: asyncio.Task[Any] | None = None

    async def watch(self, found: Callable[[Way], None], gone: Callable[[str, str], None]) -> None:
        """Report workers as hosts until cancelled. Starts the cluster, and connects again to a lost scheduler."""
        self._watching = asyncio.current_task()
        while True:
            try:
                await self._connect()
                await self._follow(found, gone)
            except Exception as problem:
                before, self.problem = self.problem, self._explained(problem)
                if self.problem != before:
                    log.warning("%s", self.problem)
            finally:
                await self._disconnect()
            if self._size is not None and self._size.cluster.status.name != "running":
                await self._end_cluster()
            await asyncio.sleep(RECONNECT_SECONDS)

    def _explained(self, problem: Exception) -> str:
        cause: BaseException = problem
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = f"{cause}" or type(cause).__name__
        if self._class and self._size is None:
            return f"The Dask cluster {self._class} could not be started ({reason}). The next attempt is in {RECONNECT_SECONDS:g} s"
        where = f" at {self._address}" if self._address else ""
        ends = "When a scheduler ends, Dask ends its workers and the tasks on them. " if self._members else ""
        return f"The Dask scheduler{where} does not respond ({reason}). {ends}Pending tasks wait until it does"

    async def _connect(self) -> None:
        distributed = await asyncio.to_thread(importlib.import_module, "distributed")
        if self._class and self._size is None:
            self._size = await self._start()
        target = self._size.cluster if self._size is not None else self._address
        self._client = distributed.Client(target, asynchronous=True, name="openruntime", set_as_default=False, timeout=CONNECT_SECONDS)
        await self._client

    def _connected(self) -> Any:
        """Return the client of the cluster; raise `OSError` without one."""
        if self._client is None or self._client.status != "running":
            raise OSError("the Dask scheduler is not connected")
        return self._client

    async def _start(self) -> ClusterSize:
        """Start the cluster and return its size."""
        module, _, name = self._class.rpartition(".")
        arguments = {key: value for key, value in self._arguments.items() if key not in ("minimum", "maximum")}
        make = getattr(_import_with_signals(module), name)
        cluster = make(**arguments, asynchronous=True)
        await cluster
        if not (self._insecure or is_safe(cluster.scheduler_address)):
            await _result(cluster.close())
            raise InvalidHosts(f"connections to its scheduler at {cluster.scheduler_address} would not be encrypted: {TLS_ADVICE}")
        return ClusterSize(cluster, self._arguments.get("minimum"), self._arguments.get("maximum"))

    async def _follow(self, found: Callable[[Way], None], gone: Callable[[str, str], None]) -> None:
        """Poll the members until the scheduler does not respond."""
        while True:
            described = await asyncio.wait_for(self._client.scheduler.identity(), CONNECT_SECONDS)
            workers = {str(worker["name"]): (address, worker) for address, worker in described["workers"].items()}
            for name in self._members.keys() - workers.keys():
                way = self._members.pop(name)
                self._markers.pop(way.name, None)
                gone(way.name, "it left the Dask cluster")
            for name, (address, worker) in workers.items():
                self._find(name, address, worker, found)
            for name in self._busy:
                self._mark(name)
            if self._size is not None:
                await self._size.adjust({way.name: name for name, way in self._members.items()}, set(self._busy))
            self.problem = self._size.shortage(len(self._members)) if self._size is not None else None
            await asyncio.sleep(POLL_SECONDS if len(workers) <= MANY else POLL_MANY_SECONDS)

    def _find(self, name: str, address: str, worker: Mapping[str, Any], found: Callable[[Way], None]) -> None:
        way = self._members.get(name)
        if way is not None and way.address == address:
            return
        taken = {other.name for other in self._members.values()}
        host = way.name if way is not None else host_name(name, address, str(worker["host"]), taken)
        self._members[name] = way = DaskWay(host, address, self._connected, self._insecure)
        self._markers.pop(host, None)
        found(way)

    def hold(self, name: str, busy: bool) -> None:
        """Give Dask a marker task on a busy host, so that `idle-timeout` and `adapt()` do not end it under our tasks."""
        if not busy:
            self._busy.discard(name)
        elif name not in self._busy:
            self._busy.add(name)
            self._mark(name)

    def _mark(self, name: str) -> None:
        """Renew the marker of a host where it ends soon. Tasks of the standard library need no package on the scheduler."""
        way = next((way for way in self._members.values() if way.name == name), None)
        _, since = self._markers.get(name, (None, 0.0))
        if way is None or self._client is None or self._client.status != "running" or time.monotonic() - since < RENEW_SECONDS:
            return
        self._number += 1
        marker = self._client.submit(
            asyncio.sleep,
            MARKER_SECONDS,
            key=f"openruntime-busy-{name}-{self._number}",
            workers=[way.address],
            allow_other_workers=False,
            pure=False,
        )
        self._markers[name] = marker, time.monotonic()

    def demand(self, pending: int) -> None:
        """Note the number of pending tasks, which a cluster of this runtime follows."""
        if self._size is not None:
            self._size.pending = pending

    async def close(self) -> None:
        """Leave the cluster once `watch` has been cancelled, and end it if this runtime has started it."""
        if self._watching is not None:
            await asyncio.wait({self._watching}, timeout=CLOSE_SECONDS)
        await self._end_cluster()

    async def _end_cluster(self) -> None:
        if self._size is not None:
            size, self._size = self._size, None
            await _quietly(size.cluster.close())

    async def _disconnect(self) -> None:
        self._markers.clear()
        client, self._client = self._client, None
        if client is not None:
            await _quietly(client.close())


class ClusterSize:
    """Number of workers of a cluster that this runtime has started, which follows the length of the queue.

    Without `minimum` it never has less workers than it started with, and without `maximum` never more, except for the first one.
    """

    def __init__(self, cluster: Any, minimum: int | None, maximum: int | None) -> None:
        self.cluster = cluster
        self.pending = 0
        self._wanted = len(getattr(cluster, "worker_spec", None) or cluster.plan)
        self._minimum = self._wanted if minimum is None else minimum
        self._maximum = max(self._wanted, 1) if maximum is None else maximum
        self._idle_since: dict[str, float] = {}
        self._complete = time.monotonic()
        """Time at which all wanted workers were there last."""

    def shortage(self, members: int) -> str | None:
        """Return which workers are missing for long, for `/health`; None if none are."""
        now = time.monotonic()
        if members >= self._wanted:
            self._complete = now
        if now - self._complete < JOIN_SECONDS:
            return None
        return (
            f"{self._wanted - members} of {self._wanted} workers of the Dask cluster have not joined for {now - self._complete:.0f} s: "
            "they wait in its queue of jobs, or its logs have the reason"
        )

    async def adjust(self, members: Mapping[str, str], busy: set[str]) -> None:
        """Start workers for pending tasks, and end idle ones. `members` are the names of Dask's workers by host."""
        now = time.monotonic()
        idle = members.keys() - busy
        self._idle_since = {name: self._idle_since.get(name, now) for name in idle}
        wanted = min(self._maximum, max(self._wanted, self._minimum, len(members.keys() & busy) + self.pending))
        if wanted > self._wanted:
            self._wanted = wanted
            await _result(self.cluster.scale(wanted))
        elif not self.pending and hasattr(self.cluster, "scale_down"):
            ended = [name for name, since in sorted(self._idle_since.items()) if now - since >= IDLE_SECONDS]
            ended = ended[: max(0, min(len(members), self._wanted) - self._minimum)]
            if ended:
                self._wanted -= len(ended)
                spec = {str(name): name for name in getattr(self.cluster, "worker_spec", ())}
                await _result(self.cluster.scale_down([spec.get(members[name], members[name]) for name in ended]))


def host_name(name: str, address: str, host: str, taken: set[str]) -> str:
    """Return the name of a host: that of its Dask worker, or the address of the machine if the worker has only a number or an address."""
    if name == address or "://" in name:
        name = host
    elif name.isdecimal():
        name = f"worker-{name}"
    name = unreserved(re.sub(r"[^\w.-]+", "-", name).strip("-.") or "worker")
    while name in taken:
        name = f"{name}-{urlsplit(address).port or len(taken)}"
    return name


def _import_with_signals(module: str) -> Any:
    """Import a module and restore the handlers of signals: `dask_jobqueue` sets one that exits, which only the main thread may do."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return importlib.import_module(module)
    finally:
        for number, handler in kept.items():
            if handler is not signal.getsignal(number):
                signal.signal(number, handler)


async def _result(value: Any) -> Any:
    """Return what a method of a cluster returns, which some classes have made a coroutine."""
    return await value if inspect.isawaitable(value) else value


async def _quietly(ending: Awaitable[Any] | None) -> None:
    """Wait for an end that may fail or hang with a dead scheduler."""
    try:
        if ending is not None:
            await asyncio.wait_for(ending, CLOSE_SECONDS)
    except Exception as problem:
        log.debug("A part of Dask did not close: %r", problem)
