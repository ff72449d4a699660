"""Overhead of `%load_ext` and of an empty `%%openruntime` cell, compared with `%%px` of ipyparallel.

Both alternate in a real kernel. The overhead of a magic is the time of a cell with it minus that of an empty cell.
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
"""Seconds before each warm cell: the minimum for a person, and enough for a spare worker to start."""
PATIENCE = 120.0
TIMED = "import time\nbefore = time.perf_counter()\n{}\nprint(1000 * (time.perf_counter() - before))"
OURS, THEIRS = "%load_ext openruntime_jupyter", "import ipyparallel"
"""ipyparallel's magics need a client, not an extension, so its import is compared."""
CLUSTER = "import ipyparallel; cluster = ipyparallel.Cluster(n=1, log_level=40); view = cluster.start_and_connect_sync(activate=True)"


class Kernel:
    """Kernel that runs cells one after the other."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self._client = client

    def run(self, code: str) -> str:
        """Run a cell and return its output. Raise RuntimeError if it fails."""
        output: list[str] = []

        def collect(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                output.append(message["content"]["text"])

        reply = self._client.execute_interactive(code, timeout=PATIENCE, output_hook=collect)
        if reply["content"]["status"] != "ok":
            raise RuntimeError("\n".join(reply["content"]["traceback"]))
        return "".join(output)

    def milliseconds(self, code: str) -> float:
        """Measure the time from the request to the idle kernel."""
        before = time.perf_counter()
        self.run(code)
        return 1000 * (time.perf_counter() - before)


@contextlib.contextmanager
def kernel(home: Home, environment: dict[str, str]) -> Iterator[Kernel]:
    """Start a kernel of this Python."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=home.environment(environment), cwd=os.fspath(home.path), stderr=-3)
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE)
        yield Kernel(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
        manager.cleanup_resources()


def load(home: Home, environment: dict[str, str], line: str) -> float:
    """Measure a line in a fresh kernel, in milliseconds."""
    with kernel(home, environment) as fresh:
        return float(fresh.run(TIMED.format(line)))


def added(running: Kernel, magic: str) -> tuple[float, float]:
    """Return the median milliseconds that the magic adds to an empty cell: after a pause, and directly after such a cell."""
    warm, next_one, without = [], [], []
    for _ in range(CELLS):
        time.sleep(PAUSE)
        warm.append(running.milliseconds(f"{magic}\npass"))
        next_one.append(running.milliseconds(f"{magic}\npass"))
        without.append(running.milliseconds("pass"))
    return median(warm) - median(without), median(next_one) - median(without)


def bounded(what: str, ours: float, peer: float, bound: float) -> Row:
    """Return a row in milliseconds with a fixed bound and a peer for comparison."""
    return Row(what, f"{ours:,.4g} ms", f"{peer:,.4g} ms", ours / peer, f"≤ {bound:g} ms", ours <= bound)


def rows() -> list[Row]:
    """Measure loading, and a warm cell with the runtime of a server and of the kernel."""
    if find_spec("ipyparallel") is None:
        raise Missing("ipyparallel is missing: pip install 'openruntime-jupyter[bench]'")
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        with running_server(home) as server:
            environment = {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": TOKEN, "OPENRUNTIME_SERVER_PID": str(os.getpid())}
            load(home, environment, OURS)  # the first call writes the bytecode caches
            load(home, environment, THEIRS)
            loads = [(load(home, environment, OURS), load(home, environment, THEIRS)) for _ in range(KERNELS)]
            with kernel(home, environment) as running:
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
        bounded("%load_ext openruntime_jupyter, compared with `import ipyparallel`", ours, peers, 150.0),
        at_most("overhead of a warm empty %%openruntime cell with a server, compared with %%px", served[0], theirs[0], 2.0, "ms"),
        at_most("overhead of a warm empty %%openruntime cell without a server, compared with %%px", hosted[0], theirs[0], 2.0, "ms"),
        within("additional overhead of a cell directly after another, with a server", served[1] - served[0], 300.0, "ms"),
        within("additional overhead of a cell directly after another, without a server", hosted[1] - hosted[0], 300.0, "ms"),
    ]
