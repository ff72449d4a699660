"""Process groups of workers on disk, so that processes that outlive their runtime can be ended by the next one.

A worker ends its group when its runtime ends. If both are killed at once, the processes that its tasks started are left.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

MARKER = "OPENRUNTIME_WORKER"
"""Environment variable of workers, which their child processes inherit."""

COMPACT_AT = 200
"""Number of recorded workers after which those that have ended are removed from the file."""

SUFFIX = ".new"
"""Suffix of a file that is not locked yet."""

ROUNDS = 5
"""Maximum number of searches for members of a group, which may start others until they are killed."""


class ProcessGroups:
    """File of the process groups of one runtime's workers, which is locked while the runtime lives.

    A line has the boot, the pid of the worker, which leads a session and a group, and its start time: a reused pid has another one.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / secrets.token_hex(8)
        self._boot = boot_id()
        self._number = 0
        self._descriptor: int | None = None
        self._problem: str | None = None

    def add(self, pid: int) -> None:
        """Record a new worker. Does nothing without a usable folder."""
        try:
            if self._descriptor is None:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._replace("")
            elif self._number >= COMPACT_AT:
                living = [
                    f"{self._boot} {each} {started}\n" for each, started in _recorded(self._path).items() if _start_time(each) == started
                ]
                self._number = len(living)
                self._replace("".join(living))
            assert self._descriptor is not None
            os.write(self._descriptor, f"{self._boot} {pid} {_start_time(pid)}\n".encode())
            self._number += 1
        except OSError as problem:
            if str(problem) != self._problem:
                log.warning("The process group of a worker could not be recorded: %s", problem)
            self._problem = str(problem)

    def _replace(self, lines: str) -> None:
        """Replace the file by a locked one. It is locked under another name first, because an unlocked one belongs to a dead runtime."""
        unlocked = self._path.with_suffix(SUFFIX)
        unlocked.unlink(missing_ok=True)  # left by a failure
        descriptor = os.open(unlocked, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, lines.encode())
        unlocked.replace(self._path)
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = descriptor

    def close(self) -> None:
        """Remove the file; called once all workers have ended."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def end_left_groups(folder: Path) -> int:
    """Kill the processes that the workers of dead runtimes have left. Return their number."""
    ended = 0
    for path in folder.glob("*"):
        if path.suffix == SUFFIX:
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ended += _end(_recorded(path))
                path.unlink(missing_ok=True)
            except BlockingIOError:  # its runtime lives
                continue
            finally:
                os.close(descriptor)
    return ended


def _recorded(path: Path) -> dict[int, str]:
    """Return the start times of the recorded workers of this boot by pid."""
    lines = (line.split() for line in path.read_text(encoding="ascii", errors="replace").splitlines())
    boot = boot_id()
    return {int(line[1]): line[2] for line in lines if len(line) == 3 and line[0] == boot and line[1].isdigit()}


def _end(recorded: dict[int, str]) -> int:
    ended = 0
    for _ in range(ROUNDS if recorded else 0):
        members = [process for process in psutil.process_iter() if _is_member(process, recorded)]
        if not members:
            break
        for process in members:
            with contextlib.suppress(psutil.Error):
                process.kill()  # checks that the pid was not reused
                ended += 1
        psutil.wait_procs(members, timeout=1.0)
    if ended:
        log.warning("Ended %d processes that tasks of a dead runtime had started", ended)
    return ended


def _is_member(process: psutil.Process, recorded: dict[int, str]) -> bool:
    """Return whether a process belongs to the group of a recorded worker.

    The kernel reuses no pid that is the id of a living group. So if the worker's pid belongs to a process, its start time decides. Without
    one the group may be another program's that was led by a process with that pid: the environment of its members decides.
    """
    try:
        group = os.getpgid(process.pid)
        if group not in recorded or os.getsid(process.pid) != group or process.status() == psutil.STATUS_ZOMBIE:
            return False
        leader = _start_time(group)
        return leader == recorded[group] if leader is not None else MARKER in process.environ()
    except (OSError, psutil.Error):
        return False


def _start_time(pid: int) -> str | None:
    """Return the start time of a process, in a unit of this system; None for an unknown pid. Repeated calls return the same value."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return status.rpartition(")")[2].split()[19]  # the name before may contain anything
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    with contextlib.suppress(psutil.Error):
        return str(psutil.Process(pid).create_time())
    return None


def boot_id() -> str:
    """Return the id of the machine's current boot; `-` if it is unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # start times are absolute on other systems
        return "-"
