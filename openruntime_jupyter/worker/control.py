"""Control of a worker by its runtime: interrupts of tasks, and the end of the process when the runtime ends.

The control thread calls `request(task_id)`. The signal handler on the main thread raises `KeyboardInterrupt` only while the body of that
task runs and no frame is being written. It raises at most once per task: if the code swallows the interrupt, the next stage of the cancel
stops it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import NoReturn

PARENT_POLL_MS = 1000


class InterruptGuard:
    """Owner of SIGINT in a worker, created on the main thread. As a context on that thread it delays interrupts."""

    def __init__(self) -> None:
        self._main = threading.main_thread()
        self._requested: str | None = None
        self._running: str | None = None
        self._shields = 0
        self._held_back = False
        self.delivered = False
        """True if the running task was interrupted."""
        self.install()

    def install(self) -> None:
        """Restore the handlers of SIGINT and SIGTERM, which a task may have changed."""
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def request(self, task_id: str) -> None:
        """Interrupt `task_id` if it is running; called on the control thread."""
        self._requested = task_id
        if self._running == task_id and self._main.ident is not None:
            signal.pthread_kill(self._main.ident, signal.SIGINT)

    def enter(self, task_id: str) -> None:
        """Begin the body of `task_id`."""
        self.delivered = False
        self._held_back = False
        self._running = task_id
        if self._requested == task_id:  # requested since the frame arrived
            self._raise()

    def leave(self) -> None:
        """End the body; later interrupts are ignored."""
        self._running = None
        self._held_back = False

    def shielded(self) -> AbstractContextManager[object]:
        """Return a context for any thread that delays interrupts while a frame is written. Signals are handled on the main thread."""
        return self if threading.get_ident() == self._main.ident else nullcontext()

    def __enter__(self) -> None:
        self._shields += 1

    def __exit__(self, *raised: object) -> None:
        self._shields -= 1
        if self._held_back and not self._shields and self._running is not None:
            self._raise()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._running is None or self._requested != self._running or self.delivered:
            return
        if self._shields:
            self._held_back = True
        else:
            self._raise()

    def _raise(self) -> None:
        self._held_back = False
        self.delivered = True
        self._requested = None
        raise KeyboardInterrupt("the task was cancelled")


def watch(control: socket.socket, guard: InterruptGuard, parent: int) -> None:
    """Start the control thread, which receives interrupts, and kills the process group when the process `parent` has ended.

    It polls the control channel for messages and hang-up, and the parent's pid once a second. This works during an evaluation, and if a
    fork of the parent still holds the sockets. (`PR_SET_PDEATHSIG` would kill healthy workers when the thread that started them ends.)
    """
    threading.Thread(target=_watch, args=(control, guard, parent), name="openruntime-control", daemon=True).start()


def _watch(control: socket.socket, guard: InterruptGuard, parent: int) -> None:
    try:
        _receive(control, guard, parent)
    finally:  # also if a task has broken a module: without this thread the worker would outlive its runtime
        end_group()


def _receive(control: socket.socket, guard: InterruptGuard, parent: int) -> None:
    """Receive messages until the runtime ends."""
    poller = select.poll()
    poller.register(control, select.POLLIN)
    pending = b""
    while True:
        events = poller.poll(PARENT_POLL_MS)
        if os.getppid() != parent:
            return
        if not events:
            continue
        try:
            data = control.recv(65536)
        except OSError:
            data = b""
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            guard.request(json.loads(line)["interrupt"])


def end_group() -> NoReturn:
    """Kill this process and all processes that its tasks started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
