"""Files and folders that only their owner can access, independent of the umask."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER_MODE = 0o700
FILE_MODE = 0o600


def private_folder(path: Path) -> Path:
    """Create the folder if it is missing, and remove the permissions of others if this user owns it.

    Missing parent folders are created private as well, because an unusual umask could make them inaccessible. Raises `OSError` if it
    cannot be created.
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
    """Create an empty file if it is missing, and remove the permissions of others if this user owns it.

    An existing file is never opened, because closing a descriptor would release SQLite's locks on it in this process.
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
    """Remove all permissions of others on `path` if this user owns it; the owner's permissions do not change."""
    found = path.stat()
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        path.chmod(found.st_mode & 0o700)
