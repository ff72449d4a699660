"""Disk cache of weights converted to float32. Converting a small model takes seconds, reading it back a fraction of a second."""

from __future__ import annotations

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

from openruntime_jupyter.local_models.folder import read_tensors

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the conversion; increase it when the result changes."""
SUFFIX = ".gguf.safetensors"
"""Suffix of cached files; the folder may contain other files."""
MOST_FILES = 4
MOST_BYTES = 40_000_000_000
SPARED = 0.1
"""Share of the disk that stays free, because the cache can be rebuilt."""
ABANDONED = 3600.0
"""Seconds after which an incomplete file counts as abandoned."""


class Conversions:
    """Folder of converted weights, readable only by its owner, with the most recently used ones of at most `MOST_FILES` models."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path_of(self, source: Path) -> Path:
        """Return the cache path for a weight file; its name includes a hash of the file's identity and the converter's version."""
        status, version = source.stat(), importlib.metadata.version("mlx")
        identity = (os.path.realpath(source), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, FORMAT, version)
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
        return self._folder / f"{source.stem}.{key}{SUFFIX}"

    def find(self, source: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, mx.array] | None:
        """Return the cached weights of a file, which are read lazily, or None.

        A cached file that does not match `shapes` is deleted.
        """
        path = self.path_of(source)
        try:
            if not _is_whole(path, shapes):
                log.warning("Converted weights in %s are damaged: converting again", path)
                path.unlink(missing_ok=True)
                return None
            weights: Any = mx.load(str(path))
            os.utime(path)  # the least recently used goes first
        except (OSError, RuntimeError):
            return None
        return dict(weights)

    def keep(self, source: Path, weights: dict[str, mx.array]) -> None:
        """Store the weights of a file atomically. A full disk is logged and does not raise."""
        size = sum(array.nbytes for array in weights.values())
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.path_of(source)
            self._make_room(size, path)
            disk = shutil.disk_usage(self._folder)
            if size > MOST_BYTES or disk.free - size < SPARED * disk.total:
                log.info("Converted weights of %s are not stored: too little free space on the disk of %s", source, self._folder)
                return
            self._write(path, weights)
        except (OSError, RuntimeError) as problem:  # MLX raises RuntimeError for a full disk
            log.warning("Converted weights of %s could not be stored in %s: %s", source, self._folder, problem)

    def _write(self, path: Path, weights: dict[str, mx.array]) -> None:
        part = path.with_name(f"{path.stem}.{os.getpid()}.part{SUFFIX}")
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            mx.save_safetensors(str(part), weights, metadata={"format": "mlx"})
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int, target: Path) -> None:
        """Delete abandoned files, and the least recently used ones over the limits with `size` bytes more in `target`."""
        found = sorted(((path.stat(), path) for path in self._folder.glob(f"*{SUFFIX}")), key=lambda each: -each[0].st_mtime)
        count, total = 1, size
        for status, path in found:
            if path.name.endswith(f".part{SUFFIX}"):
                if time.time() - status.st_mtime > ABANDONED:
                    path.unlink(missing_ok=True)
            elif path != target:
                count, total = count + 1, total + status.st_size
                if count > MOST_FILES or total > MOST_BYTES:
                    path.unlink(missing_ok=True)


def _is_whole(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether a file holds complete float32 arrays of exactly these shapes; raise OSError if it does not exist."""
    try:
        described, start = read_tensors(path)
        declared = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in described.items()}
        end = max(entry["data_offsets"][1] for entry in described.values())
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return False
    return declared == {name: ("F32", shape) for name, shape in shapes.items()} and path.stat().st_size == start + end
