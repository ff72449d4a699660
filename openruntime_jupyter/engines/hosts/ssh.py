"""Hosts that the user's own `ssh` reaches: each connection is one `ssh` process whose pipes carry the bytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openruntime_jupyter import __version__
from openruntime_jupyter.engines.hosts.finder import HostUnreachable, HostUnusable, Way
from openruntime_jupyter.engines.hosts.hosts_file import SshHost, default_file
from openruntime_jupyter.engines.hosts.link import CLOSE_SECONDS, READ_BYTES
from openruntime_jupyter.environment import is_secret

CONNECT_SECONDS = 10
"""Time in which ssh must reach the host."""
START_SECONDS = 45.0
"""Time in which the agent must start, including ssh's connection."""

OPTIONS = (
    "-T",  # no terminal, which would change bytes
    "-a",
    "-x",
    *("-o", "BatchMode=yes"),  # fail instead of asking for a password
    *("-o", f"ConnectTimeout={CONNECT_SECONDS}"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "ControlMaster=no"),  # a shared connection stays usable, but this one never becomes one that outlives it
    *("-o", "EscapeChar=none"),
    *("-o", "LogLevel=ERROR"),
)

BEGIN = re.compile(rb"openruntime-agent (\S+) (\S+)\r?\n")
"""First line of the agent's Python, which ends what login scripts print."""

START = (
    "import sys, runpy, openruntime_jupyter as o; "
    "print('openruntime-agent', sys.version.split()[0], o.__version__, flush=True); "
    "runpy.run_module('openruntime_jupyter.agent', run_name='__main__', alter_sys=True)"
)
"""Program that prints the line `BEGIN` and runs the agent. It has no letter that a shell changes inside double quotes."""

NOISE_BYTES = 1 << 20
"""Maximum bytes that login scripts may print before the agent starts."""

SSH_FAILED = 255
"""Exit status of failed connections. Other statuses are those of the command."""
CANNOT_START = (126, 127)
"""Exit statuses of shells for a program that is missing or not executable."""

KEPT_STDERR = 8_000
"""Bytes of stderr kept for messages."""

PLAIN = re.compile(r"[\w./+-]+")
HOME = re.compile(r"~[\w.-]*")
"""Texts that no shell changes, and home folders that every shell knows."""

NOISE = re.compile(
    r"Connection (closed by|to) UNKNOWN port|kex_exchange_identification|stdio forwarding failed|Permission denied, please try again"
)
"""Lines of ssh with a jump host that follow the line with the cause."""


class SshFinder:
    """Finder of the hosts in the settings. All of them are reported at once, and they never leave."""

    problem: str | None = None

    def __init__(self, hosts: Sequence[SshHost]) -> None:
        self.ways = [SshWay(host) for host in hosts]

    async def watch(self, found: Callable[[Way], None], gone: Callable[[str, str], None]) -> None:
        """Report all hosts, and wait until cancelled."""
        for way in self.ways:
            found(way)
        await asyncio.Event().wait()

    def hold(self, name: str, busy: bool) -> None:
        """Do nothing: nothing ends these hosts."""

    def demand(self, pending: int) -> None:
        """Do nothing: no further hosts can be started."""

    async def close(self) -> None:
        """Do nothing: each connection ends by itself."""


class SshWay:
    """Way to the agent of one host by `ssh`."""

    def __init__(self, host: SshHost) -> None:
        self.name = host.name
        self.address = shlex.join(("ssh", *host.login))
        self._host = host

    async def connect(self) -> SshStream:
        """Start an agent and return the stream to it. Raises `HostUnusable`, or `OSError` for an unreachable host."""
        return await self._start("-")

    async def connect_for_arrays(self, folder: str) -> SshStream:
        """Start a process for the files of `folder`, and return the stream to it. Raises `HostUnusable` or `OSError`."""
        return await self._start("--arrays", folder)

    async def _start(self, *arguments: str) -> SshStream:
        command = remote_command(self._host, arguments)
        try:
            process = await asyncio.create_subprocess_exec(
                *("ssh", *OPTIONS, *self._host.login[:-1], "--", self._host.login[-1], command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                # ssh does not hand BatchMode on to the ssh of a jump host, which would open a window for a password.
                env={**{name: value for name, value in os.environ.items() if not is_secret(name)}, "SSH_ASKPASS_REQUIRE": "never"},
                start_new_session=True,  # Ctrl-C in the terminal of the server must not end the connection before the server stops
                limit=READ_BYTES,
            )
        except FileNotFoundError as problem:
            raise HostUnusable("this machine has no `ssh`", "install OpenSSH's client on this machine, and restart the server") from problem
        stream = SshStream(process)
        try:
            await asyncio.wait_for(stream.begin(self._host), START_SECONDS)
        except asyncio.TimeoutError:
            await stream.close()
            raise HostUnreachable(
                f"the agent did not start within {START_SECONDS:g} s{_because(stream.stderr)}", f"try `{self.address} true`"
            ) from None
        except BaseException:
            await stream.close()
            raise
        return stream


def remote_command(host: SshHost, arguments: Sequence[str]) -> str:
    """Return the command of the agent for the login shell of the host, which may be sh, bash, zsh, fish or tcsh."""
    python = quoted(host.python)
    variables = [f"{name}={shlex.quote(value)}" for name, value in host.environment]
    prefix = ["exec", *(["env", *variables] if variables else []), python]
    return f'{" ".join(prefix)} -c "{START}" {shlex.join(arguments)}'


def quoted(path: str) -> str:
    """Return a path as a word for every shell, which replaces `~` and `~USER` at its begin."""
    home, slash, rest = path.partition("/")
    return f"{home}/{quoted_word(rest)}" if slash and HOME.fullmatch(home) else quoted_word(path)


def quoted_word(text: str) -> str:
    """Return a text as a word for every shell."""
    return text if PLAIN.fullmatch(text) else shlex.quote(text)


class SshStream:
    """Byte stream over the pipes of one `ssh` process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        self._first = b""
        """Bytes of the agent that arrived with its first line."""
        self._errors = bytearray()
        self._reading = asyncio.get_running_loop().create_task(self._read_errors(process.stderr))

    @property
    def stderr(self) -> str:
        """Last lines that ssh and the host have written to stderr."""
        return self._errors.decode(errors="replace").strip()

    @property
    def pid(self) -> int:
        """Process id of `ssh`."""
        return self._process.pid

    async def begin(self, host: SshHost) -> None:
        """Skip what login scripts print. Raises `HostUnusable` or `OSError` if no agent starts."""
        received = b""
        while (match := BEGIN.search(received)) is None:
            more = await self._stdout.read(READ_BYTES)
            if not more:
                raise refusal(host, await self._ended(), self.stderr)
            received += more
            if len(received) > NOISE_BYTES:
                raise HostUnusable(
                    f"its login scripts print more than {NOISE_BYTES >> 20} MiB",
                    f"make `{shlex.join(('ssh', *host.login))} true` print nothing",
                )
        self._first = received[match.end() :]

    async def read(self) -> bytes:
        """Return the next bytes; `b""` at the end. Raises `ConnectionError` with ssh's message if ssh lost the connection."""
        if self._first:
            first, self._first = self._first, b""
            return first
        data = await self._stdout.read(READ_BYTES)
        if not data and await self._ended() == SSH_FAILED:
            raise ConnectionError(last_line(self.stderr) or "ssh ended without a message")
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes."""
        self._stdin.write(data)
        await self._stdin.drain()

    async def close(self) -> None:
        """Close the pipes, and end `ssh` if it does not end by that."""
        self._stdin.close()
        draining = asyncio.get_running_loop().create_task(self._drain())
        if await self._ended() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._ended()
        for task in (draining, self._reading):
            task.cancel()
        await asyncio.wait({draining, self._reading})

    async def _drain(self) -> None:
        """Read to the end, before which asyncio does not report the end of the process."""
        while await self._stdout.read(READ_BYTES):
            pass

    async def _ended(self) -> int | None:
        """Return the exit status of `ssh`, once its stderr is complete; None if it has not ended within `CLOSE_SECONDS`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), CLOSE_SECONDS)
            await asyncio.wait({self._reading}, timeout=CLOSE_SECONDS)
        return self._process.returncode

    async def _read_errors(self, pipe: asyncio.StreamReader) -> None:
        while more := await pipe.read(READ_BYTES):
            self._errors += more
            del self._errors[:-KEPT_STDERR]


@dataclass(frozen=True)
class Symptom:
    """Cause of a failure, by a text in stderr; `remedy` may name `{login}`, `{copy}`, `{known}`, `{python}`, `{version}` and `{file}`."""

    text: str
    reason: str
    remedy: str


OF_SSH = (
    Symptom(
        "HOST IDENTIFICATION HAS CHANGED",
        "its host key has changed since the last login",
        "find out why. If the machine was reinstalled, run `ssh-keygen -R {known}` and `{login}`",
    ),
    Symptom("Host key verification failed", "its host key is unknown", "run `{login}` once and confirm the key"),
    Symptom(
        "Permission denied",
        "the login was refused",
        "make `{login} true` work without a password: `{copy}`, and `ssh-add` for a key with a passphrase, for its jump host as well",
    ),
    Symptom("Too many authentication failures", "the login was refused", "name the key of {host} in ~/.ssh/config (IdentityFile)"),
    Symptom("jumphost loop", "its jump host is itself", "correct ProxyJump of {host} in ~/.ssh/config"),
    Symptom("Bad configuration option", "ssh can't read its configuration", "correct ~/.ssh/config until `{login} true` works"),
    Symptom("Bad owner or permissions", "ssh can't read its configuration", "correct ~/.ssh/config until `{login} true` works"),
)
"""Failed logins that a change of the configuration corrects."""

OF_NETWORK = (
    Symptom("Could not resolve hostname", "its name is unknown", "check the name; a Mac that sleeps or is in another network has none"),
    Symptom(
        "Connection refused", "it accepts no logins", "turn on its ssh server; on a Mac: System Settings, General, Sharing, Remote Login"
    ),
    Symptom("timed out", "it does not respond", "check that it is awake and in this network: `{login} true`"),
    Symptom("No route to host", "it is not in this network", "check that it is awake and in this network: `{login} true`"),
    Symptom("", "ssh can't reach it", "try `{login} true`"),
)
"""Hosts that may become reachable without a change. The last symptom is any other one."""

INSTALL = "run `{login} {python} -m pip install openruntime-jupyter=={version}`, or name another Python in {file}"

OF_PYTHON = (
    Symptom("No module named openruntime_jupyter.agent", "its openruntime-jupyter is too old for this server", INSTALL),
    Symptom("No module named 'openruntime_jupyter'", "its {python} has no openruntime-jupyter", INSTALL),
    Symptom("xcode-select", "its {python} is only the installer of Apple's Python", "install Python there, and name it in {file}"),
)


def refusal(host: SshHost, status: int | None, stderr: str) -> Exception:
    """Return the error for an agent that did not start: `HostUnusable`, or `HostUnreachable` for one that may become reachable."""
    login = shlex.join(("ssh", *host.login))
    words = {
        "host": host.host,
        "login": login,
        "copy": shlex.join(("ssh-copy-id", *host.login)),
        "known": shlex.quote(host.known_host),
        "python": quoted(host.python),
        "version": __version__,
        "file": str(default_file()),
    }

    def explained(symptom: Symptom) -> tuple[str, str]:
        return symptom.reason.format(**words) + _because(stderr, symptom.text), symptom.remedy.format(**words)

    for symptom in OF_SSH if status == SSH_FAILED else OF_PYTHON:
        if symptom.text in stderr:
            return HostUnusable(*explained(symptom))
    if status in (SSH_FAILED, None):
        return HostUnreachable(*explained(next(symptom for symptom in OF_NETWORK if symptom.text in stderr)))
    if status in CANNOT_START:
        advice = f'write below ["{host.destination}"] in {words["file"]}: python = "/path/to/python"'
        return HostUnusable(f"its {host.python} does not start{_because(stderr)}", advice)
    advice = f"try `{login} {words['python']} -c 'import openruntime_jupyter'`"
    return HostUnusable(f"its agent ended with exit status {status}{_because(stderr)}", advice)


def _because(stderr: str, text: str = "") -> str:
    """Return the last line with that text in parentheses; empty without one."""
    line = last_line("\n".join(line for line in stderr.splitlines() if text in line and not NOISE.search(line)) or stderr)
    return f" ({line})" if line else ""


def last_line(text: str) -> str:
    """Return the last line with text; empty without one."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
