"""Hostile or broken frames from either side: the receiver ends that connection with a reason, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter import __version__
from openruntime_jupyter.agent.session import serve
from openruntime_jupyter.engines.hosts.finder import HostsSetup
from openruntime_jupyter.engines.hosts.link import HEADER, MAX_BODY, MAX_DATA, Link, LinkClosed, pipe_stream
from openruntime_jupyter.engines.hosts.messages import PROTOCOL, EngineSettings, Hello, Pong, Refused, Run, Welcome, decode, encode
from openruntime_jupyter.engines.protocol import Job, SessionUse
from openruntime_jupyter.schemas.queries import TasksQuery
from tests.engines.hosts.scripted_agent import DEVICE, WELCOME, frame, scripted_way
from tests.pipe_finder import PipeFinder
from tests.runtimes import cell, completed, runtime_in, until

WORKER: dict[str, Any] = {"name": "w", "state": "idle", "resident": 1, "started": 1.0, "interpreter": "python"}
STATE: dict[str, Any] = {"type": "State", "memory_total": 1, "memory_available": 1, "cpu": None}

FROM_AGENT: dict[str, tuple[bytes, str]] = {
    "garbage": (b"Last login: Mon Nov 30", "the other side sent a frame of"),
    "no-json": (HEADER.pack(3, 0) + b"\x80\x04K", "UnicodeDecodeError"),
    "large-body": (HEADER.pack(MAX_BODY + 1, 0), "the other side sent a frame of"),
    "large-data": (HEADER.pack(1, MAX_DATA + 1), "the other side sent a frame of"),
    "cut": (frame(WELCOME)[:-5], "the other side closed the connection"),
    "direction": (frame({"type": "Ping"}), "its agent sent an invalid message (Ping instead of a welcome)"),
    "later-direction": (frame(WELCOME, {"type": "Ping"}), "Ping is a message of runtimes"),
    "no-cores": (frame({**WELCOME, "cores": 0}), "Welcome.cores: Input should be greater than or equal to 1"),
    "memory": (frame({**WELCOME, "memory": 10**400}), "Welcome.memory: "),
    "python": (frame({**WELCOME, "python": "../3"}), "Welcome.python: "),
    "version": (frame({**WELCOME, "version": "1\n# HELP x"}), "Welcome.version: "),
    "many-devices": (frame({**WELCOME, "devices": [DEVICE] * 257}), "Welcome.devices: Tuple should have at most 256 items"),
    "device-type": (frame({**WELCOME, "devices": [{**DEVICE, "type": "remote"}]}), "Welcome.devices.0.type: "),
    "device-name": (frame({**WELCOME, "devices": [{**DEVICE, "name": "x" * 1000}]}), "Welcome.devices.0.name: "),
    "device-memory": (frame({**WELCOME, "devices": [{**DEVICE, "memory": -1}]}), "Welcome.devices.0.memory: "),
    "load": (frame(WELCOME, {**STATE, "cpu": math.nan}), "State.cpu: Input should be a finite number"),
    "available": (frame(WELCOME, {**STATE, "memory_available": -1}), "State.memory_available: "),
    "started": (frame(WELCOME, {**STATE, "workers": [{**WORKER, "started": 1e300}]}), "State.workers.0.started: "),
    "gpu": (frame(WELCOME, {**STATE, "gpus": {"device_0": {"power": math.inf}}}), "State.gpus.device_0.power: "),
    "outcome": (
        frame(WELCOME, {"type": "Ended", "number": 1, "kind": "needs_memory", "outcome": {"needs": 1 << 63, "measurements": {}}}),
        "NeedsMemory.needs: ",
    ),
}


async def test_hostile_agents_are_lost_and_nothing_else_suffers(tmp_path: Path) -> None:
    ways = [scripted_way(name, tmp_path / name, sent, stay=name != "cut") for name, (sent, _) in FROM_AGENT.items()]
    async with runtime_in(tmp_path / "near", hosts=HostsSetup(PipeFinder(*ways))) as runtime:

        def problems() -> dict[str, str]:
            return {host.name: host.problem or "" for host in runtime.hosts()}

        await until(lambda: all(problems().get(name) for name in FROM_AGENT), 20, "the end of all connections")
        found = problems()
        assert {name: (found[name], reason) for name, (_, reason) in FROM_AGENT.items() if reason not in found[name]} == {}
        assert (await completed(runtime, await cell(runtime, "1"))).device_used == "device_0"
        assert len((await runtime.list_tasks(TasksQuery())).tasks) == 1
        assert runtime.health().status == "degraded"


async def talk(folder: Path, sent: bytes, *, closes: bool = False) -> list[Any]:
    """Send bytes to an agent over pipes, and return its answers until it closes the connection."""
    head_reads, agent_writes = os.pipe()
    agent_reads, head_writes = os.pipe()
    serving = asyncio.ensure_future(serve(await pipe_stream(agent_reads, agent_writes), folder, dict(os.environ)))
    stream = await pipe_stream(head_reads, head_writes)
    link = Link(stream)
    answers: list[Any] = []
    try:
        await stream.write(sent)
        if closes:
            await link.close()
        while not closes:
            answers.append(decode(*await asyncio.wait_for(link.receive(), 20)))
    except LinkClosed:
        pass
    finally:
        await link.close()
        await asyncio.wait_for(serving, 20)
    return answers


HELLO = Hello(PROTOCOL, __version__, "rt", settings=EngineSettings(spare_workers=0))


def packed(message: Any) -> bytes:
    body, data = encode(message)
    return HEADER.pack(len(body), len(data)) + body + data


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "the other side sent a frame of"),
        (HEADER.pack(MAX_BODY + 1, 0), "the other side sent a frame of"),
        (packed(HELLO)[:-5], "the other side closed the connection"),
        (frame({"type": "Pong"}), "Pong instead of a greeting"),
        (frame({"type": "Hello", "protocol": PROTOCOL}), "Hello.version: Field required"),
    ],
    ids=["garbage", "large", "cut", "direction", "incomplete"],
)
async def test_agent_ends_connection_that_does_not_begin_with_hello(
    sent: bytes, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert await talk(tmp_path, sent, closes="closed" in reason) == []
    assert f"The runtime did not introduce itself: {reason}" in caplog.text
    assert not list(tmp_path.iterdir()), "it made something for an unknown runtime"


async def test_agent_refuses_another_protocol_of_the_same_version(tmp_path: Path) -> None:
    (answer,) = await talk(tmp_path, packed(Hello(PROTOCOL + 1, __version__, "rt")))
    assert isinstance(answer, Refused)
    assert f"its protocol is {PROTOCOL}, and that of this runtime {PROTOCOL + 1}" in answer.reason
    assert answer.remedy == f"{sys.executable} -m pip install openruntime-jupyter=={__version__} --force-reinstall"


def job(**changed: Any) -> Job:
    return Job(
        **{
            "task_id": "t",
            "operation": "python",
            "parameters": b"{}",
            "lane": "device_0",
            "device_type": "cpu",
            "device_index": 0,
            "memory_total": None,
            "memory_limit": 0,
            "threads": 1,
            "payload_name": "t.1",
            **changed,
        }
    )


HOSTILE_JOBS: list[tuple[dict[str, Any], str]] = [
    ({"payload_name": "../../.bashrc"}, "Run.job.payload_name"),
    ({"payload_name": ""}, "Run.job.payload_name"),
    ({"payload_name": "a\n"}, "Run.job.payload_name"),
    ({"array_name": "a/b"}, "Run.job.array_name"),
    ({"session": SessionUse("..", 1)}, "Run.job.session.id"),
    ({"lane": "/dev"}, "Run.job.lane"),
    ({"task_id": "../t"}, "Run.job.task_id"),
]


async def test_agent_ends_session_for_names_with_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for changed, place in HOSTILE_JOBS:
        with pytest.raises(ValueError, match=place):
            decode(*encode(Run(1, job(**changed))))
    with caplog.at_level(logging.WARNING):
        answers = await talk(tmp_path, packed(HELLO) + packed(Run(1, job(payload_name="../../.bashrc"))))
        assert not any(isinstance(each, Welcome) for each in answers)
        assert "The runtime sent an invalid message: Run.job.payload_name" in caplog.text
        await talk(tmp_path, packed(HELLO) + packed(Pong()))
    assert "Pong is a message of agents" in caplog.text
    assert [path.name for path in (tmp_path / "agents").iterdir()] == []
