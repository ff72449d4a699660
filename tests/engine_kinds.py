"""Engines of the contract tests: `local`; `agent`, a host reached over pipes; `dask`, a worker of a Dask cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from openruntime_jupyter.engines.hosts.finder import Finder, HostsSetup
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtimes import until


def agents(folder: Path) -> Callable[[Settings], Finder]:
    """Return what finds an agent for each runtime, with the runtime's models. Its data is in `folder`, apart for each data folder."""

    def finder_of(settings: Settings) -> Finder:
        far = folder / hashlib.sha256(bytes(settings.data_dir)).hexdigest()[:8]
        far.mkdir(mode=0o700, exist_ok=True)
        if not (far / "models").is_symlink():
            (far / "models").symlink_to(settings.models)
        return PipeFinder(PipeWay("far", far))

    return finder_of


def dask_workers(address: str) -> Callable[[Settings], Finder]:
    """Return what finds the workers of the Dask cluster at `address`."""
    from openruntime_jupyter.engines.hosts.dask import DaskFinder  # late: importing Dask takes a second

    return lambda settings: DaskFinder(address)


@contextmanager
def dask_cluster(folder: Path) -> Iterator[str]:
    """Start a Dask cluster with the worker `far` and yield its address."""
    from tests.engines.hosts.dask_processes import PRELOAD, DaskProcesses

    cluster = DaskProcesses(folder)
    try:
        cluster.worker("far", *PRELOAD)
        yield cluster.address
    finally:
        cluster.stop()


@contextmanager
def on_hosts(finder_of: Callable[[Settings], Finder]) -> Iterator[None]:
    """Make each runtime of this process that is given no engine run all its tasks on the hosts of its finder."""
    build, start = Runtime.__init__, Runtime.start
    hosted: WeakSet[Runtime] = WeakSet()

    def build_with_host(runtime: Runtime, settings: Any = None, engine: Any = None, inline: Any = None, hosts: Any = None) -> None:
        if settings is not None and engine is None and hosts is None:
            hosts = HostsSetup(finder_of(settings), local=False)
            hosted.add(runtime)
        build(runtime, settings, engine, inline, hosts)

    async def start_with_host(runtime: Runtime) -> None:
        await start(runtime)
        if runtime in hosted:
            await until(lambda: runtime.lanes.devices, 60, "a device is available")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "__init__", build_with_host)
        patch.setattr(Runtime, "start", start_with_host)
        yield
