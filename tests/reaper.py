"""Cleanup of the child processes of a killed test run: servers, kernels, stopped workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator

MARK = "TESTS_REAPER_MARK"
"""Environment variable that marks all processes of a test run."""
DONE = b"done"


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Kill all descendants of this process if it dies within this context."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "tests.reaper", mark]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True) as start:
        assert start.wait() == 0
        assert start.stdin is not None
        os.environ[MARK] = mark
        try:
            yield
        finally:
            del os.environ[MARK]
            start.stdin.write(DONE)


def main(mark: str) -> None:
    """Wait until stdin is closed, then kill the marked processes. Run as an orphan, because tests inspect their children."""
    if os.fork() or sys.stdin.buffer.read() == DONE:
        return
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                process.send_signal(signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
