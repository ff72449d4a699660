"""Files and folders that only their owner reads, whatever the umask says."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER_MODE = 0o700
FILE_MODE = 0o600


def private_folder(path: Path) -> Path:
    """Make `path` if it is missing, and close it to everyone else where it is ours; raises OSError where it can't be made.

    Folders above it that are missing are made private too: with an odd umask nobody could go through them.
    """
    if not path.parent.exists():
        private_folder(path.parent)
    try:
        path.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        if not path.is_dir():
            raise
        close_to_others(path)
    else:
        path.chmod(FOLDER_MODE)
    return path


def private_file(path: Path) -> None:
    """Make an empty `path` if it is missing, and close it to everyone else where it is ours.

    An existing file is never opened: closing a descriptor would drop the locks that SQLite holds on it in this process.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)
    except FileExistsError:
        close_to_others(path)
        return
    try:
        os.fchmod(descriptor, FILE_MODE)
    finally:
        os.close(descriptor)


def close_to_others(path: Path) -> None:
    """Take every permission on `path` from everyone but its owner, where that is this user; what the owner may do stays."""
    found = path.stat()
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        path.chmod(found.st_mode & 0o700)
