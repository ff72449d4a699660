"""Runtime that reads slowly: its agent holds little memory, and the tasks wait."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from openruntime_jupyter import __version__
from openruntime_jupyter.engines.hosts.link import Link
from openruntime_jupyter.engines.hosts.messages import (
    PROTOCOL,
    Displayed,
    Ended,
    EngineSettings,
    Halt,
    Hello,
    Message,
    Run,
    Started,
    Welcome,
    decode,
    encode,
)
from openruntime_jupyter.engines.protocol import Job, Stage, Stopped, StopReason
from tests.pipe_finder import PipeWay

SHOWS = """
from IPython.display import clear_output, display
while True:
    clear_output()
    display({'text/plain': 'x' * 200_000}, raw=True)
"""


@contextlib.asynccontextmanager
async def talking_to(way: PipeWay) -> AsyncIterator[Link]:
    """Link to an agent that has welcomed this runtime, which sends no pings."""
    link = Link(await way.connect())
    try:
        link.send(*encode(Hello(PROTOCOL, __version__, "rt", settings=EngineSettings(silence=100.0))))
        assert isinstance(decode(*await asyncio.wait_for(link.receive(), 30)), Welcome)
        yield link
    finally:
        await link.close()


async def answer(link: Link, kind: type[Message]) -> Message:
    """Return the next message of that type."""
    while True:
        message = decode(*await asyncio.wait_for(link.receive(), 10))
        if isinstance(message, kind):
            return message


def resident(way: PipeWay) -> int:
    return psutil.Process(way.agent.pid).memory_info().rss


async def test_flood_of_displays_waits_for_a_runtime_that_reads_slowly(tmp_path: Path) -> None:
    way = PipeWay("far", tmp_path / "far")
    async with talking_to(way) as link:
        parameters = json.dumps({"code": SHOWS}).encode()
        link.send(*encode(Run(1, Job("t", "python", parameters, "device_0", "cpu", 0, None, 0, 1, "t.1", private=True))))
        await answer(link, Started)
        await answer(link, Displayed)
        before = resident(way)
        await asyncio.sleep(1.0)  # nothing is read in this time, while the task could send several hundred megabytes
        assert resident(way) - before < 40_000_000
        for _ in range(50):
            await answer(link, Displayed)
        await asyncio.sleep(0.3)  # the link is full again
        begun = time.monotonic()
        link.send(*encode(Halt(1, StopReason.CANCELLED)))
        ended = await answer(link, Ended)
        assert isinstance(ended, Ended)
        assert isinstance(ended.outcome, Stopped)
        assert ended.outcome.stage is Stage.INTERRUPT, "the end of a task that was held must be seen"
        assert time.monotonic() - begun < 5
