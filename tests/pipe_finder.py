"""Finder whose hosts are agents on this machine, reached over pipes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from pathlib import Path

from openruntime_jupyter.engines.hosts.finder import Way
from openruntime_jupyter.engines.hosts.link import ByteStream, PipeStream

AGENT = ("-m", "openruntime_jupyter.agent", "-")


class AgentStream(PipeStream):
    """Byte stream to an agent, which is awaited and then killed at the end."""

    def __init__(self, agent: Process) -> None:
        assert agent.stdout is not None
        assert agent.stdin is not None
        super().__init__(agent.stdout, agent.stdin)
        self._agent = agent

    async def close(self) -> None:
        """Close the pipes and end the agent."""
        await super().close()
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._agent.wait(), 10.0)
        finally:  # also if the runtime stops waiting
            if self._agent.returncode is None:
                self._agent.kill()
            await self._agent.wait()


class PipeWay:
    """Way to an agent that is started at each connection, with its data in `folder` and other environment `variables`.

    `arguments` are those of Python, for a faulty agent.
    """

    def __init__(self, name: str, folder: Path, variables: Mapping[str, str] | None = None, arguments: tuple[str, ...] = AGENT) -> None:
        self.name = name
        self.address = f"pipe {name}"
        self.agents: list[Process] = []
        """Agents in the order of their start."""
        self.folder = folder
        self.variables = {"OPENRUNTIME_DATA_DIR": str(folder), **(variables or {})}
        self._arguments = arguments

    @property
    def agent(self) -> Process:
        """The newest agent."""
        return self.agents[-1]

    async def connect(self) -> ByteStream:
        """Start an agent."""
        environment = {**os.environ, **self.variables}
        self.agents.append(await asyncio.create_subprocess_exec(sys.executable, *self._arguments, stdin=PIPE, stdout=PIPE, env=environment))
        return AgentStream(self.agent)

    async def connect_for_arrays(self, folder: str) -> ByteStream:
        """Start a process that hands its pipes over to the agent."""
        command = (sys.executable, "-m", "openruntime_jupyter.agent", "--arrays", folder)
        environment = {**os.environ, **self.variables}
        return AgentStream(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environment))


class PipeFinder:
    """Finder of fixed ways; tests add others with `found` and remove them with `gone`."""

    def __init__(self, *ways: Way) -> None:
        self.problem: str | None = None
        self.found: Callable[[Way], None] = lambda way: None
        self.gone: Callable[[str, str], None] = lambda name, reason: None
        self.in_use: dict[str, bool] = {}
        """True for each host that the runtime uses now."""
        self.demanded = 0
        """Number of pending tasks that was reported last."""
        self._ways = ways

    async def watch(self, found: Callable[[Way], None], gone: Callable[[str, str], None]) -> None:
        """Report the hosts."""
        self.found, self.gone = found, gone
        for way in self._ways:
            found(way)
        await asyncio.Event().wait()

    def hold(self, name: str, busy: bool) -> None:
        """Note the use of a host."""
        self.in_use[name] = busy

    def demand(self, pending: int) -> None:
        """Note the number of pending tasks."""
        self.demanded = pending

    async def close(self) -> None:
        """Nothing is left open."""
