"""`client.map` of many small calls, compared with common process pools.

`python -m benchmarks.map ROUNDS` runs only this benchmark.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rows import HEAD, Missing, Row, at_least, median
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.embedded import EmbeddedBackend
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.runtime.settings import Settings
from tests.support import Home, running_server

ROUNDS = 5
WORKERS = 2
ITEMS = 10_000
SINGLE_ITEMS = 2_000
"""Items per round with one task per item: 10,000 would take the slowest peer 20 s per round and give the same rate."""
PAUSE = 1.5
"""Seconds before each round."""
PEERS = ("joblib", "distributed", "ipyparallel")

Map = Callable[[int], list[int]]
"""Map the small function over that many items and return the results."""


def small(number: int) -> int:
    """Return the successor: the call whose overhead is measured."""
    return number + 1


@dataclass
class Contestant:
    """One implementation of `map` and its calls per second in each round."""

    run: Map
    items: int
    rates: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Add one round, after a pause in which workers can start: ours end with their map."""
        time.sleep(PAUSE)
        before = time.perf_counter()
        results = self.run(self.items)
        seconds = time.perf_counter() - before
        if results != [number + 1 for number in range(self.items)]:
            raise RuntimeError("a contestant returned wrong results")
        self.rates.append(self.items / seconds)


def rows(rounds: int = ROUNDS) -> list[Row]:
    """Return the rows of automatic chunks and of one task per item, over a server and embedded."""
    if missing := [name for name in PEERS if importlib.util.find_spec(name) is None]:
        raise Missing(f"{', '.join(missing)} missing: pip install 'openruntime-jupyter[bench]'")
    with contextlib.ExitStack() as stack:
        contestants = {**_ours(stack), **_peers(stack)}
        for contestant in contestants.values():
            contestant.run(100)  # starts the workers and imports what they need
        for _ in range(rounds):  # alternate, so that a change in the machine's speed affects all of them
            for contestant in contestants.values():
                contestant.measure()
    rate = {name: median(contestant.rates) for name, contestant in contestants.items()}
    return [
        at_least(f"map, {what}, compared with {peer}", rate[ours], rate[theirs], reach, "calls/s")
        for what, ours, peer, theirs, reach in (
            ("automatic chunks", "server, automatic", "joblib", "joblib", 0.5),
            ("automatic chunks, embedded", "embedded, automatic", "joblib", "joblib", 0.5),
            ("automatic chunks", "server, automatic", "ProcessPoolExecutor, chunks of 100", "pool, 100", 0.0),
            ("automatic chunks", "server, automatic", "ipyparallel", "ipyparallel", 0.0),
            ("chunk_size=1", "server, 1", "distributed", "distributed", 2.0),
            ("chunk_size=1, embedded", "embedded, 1", "distributed", "distributed", 2.0),
            ("chunk_size=1", "server, 1", "ProcessPoolExecutor, one item per task", "pool, 1", 0.25),
            ("chunk_size=1", "server, 1", "ipyparallel, one item per task", "ipyparallel, 1", 0.0),
        )
    ]


def _ours(stack: contextlib.ExitStack) -> dict[str, Contestant]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    server = stack.enter_context(running_server(Home(folder / "home"), config={"OpenRuntimeApp": {"cpu_slots": WORKERS}}))
    http = HttpBackend(server.url, server.token)
    stack.callback(http.close)
    embedded = EmbeddedBackend(Settings(data_dir=folder / "embedded", embedded=True, cpu_slots=WORKERS))
    stack.callback(embedded.stop)
    found = {}
    for where, client in (("server", Client(http)), ("embedded", Client(embedded))):
        found[f"{where}, automatic"] = Contestant(_mapped(client, None), ITEMS)
        found[f"{where}, 1"] = Contestant(_mapped(client, 1), SINGLE_ITEMS)
    return found


def _mapped(client: Client, chunk_size: int | None) -> Map:
    def small(number: int) -> int:
        return number + 1

    # Functions of notebooks are pickled by value. The peers import the function of this module once.
    return lambda items: client.map(small, range(items), chunk_size)


def _peers(stack: contextlib.ExitStack) -> dict[str, Contestant]:
    pool = stack.enter_context(ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")))
    engines = stack.enter_context(_engines())
    balanced = engines.load_balanced_view()
    distributed = stack.enter_context(_distributed())
    parallel = stack.enter_context(_joblib())
    return {
        "pool, 1": Contestant(lambda items: list(pool.map(small, range(items))), SINGLE_ITEMS),
        "pool, 100": Contestant(lambda items: list(pool.map(small, range(items), chunksize=100)), ITEMS),
        "joblib": Contestant(parallel, ITEMS),
        "distributed": Contestant(distributed, SINGLE_ITEMS),
        "ipyparallel": Contestant(lambda items: list(engines[:].map_sync(small, range(items))), ITEMS),
        "ipyparallel, 1": Contestant(lambda items: list(balanced.map_sync(small, range(items))), SINGLE_ITEMS),
    }


@contextlib.contextmanager
def _joblib() -> Iterator[Map]:
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    with Parallel(n_jobs=WORKERS) as parallel:
        yield lambda items: list(parallel(delayed(small)(number) for number in range(items)))
    get_reusable_executor().shutdown(wait=True)


@contextlib.contextmanager
def _distributed() -> Iterator[Map]:
    from distributed import Client as Distributed
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR) as cluster,
        Distributed(cluster) as client,
    ):
        # Pure functions are computed once for equal arguments: without `pure=False` the second round would measure a cache.
        yield lambda items: list(client.gather(client.map(small, range(items), pure=False)))


@contextlib.contextmanager
def _engines() -> Iterator[Any]:
    import ipyparallel

    with ipyparallel.Cluster(n=WORKERS, log_level=logging.ERROR) as client:
        yield client


if __name__ == "__main__":
    print(HEAD, *rows(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS), sep="\n")
