"""Static forms of widgets in saved notebooks.

While a cell follows a task, its page may show widgets of the task live (`notebook/run/live_widgets.py`). Their models end with the task,
and a notebook that names them would show "model not found" when it is opened later. So would a dashboard, whose model ends with the kernel:
from its saved form, pages with the extension show their own dashboard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_path
from jupyter_server.serverapp import ServerApp
from jupyter_server.services.contents.filemanager import FileContentsManager

FRONT_END = "@jupyter-widgets/jupyterlab-manager"


def save_static_forms(server: ServerApp) -> bool:
    """Let `server` save widgets of tasks by their static form. Return whether it does, and its pages can show live ones."""
    manager = server.contents_manager
    if not isinstance(manager, FileContentsManager):  # others may not run hooks
        return False
    manager.register_pre_save_hook(without_live_widgets)  # type: ignore[no-untyped-call]
    return any(Path(folder, FRONT_END).is_dir() for folder in jupyter_path("labextensions"))


def without_live_widgets(model: dict[str, Any], **_: Any) -> None:
    """Remove live widgets and dashboards from a notebook that is about to be saved. Their displays keep the other forms."""
    from openruntime_jupyter.schemas.tasks import DASHBOARD, MARK, WIDGET  # not earlier, because pydantic would delay the start of Jupyter

    if model.get("type") != "notebook" or not model.get("content"):
        return
    for cell in model["content"].get("cells", ()):
        for output in cell.get("outputs", ()):
            data, metadata = output.get("data", {}), output.get("metadata", {})
            marked = MARK.items() <= metadata.items()
            if WIDGET in data and (marked or DASHBOARD in data):
                del data[WIDGET]
                for name in MARK if marked else ():
                    del metadata[name]
