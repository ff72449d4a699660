"""What the doctor finds without giving a runtime work to do: who is let in, and whether pages can show widgets."""

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

LET_IN = "Restart this kernel, which gets a token from its server, or write `%openruntime connect URL?token=…`"

FOREIGN = "http://another-site.invalid"
"""Where a page that means harm would come from."""

PACKAGES = ("ipywidgets", "anywidget")
PAGE = {"@jupyter-widgets/jupyterlab-manager": "jupyterlab_widgets", "anywidget": "anywidget"}
"""What JupyterLab and Notebook need to show widgets, and which package brings it."""


@dataclass(frozen=True)
class Check:
    """One part: `ok`, a `note` about what could be better, or what is `wrong`, each with what to do."""

    name: str
    verdict: Verdict
    says: str


def widgets_here() -> Iterator[Check]:
    """Whether this kernel has what makes widgets."""
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
    """Whether the pages of the server show widgets: that is decided by its environment, which is not always the kernel's."""
    if client.where == "embedded" or not client.backend.local:
        yield Check(
            "front end", "ok", "not to be seen from here: where a page shows text instead of the dashboard, it lacks widgets of its own"
        )
        return
    prefixes = {Path(worker.interpreter).parent.parent for worker in client.workers()}
    missing = [package for name, package in PAGE.items() if not _installed(name, prefixes)]
    if missing:
        python = min((worker.interpreter for worker in client.workers()), default=sys.executable)
        what = f"the server's pages lack {' and '.join(missing)}, and show text instead of the dashboard"
        yield Check("front end", "note", f"{what}: {python} -m pip install {' '.join(missing)}, and reload the page")
    else:
        yield Check("front end", "ok", "the server's pages have what shows widgets")


def _installed(name: str, prefixes: Iterable[Path]) -> bool:
    from jupyter_core.paths import jupyter_path

    folders = [*(prefix / "share" / "jupyter" / "labextensions" for prefix in prefixes), *map(Path, jupyter_path("labextensions"))]
    return any((folder / name / "package.json").exists() for folder in folders)


def access(backend: Backend) -> Iterator[Check]:
    """Who is let in: this kernel, and not the page of a stranger that is open in the user's browser."""
    if not isinstance(backend, HttpBackend):
        yield Check("token", "ok", "none is needed: the runtime is in this kernel")
        return
    how = "by its token" if backend.has_token else "without a token"
    yield Check("token", "ok", f"this kernel is let in {how}")
    status = backend.knock(FOREIGN)
    if status in (401, 403, 404):
        yield Check("XSRF", "ok", f"another site's page is refused (status {status}); what carries a token is not asked for a cookie")
    else:
        advice = "give the server a token or password, and leave ServerApp.disable_check_xsrf off"
        yield Check("XSRF", "wrong", f"another site's page could submit tasks here (status {status}): {advice}")
