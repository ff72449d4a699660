"""Records of stored arrays, and the ids and names of arrays."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from openruntime_jupyter.arrays import array_file
from openruntime_jupyter.arrays.array_file import Layout
from openruntime_jupyter.arrays.blocks import UNFINISHED
from openruntime_jupyter.errors import ArrayConflict, ArrayNotFound, InvalidRequest
from openruntime_jupyter.runtime.arrays.spool import SUFFIX
from openruntime_jupyter.schemas.arrays import ArrayInfo, ArrayReference
from openruntime_jupyter.schemas.base import iso, timestamp

OWN = re.compile(r"arr_[0-9a-z]{1,40}(\.\d{1,9}\.\d{1,9})?")
"""Ids that a runtime makes, for an allocated array or for a task's result (task, attempt, index)."""
CHOSEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""Names that clients may choose."""


def check_name(name: str) -> str:
    """Return `name` if clients may choose it; raise `InvalidRequest` otherwise."""
    if not CHOSEN.fullmatch(name) or name.startswith("arr_"):
        raise InvalidRequest.of("id", "a name has up to 100 letters, digits, _ and -, and must not begin with arr_")
    return name


def result_name(task_id: str, attempt: int) -> str:
    """Return the prefix of the ids of an attempt's result arrays."""
    return f"arr_{task_id.removeprefix('task_')}.{attempt}"


def task_of(array_id: str) -> str | None:
    """Return the id of the task whose result the array is, or None."""
    found = OWN.fullmatch(array_id)
    return f"task_{array_id[4:].split('.', maxsplit=1)[0]}" if found is not None and found[1] else None


def now() -> float:
    """Return the monotonic time in seconds, which all ages are based on."""
    return time.monotonic()


@dataclass(slots=True, eq=False)
class ArrayRecord:
    """State of one stored array."""

    id: str
    layout: Layout
    folder: Path
    owner: str | None = None
    creating: bool = False
    """Its file is being created; it cannot be deleted until that has ended."""
    allocated: bool = False
    """Its file exists and can be filled."""
    ready: bool = False
    verifying: bool = False
    """Its file is being verified; it can neither be used nor deleted until that has ended."""
    created: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    used: float = field(default_factory=lambda: now())  # noqa: PLW0108 - late lookup, because tests replace the clock
    """Time of the last use by `now`."""
    fetched: bool = False
    """A client has requested it since it was ready."""
    delete_pending: bool = False
    """It is deleted as soon as it is unused."""
    exposed: bool = False
    """Its path was returned to a client that may use the file without a lease, so the file is never reused for another array."""
    deleting: bool = False
    """Its file is being deleted, unless a lease is found."""
    deleted: bool = False
    """Its file was deleted; the name may belong to another array by now."""
    leases: set[str] = field(default_factory=set)
    """Tasks that are pending or running with it."""
    size: int = field(init=False)
    """Bytes of its file; stored because the sizes of all arrays are added up for every task."""
    task_id: str | None = field(init=False)
    """The task whose result it is."""

    def __post_init__(self) -> None:
        """Set the derived fields."""
        self.size = self.layout.size
        self.task_id = task_of(self.id)

    @property
    def path(self) -> Path:
        """Path of its file."""
        return self.folder / f"{self.id}{SUFFIX if self.ready else UNFINISHED}"

    @property
    def file_missing(self) -> bool:
        """True if another program removed its file. Reads the file system."""
        return self.ready and not (self.deleting or self.verifying) and not self.path.exists()

    def touch(self) -> None:
        """Set the time of the last use to now."""
        self.used = now()

    @property
    def idle(self) -> float:
        """Seconds since the last use."""
        return now() - self.used

    def expires(self, seconds: float) -> float | None:
        """Return when it expires if unused, in seconds since the epoch; None for never, and while it is not ready."""
        return time.time() + seconds - self.idle if seconds and self.ready and not self.leases else None

    def expired(self, seconds: float) -> bool:
        """Return whether it has expired."""
        return bool(seconds) and not self.leases and self.idle > seconds

    def reference(self) -> ArrayReference:
        """Return the reference used in task results."""
        layout = self.layout
        return ArrayReference.model_construct(
            id=self.id, shape=list(layout.shape), dtype=layout.dtype, bytes=layout.nbytes, kind=layout.kind
        )

    def info(self, seconds: float) -> ArrayInfo:
        """Return its public description; `seconds` is the lifetime of an unused array."""
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


def read_layout(path: Path, array_id: str) -> Layout:
    """Return the layout of an array's file; raise `ArrayNotFound` if it is missing, truncated or damaged. Blocks."""
    descriptor = array_file.open_for_reading(path, array_id)
    try:
        return array_file.read(descriptor, array_id)
    finally:
        os.close(descriptor)


def load_record(path: Path) -> ArrayRecord | None:
    """Return the record of a finished file that another runtime left; remove a damaged file and return None. Blocks.

    The file counts as exposed, because its path may have been returned to clients. Its modification time is its last use.
    """
    array_id = path.name.removesuffix(SUFFIX)
    try:
        state = path.stat()
        layout = read_layout(path, array_id)
    except ArrayNotFound:
        path.unlink(missing_ok=True)
        return None
    except OSError:
        return None
    used = now() - max(0.0, time.time() - state.st_mtime)
    return ArrayRecord(array_id, layout, path.parent, ready=True, exposed=True, created=state.st_ctime, used=used)


def name_conflict(record: ArrayRecord) -> ArrayConflict:
    """Return the error for a name that this array already has."""
    if record.delete_pending:
        return ArrayConflict(f"The array {record.id} was deleted but is still in use and keeps its name until then: use another name")
    return ArrayConflict(f"The array {record.id} already exists, and arrays are immutable: delete it first, or use another name")
