"""A worker process: `python -m openruntime_jupyter.worker DATA_FD CONTROL_FD GENERATION PARENT MARKER BLAS WARM`.

Started by the local engine only. It says hello, then runs one task after the other until it is told to leave.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import socket
import sys
import traceback
from typing import Any

from openruntime_jupyter.worker.blas import Blas, choose
from openruntime_jupyter.worker.channel import Channel
from openruntime_jupyter.worker.frames import PROTOCOL, Kind, display_marker
from openruntime_jupyter.worker.interrupts import InterruptGuard
from openruntime_jupyter.worker.streams import write_whole_lines
from openruntime_jupyter.worker.threads import follow
from openruntime_jupyter.worker.watch import watch

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


def hello(blas: Blas | None) -> dict[str, Any]:
    """What the runtime must know of this worker, `problem` if its MLX can't compute."""
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

        from openruntime_jupyter.worker.devices import describe

        said["mlx"] = mx.__version__  # type: ignore[attr-defined] # the stubs leave it out
        said["devices"] = describe()
    except Exception as problem:  # a broken installation shows in many ways; each must reach the user in words
        said["problem"] = f"{type(problem).__name__}: {problem}"
    return said


def warm(names: str) -> None:
    """Import what the first task would have to wait for."""
    from openruntime_jupyter.operations.registry import operation

    for name in filter(None, names.split(",")):
        # The runtime's environment may have more than this one, and what is wrong with an operation its first task tells.
        with contextlib.suppress(Exception, SystemExit):
            if (prepare := operation(name).warm) is not None:
                prepare()


def main(arguments: list[str]) -> None:
    """Serve until the runtime says leave or is gone."""
    gc.disable()  # until all is loaded that stays: looking through modules as they come finds nothing
    data_fd, control_fd, generation, parent, marker, blas_path, names = arguments
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
    follow()
    channel = Channel(data, int(generation), guard)
    blas = choose(blas_path)
    said = hello(blas)
    channel.send(Kind.HELLO, said)
    warm(names)
    from openruntime_jupyter.worker.bodies import loads
    from openruntime_jupyter.worker.restore import flush_output
    from openruntime_jupyter.worker.runner import Runner

    runner = Runner(channel, guard, blas, display_marker(marker), said["problem"])
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
            runner.run(loads(body))
        except BaseException:
            # A fault of ours, or of a task that broke Python itself. No thread that a task left may keep the process from telling.
            try:
                traceback.print_exc()
                flush_output()
            finally:
                os._exit(CRASHED)


if __name__ == "__main__":
    main(sys.argv[1:])
