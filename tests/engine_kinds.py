"""Engines that tests of the runtime's contract run over: `local`, and `agent`, a host that is reached over pipes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from openruntime_jupyter.engines.hosts.finder import HostsSetup
from openruntime_jupyter.runtime.runtime import Runtime
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtimes import until


@contextmanager
def on_agents() -> Iterator[None]:
    """Make each runtime of this process that is given no engine run all its tasks on a separate agent, the host `far`."""
    build, start = Runtime.__init__, Runtime.start

    def build_with_agent(runtime: Runtime, settings: Any = None, engine: Any = None, inline: Any = None, hosts: Any = None) -> None:
        if settings is not None and engine is None and hosts is None:
            hosts = HostsSetup(PipeFinder(PipeWay("far", settings.data_dir / "far")), local=False)
        build(runtime, settings, engine, inline, hosts)

    async def start_with_agent(runtime: Runtime) -> None:
        await start(runtime)
        if runtime.hosts():
            await until(lambda: runtime.lanes.devices, 60, "the host is ready")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "__init__", build_with_agent)
        patch.setattr(Runtime, "start", start_with_agent)
        yield
