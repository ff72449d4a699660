"""Control thread of a worker: receives interrupts, and kills the process group when its runtime has ended.

It polls the control channel for messages and hang-up, and the parent's pid once a second. This works during an evaluation, and if a fork
of the parent still holds the sockets. (`PR_SET_PDEATHSIG` would kill healthy workers when the thread that started them ends.)
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading

from openruntime_jupyter.worker.interrupts import InterruptGuard

PARENT_POLL_MS = 1000


def leave_now() -> None:
    """Kill this process and all processes that its tasks started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def watch(control: socket.socket, guard: InterruptGuard, parent: int) -> threading.Thread:
    """Start the control thread; the worker ends when the process `parent` ends."""
    thread = threading.Thread(target=_watch, args=(control, guard, parent), name="openruntime-control", daemon=True)
    thread.start()
    return thread


def _watch(control: socket.socket, guard: InterruptGuard, parent: int) -> None:
    poller = select.poll()
    poller.register(control, select.POLLIN)
    pending = b""
    while True:
        events = poller.poll(PARENT_POLL_MS)
        if os.getppid() != parent:
            leave_now()
        if not events:
            continue
        try:
            data = control.recv(65536)
        except OSError:
            data = b""
        if not data:
            leave_now()
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            guard.request(json.loads(line)["interrupt"])
