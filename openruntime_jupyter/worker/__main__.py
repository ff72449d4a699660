"""A worker process: `python -m openruntime_jupyter.worker DATA_FD CONTROL_FD GENERATION PARENT MARKER BLAS DESCRIBE WARM`.

Only the local engine starts it. The worker sends a hello frame, then runs tasks until it receives a leave frame; a task with the caller's
code is its only one.
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
from openruntime_jupyter.worker.channel import Channel, as_json, flush_output, write_whole_lines
from openruntime_jupyter.worker.control import InterruptGuard, end_group, watch
from openruntime_jupyter.worker.frames import PROTOCOL, Kind, display_marker
from openruntime_jupyter.worker.imports import Imports, installed_folders, read_fresh_sources
from openruntime_jupyter.worker.progress_bars import ProgressBars

CRASHED = 70
"""Exit code of a worker after an internal error (`EX_SOFTWARE`)."""
default_hook = sys.breakpointhook
OOM_SCORE = "800"
"""Out-of-memory score with which the kernel kills workers before the server and the notebooks."""


def prefer_as_victim() -> None:
    """Make Linux's out-of-memory killer choose this process first."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write(OOM_SCORE)
    except OSError:
        pass  # not Linux, or a container that forbids it


def hello(blas: Blas | None, devices: bool) -> dict[str, Any]:
    """Return the body of the hello frame; `problem` is set if MLX can't compute.

    `devices` adds the devices of MLX. Listing them creates a context on an NVIDIA GPU, which a spare worker must not hold.
    """
    body: dict[str, Any] = {
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
        import mlx.core as mx

        body["mlx"] = mx.__version__  # type: ignore[attr-defined] # missing in the stubs
        if devices:
            from openruntime_jupyter.worker.devices import describe

            body["devices"] = describe()
    except Exception as problem:  # a broken installation can raise anything
        body["problem"] = f"{type(problem).__name__}: {problem}"
    return body


def warm(names: str, stop: Callable[[], bool] = lambda: False) -> None:
    """Run the slow imports of the first task ahead of time, until `stop()` returns True."""
    from openruntime_jupyter.operations.registry import operation

    for name in filter(None, names.split(",")):
        if stop():
            return
        # This environment may lack operations of the runtime's environment. The first task reports errors.
        with contextlib.suppress(Exception, SystemExit):
            if (prepare := operation(name).warm) is not None:
                prepare()
    if not stop():
        from openruntime_jupyter.arrays import pickling  # noqa: F401 - it imports NumPy


def breakpoint_hook(*args: Any, **kwargs: Any) -> Any:
    """Raise EOFError for `breakpoint()`, unless `PYTHONBREAKPOINT` names another debugger than pdb or turns it off."""
    if os.environ.get("PYTHONBREAKPOINT") in (None, "", "pdb.set_trace"):
        raise EOFError("breakpoint() needs a keyboard, and a worker has none")
    return default_hook(*args, **kwargs)


def main(arguments: list[str]) -> None:
    """Run tasks until the runtime sends a leave frame or ends."""
    gc.disable()  # during start-up, when collections would find nothing
    data_fd, control_fd, generation, parent, marker, blas_path, devices, names = arguments
    os.environ.pop("PYTHONSAFEPATH", None)  # only for this process: subprocesses of a task keep Python's usual path
    if not getattr(sys.flags, "safe_path", False):  # Python 3.10 ignores that variable
        sys.path[:] = [folder for folder in sys.path if folder not in ("", os.getcwd())]
    prefer_as_victim()
    sys.breakpointhook = breakpoint_hook
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
    bars = ProgressBars()
    blas = choose(blas_path)
    hello_body = hello(blas, devices == "describe")
    channel.send(Kind.HELLO, as_json(hello_body))
    warm(names, stop=lambda: channel.waiting)
    from openruntime_jupyter.schemas.base import loads
    from openruntime_jupyter.worker.runner import Runner

    runner = Runner(channel, guard, blas, display_marker(marker), imports, bars, hello_body["problem"])
    read_fresh_sources(installed)
    imports.ready()
    # Exclude the loaded modules from later collections, such as the one after each failed task: 19 ms otherwise.
    gc.freeze()
    gc.enable()
    while True:
        try:
            kind, body = channel.receive()
        except (EOFError, OSError):  # the runtime has ended
            end_group()
        if kind is Kind.LEAVE:
            return
        try:
            if kind is Kind.PREPARE:
                warm(names)  # warm-up stopped if this frame came early
                runner.prepare(loads(body))
            else:
                runner.run(loads(body))
        except BaseException:
            # A bug here, or a task that broke the interpreter. Exit even if threads of the task still run.
            try:
                traceback.print_exc()
                flush_output()
            finally:
                os._exit(CRASHED)


if __name__ == "__main__":
    main(sys.argv[1:])
