"""Weights that were converted to float32, kept on disk: converting a small model takes seconds, reading it back a fraction of one."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from openruntime_jupyter.local_models.folder import LONGEST_HEADER

log = logging.getLogger(__name__)

FORMAT = 1
"""Goes up when the same file would be converted to something else."""
SUFFIX = ".gguf.safetensors"
"""Others keep their weights in the same folder."""
MOST_FILES = 4
MOST_BYTES = 40_000_000_000
SPARED = 0.1
"""The part of a disk that is left free: what is kept here can be made again."""
ABANDONED = 3600.0
"""Seconds after which a half-written file belongs to nobody."""


class Conversions:
    """A folder of converted weights, readable by its owner alone: the most recently used ones of at most `MOST_FILES` models."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self, source: Path) -> Path:
        """Where the weights of a file lie: its path, size and time of change are part of the name, and so is what converts it."""
        found = source.stat()
        identity = [
            os.path.realpath(source),
            found.st_dev,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            FORMAT,
            importlib.metadata.version("mlx"),
        ]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
        return self._folder / f"{source.stem}.{key}{SUFFIX}"

    def find(self, source: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, mx.array] | None:
        """The weights of a file, if they are kept here whole; they are read from the disk as they are used.

        What is there but is not what `shapes` say is deleted, and None is the answer.
        """
        place = self.place(source)
        try:
            if not _is_whole(place, shapes):
                log.warning("The converted weights in %s are damaged: they are made again", place)
                place.unlink(missing_ok=True)
                return None
            weights: Any = mx.load(str(place))
            os.utime(place)  # the least recently used goes first
        except (OSError, RuntimeError):
            return None
        return dict(weights)

    def keep(self, source: Path, weights: dict[str, mx.array]) -> None:
        """Write the weights of a file, whole or not at all; a disk without room for them is told in the log, and no error."""
        size = sum(array.nbytes for array in weights.values())
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            place = self.place(source)
            self._make_room(size, place)
            disk = shutil.disk_usage(self._folder)
            if size > MOST_BYTES or disk.free - size < SPARED * disk.total:
                log.info("The converted weights of %s are not kept: the disk of %s has too little room", source, self._folder)
                return
            self._write(place, weights)
        except (OSError, RuntimeError) as problem:  # MLX tells of a full disk by the latter
            log.warning("The converted weights of %s could not be kept in %s: %s", source, self._folder, problem)

    def _write(self, place: Path, weights: dict[str, mx.array]) -> None:
        part = place.with_name(f"{place.stem}.{os.getpid()}.part{SUFFIX}")
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            mx.save_safetensors(str(part), weights, metadata={"format": "mlx"})
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int, place: Path) -> None:
        """Delete what has no right to stay: abandoned parts, and the least recently used ones past the bounds."""
        kept: list[tuple[float, int, Path]] = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                found = path.stat()
                if path.name.endswith(f".part{SUFFIX}"):
                    if time.time() - found.st_mtime > ABANDONED:
                        path.unlink(missing_ok=True)
                elif path != place:
                    kept.append((found.st_mtime, found.st_size, path))
        kept.sort(reverse=True)
        total = size
        for count, (_, bytes_of, path) in enumerate(kept, 1):
            total += bytes_of
            if count >= MOST_FILES or total > MOST_BYTES:
                path.unlink(missing_ok=True)


def _is_whole(place: Path, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file holds float32 numbers of exactly these shapes, and all of them; raises OSError where there is none."""
    with place.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            return False
        try:
            described: dict[str, Any] = json.loads(file.read(length))
            described.pop("__metadata__", None)
            found = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in described.items()}
            end = max(entry["data_offsets"][1] for entry in described.values())
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return False
        return found == {name: ("F32", shape) for name, shape in shapes.items()} and os.fstat(file.fileno()).st_size == 8 + length + end
