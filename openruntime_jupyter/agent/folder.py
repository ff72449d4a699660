"""Private folder of an agent's session, which the next session removes if this one is killed."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from openruntime_jupyter.runtime.ids import make_id
from openruntime_jupyter.runtime.locks import RuntimeLock, is_alive, remove_dead_locks
from openruntime_jupyter.runtime.permissions import private_folder


class SessionFolder:
    """Folder with the payloads and temporary files of one session, locked while the session lives.

    Raises `OSError` if it can't be made.
    """

    def __init__(self, data_dir: Path, facts: dict[str, Any]) -> None:
        agents = private_folder(data_dir / "agents")
        name = make_id("agent")
        self._lock = RuntimeLock(agents, name, facts)
        self._lock.acquire()
        self.path = private_folder(agents / name)
        self.payloads = private_folder(self.path / "payloads")
        self.temporary = private_folder(self.path / "tmp")

    def remove(self) -> None:
        """Remove the folder and what killed sessions have left."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()
        remove_left_folders(self.path.parent)


def remove_left_folders(agents: Path) -> None:
    """Remove the folders of killed sessions."""
    for folder in agents.glob("agent_*"):
        if folder.is_dir() and not is_alive(agents, folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        remove_dead_locks(agents)
