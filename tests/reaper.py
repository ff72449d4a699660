"""Ends what a run of the tests leaves behind that was killed: servers, kernels, workers that a test has stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator

MARK = "TESTS_REAPER_MARK"
"""The variable that everything inherits which such a run starts."""
DONE = b"done"


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Should this process end within this context, all ends that it has started, and what that has started."""
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
    """Wait for the end of whoever holds the other end of stdin; not as a child of theirs, since tests look at these."""
    if os.fork() or sys.stdin.buffer.read() == DONE:
        return
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                process.send_signal(signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
