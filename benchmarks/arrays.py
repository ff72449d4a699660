"""1 GiB of float32 into a task and back, compared with a pickled pipe, plain files and plain copies, and its cost for the server."""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from typing_extensions import Self

from benchmarks.rows import Row, at_most, median, seconds, within
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.http import HttpBackend
from tests.support import STANDALONE, Server, running_server

SIZE = 1 << 30
ROUNDS = 3
WARM_UP = 6
"""Calls until files of earlier calls are reused."""
MOST_MEMORY = 50.0
MOST_LAG = 20.0
PROBES_A_SECOND = 200


def back(array: Any) -> Any:
    """Return the argument: the task that is measured."""
    return array


def through_mlx(array: Any) -> Any:
    """Return the argument, converted to an MLX array and back."""
    import mlx.core as mx
    import numpy as np

    return np.array(mx.array(array), copy=False)


def echo(pipe: Connection) -> None:
    """Send each received array back through the pipe."""
    while (array := pipe.recv()) is not None:
        pipe.send(array)


def through_pipe(array: Any) -> list[float]:
    """Measure the seconds of round trips through a pickled pipe to another process."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=echo, args=(theirs,))
    process.start()
    try:
        ours.send(array[:1])
        ours.recv()  # the process has started

        def once() -> None:
            ours.send(array)
            ours.recv()

        return seconds(once, ROUNDS)
    finally:
        ours.send(None)
        process.join()


def copies(array: Any) -> list[float]:
    """Measure two copies within one process, into allocated memory: the lower bound for one copy in each direction."""
    target = np.ones_like(array)

    def once() -> None:
        np.copyto(target, array)
        np.copyto(target, array)

    return seconds(once, ROUNDS)


def through_files(array: Any, folder: Path) -> list[float]:
    """Measure writing and reading the array twice with plain files."""

    def once() -> None:
        for name in ("there", "back"):
            array.tofile(folder / name)
            np.fromfile(folder / name, array.dtype)
            (folder / name).unlink()

    return seconds(once, ROUNDS)


class Watch:
    """Monitor of a server that requests `/` continuously, for response times and peak memory."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._process = psutil.Process(server.pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.late: list[float] = []
        self.start = self.most = self._process.memory_info().rss

    def _look(self) -> None:
        with httpx.Client(trust_env=False) as client:
            while not self._stop.wait(1 / PROBES_A_SECOND):
                before = time.perf_counter()
                client.get(self._server.url + "/", headers=self._server.headers)
                self.late.append(1000 * (time.perf_counter() - before))
                self.most = max(self.most, self._process.memory_info().rss)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def lag(self) -> float:
        """99th percentile minus median of the response times, in milliseconds."""
        late = sorted(self.late)
        return late[int(0.99 * len(late))] - median(late)


def rows() -> list[Row]:
    """Return all rows."""
    array = np.random.default_rng(1).random(SIZE // 4, dtype=np.float32)
    memory = Path("/dev/shm")  # the spool is there too
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), STANDALONE) as server:
        files = median(through_files(array, memory if memory.is_dir() else Path(folder)))
        return mapped_rows(server, array, files) + http_rows(server, array, files)


def mapped_rows(server: Server, array: Any, files: float) -> list[Row]:
    """Measure mapped files; `files` are the seconds with plain files."""
    pipe, plain = median(through_pipe(array)), median(copies(array))
    with closing(HttpBackend(server.url, server.token)) as backend:
        client = Client(backend)
        client.call(back, array[:1_000_000])
        new = seconds(lambda: client.call(back, array), WARM_UP)
        with Watch(server) as watch:
            ours = median(seconds(lambda: client.call(back, array), ROUNDS))
        by_mlx = median(seconds(lambda: client.call(through_mlx, array), ROUNDS))
    what = "1 GiB float32 in and out of a task, mapped"
    return [
        at_most(f"{what}, compared with a pickled pipe", ours, pipe, 0.1, "s"),
        at_most(f"{what}, compared with plain files in memory", ours, files, 0.6, "s"),
        at_most(f"{what}, compared with two plain copies", ours, plain, 4.0, "s"),
        at_most(f"{what}, the first {WARM_UP}, compared with plain files in memory", median(new), files, 3.0, "s"),
        at_most(f"{what}, through an MLX array, compared with plain files in memory", by_mlx, files, 3.0, "s"),
        *cost(what, watch),
    ]


def http_rows(server: Server, array: Any, files: float) -> list[Row]:
    """Measure upload and download, as from another machine."""
    with closing(HttpBackend(server.url, server.token)) as backend:
        backend.local = False
        client = Client(backend)
        client.call(back, array[:1_000_000])
        with Watch(server) as watch:
            ours = median(seconds(lambda: client.call(back, array), ROUNDS))
    what = "1 GiB float32 in and out of a task, over HTTP"
    return [at_most(f"{what}, compared with plain files in memory", ours, files, 5.0, "s"), *cost(what, watch)]


def cost(what: str, watch: Watch) -> list[Row]:
    """Return the rows of the cost for the server."""
    return [
        within(f"{what}: growth of the server's memory", (watch.most - watch.start) / 1e6, MOST_MEMORY, "MB"),
        within(f"{what}: lag of the server's loop, p99", watch.lag, MOST_LAG, "ms"),
    ]
