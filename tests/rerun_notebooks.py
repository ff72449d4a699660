"""Update of the notebooks' outputs (`make notebooks`): run them with a real server and save the outputs.

Arguments select notebooks by name. Run this on an idle machine, because readers see the measured times.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.default_model import models_dir
from tests.support import TOKEN, Home, Server, running_server

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PORT = 8888
"""Jupyter's default port, because outputs contain it."""
CELL_SECONDS = 600


def rerun(path: Path, server: Server) -> None:
    """Run one notebook in a kernel of `server`, and save it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    ours = {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": TOKEN, "OPENRUNTIME_SERVER_PID": str(os.getpid())}
    os.environ.update(server.home.environment({**ours, "JPY_SESSION_NAME": path.name}))
    NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            # A widget without its kernel is empty and hides the text output.
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)


def main(names: list[str]) -> None:
    """Run each notebook with a separate server, so that its tables contain only its tasks."""
    paths = [FOLDER / f"{name.removesuffix('.ipynb')}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb"))
    models = str(models_dir())
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            home = Home(Path(folder))
            with running_server(home, port=PORT, config={"OpenRuntimeApp": {"models_dir": models}}) as server:
                rerun(path, server)
        print(f"{path.relative_to(FOLDER.parent)}: {path.stat().st_size:,} bytes", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
