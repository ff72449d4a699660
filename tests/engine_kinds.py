"""Engines of the contract tests: `local`; `agent`, a host reached over pipes; `dask`, a worker of a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from openruntime_jupyter.engines.hosts.finder import Finder, HostsSetup
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtimes import until


def over(kind: str, folder: Path) -> AbstractContextManager[None]:
    """Make each runtime of this process that is given no engine run all its tasks on the host `far`."""
    return _on_dask(folder) if kind == "dask" else _on_hosts(_agent)


def _agent(settings: Settings) -> Finder:
    """Return the finder of an agent that has the runtime's models."""
    folder = settings.data_dir / "far"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / "models").exists():
        (folder / "models").symlink_to(settings.models)
    return PipeFinder(PipeWay("far", folder))


@contextmanager
def _on_dask(folder: Path) -> Iterator[None]:
    from openruntime_jupyter.engines.hosts.dask import DaskFinder  # late: importing Dask takes a second
    from tests.engines.hosts.dask_processes import PRELOAD, DaskProcesses

    cluster = DaskProcesses(folder)
    try:
        cluster.worker("far", *PRELOAD)
        with _on_hosts(lambda settings: DaskFinder(cluster.address)):
            yield
    finally:
        cluster.stop()


@contextmanager
def _on_hosts(finder_of: Callable[[Settings], Finder]) -> Iterator[None]:
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
