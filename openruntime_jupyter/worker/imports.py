"""Modules of a worker: imported ahead of its task, checked against the disk, and read from source where bytecode may be stale.

A task must run the code that is on disk now. A worker is new for each task, so only modules imported before the task can be stale: those
of this package, those that a spare worker imported ahead, and, within a burst of calls, those of earlier calls.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import site
import sys
import sysconfig
import time
from collections.abc import Iterable
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from types import CodeType, ModuleType
from typing import Any

State = tuple[int, int]
"""Time of the last change of a file's content or attributes (ctime) in nanoseconds, and its size in bytes.

Programs that unpack or copy files set the modification time, to the same second or into the past. They can't set this time.
"""


def installed_folders() -> tuple[str, ...]:
    """Return the folders of the standard library and of installed packages, each with a trailing separator."""
    named = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = [*named, *site.getsitepackages(), site.getusersitepackages()]
    return tuple(dict.fromkeys(os.path.join(os.path.realpath(folder), "") for folder in folders if folder))


class FreshSourceLoader(SourceFileLoader):
    """Loader that ignores bytecode which is not newer than its source.

    Python considers bytecode current if the source has the recorded size and the recorded modification time in whole seconds. After two
    edits within a second that keep the size, or after a copy that restores the time, Python would run the older version.
    """

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the code of the module; see `SourceFileLoader`."""
        source = self.get_filename(fullname)
        try:
            cached = os.stat(importlib.util.cache_from_source(source)).st_mtime_ns
            if cached > os.stat(source).st_ctime_ns:
                return super().get_code(fullname)
        except (OSError, NotImplementedError):  # no bytecode: nothing can be stale
            return super().get_code(fullname)
        return self.source_to_code(self.get_data(source), source)


def read_fresh_sources(installed: tuple[str, ...]) -> None:
    """Use `FreshSourceLoader` for modules outside of the installed folders."""
    make = FileFinder.path_hook(
        (ExtensionFileLoader, EXTENSION_SUFFIXES), (FreshSourceLoader, SOURCE_SUFFIXES), (SourcelessFileLoader, BYTECODE_SUFFIXES)
    )

    def find(folder: str) -> Any:
        if os.path.join(os.path.realpath(folder), "").startswith(installed):
            raise ImportError("installed: left to the default finder", path=folder)
        return make(folder)

    sys.path_hooks.insert(0, find)
    sys.path_importer_cache.clear()


class Imports:
    """Imported modules of this process, and the state of their files at import time.

    Parameters
    ----------
    installed
        Folders as `installed_folders` returns them.
    """

    def __init__(self, installed: tuple[str, ...]) -> None:
        self._installed = installed
        self._roots = {folder: _modified(folder) for folder in installed}
        self._seen: set[str] = set(sys.modules)
        self._ahead: dict[str, State] = {}
        self._ahead_packages: set[str] = set()
        self._own: dict[str, State] = {}
        self._folders: dict[str, int | None] = {}
        self._unsure: str | None = None

    def ready(self) -> None:
        """Mark all modules imported so far as those of the worker itself."""
        self._seen = set(sys.modules)

    def import_ahead(self, modules: Iterable[str]) -> None:
        """Import installed modules for future tasks; skip modules that fail or are not installed."""
        begun, before = time.time_ns(), set(self._seen)
        for name in modules:
            if name not in sys.modules and self._is_installed_package(name.partition(".")[0]):
                try:
                    importlib.import_module(name)
                except BaseException:  # noqa: S112 - the task that imports it reports the error
                    continue
        self._note(begun)
        self._ahead_packages |= {name.partition(".")[0] for name in self._seen - before}
        self._folders = {folder: _modified(folder) for folder in self._early_folders()}

    def changed(self, reused: bool) -> str | None:
        """Return the first file that changed since it was imported, or None.

        Parameters
        ----------
        reused
            True if the process has run a call of the same burst. Installed packages are then not checked, which would double the
            overhead of each call.
        """
        if self._unsure is not None:
            return self._unsure
        for file, state in self._own.items():
            if _state(file) != state:
                return file
        return None if reused else self._changed_installed() or self._shadow()

    def _changed_installed(self) -> str | None:
        for folder, modified in self._roots.items():
            if _modified(folder) != modified:
                return folder
        return next((file for file, state in self._ahead.items() if _state(file) != state), None)

    def end_task(self, begun: int) -> bool:
        """Record the imports of a task that began at `begun` (ns since the epoch); return False if the process can't be reused."""
        if len(sys.modules) != len(self._seen):
            if not self._seen <= sys.modules.keys():  # the task has removed modules, which the worker may need
                return False
            self._note(begun)
        return self._unsure is None

    def new_installed(self) -> list[str]:
        """Return the installed modules that a task has imported, in order."""
        new = [(name, module) for name, module in tuple(sys.modules.items()) if name not in self._seen]
        return [name for name, module in new if self._is_installed(_file_of(module))]

    def _note(self, begun: int) -> None:
        for name, module in tuple(sys.modules.items()):
            if name in self._seen:
                continue
            self._seen.add(name)
            file = _file_of(module)
            state = _state(file) if file is not None else None
            if file is None or state is None:
                continue
            (self._ahead if self._is_installed(file) else self._own)[file] = state
            if state[0] >= begun:  # written while it may have been read
                self._unsure = file

    def _is_installed(self, file: str | None) -> bool:
        return file is not None and (file.startswith(self._installed) or os.path.realpath(file).startswith(self._installed))

    def _is_installed_package(self, name: str) -> bool:
        if name in sys.modules:
            return self._is_installed(_file_of(sys.modules[name]))
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return False
        if spec is None:
            return False
        paths = [spec.origin] if spec.origin not in (None, "namespace") else list(spec.submodule_search_locations or ())
        return bool(paths) and all(self._is_installed(path) for path in paths)

    def _early_folders(self) -> list[str]:
        """Return the entries of the import path before the installed packages."""
        folders = []
        for entry in sys.path:
            folder = os.path.join(os.path.realpath(entry or os.curdir), "")
            if folder.startswith(self._installed):
                if "-packages" in folder:
                    break
                continue
            folders.append(folder)
        return folders

    def _shadow(self) -> str | None:
        """Return a new file of the caller that has the name of a package imported ahead."""
        for folder in self._early_folders() if self._ahead_packages else ():
            if _modified(folder) == self._folders.get(folder, -1):
                continue
            try:
                entries = os.listdir(folder)
            except OSError:
                continue
            for entry in entries:
                top = entry.partition(".")[0]
                if top in self._ahead_packages and not self._comes_from(folder, top):
                    return os.path.join(folder, entry)
        return None

    def _comes_from(self, folder: str, top: str) -> bool:
        """Return whether the module `top` was imported from `folder`."""
        file = _file_of(sys.modules.get(top))
        return file is not None and os.path.realpath(file).startswith(folder)


def _file_of(module: ModuleType | None) -> str | None:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) else None


def _state(file: str) -> State | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_ctime_ns, status.st_size


def _modified(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None
