"""A worker process: `python -m openruntime_jupyter.worker DATA_FD CONTROL_FD GENERATION PARENT MARKER BLAS DESCRIBE WARM`.

Only the local engine starts it. It says hello, then runs tasks until it is told to leave: one task if that is its caller's own code.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from openruntime_jupyter.worker.blas import Blas, choose
from openruntime_jupyter.worker.frames import PROTOCOL, Kind, display_marker
from openruntime_jupyter.worker.imports import Imports, installed_folders, read_fresh_sources
from openruntime_jupyter.worker.interrupts import InterruptGuard
from openruntime_jupyter.worker.parent_watch import watch
from openruntime_jupyter.worker.stdio import flush_output, write_whole_lines
from openruntime_jupyter.worker.transport import Channel

CRASHED = 70
"""The exit code of a worker that can't go on (`EX_SOFTWARE`)."""
OOM_SCORE = "800"
"""When memory runs out, the kernel takes a worker and spares the server and the notebooks."""


def prefer_as_victim() -> None:
    """Tell Linux's out-of-memory killer to choose this process first."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write(OOM_SCORE)
    except OSError:
        pass  # not Linux, or a container that forbids it


def hello(blas: Blas | None, devices: bool) -> dict[str, Any]:
    """Return what the runtime must know of this worker, `problem` if its MLX can't compute.

    `devices` asks MLX what it computes on. That makes a context on an NVIDIA GPU, which a spare worker must not hold.
    """
    said: dict[str, Any] = {
        "protocol": PROTOCOL,
        "interpreter": sys.executable,
        "python": platform.python_version(),
        "blas": blas.name if blas else None,
        "advice": blas.advice if blas else None,
        "mlx": None,
        "devices": [],
        "problem": None,
    }
    try:
        import mlx.core as mx  # a broken installation shows here

        said["mlx"] = mx.__version__  # type: ignore[attr-defined] # the stubs leave it out
        if devices:
            from openruntime_jupyter.worker.devices import describe

            said["devices"] = describe()
    except Exception as problem:  # a broken installation shows in many ways; each must reach the user in words
        said["problem"] = f"{type(problem).__name__}: {problem}"
    return said


def warm(names: str, stop: Callable[[], bool] = lambda: False) -> None:
    """Import what the first task would have to wait for, until `stop()` says that it has come."""
    from openruntime_jupyter.operations.registry import operation

    for name in filter(None, names.split(",")):
        if stop():
            return
        # The runtime's environment may have more than this one, and what is wrong with an operation its first task tells.
        with contextlib.suppress(Exception, SystemExit):
            if (prepare := operation(name).warm) is not None:
                prepare()
    if not stop():
        from openruntime_jupyter.arrays import pickling  # noqa: F401 - it imports NumPy


def main(arguments: list[str]) -> None:
    """Serve until the runtime says leave or is gone."""
    gc.disable()  # until all is loaded that stays: looking through modules as they come finds nothing
    data_fd, control_fd, generation, parent, marker, blas_path, devices, names = arguments
    os.environ.pop("PYTHONSAFEPATH", None)  # ours alone: a task's own subprocesses keep Python's usual path
    if not getattr(sys.flags, "safe_path", False):  # Python 3.10 knows nothing of that variable
        sys.path[:] = [folder for folder in sys.path if folder not in ("", os.getcwd())]
    prefer_as_victim()
    data = socket.socket(fileno=int(data_fd))
    control = socket.socket(fileno=int(control_fd))
    for connection in (data, control):
        connection.set_inheritable(False)
    guard = InterruptGuard()
    watch(control, guard, int(parent))
    write_whole_lines()
    channel = Channel(data, int(generation), guard)
    installed = installed_folders()
    imports = Imports(installed)
    blas = choose(blas_path)
    said = hello(blas, devices == "describe")
    channel.send(Kind.HELLO, said)
    warm(names, stop=lambda: channel.waiting)
    from openruntime_jupyter.worker.codec import loads
    from openruntime_jupyter.worker.runner import Runner

    runner = Runner(channel, guard, blas, display_marker(marker), imports, said["problem"])
    read_fresh_sources(installed)
    imports.ready()
    # Nor will it, after a task or at the end: both collections pass by what is there now.
    gc.freeze()
    gc.enable()
    while True:
        try:
            kind, body = channel.receive()
        except EOFError:
            return
        if kind is Kind.LEAVE:
            return
        try:
            if kind is Kind.PREPARE:
                warm(names)  # which stopped where this frame came early
                runner.prepare(loads(body))
            else:
                runner.run(loads(body))
        except BaseException:
            # A fault of ours, or of a task that broke Python itself. No thread of a task may keep the process from reporting it.
            try:
                traceback.print_exc()
                flush_output()
            finally:
                os._exit(CRASHED)


if __name__ == "__main__":
    main(sys.argv[1:])
