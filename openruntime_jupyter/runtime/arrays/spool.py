"""Folders of array files, in memory if it is large enough, else on disk, and the free blocks in them.

A root holds a folder for each runtime and, beside it, the lock that the runtime holds while it runs. Folders that another user could
have created are not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import stat
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openruntime_jupyter.arrays import blocks
from openruntime_jupyter.arrays.blocks import UNFINISHED
from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime import locks
from openruntime_jupyter.runtime.permissions import private_file, private_folder
from openruntime_jupyter.runtime.settings import Settings

log = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")  # noqa: S108 - folders there are checked before use
SUFFIX = ".safetensors"
EMBEDDED = ".embedded"
KEY = "spool.key"
KEY_BYTES = 16
HOME = "home"
"""File in a root that names its data folder."""
YOUNG_SECONDS = 60.0
"""Roots modified this recently are not cleared, because a runtime may be starting in them."""
MEMORY_LEFT = 0.1
"""Fraction of the total memory that arrays never use."""
DISK_LEFT = 0.05
"""Fraction of a disk that arrays never use, up to `DISK_LEFT_BYTES`."""
DISK_LEFT_BYTES = 1_000_000_000
IDLE_SECONDS = 600.0
"""Lifetime of an unused free block."""
LOW_MEMORY = MEMORY_LEFT + 0.05
"""Free blocks in memory are released if less than this fraction of the total memory is available."""


@dataclass(slots=True)
class SpoolFolder:
    """One root with this runtime's folder in it; if `reusable`, its files may be reused for further arrays."""

    root: Path
    folder: Path
    in_memory: bool
    reusable: bool
    lock: locks.RuntimeLock


class Spool:
    """Spool folders of one runtime; `problem` is the error if no folder is usable. All methods block."""

    def __init__(self, settings: Settings, runtime_id: str) -> None:
        self.places: list[SpoolFolder] = []
        self.problem: str | None = None
        self._settings = settings
        self._name = runtime_id + (EMBEDDED if settings.embedded else "")
        self._runtime = runtime_id

    def open(self) -> list[Path]:
        """Create the folders. Return the finished files taken over from dead runtimes."""
        adopted: list[Path] = []
        for root in self._roots():
            try:
                place = self._place(root)
            except OSError as problem:
                self.problem = f"Cannot store arrays in {root} ({problem}): set spool_dir to a folder that is writable for this user"
                log.info("%s", self.problem)
                continue
            self.places.append(place)
            adopted += self._take_over(place)
            locks.remove_dead_locks(place.root)
        if self.places:
            self.problem = None
        self._clear_other_data_folders()
        return adopted

    def _clear_other_data_folders(self) -> None:
        """Free memory left behind by killed runtimes of other data folders, which may never start again."""
        for place in self.places:
            for root in place.root.parent.glob(f"openruntime-{os.geteuid()}-*") if place.in_memory else ():
                with contextlib.suppress(OSError):
                    if root != place.root and _private(root) and time.time() - root.stat().st_mtime > YOUNG_SECONDS:
                        _clear(root, self._settings.array_seconds)

    def _roots(self) -> Iterator[Path]:
        settings = self._settings
        own = f"openruntime-{os.geteuid()}-{hashlib.sha256(self._key() + os.fsencode(settings.data_dir.absolute())).hexdigest()[:12]}"
        if settings.spool_dir:
            yield Path(settings.spool_dir).expanduser() / own
            return
        if MEMORY.is_dir() and in_memory(MEMORY):
            yield MEMORY / own
        yield settings.arrays

    def _key(self) -> bytes:
        """Return the secret of the data folder, without which other users could create or link the roots before this runtime does."""
        path = self._settings.data_dir / KEY
        try:
            if not path.exists():
                private_folder(path.parent)
                draft = path.with_suffix(f".{self._runtime}")
                private_file(draft)
                draft.write_bytes(secrets.token_bytes(KEY_BYTES))
                # A link, so that of two runtimes that start at the same time the first one makes the key.
                with contextlib.suppress(FileExistsError):
                    os.link(draft, path)
                draft.unlink()
            return path.read_bytes()
        except OSError:  # the data folder cannot be written: no other runtime uses this one's arrays
            return secrets.token_bytes(KEY_BYTES)

    def _place(self, root: Path) -> SpoolFolder:
        private_folder(root, links=False)
        if not _private(root):
            raise OSError(f"{root} is not a private folder of this user")
        lock = locks.RuntimeLock(root, self._runtime, {"runtime": self._runtime, "pid": os.getpid()})
        lock.acquire()  # before the folder exists, or it would look like a dead runtime's
        folder = private_folder(root / self._name)
        place = SpoolFolder(root, folder, in_memory(root), blocks.leases_hold(folder), lock)
        private_file(root / HOME)
        (root / HOME).write_bytes(os.fsencode(self._settings.data_dir.absolute()))
        return place

    def _take_over(self, place: SpoolFolder) -> list[Path]:
        """Move the files of dead servers into this runtime's folder, and delete those of dead kernels."""
        adopted: list[Path] = []
        for folder in self._others(place):
            runtime = folder.name.removesuffix(EMBEDDED)
            if locks.is_alive(place.root, runtime):
                continue
            if folder.name.endswith(EMBEDDED):
                shutil.rmtree(folder, ignore_errors=True)
            elif not self._settings.embedded:
                adopted += _move_all(folder, place.folder)
        return adopted

    def _others(self, place: SpoolFolder) -> list[Path]:
        with contextlib.suppress(OSError):
            return [folder for folder in place.root.iterdir() if folder != place.folder and folder.is_dir() and not folder.is_symlink()]
        return []

    def place_of(self, folder: Path) -> SpoolFolder | None:
        """Return the place of a folder of this runtime, or None."""
        return next((place for place in self.places if place.folder == folder), None)

    def elsewhere(self, array_id: str) -> Path | None:
        """Return the file of an array of another runtime of this user, or None."""
        for place in self.places:
            for folder in self._others(place):
                if (path := folder / f"{array_id}{SUFFIX}").is_file():
                    return path
        return None

    def discard(self, prefix: str) -> None:
        """Remove unfinished files whose names begin with `prefix`."""
        for place in self.places:
            for path in place.folder.glob(f"{prefix}*{UNFINISHED}"):
                path.unlink(missing_ok=True)

    def close(self, kept: frozenset[Path]) -> None:
        """Remove all files except `kept`, then empty folders, then the locks; never raises."""
        for place in self.places:
            _drop_free(place.folder)
            with contextlib.suppress(OSError):
                for path in place.folder.iterdir():
                    if path not in kept:
                        path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                place.folder.rmdir()
            place.lock.release()
            _remove_empty(place.root)


class BlockCache:
    """Cache of up to `most` bytes of free blocks. Its methods run on the runtime's loop without blocking it, except `close`."""

    def __init__(self, spool: Spool, machine: Machine, most: int) -> None:
        self.most = most
        self._spool = spool
        self._machine = machine
        self._releasing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._preparing = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Stop preparing blocks; blocks until the current preparation has ended."""
        self._closed = True
        with self._preparing:
            pass

    @property
    def bytes(self) -> int:
        """Bytes of all free blocks."""
        return sum(self.bytes_in(place.folder) for place in self._spool.places)

    def bytes_in(self, folder: Path) -> int:
        """Return the bytes of the free blocks in one folder."""
        return sum(block.size for block in blocks.free(folder))

    def accepts(self, folder: Path, size: int) -> bool:
        """Return whether an unused file of that size is kept as a free block."""
        place = self._spool.place_of(folder)
        return place is not None and place.reusable and not self._closed and blocks.SMALLEST <= size <= self.most

    async def shrink_to(self, most: int) -> None:
        """Release the oldest blocks until all take at most `most` bytes and at most the cache's limit."""
        for place in self._spool.places:
            await self._release(place.folder, self.bytes - max(0, min(most, self.most)))

    def memory_is_short(self) -> bool:
        """Return whether other programs need the machine's memory more than this cache."""
        memory = self._machine.memory()
        return memory.available < LOW_MEMORY * memory.total

    async def release_expired(self) -> None:
        """Release expired blocks, and all blocks in memory if memory is short."""
        if not self.bytes:
            return
        now = time.time()
        for place in self._spool.places:
            if place.in_memory and self.memory_is_short():
                await self._release(place.folder, self.bytes_in(place.folder))
            # Blocks freed in the future expire as well: the clock was set back since.
            old = sum(block.size for block in blocks.free(place.folder) if abs(now - block.since) > IDLE_SECONDS)
            await self._release(place.folder, old)

    def release_memory(self, wanted: int) -> bool:
        """Start releasing memory for a task that needs it. Return whether any will be released."""
        if self._releasing is not None and not self._releasing.done():
            return True
        folders = [place.folder for place in self._spool.places if place.in_memory and blocks.free(place.folder)]
        if not folders:
            return False

        async def give() -> None:
            left = wanted
            for folder in folders:
                left -= await self._release(folder, left)

        self._releasing = self._start(give())
        return True

    def prepare_next(self, folder: Path, size: int, quota: int, free: int) -> None:
        """Prepare another block of that size in memory in the background, if the bytes left of the quota and `free` memory suffice."""
        place = self._spool.place_of(folder)
        if self._tasks or self._closed or place is None or not place.in_memory:  # disks are not filled with zeros
            return
        left = free - int((LOW_MEMORY - MEMORY_LEFT) * self._machine.total)
        if self.bytes + size <= min(quota, self.most) and 2 * size <= left:
            self._start(asyncio.to_thread(self._prepare, folder, size))

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _prepare(self, folder: Path, size: int) -> None:
        with self._preparing:
            if not self._closed and blocks.prepare(folder, size, lambda: self._closed):
                log.debug("Prepared a file of %s for the next array", gigabytes(size))

    async def _release(self, folder: Path, wanted: int) -> int:
        return await asyncio.to_thread(blocks.give_back, folder, wanted) if wanted > 0 else 0


def _private(root: Path) -> bool:
    """Return whether only this user can have created files in the folder."""
    found = os.lstat(root)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _clear(root: Path, seconds: float) -> None:
    """Remove the files that no runtime can use any more; `seconds` is the lifetime of an unused array, 0 for no limit."""
    if any(locks.is_alive(root, path.stem) for path in root.glob("*.lock")):
        return
    home = root / HOME
    if not home.is_file() or not Path(os.fsdecode(home.read_bytes())).is_dir():
        shutil.rmtree(root, ignore_errors=True)
        return
    for folder in [path for path in root.iterdir() if path.is_dir()]:
        if folder.name.endswith(EMBEDDED):
            shutil.rmtree(folder, ignore_errors=True)
            continue
        _drop_free(folder)
        for path in folder.iterdir():
            if path.suffix != SUFFIX or (seconds and time.time() - path.stat().st_mtime > seconds):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
    locks.remove_dead_locks(root)
    _remove_empty(root)


def _remove_empty(root: Path) -> None:
    """Remove a root that no runtime uses."""
    with contextlib.suppress(OSError):
        if [path.name for path in root.iterdir()] == [HOME]:
            (root / HOME).unlink()
        root.rmdir()


def _drop_free(folder: Path) -> None:
    shutil.rmtree(folder / blocks.FREE, ignore_errors=True)


def _move_all(source: Path, target: Path) -> list[Path]:
    moved: list[Path] = []
    _drop_free(source)
    with contextlib.suppress(OSError):
        for path in source.iterdir():
            if path.suffix != SUFFIX:
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(FileNotFoundError):  # another starting runtime was faster
                path.rename(target / path.name)
                moved.append(target / path.name)
        source.rmdir()
    return moved


def in_memory(path: Path) -> bool:
    """Return whether files in the folder are in memory; only Linux has such folders."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        device = os.stat(path).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                fields = line.split()
                if fields[2] == wanted:
                    return fields[fields.index("-") + 1] in ("tmpfs", "ramfs", "devtmpfs")
    except (OSError, ValueError, IndexError):
        pass
    return False
