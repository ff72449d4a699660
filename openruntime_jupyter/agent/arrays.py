"""Arrays of one session on this host: copies of the runtime's arrays, results on their way to it, and payloads."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from openruntime_jupyter.arrays import array_file
from openruntime_jupyter.arrays.array_layout import check_bounds
from openruntime_jupyter.engines.hosts.file_stream import Done, Failed, FileMessage, FileStream, GetArray, GetPayload, PutArray, Ready
from openruntime_jupyter.engines.hosts.link import ByteStream, LinkClosed, pipe_stream
from openruntime_jupyter.engines.protocol import Completed, Job, JobFiles, Outcome, RaisedError
from openruntime_jupyter.errors import ArrayNotFound, InvalidRequest, OpenRuntimeError, StorageUnavailable
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import Failure, FailureKind

log = logging.getLogger(__name__)

SOCKET = "arrays"
"""Socket in the folder of a session, which receives the descriptors of further connections."""
TAKE_SECONDS = 10.0
"""Maximum time for a descriptor to arrive after its process has connected."""
PAYLOAD_NAME = re.compile(r"[\w-][\w.-]{0,200}", re.ASCII)

_sessions: dict[str, HostArrays] = {}
"""Sessions in this process, by folder."""


class HostArrays:
    """Arrays of one session, in a spool like that of a runtime.

    Parameters
    ----------
    settings : settings with the data folder of this user on this host
    folder : private folder of the session, whose name is unique
    payloads : folder of the results of its tasks
    """

    def __init__(self, settings: Settings, folder: Path, payloads: Path, machine: Machine) -> None:
        self.folder = str(folder)
        self._payloads = payloads
        self._store = ArrayStore(settings, folder.name, machine)
        self._copies: dict[int, str] = {}
        """Ids of the copies in the store, by the runtime's numbers."""
        self._leased: dict[str, list[str]] = {}
        """Ids of the copies that a running task uses."""
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Create the spool folders, after those of dead sessions were removed."""
        await asyncio.to_thread(self._store.open)
        self._keep(self._store.run_sweeper(_always))
        _sessions[self.folder] = self

    async def stop(self) -> None:
        """End the connections and remove all files."""
        _sessions.pop(self.folder, None)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        await self._store.stop()

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Tasks

    def path_of(self, array_id: str) -> str:
        """Return the file of a result; raise `ArrayNotFound` if it is unknown."""
        return self._store.path_of(array_id)

    def places(self) -> list[tuple[str, int, int]]:
        """Return the folders for results, best first, each with its free bytes and its free bytes without releasing free blocks."""
        return self._store.places()

    def prepare(self, job: Job, copies: Mapping[str, int]) -> None:
        """Give a job the files of its arrays, which stay until `release`. Raises `StorageUnavailable` if a copy is missing."""
        if copies:
            given = job.files or JobFiles()
            job.files = dataclasses.replace(given, inputs={**given.inputs, **self.lease(copies, job.task_id)})

    async def parameters(self, number: int) -> bytes:
        """Return the parameters of a job that were sent as a copy. Raises `ArrayNotFound`."""
        path = self._store.path_of(self._copies.get(number, str(number)))

        def read() -> bytes:
            descriptor = array_file.open_for_reading(path, "of parameters")
            with os.fdopen(descriptor, "rb") as file:
                file.seek(array_file.read(descriptor, "of parameters").offset)
                return file.read()

        return await asyncio.to_thread(read)

    async def finish(self, job: Job, outcome: Outcome) -> Outcome:
        """Keep the result arrays until `discard`, and remove what a job without a result has left. Return the outcome."""
        self.release(job.task_id)
        if job.array_name is None or (job.files is not None and job.files.places is not None):
            return outcome
        if not isinstance(outcome, Completed):
            await self._store.discard(job.array_name)
            return outcome
        try:
            await self._store.adopt(None, outcome.arrays)
        except (StorageUnavailable, ArrayNotFound, OSError) as problem:
            failure = Failure(kind=FailureKind.RAISED, message=f"The result can't be stored. {problem}", type=type(problem).__name__)
            return RaisedError(failure, outcome.measurements)
        return outcome

    def lease(self, copies: Mapping[str, int], task_id: str) -> dict[str, str]:
        """Keep copies until `release`, and return their files by the ids of the arrays. Raises `StorageUnavailable` if one is missing."""
        names = {array_id: self._copies.get(number, str(number)) for array_id, number in copies.items()}
        try:
            self._store.lease(names.values(), task_id)
        except InvalidRequest as problem:
            raise StorageUnavailable(
                "This host has deleted a copy of an array for lack of space, before the other arrays of its task were sent: "
                "use smaller arrays, or a host with more memory"
            ) from problem
        self._leased[task_id] = list(names.values())
        return {array_id: self._store.path_of(name) for array_id, name in names.items()}

    def release(self, task_id: str) -> None:
        """Release the copies of an ended task."""
        leased = self._leased.pop(task_id, [])
        if leased:
            self._store.release(task_id, leased)

    async def discard(self, copies: Iterable[int] = (), results: Iterable[str] = (), payloads: Iterable[str] = ()) -> None:
        """Delete what the runtime does not need here any more."""
        for name in [*(self._copies.pop(number, None) for number in copies), *results]:
            if name is not None:
                await self._remove(name)
        for payload in payloads:
            if PAYLOAD_NAME.fullmatch(payload):
                (self._payloads / payload).unlink(missing_ok=True)

    async def _remove(self, array_id: str) -> None:
        with contextlib.suppress(ArrayNotFound):
            await self._store.remove(array_id)

    # Connections

    def listen(self) -> None:
        """Accept connections from processes that call `hand_over`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.getcwd()
        os.chdir(self.folder)  # the path of a socket has at most about 100 bytes
        try:
            listener.bind(SOCKET)
        finally:
            os.chdir(before)
        listener.listen()
        listener.setblocking(False)
        self._listener = listener
        self._keep(self._accept(listener))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connected, _ = await loop.sock_accept(listener)
            self._keep(self._serve_handed_over(connected))

    async def _serve_handed_over(self, connected: socket.socket) -> None:
        with connected:
            connected.settimeout(TAKE_SECONDS)
            _, descriptors, _, _ = await asyncio.to_thread(socket.recv_fds, connected, 1, 2)
            if len(descriptors) == 2:
                await self.serve(await pipe_stream(*descriptors))

    async def serve(self, stream: ByteStream) -> None:
        """Answer the requests on a connection until it ends."""
        connection = FileStream(stream)
        try:
            while True:
                request = await connection.receive()
                try:
                    await self._answer(connection, request)
                except OpenRuntimeError as problem:
                    await connection.send(Failed(type(problem).__name__, str(problem)))
        except LinkClosed as problem:
            log.debug("A connection for arrays ended: %s", problem)
        except OSError:
            log.exception("A connection for arrays failed")
        finally:
            await connection.close()

    async def _answer(self, connection: FileStream, request: FileMessage) -> None:
        if isinstance(request, PutArray):
            await self._receive(connection, request)
        elif isinstance(request, GetArray):
            await _send_array(connection, self._store.path_of(request.id), request.id)
        elif isinstance(request, GetPayload):
            await self._send_payload(connection, request.name)
        else:
            raise LinkClosed(f"the runtime sent {request.type}")

    async def _receive(self, connection: FileStream, request: PutArray) -> None:
        """Store a copy of an array; remove it if the connection ends before."""
        known = self._copies.get(request.copy)
        if known is not None and self._store.known(known) is not None:
            await self._store.info(known)  # so that it is not evicted before its task begins
            await connection.send(Done())
            return
        layout = check_bounds(request.shape, request.dtype, request.kind)
        allocated = await self._store.allocate(layout, copy=True)
        try:
            descriptor = await asyncio.to_thread(os.open, str(allocated.path), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                with self._store.writing(allocated.id):
                    await connection.send(Ready(layout.nbytes))
                    await connection.receive_file(descriptor, layout.offset, layout.size)
            finally:
                os.close(descriptor)
            await self._store.ready(allocated.id, sent=True)
        except BaseException:
            await self._remove(allocated.id)
            raise
        earlier, self._copies[request.copy] = self._copies.get(request.copy), allocated.id
        if earlier is not None:  # its connection was cut, which the runtime noticed before
            await self._remove(earlier)
        await connection.send(Done())

    async def _send_payload(self, connection: FileStream, name: str) -> None:
        path = self._payloads / name
        try:
            if not PAYLOAD_NAME.fullmatch(name):
                raise FileNotFoundError(name)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as problem:
            raise ArrayNotFound(f"The result {name[:200]!r} no longer exists on the host ({problem.strerror})") from None
        try:
            await _send(connection, descriptor, 0, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)


async def _send_array(connection: FileStream, path: str, array_id: str) -> None:
    descriptor = array_file.open_for_reading(path, array_id)
    try:
        layout = array_file.read(descriptor, array_id)
        await _send(connection, descriptor, layout.offset, layout.size)
    finally:
        os.close(descriptor)


async def _send(connection: FileStream, descriptor: int, start: int, end: int) -> None:
    await connection.send(Ready(end - start))
    await connection.send_file(descriptor, start, end)


async def _always(_: str) -> bool:
    return True


async def serve(stream: ByteStream, folder: str) -> None:
    """Serve a connection for the arrays of a session in this process, until it ends."""
    session = _sessions.get(folder)
    if session is None:
        await stream.close()
    else:
        await session.serve(stream)


def hand_over(folder: str) -> None:
    """Hand standard input and output over to the session of that folder, and return when it has closed them.

    Raises `OSError` if no session runs there.
    """
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.connect(SOCKET)
        socket.send_fds(agent, [b"\0"], [0, 1])
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1):  # so that both sides notice each other's end
            os.dup2(nothing, descriptor)
        agent.recv(1)
