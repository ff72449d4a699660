"""1 GiB of float32 into a task and out again, beside a pickled pipe and plain copies of files; what it costs the server meanwhile."""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from typing_extensions import Self

from benchmarks.rows import Row, at_most, median, seconds, within
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.http import HttpBackend
from tests.support import STANDALONE, Server, running_server

SIZE = 1 << 30
ROUNDS = 3
MOST_MEMORY = 50.0
MOST_LAG = 20.0
PROBES_A_SECOND = 200


def back(array: Any) -> Any:
    """The task: what comes in goes out."""
    return array


def echo(pipe: Connection) -> None:
    """The same behind a pipe."""
    while (array := pipe.recv()) is not None:
        pipe.send(array)


def through_pipe(array: Any) -> list[float]:
    """Seconds there and back through a pickled pipe to another process."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=echo, args=(theirs,))
    process.start()
    try:
        ours.send(array[:1])
        ours.recv()  # it has started

        def once() -> None:
            ours.send(array)
            ours.recv()

        return seconds(once, ROUNDS)
    finally:
        ours.send(None)
        process.join()


def through_files(array: Any, folder: Path) -> list[float]:
    """Seconds to write it, read it, write that, and read it again, all by plain files."""

    def once() -> None:
        for name in ("there", "back"):
            array.tofile(folder / name)
            np.fromfile(folder / name, array.dtype)
            (folder / name).unlink()

    return seconds(once, ROUNDS)


class Watch:
    """Asks a server for its name all the time: how late it answers, and how much memory it has at most."""

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
        """Milliseconds: the 99th percentile of an answer, less the median."""
        late = sorted(self.late)
        return late[int(0.99 * len(late))] - median(late)


def rows() -> list[Row]:
    """All of them."""
    array = np.random.default_rng(1).random(SIZE // 4, dtype=np.float32)
    found: list[Row] = []
    memory = Path("/dev/shm")  # where the spool lies, too
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), STANDALONE) as server:
        files = through_files(array, memory if memory.is_dir() else Path(folder))
        pipe = through_pipe(array)
        for local, how in ((True, "mapped"), (False, "over HTTP")):
            backend = HttpBackend(server.url, server.token)
            backend.local = local
            client = Client(backend)
            client.call(back, array[:1_000_000])
            with Watch(server) as watch:
                ours = seconds(lambda client=client: client.call(back, array), ROUNDS)  # type: ignore[misc]
            backend.close()
            what = f"1 GiB float32 in and out of a task, {how}"
            if local:
                found.append(at_most(f"{what}, beside a pickled pipe", median(ours), median(pipe), 1.0, "s"))
            found.append(at_most(f"{what}, beside plain files in memory", median(ours), median(files), 1.5 if local else 5.0, "s"))
            found.append(within(f"{what}: growth of the server's memory", (watch.most - watch.start) / 1e6, MOST_MEMORY, "MB"))
            found.append(within(f"{what}: lag of the server's loop, p99", watch.lag, MOST_LAG, "ms"))
    return found
