"""Why a worker could not be started, in words that say what to do."""

from __future__ import annotations

import errno

from openruntime_jupyter.errors import EngineError, InterpreterError

NO_INTERPRETER = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ELOOP, errno.ENAMETOOLONG)
FEWER_FILES = "Raise the limit of open files (`ulimit -n`) of whatever hosts the runtime, or close what holds them"
SHORTAGE = {
    errno.EMFILE: FEWER_FILES,
    errno.ENFILE: FEWER_FILES,
    errno.ENOMEM: "Close what holds the memory, and try again",
    errno.EAGAIN: "End other processes of this user, or raise their limit (`ulimit -u`)",
}
CHECK = "See what the system says of it, and try again"


def not_started(interpreter: str, problem: OSError) -> EngineError:
    """Tell why a worker could not be started, and what to do."""
    if problem.errno in NO_INTERPRETER:
        return InterpreterError(
            f"The interpreter {interpreter} can't be started: {problem.strerror}. Give the path of a Python that exists on this machine."
        )
    return EngineError(f"A worker of {interpreter} can't be started: {problem.strerror}. {SHORTAGE.get(problem.errno or 0, CHECK)}")


def install_command(interpreter: str) -> str:
    """What brings this package to that interpreter, in this version."""
    from openruntime_jupyter import __version__

    return f"{interpreter} -m pip install openruntime-jupyter=={__version__}"


def missing_package(interpreter: str) -> str:
    """Tell whose environment lacks what, and the command that mends it."""
    return (
        f"The environment of {interpreter} has no openruntime_jupyter, so it can't run tasks. "
        f"Install it there: {install_command(interpreter)}"
    )
