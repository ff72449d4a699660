"""Proof that a runtime and an agent share a folder: each reads what the other has written there.

The agent also leases the runtime's file. If the runtime sees that lease, the file locks of both machines exclude each other.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from openruntime_jupyter.arrays import blocks
from openruntime_jupyter.arrays.blocks import UNFINISHED

PREFIX = "proof-"
BYTES = 32
FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(slots=True)
class FolderProof:
    """Answer of an agent that has found the file at `path`, with the `content` of that file and that of the file at `answer_path`."""

    path: str
    content: str
    answer_path: str
    answer: str


@dataclass(slots=True)
class SharedFolders:
    """Files of a runtime in its folders until the agent has answered. Its methods block."""

    contents: dict[str, str] = field(default_factory=dict)
    """Random content of each file, by path."""

    @classmethod
    def offer(cls, folders: list[str]) -> SharedFolders:
        """Write a file into each folder in which that is possible."""
        offered = cls()
        for folder in folders:
            with contextlib.suppress(OSError):
                path, content = _path(folder), secrets.token_hex(BYTES)
                _write(path, content)
                offered.contents[path] = content
        return offered

    def verify(self, proofs: tuple[FolderProof, ...]) -> dict[str, bool]:
        """Return the shared folders, each with True if leases of files hold between both machines; then remove the files."""
        shared: dict[str, bool] = {}
        for proof in proofs:
            folder = str(Path(proof.path).parent)
            with contextlib.suppress(OSError):
                known = self.contents.get(proof.path) == proof.content and str(Path(proof.answer_path).parent) == folder
                if known and _read(proof.answer_path) == proof.answer:
                    leases = _leased(proof.path)
                    # Files that the runtime reuses for other arrays must be leased by everyone who reads them.
                    if leases or not blocks.leases_hold(Path(folder)):
                        shared[folder] = leases
                    Path(proof.answer_path).unlink()
        self.remove()
        return shared

    def remove(self) -> None:
        """Remove the files."""
        for path in self.contents:
            with contextlib.suppress(OSError):
                Path(path).unlink(missing_ok=True)


def prove(paths: tuple[str, ...]) -> tuple[tuple[FolderProof, ...], list[int]]:
    """Return the proof of each folder that this process shares, and descriptors that lease its files until they are closed. Blocks."""
    proofs: list[FolderProof] = []
    leases: list[int] = []
    for path in paths:
        if not Path(path).name.startswith(PREFIX):
            continue
        with contextlib.suppress(OSError, UnicodeDecodeError):
            content = _read(path)
            answer_path, answer = _path(str(Path(path).parent)), secrets.token_hex(BYTES)
            _write(answer_path, answer)
            descriptor = os.open(path, os.O_RDONLY | FLAGS)
            leases.append(descriptor)
            blocks.lease(descriptor, path)
            proofs.append(FolderProof(path, content, answer_path, answer))
    return tuple(proofs), leases


def _path(folder: str) -> str:
    return f"{folder}/{PREFIX}{secrets.token_hex(8)}{UNFINISHED}"


def _write(path: str, content: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS, 0o600)
    try:
        os.write(descriptor, content.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | FLAGS)
    try:
        return os.read(descriptor, 2 * BYTES).decode()
    finally:
        os.close(descriptor)


def _leased(path: str) -> bool:
    try:
        return blocks.leased(Path(path))
    except OSError:  # the file system has no such locks
        return False
