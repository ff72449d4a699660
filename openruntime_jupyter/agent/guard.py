"""Guard of an agent: kills it if it was suspended itself and could not end its tasks. Its workers end with it.

`guard.py PID SECONDS` runs as a child of the agent, without this package: it must start fast and hold little memory. The agent writes a
byte to its standard input at each ping.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process


class Guard:
    """Guard process of this agent, started by `start`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, seconds: float) -> Guard:
        """Start a guard that kills this process after `seconds` without `renew`. Raises `OSError`."""
        command = (sys.executable, "-I", "-S", __file__, str(os.getpid()), str(seconds))
        return cls(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True))

    def renew(self) -> None:
        """Note that the agent works."""
        assert self._process.stdin is not None
        self._process.stdin.write(b".")

    async def stop(self) -> None:
        """End the guard."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), 1.0)
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def watch(agent: int, seconds: float) -> None:
    """Wait for bytes until the agent ends, and kill it after `seconds` without one."""
    while True:
        readable, _, _ = select.select([0], [], [], seconds)
        if not readable:
            os.kill(agent, signal.SIGKILL)
            return
        if not os.read(0, 4096):
            return


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]))
