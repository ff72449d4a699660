"""What a runtime knows of one array, and what its name says."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from openruntime_jupyter.arrays import array_file
from openruntime_jupyter.arrays.array_file import Layout
from openruntime_jupyter.arrays.blocks import UNFINISHED, near
from openruntime_jupyter.errors import ArrayConflict, ArrayNotFound, InvalidRequest, StorageUnavailable, gigabytes
from openruntime_jupyter.runtime.arrays.spool import SUFFIX
from openruntime_jupyter.schemas.arrays import ArrayInfo, ArrayReference
from openruntime_jupyter.schemas.base import iso, timestamp

OWN = re.compile(r"arr_[0-9a-z]{1,40}(\.\d{1,9}\.\d{1,9})?")
"""Ids that a runtime makes: of room that was asked for, or of a task's result (task, attempt, place)."""
QUIET_SECONDS = 0.5
"""How long a result that was asked for is left alone, so that whoever asked can map it."""
CHOSEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""Names that people may choose."""


def check_name(name: str) -> str:
    """`name`, if an array may be called so by whoever sends it; raises `InvalidRequest`."""
    if not CHOSEN.fullmatch(name) or name.startswith("arr_"):
        raise InvalidRequest.of("id", "letters, digits, _ and - make a name, up to 100 of them; it must not begin with arr_")
    return name


def result_name(task_id: str, attempt: int) -> str:
    """What the ids of an attempt's result arrays begin with."""
    return f"arr_{task_id.removeprefix('task_')}.{attempt}"


def task_of(array_id: str) -> str | None:
    """The task whose result an array is, by its id."""
    found = OWN.fullmatch(array_id)
    return f"task_{array_id[4:].split('.', maxsplit=1)[0]}" if found is not None and found[1] else None


def now() -> float:
    """Seconds, by which ages are told: of a clock that nobody sets."""
    return time.monotonic()


@dataclass(slots=True, eq=False)
class Record:
    """One array."""

    id: str
    layout: Layout
    folder: Path
    owner: str | None = None
    making: bool = False
    """Its file is just being made: until that is there it can't go."""
    made: bool = False
    """Whether its file is there, for somebody to fill."""
    ready: bool = False
    finishing: bool = False
    """It is just being seen to that it is what was promised: until then it can neither be used nor go."""
    created: float = field(default_factory=time.time)
    """Since the epoch, for people."""
    used: float = field(default_factory=lambda: now())  # noqa: PLW0108 - looked up when it is called, as tests have a clock of their own
    """When it was last used, as `now` tells it."""
    fetched: bool = False
    """Whether somebody has asked for it since it was ready."""
    doomed: bool = False
    """It was deleted: it goes as soon as nobody uses it any more."""
    exposed: bool = False
    """Its path was told to somebody who may use the file without leasing it: it is never used for another array."""
    leaving: bool = False
    """Its file is just being let go of, unless somebody turns out to lease it."""
    gone: bool = False
    """Its file was let go of: what its name stands for now is another array."""
    leases: set[str] = field(default_factory=set)
    """The tasks that wait for it or run with it."""
    size: int = field(init=False)
    """Bytes of its file; known from the start, as those of all are summed up for each task."""
    task_id: str | None = field(init=False)
    """The task whose result it is."""

    def __post_init__(self) -> None:
        """What follows from the rest."""
        self.size = self.layout.size
        self.task_id = task_of(self.id)

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder / f"{self.id}{SUFFIX if self.ready else UNFINISHED}"

    @property
    def lost(self) -> bool:
        """Whether somebody has removed its file: nothing of ours is on its way with it. Asks the file system."""
        return self.ready and not (self.leaving or self.finishing) and not self.path.exists()

    def touch(self) -> None:
        """It is used now."""
        self.used = now()

    @property
    def idle(self) -> float:
        """Seconds for which nobody has used it."""
        return now() - self.used

    def expires(self, seconds: float) -> float | None:
        """When it is too old, unless it is used before, in seconds since the epoch; None for never, and for what is not ready."""
        return time.time() + seconds - self.idle if seconds and self.ready and not self.leases else None

    def expired(self, seconds: float) -> bool:
        """Whether it is too old now."""
        return bool(seconds) and not self.leases and self.idle > seconds

    def reference(self) -> ArrayReference:
        """How results speak of it."""
        layout = self.layout
        return ArrayReference.model_construct(
            id=self.id, shape=list(layout.shape), dtype=layout.dtype, bytes=layout.nbytes, kind=layout.kind
        )

    def info(self, seconds: float) -> ArrayInfo:
        """All that is told of it; `seconds` is how long an unused array stays."""
        layout = self.layout
        return ArrayInfo.model_construct(
            id=self.id,
            shape=list(layout.shape),
            dtype=layout.dtype,
            bytes=layout.nbytes,
            kind=layout.kind,
            state="ready" if self.ready else "writing",
            size=self.size,
            owner=self.owner,
            task_id=self.task_id,
            created_at=timestamp(self.created),
            expires_at=iso(self.expires(seconds)),
            leases=len(self.leases),
            path=str(self.path),
        )


def evictable(records: Iterable[Record], seconds: float, quiet: float) -> list[Record]:
    """What may go for something new, the most useless first: what was deleted or is too old, then results that were fetched.

    `seconds` is how long an unused array stays, `quiet` for how long nobody must have asked for a result.
    """
    useless = [
        record
        for record in records
        if record.ready
        and not record.leases
        and (record.doomed or record.expired(seconds) or (record.task_id is not None and record.fetched and record.idle >= quiet))
    ]
    return sorted(useless, key=lambda record: (not record.doomed, not record.expired(seconds), record.used))


def near_and_fetched(records: Iterable[Record], wanted: Record, most: int) -> Record | None:
    """Of those that may go, the oldest result that was fetched whose file does for one like `wanted`.

    None where such results take no more than `most` bytes together: whoever has one may fetch it again.
    """
    fetched = [record for record in records if record.fetched and record.task_id is not None]
    if sum(record.size for record in fetched) <= most:
        return None
    fitting = [each for each in fetched if each.folder == wanted.folder and not each.exposed and near(each.size, wanted.size)]
    return min(fitting, key=lambda record: record.used, default=None)


def look(path: Path, array_id: str) -> Layout:
    """The layout of an array's file; raises `ArrayNotFound` where it is gone, short or damaged. Blocks."""
    descriptor = array_file.open_for_reading(path, array_id)
    try:
        return array_file.read(descriptor, array_id)
    finally:
        os.close(descriptor)


def found(path: Path) -> Record | None:
    """The record of a finished file that another runtime left; None, and the file removed, where it is damaged. Blocks.

    Nobody knows any more whom its path was told. When it was last used its file tells, unless that clock was set since.
    """
    array_id = path.name.removesuffix(SUFFIX)
    try:
        state = path.stat()
        layout = look(path, array_id)
    except ArrayNotFound:
        path.unlink(missing_ok=True)
        return None
    except OSError:
        return None
    used = now() - max(0.0, time.time() - state.st_mtime)
    return Record(array_id, layout, path.parent, ready=True, exposed=True, created=state.st_ctime, used=used)


def taken(record: Record) -> ArrayConflict:
    """The error for a name that stands for that one."""
    if record.doomed:
        return ArrayConflict(f"The array {record.id} was deleted, but is still in use, and keeps its name until then: take another one.")
    return ArrayConflict(f"There is an array {record.id} already, and arrays do not change: delete it first, or take another name.")


def no_room(size: int, problem: str | None, rooms: dict[Path, int]) -> StorageUnavailable:
    """The error for `size` bytes that fit into none of the folders; `problem` is why there is no folder at all."""
    if problem is not None:
        return StorageUnavailable(problem, retry_after=60.0)
    told = ", ".join(f"{folder} has {gigabytes(room)}" for folder, room in rooms.items())
    return StorageUnavailable(
        f"There is no room for an array of {gigabytes(size)}: {told} left for arrays. Delete arrays that are no longer needed, or "
        "choose a larger folder by the setting spool_dir.",
        retry_after=10.0,
    )
