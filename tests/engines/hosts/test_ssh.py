"""Connections to hosts by `ssh`: a script in the place of ssh runs the command here or fails as ssh does; one test uses a real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openruntime_jupyter.engines.hosts import ssh
from openruntime_jupyter.engines.hosts.finder import HostsSetup, HostUnreachable, HostUnusable, Way
from openruntime_jupyter.engines.hosts.hosts_file import SshHost, ssh_hosts
from openruntime_jupyter.engines.hosts.ssh import SshFinder, SshStream, SshWay
from tests.engines.hosts.sshd import SSH, server, ssh_that
from tests.engines.hosts.test_transfer import BIG, call, value
from tests.runtimes import live, runtime_in

HERE = 'exec sh -c "$2"'
"""Script that runs the command on this machine."""

ECHO = "#!/bin/sh\necho hello from .bashrc\nprintf 'without a line end'\nprintf 'openruntime-agent 3.11.7 2.0.0\\nfirst'\nexec cat\n"
"""Python that greets as an agent's does, and sends back what it receives."""


def python(folder: Path, text: str) -> str:
    file = folder / "python"
    file.write_text(text)
    file.chmod(0o755)
    return str(file)


@contextlib.asynccontextmanager
async def connected(host: SshHost) -> AsyncIterator[SshStream]:
    stream = await SshWay(host).connect()
    try:
        yield stream
    finally:
        await stream.close()


async def read(stream: SshStream, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := await stream.read()):
        data += more
    return data


def test_bytes_travel_unchanged_behind_the_noise_of_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh_that(tmp_path, monkeypatch, HERE)

    async def body() -> None:
        async with connected(SshHost("gpu1", "gpu1", python(tmp_path, ECHO))) as stream:
            sent = bytes(range(256)) * 4096
            writing = asyncio.create_task(stream.write(sent))
            assert await read(stream, len(sent) + 5) == b"first" + sent
            await writing

    live(body())


def test_python_of_the_host_gets_its_environment_and_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh_that(tmp_path, monkeypatch, HERE)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    told = '#!/bin/sh\necho openruntime-agent 3 2\necho "$A|$OPENAI_API_KEY|$4"\n'
    host = SshHost("gpu1", "gpu1", python(tmp_path, told), (("A", 'it\'s "here" $HOME'),))

    async def body() -> None:
        stream = await SshWay(host).connect_for_arrays("/tmp/a folder's")
        try:
            assert await read(stream, 100) == b"it's \"here\" $HOME||/tmp/a folder's\n"
        finally:
            await stream.close()

    live(body())


def test_ssh_never_asks_and_forwards_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh_that(tmp_path, monkeypatch, "echo openruntime-agent 3 2; echo $options to $1")

    async def body() -> None:
        async with connected(SshHost("gpu1", "me@gpu1")) as stream:
            told = (await read(stream, 10_000)).decode()
        assert "-T" in told
        assert "BatchMode=yes" in told
        assert "ConnectTimeout=10" in told
        assert "ServerAliveInterval=5" in told
        assert "ClearAllForwardings=yes" in told
        assert told.endswith("to me@gpu1\n")

    live(body())


@pytest.mark.parametrize(
    ("status", "stderr", "reason", "remedy"),
    [
        (255, "Host key verification failed.", "its host key is unknown", "run `ssh me@gpu1` once"),
        (
            255,
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed.",
            "its host key has changed",
            "ssh-keygen -R gpu1",
        ),
        (255, "me@gpu1: Permission denied (publickey).", r"the login was refused \(me@gpu1: Permission denied", "ssh-copy-id me@gpu1"),
        (
            255,
            "Permission denied, please try again.\nme@jump: Permission denied (password).\nConnection closed by UNKNOWN port 65535",
            r"the login was refused \(me@jump: Permission denied \(password\)\.\)$",
            "for its jump host as well",
        ),
        (255, "/home/me/.ssh/config: line 1: Bad configuration option: a", "can't read its configuration", "`ssh me@gpu1 true` works"),
        (1, "xcode-select: note: No developer tools were found", "only the installer of Apple's Python", "name it in .*hosts.toml"),
        (127, "bash: python3: command not found", "its python3 does not start", r'\["me@gpu1"\] in .*hosts.toml: python = '),
        (126, "bash: python3: Permission denied", "its python3 does not start", "hosts.toml"),
        (
            1,
            "ModuleNotFoundError: No module named 'openruntime_jupyter'",
            "its python3 has no openruntime-jupyter",
            "run `ssh me@gpu1 python3 -m pip install openruntime-jupyter==",
        ),
        (1, "ImportError: No module named openruntime_jupyter.agent", "is too old", "pip install openruntime-jupyter=="),
        (3, "Segmentation fault", r"exit status 3 \(Segmentation fault\)", "import openruntime_jupyter"),
    ],
)
def test_unusable_host_says_what_to_do(
    status: int, stderr: str, reason: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stderr").write_text(f"{stderr}\n")
    ssh_that(tmp_path, monkeypatch, f"echo welcome; cat {tmp_path}/stderr >&2; exit {status}")
    with pytest.raises(HostUnusable, match=reason) as caught:
        live(SshWay(SshHost("gpu1", "me@gpu1")).connect())
    assert caught.value.remedy is not None
    assert re.search(remedy, caught.value.remedy)


@pytest.mark.parametrize(
    ("stderr", "reason", "remedy"),
    [
        ("ssh: Could not resolve hostname gpu1: Name or service not known", "its name is unknown", "check the name"),
        ("ssh: connect to host gpu1 port 22: Connection refused", "it accepts no logins", "Remote Login"),
        ("ssh: connect to host gpu1 port 22: Operation timed out", "it does not respond", "awake.*`ssh -p 2222 me@gpu1 true`"),
        ("Connection timed out during banner exchange", "it does not respond", "awake"),
        ("ssh: connect to host gpu1 port 22: No route to host", "it is not in this network", "awake"),
        ("kex: something new", "ssh can't reach it", "try `ssh -p 2222 me@gpu1 true`"),
    ],
)
def test_unreachable_host_may_become_reachable(
    stderr: str, reason: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = (
        "stdio forwarding failed\nkex_exchange_identification: Connection closed by remote host\nConnection closed by UNKNOWN port 65535"
    )
    (tmp_path / "stderr").write_text(f"{stderr}\n{noise}\n")
    ssh_that(tmp_path, monkeypatch, f"cat {tmp_path}/stderr >&2; exit 255")
    with pytest.raises(HostUnreachable, match=rf"^{reason} \({re.escape(stderr)}\)$") as caught:
        live(SshWay(SshHost("gpu1", "me@gpu1:2222")).connect())
    assert re.search(remedy, caught.value.remedy or "")


@pytest.mark.parametrize("folder", ["{home}/a b", "~/a b", "~/plain"])
def test_python_may_have_blanks_in_its_path(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh_that(tmp_path, monkeypatch, HERE)
    monkeypatch.setenv("HOME", str(tmp_path))
    place = Path(folder.format(home=tmp_path)).expanduser()
    place.mkdir()
    python(place, "#!/bin/sh\necho openruntime-agent 3 2; echo $SSH_ASKPASS_REQUIRE\n")

    async def body() -> None:
        async with connected(SshHost("gpu1", "gpu1", f"{folder.format(home=tmp_path)}/python")) as stream:
            assert await read(stream, 100) == b"never\n", "the ssh of a jump host must not open a window"

    live(body())


def test_machine_without_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostUnusable, match="no `ssh`"):
        live(SshWay(SshHost("gpu1", "gpu1")).connect())


@pytest.mark.parametrize("script", ["exec sleep 60", "echo is this your first login >&2; exec sleep 60"])
def test_host_that_never_starts_an_agent(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh_that(tmp_path, monkeypatch, script)
    monkeypatch.setattr(ssh, "START_SECONDS", 0.3)
    monkeypatch.setattr(ssh, "CLOSE_SECONDS", 0.1)
    with pytest.raises(HostUnreachable, match=r"did not start within 0\.3 s"):
        live(SshWay(SshHost("gpu1", "gpu1")).connect())


def test_endless_noise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh_that(tmp_path, monkeypatch, "exec yes hello")
    monkeypatch.setattr(ssh, "CLOSE_SECONDS", 0.1)
    with pytest.raises(HostUnusable, match="print more than 1 MiB") as caught:
        live(SshWay(SshHost("gpu1", "gpu1")).connect())
    assert caught.value.remedy == "make `ssh gpu1 true` print nothing"


def test_lost_connection_has_the_message_of_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh_that(tmp_path, monkeypatch, "echo openruntime-agent 3 2; read line; echo 'client_loop: send disconnect: Broken pipe' >&2; exit 255")

    async def body() -> None:
        async with connected(SshHost("gpu1", "gpu1")) as stream:
            await stream.write(b"\n")
            with pytest.raises(ConnectionError, match="Broken pipe"):
                await stream.read()

    live(body())


def test_ended_agent_ends_the_stream_without_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh_that(tmp_path, monkeypatch, "echo openruntime-agent 3 2; exit 0")

    async def body() -> None:
        async with connected(SshHost("gpu1", "gpu1")) as stream:
            assert await stream.read() == b""

    live(body())


def test_finder_reports_all_hosts_at_once(tmp_path: Path) -> None:
    finder = SshFinder(ssh_hosts(["mac2.local", "me@gpu1"], tmp_path / "missing.toml"))
    found: list[Way] = []

    async def body() -> None:
        watching = asyncio.create_task(finder.watch(found.append, lambda name, reason: None))
        await asyncio.sleep(0)
        assert not watching.done()
        watching.cancel()
        await finder.close()

    live(body())
    assert [(way.name, way.address) for way in found] == [("mac2", "ssh mac2.local"), ("gpu1", "ssh me@gpu1")]


def test_real_ssh_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(tmp_path) as destination:
        ssh_that(tmp_path, monkeypatch, f'exec {SSH} -F {tmp_path}/config $options -- "$1" "$2"')
        host = SshHost("here", destination, python(tmp_path, ECHO))
        agent = tmp_path / "agent"
        variables = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')} OPENRUNTIME_DATA_DIR={tmp_path}/far"
        agent.write_text(f'#!/bin/sh\n{variables} exec {sys.executable} "$@"\n')
        agent.chmod(0o755)
        bare = tmp_path / "bare"
        bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
        bare.chmod(0o755)

        async def body() -> None:
            finder = SshFinder([replace(host, python=str(agent))])
            async with runtime_in(tmp_path / "near", hosts=HostsSetup(finder, local=False, share_folders=False)) as runtime:
                numbers = np.arange(BIG, dtype=np.float64)
                task_id, _ = await call(runtime, lambda array: [array * 2], numbers)
                (doubled,) = await value(runtime, task_id)
                assert np.array_equal(doubled, numbers * 2)
            async with connected(host) as stream:
                sent = os.urandom(1 << 20)
                writing = asyncio.create_task(stream.write(sent))
                assert await read(stream, len(sent) + 5) == b"first" + sent
                await writing
                os.kill(stream.pid, signal.SIGTERM)
                with pytest.raises(ConnectionError):
                    await stream.read()
            port = destination.rpartition(":")[2]
            for name, target in (("through", port), ("beyond", "1")):
                with (tmp_path / "config").open("a") as config:
                    config.write(
                        f"Host {name}\nHostName localhost\nPort {target}\nHostKeyAlias [127.0.0.1]:{port}\nProxyJump 127.0.0.1:{port}\n"
                    )
            async with connected(replace(host, destination="through")) as stream:
                assert await read(stream, 5) == b"first"
            with pytest.raises(HostUnreachable, match=r"^it accepts no logins \(channel 0: .*Connection refused\)$"):
                await SshWay(replace(host, destination="beyond")).connect()
            with pytest.raises(HostUnusable, match=r"^its /nowhere/python does not start \(.*No such file or directory\)$"):
                await SshWay(replace(host, python="/nowhere/python")).connect()
            with pytest.raises(HostUnusable, match=r"has no openruntime-jupyter \(ModuleNotFoundError"):
                await SshWay(replace(host, python=str(bare))).connect()
            (tmp_path / "key.pub").write_text("")
            with pytest.raises(HostUnusable, match=r"the login was refused \(.*Permission denied"):
                await SshWay(host).connect()
            (tmp_path / "known_hosts").write_text("")
            with pytest.raises(HostUnusable, match=r"its host key is unknown"):
                await SshWay(host).connect()

        live(body())
    with pytest.raises(HostUnreachable, match=r"it accepts no logins .*Connection refused"):
        live(SshWay(host).connect())
