"""Arrays and payloads between this runtime and the agent of one host, on connections besides that for tasks.

So a cancel never waits behind an array. The agent keeps copies of arrays until this runtime deletes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from openruntime_jupyter.arrays import array_file
from openruntime_jupyter.arrays.array_layout import Layout
from openruntime_jupyter.arrays.blocks import UNFINISHED
from openruntime_jupyter.engines.hosts.file_stream import Done, Failed, FileMessage, FileStream, GetArray, GetPayload, PutArray, Ready
from openruntime_jupyter.engines.hosts.finder import HostUnusable
from openruntime_jupyter.engines.hosts.link import ByteStream, LinkClosed
from openruntime_jupyter.engines.local import ArrayFiles
from openruntime_jupyter.engines.protocol import StoredArray
from openruntime_jupyter.errors import ArrayNotFound, EngineError, InvalidRequest, OpenRuntimeError, StorageUnavailable, gigabytes

MOST_CONNECTIONS = 4
"""Maximum number of connections to a host for arrays, each with one array at a time."""

ERRORS: dict[str, type[OpenRuntimeError]] = {each.__name__: each for each in (ArrayNotFound, InvalidRequest, StorageUnavailable)}
"""Errors of an agent that keep their class."""

T = TypeVar("T")


class TransferFailed(EngineError):
    """Array or payload that could not be sent or fetched, because the connection ended twice."""


class ArrayTransfer:
    """Transfer of arrays and payloads between this runtime and one host.

    Parameters
    ----------
    host : name of the host
    connect : opens another connection for arrays; raises `HostUnusable` or `OSError`
    files : files of this runtime's arrays
    payloads : folder of this runtime's payloads
    """

    def __init__(self, host: str, connect: Callable[[], Awaitable[ByteStream]], files: ArrayFiles, payloads: Path) -> None:
        self._host = host
        self._connect = connect
        self._files = files
        self._payloads = payloads
        self._free = asyncio.Semaphore(MOST_CONNECTIONS)
        self._open: set[FileStream] = set()
        self._idle: list[FileStream] = []
        self._copies: dict[str, int] = {}
        """Numbers of the copies that the host may have. A name may belong to another array later, and a number may not."""
        self._numbers = itertools.count()
        self._sending: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._closed = False

    # Arrays

    async def send(self, array_ids: Iterable[str]) -> dict[str, int]:
        """Send the arrays that the host does not have, and return the number of each copy.

        Raises `ArrayNotFound` for an unknown array, `StorageUnavailable` or `InvalidRequest` if the host has no room, and `TransferFailed`.
        """
        return {array_id: await self._send(array_id) for array_id in array_ids}

    async def _send(self, array_id: str) -> int:
        path = self._files.path_of(array_id)
        copy = next(self._numbers)
        if str(Path(path).parent) in (folder for folder, _, _ in self._files.places()):  # the end of another runtime's array is unknown
            copy = self._copies.setdefault(array_id, copy)
        async with self._sending.setdefault(copy, asyncio.Lock()):  # of several tasks with the same array one sends it
            descriptor = await asyncio.to_thread(array_file.open_for_reading, path, array_id)
            try:
                layout = array_file.read(descriptor, array_id)

                async def put(connection: FileStream) -> None:
                    answer = await _ask(connection, PutArray(copy, layout.shape, layout.dtype, layout.kind))
                    if isinstance(answer, Ready):
                        await connection.send_file(descriptor, layout.offset, layout.size)
                        _raise_failure(await connection.receive())

                await self._try_twice(put, f"The array {array_id} of {gigabytes(layout.nbytes)} can't be sent to the host {self._host}")
            finally:
                os.close(descriptor)
        return copy

    async def send_parameters(self, parameters: bytes) -> int:
        """Send the parameters of a job as an array of bytes, and return the number of the copy. Raises the errors of `send`."""
        copy = next(self._numbers)

        async def put(connection: FileStream) -> None:
            if isinstance(await _ask(connection, PutArray(copy, (len(parameters),), "uint8", "buffer")), Ready):
                await connection.send_bytes(parameters)
                _raise_failure(await connection.receive())

        await self._try_twice(put, f"The parameters of {gigabytes(len(parameters))} can't be sent to the host {self._host}")
        return copy

    def forget(self, array_id: str) -> int | None:
        """Forget the copy of an array that is deleted here, and return its number; None if the host has none."""
        return self._copies.pop(array_id, None)

    def outdated(self, copies: Mapping[str, int]) -> list[int]:
        """Return the numbers of copies that are of no further use."""
        return [number for array_id, number in copies.items() if self._copies.get(array_id) != number]

    async def fetch(self, arrays: Iterable[StoredArray]) -> tuple[StoredArray, ...]:
        """Store result arrays of the host in the folders of this runtime, and return them with their places there.

        Raises `StorageUnavailable` if they don't fit, `ArrayNotFound` and `TransferFailed`. No files are left then.
        """
        fetched: list[tuple[Path, StoredArray]] = []
        try:
            places = self._files.places()
            used = [0] * len(places)
            for array in arrays:
                layout = Layout(array.shape, array.dtype, array.kind)
                number, path, descriptor = await self._make(array.id, layout, places, used)
                fetched.append((path, replace(array, place=number)))
                used[number] += layout.size
                try:
                    await self._fetch(array.id, layout, descriptor)
                finally:
                    os.close(descriptor)
        except BaseException:
            for path, _ in fetched:
                path.unlink(missing_ok=True)
            raise
        return tuple(array for _, array in fetched)

    async def _fetch(self, array_id: str, layout: Layout, descriptor: int) -> None:
        async def get(connection: FileStream) -> None:
            await _receive(connection, GetArray(array_id), descriptor, layout.offset, layout.nbytes)

        await self._try_twice(get, f"The result array of {gigabytes(layout.nbytes)} can't be fetched from the host {self._host}")

    async def _make(self, array_id: str, layout: Layout, places: list[tuple[str, int, int]], used: list[int]) -> tuple[int, Path, int]:
        """Create the file of a result in the first folder with room. Return the folder's index, the path and its descriptor."""
        refusal: StorageUnavailable | None = None
        for number, (folder, most, room) in enumerate(places):
            if layout.size > most - used[number]:
                continue
            path = Path(folder, f"{array_id}{UNFINISHED}")
            try:
                return number, path, await asyncio.to_thread(array_file.make, path, layout, room - used[number])
            except StorageUnavailable as problem:
                refusal = problem
        most = max((most - taken for (_, most, _), taken in zip(places, used, strict=True)), default=0)
        raise refusal or StorageUnavailable(
            f"A result array of {gigabytes(layout.size)} does not fit: the current limit is {gigabytes(max(0, most))}. Delete arrays "
            "that are no longer needed, raise the setting array_bytes, or return less data."
        )

    # Payloads

    async def fetch_payload(self, name: str, size: int) -> None:
        """Store a payload of `size` bytes under its name in this runtime's folder. Raises `StorageUnavailable` and `TransferFailed`."""
        path = self._payloads / name
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            await self._try_twice(
                lambda connection: _receive(connection, GetPayload(name), descriptor, 0, size),
                f"The result of {gigabytes(size)} can't be fetched from the host {self._host}",
            )
        except OSError as problem:
            path.unlink(missing_ok=True)
            raise StorageUnavailable(
                f"The result of {size:,} bytes can't be stored in {self._payloads} ({problem.strerror}): free some space there, "
                "or choose another `data_dir`"
            ) from problem
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    # Connections

    async def _try_twice(self, work: Callable[[FileStream], Awaitable[T]], failure: str) -> T:
        """Do the work on a connection, and again on a new one if it ends; raise `TransferFailed` if that ends as well."""
        try:
            async with self._connection() as connection:
                return await work(connection)
        except LinkClosed:
            await self._close_idle()  # they may have ended as well
        try:
            async with self._connection() as connection:
                return await work(connection)
        except LinkClosed as problem:
            raise TransferFailed(f"{failure}: {problem}") from problem

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[FileStream]:
        """Connection for one transfer. After an exception it is closed, because the position in its stream is unknown."""
        async with self._free:
            connection = self._idle.pop() if self._idle else await self._connected()
            try:
                yield connection
            except BaseException:
                self._open.discard(connection)
                await connection.close()
                raise
            self._idle.append(connection)

    async def _connected(self) -> FileStream:
        try:
            if self._closed:
                raise LinkClosed("the host has left")
            connection = FileStream(await self._connect())
        except (OSError, HostUnusable) as problem:
            raise LinkClosed(str(problem)) from problem
        self._open.add(connection)
        return connection

    async def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            self._open.discard(connection)
            await connection.close()

    async def close(self) -> None:
        """Close all connections; transfers that are under way fail."""
        self._closed = True
        self._idle.clear()
        while self._open:
            await self._open.pop().close()


async def _ask(connection: FileStream, request: FileMessage) -> FileMessage:
    await connection.send(request)
    answer = await connection.receive()
    _raise_failure(answer)
    return answer


def _raise_failure(answer: FileMessage) -> None:
    """Raise the error of the other side, or `LinkClosed` for another message."""
    if isinstance(answer, Failed):
        raise ERRORS.get(answer.error, EngineError)(answer.message)
    if not isinstance(answer, Ready | Done):
        raise LinkClosed(f"the other side answered with {answer.type}")


async def _receive(connection: FileStream, request: FileMessage, descriptor: int, start: int, size: int) -> None:
    """Send a request, and write the `size` bytes of its answer into an open file from `start`."""
    answer = await _ask(connection, request)
    if not isinstance(answer, Ready) or answer.size != size:
        raise LinkClosed(f"the other side has another file than the {size:,} bytes that it reported")
    await connection.receive_file(descriptor, start, start + size)
