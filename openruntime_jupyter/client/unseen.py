"""Tasks of this notebook that ended, or may have ended, while it had no kernel.

A small file of the notebook remembers a task from its submission until a kernel has seen its end. The next kernel of the notebook reports
the tasks that are left there after a restart, a crash or a shutdown.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openruntime_jupyter.client.interruption import awaited, kernel_stops
from openruntime_jupyter.environment import default_data_dir
from openruntime_jupyter.runtime.permissions import private_file, private_folder

KERNEL = uuid.uuid4().hex
"""Random id of this process."""
MOST = 100
"""Maximum number of remembered tasks of a notebook. The oldest are forgotten first."""


def notebook_key() -> str | None:
    """Return what identifies the notebook across restarts of its kernel: its path, or else the kernel's connection file."""
    path = os.environ.get("JPY_SESSION_NAME")
    if path or "ipykernel" not in sys.modules:
        return path or None
    from ipykernel.connect import get_connection_file

    with suppress(RuntimeError, OSError):  # no kernel runs in this process, or its file was removed
        return str(get_connection_file())
    return None


class UnseenTasks:
    """The remembered tasks of this notebook. Without a notebook, and without a writable data folder, none are remembered. Thread-safe."""

    def __init__(self) -> None:
        key = notebook_key()
        self._lock = threading.Lock()
        self._path: Path | None = None
        if key is not None:
            self._path = default_data_dir() / "notebooks" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def add(self, *task_ids: str) -> None:
        """Remember tasks that this kernel submitted."""
        with self._changed() as tasks:
            tasks.update(dict.fromkeys(task_ids, KERNEL))

    def remove(self, task_id: str) -> None:
        """Forget a task whose end a kernel has seen."""
        with self._changed() as tasks:
            tasks.pop(task_id, None)

    def of_earlier_kernels(self) -> list[str]:
        """Return the ids of the remembered tasks of earlier kernels, oldest first."""
        return [task_id for task_id, kernel in self._read().items() if kernel != KERNEL]

    def _read(self) -> dict[str, str]:
        if self._path is None:
            return {}
        try:
            tasks: dict[str, str] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no file, or damaged
            return {}
        return tasks if isinstance(tasks, dict) else {}

    @contextmanager
    def _changed(self) -> Iterator[dict[str, str]]:
        """Write the tasks after the block, if it has changed them."""
        if self._path is None:
            yield {}
            return
        with self._lock:
            before = self._read()
            tasks = dict(before)
            yield tasks
            if tasks == before:
                return
            with suppress(OSError):
                if not tasks:
                    self._path.unlink()
                    return
                private_folder(self._path.parent)
                draft = self._path.with_suffix(f".{KERNEL}")
                private_file(draft)
                draft.write_text(json.dumps(dict(list(tasks.items())[-MOST:])), encoding="utf-8")
                draft.replace(self._path)


def leave(where: str, *task_ids: str) -> str:
    """Remember tasks whose kernel stops, and return what becomes of them, in words that stay true. `where` is that of their backend."""
    UnseenTasks().add(*task_ids)
    (what, them) = (task_ids[0], "it") if len(task_ids) == 1 else (f"{len(task_ids):,} submitted tasks", "them")
    if where == "embedded":
        return f"{what} ended with this kernel, which hosted {them}"
    return f"{what} continued when this kernel stopped"


@atexit.register
def _remember_awaited() -> None:
    if awaited and kernel_stops():
        UnseenTasks().add(*awaited)
