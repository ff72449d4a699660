"""What the notebook's face costs: `%load_ext`, and an empty `%%openruntime` cell, beside `%%px` of ipyparallel.

Both are measured in a real kernel, in turns: the milliseconds of a cell with the magic less those of an empty one.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from benchmarks.rows import Missing, Row, at_most, median, within
from tests.support import TOKEN, Home, running_server

KERNELS = 5
CELLS = 30
PAUSE = 1.0
"""Seconds before each cell that is measured warm: what a person needs at least, and enough for a spare worker to start."""
PATIENCE = 120.0
TIMED = "import time\nbefore = time.perf_counter()\n{}\nprint(1000 * (time.perf_counter() - before))"
OURS, THEIRS = "%load_ext openruntime_jupyter", "import ipyparallel"
"""ipyparallel's magics come with a client, not with an extension: what corresponds is its import."""
CLUSTER = "import ipyparallel; cluster = ipyparallel.Cluster(n=1, log_level=40); view = cluster.start_and_connect_sync(activate=True)"


class Kernel:
    """A kernel that runs cells one after the other."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self._client = client

    def run(self, code: str) -> str:
        """What a cell prints; raises RuntimeError where it fails."""
        told: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                told.append(message["content"]["text"])

        reply = self._client.execute_interactive(code, timeout=PATIENCE, output_hook=hear)
        if reply["content"]["status"] != "ok":
            raise RuntimeError("\n".join(reply["content"]["traceback"]))
        return "".join(told)

    def milliseconds(self, code: str) -> float:
        """From the request to the idle kernel."""
        before = time.perf_counter()
        self.run(code)
        return 1000 * (time.perf_counter() - before)


@contextlib.contextmanager
def kernel(home: Home, told: dict[str, str]) -> Iterator[Kernel]:
    """A fresh kernel of this Python."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=home.environment(told), cwd=os.fspath(home.path), stderr=-3)
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE)
        yield Kernel(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
        manager.cleanup_resources()


def load(home: Home, told: dict[str, str], line: str) -> float:
    """Milliseconds of a line in a fresh kernel that has done nothing else."""
    with kernel(home, told) as fresh:
        return float(fresh.run(TIMED.format(line)))


def added(running: Kernel, magic: str) -> tuple[float, float]:
    """Return the median milliseconds that the magic adds to an empty cell: after a pause, and right after such a cell."""
    warm, next_one, without = [], [], []
    for _ in range(CELLS):
        time.sleep(PAUSE)
        warm.append(running.milliseconds(f"{magic}\npass"))
        next_one.append(running.milliseconds(f"{magic}\npass"))
        without.append(running.milliseconds("pass"))
    return median(warm) - median(without), median(next_one) - median(without)


def bounded(what: str, ours: float, peer: float, bound: float) -> Row:
    """A row of milliseconds whose bound is fixed, with a peer's to compare."""
    return Row(what, f"{ours:,.4g} ms", f"{peer:,.4g} ms", ours / peer, f"≤ {bound:g} ms", ours <= bound)


def rows() -> list[Row]:
    """Loading, and a warm cell with a server's runtime and with the kernel's own."""
    if find_spec("ipyparallel") is None:
        raise Missing("ipyparallel is not here: pip install 'openruntime-jupyter[bench]'")
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        with running_server(home) as server:
            told = {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": TOKEN, "OPENRUNTIME_SERVER_PID": str(os.getpid())}
            load(home, told, OURS)  # the first writes the caches of compiled files
            load(home, told, THEIRS)
            loads = [(load(home, told, OURS), load(home, told, THEIRS)) for _ in range(KERNELS)]
            with kernel(home, told) as running:
                running.run(OURS)
                running.run("%%openruntime\npass")
                running.run(CLUSTER)
                try:
                    served, theirs = added(running, "%%openruntime"), added(running, "%%px")
                finally:
                    running.run("cluster.stop_cluster_sync()")
                running.run("%openruntime connect embedded")
                running.run("%%openruntime\npass")
                hosted = added(running, "%%openruntime")
    ours, peers = (median([pair[place] for pair in loads]) for place in (0, 1))
    return [
        bounded("%load_ext openruntime_jupyter, beside `import ipyparallel`", ours, peers, 150.0),
        at_most("a warm empty %%openruntime cell adds with a server, beside %%px", served[0], theirs[0], 2.0, "ms"),
        at_most("a warm empty %%openruntime cell adds in the kernel alone, beside %%px", hosted[0], theirs[0], 2.0, "ms"),
        within("a cell right after another adds more, with a server", served[1] - served[0], 300.0, "ms"),
        within("a cell right after another adds more, in the kernel alone", hosted[1] - hosted[0], 300.0, "ms"),
    ]
