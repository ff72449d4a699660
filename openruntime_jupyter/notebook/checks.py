"""Diagnostic checks that submit no task: access control, and packages for widgets."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.client.transport.protocol import Backend

Verdict = Literal["ok", "note", "wrong"]

SIGNS: dict[Verdict, tuple[str, str]] = {"ok": ("✓", "ok"), "note": ("!", "wa"), "wrong": ("✗", "no")}

TOKEN_ADVICE = "Restart this kernel to get a token from its server, or use `%openruntime connect URL?token=…`"

FOREIGN = "http://another-site.invalid"
"""Origin of a simulated malicious page."""

PACKAGES = ("ipywidgets", "anywidget")
PAGE = {"@jupyter-widgets/jupyterlab-manager": "jupyterlab_widgets", "anywidget": "anywidget"}
"""Front-end extension that JupyterLab and Notebook need for widgets, and the package that provides each."""


@dataclass(frozen=True)
class Check:
    """Result of one check: `ok`, a `note` with a suggestion, or `wrong` with a fix."""

    name: str
    verdict: Verdict
    says: str


def widgets_here() -> Iterator[Check]:
    """Check that the kernel has the packages for widgets."""
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        yield Check("widgets", "wrong", f"{' and '.join(missing)} missing here: {sys.executable} -m pip install {' '.join(missing)}")
    else:
        yield Check("widgets", "ok", f"{', '.join(found)} in this kernel")


def front_end(client: Client) -> Iterator[Check]:
    """Check that the server's front end can show widgets. Its environment may differ from the kernel's."""
    if client.where == "embedded" or not client.backend.local:
        yield Check(
            "front end", "ok", "cannot be checked from here: if pages show text instead of the dashboard, they lack the widget packages"
        )
        return
    prefixes = {Path(worker.interpreter).parent.parent for worker in client.workers()}
    missing = [package for name, package in PAGE.items() if not _installed(name, prefixes)]
    if missing:
        python = min((worker.interpreter for worker in client.workers()), default=sys.executable)
        problem = f"the server lacks {' and '.join(missing)}, so pages show text instead of the dashboard"
        yield Check("front end", "note", f"{problem}: {python} -m pip install {' '.join(missing)}, and reload the page")
    else:
        yield Check("front end", "ok", "the server has the extensions for widgets")


def _installed(name: str, prefixes: Iterable[Path]) -> bool:
    from jupyter_core.paths import jupyter_path

    folders = [*(prefix / "share" / "jupyter" / "labextensions" for prefix in prefixes), *map(Path, jupyter_path("labextensions"))]
    return any((folder / name / "package.json").exists() for folder in folders)


def access(backend: Backend) -> Iterator[Check]:
    """Check that the runtime accepts this kernel and rejects cross-site requests from the user's browser."""
    if not isinstance(backend, HttpBackend):
        yield Check("token", "ok", "not needed: the runtime is in this kernel")
        return
    how = "with a token" if backend.has_token else "without a token"
    yield Check("token", "ok", f"this kernel is accepted {how}")
    status = backend.knock(FOREIGN)
    if status in (401, 403, 404):
        yield Check("XSRF", "ok", f"cross-site requests are rejected (status {status}); requests with a token need no XSRF cookie")
    else:
        advice = "set a token or password for the server, and keep ServerApp.disable_check_xsrf off"
        yield Check("XSRF", "wrong", f"cross-site requests can submit tasks (status {status}): {advice}")
