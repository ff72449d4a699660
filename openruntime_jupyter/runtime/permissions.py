"""Files and folders that only their owner can access, independent of the umask, and refusal of those that others can change."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

FOLDER_MODE = 0o700
FILE_MODE = 0o600
OTHERS = 0o077


class UnsafePath(PermissionError):
    """Error for a file or folder that another user could change."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EPERM, reason, str(path))


def private_folder(path: Path, links: bool = True) -> Path:
    """Create the folder if it is missing, and remove the permissions of others.

    Missing parent folders are created private as well, because an unusual umask could make them inaccessible. A link is followed if this
    user or root made it, unless `links` is False. Raises `UnsafePath` if another user may have changed the content, and `OSError` if the
    folder cannot be created.
    """
    if not path.parent.exists():
        private_folder(path.parent)
    try:
        path.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        _close_folder(path, links)
    else:
        if os.lstat(path).st_mode & 0o777 != FOLDER_MODE:  # by an unusual umask
            path.chmod(FOLDER_MODE)
    return path


def _close_folder(path: Path, links: bool) -> None:
    link = os.lstat(path)
    if stat.S_ISLNK(link.st_mode):
        if not links:
            raise UnsafePath(path, "it is a link")
        _check_owner(path, link)
    target = os.path.realpath(path)
    # Neither the check nor the change of the mode must reach another folder that is put in its place.
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        own = found.st_uid == os.geteuid()
        # An empty folder has nothing that others put there.
        if not own or (found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and os.listdir(descriptor)):
            check_private(path, found)
        if own and found.st_mode & OTHERS:
            os.fchmod(descriptor, found.st_mode & FOLDER_MODE)
    finally:
        os.close(descriptor)


def private_file(path: Path) -> None:
    """Create an empty file if it is missing, and remove the permissions of others.

    An existing file is never opened, because closing a descriptor would release SQLite's locks on it in this process. Raises `UnsafePath`
    if it is a link or another user may have changed it.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    except FileExistsError:
        check_private(path, os.lstat(path))
        close_to_others(path)
        return
    try:
        os.fchmod(descriptor, FILE_MODE)
    finally:
        os.close(descriptor)


def close_to_others(path: Path) -> None:
    """Remove all permissions of others on a file if this user owns it; the owner's permissions do not change, nor does a link's target."""
    found = os.lstat(path)
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & OTHERS:
        path.chmod(found.st_mode & 0o700)


def check_private(path: Path, found: os.stat_result) -> None:
    """Raise `UnsafePath` if other users than root may have changed the file or folder; `found` is its `lstat`."""
    if stat.S_ISLNK(found.st_mode):
        raise UnsafePath(path, "it is a link")
    _check_owner(path, found)
    if found.st_mode & stat.S_IWOTH:
        raise UnsafePath(path, "every user can write to it")
    if found.st_mode & stat.S_IWGRP and (group := _group_of_others(found.st_gid)) is not None:
        raise UnsafePath(path, f"the group {group} can write to it")


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid in (0, os.geteuid()):
        return
    try:
        name = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        # In a container, folders of the host can belong to users that do not exist there.
        return
    raise UnsafePath(path, f"it belongs to the user {name}")


def _group_of_others(group: int) -> str | None:
    """Return the name of the group if it has other members than this user and root, else None, as for a user's own group."""
    try:
        found = grp.getgrgid(group)
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None
    return found.gr_name if group and set(found.gr_mem) - {name, "root"} else None
