"""The document from which the SDKs' types are generated is the one that servers return."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import STANDALONE, running_server

ROOT = Path(__file__).parents[2]


def test_committed_document_is_current(tmp_path: Path) -> None:
    written = tmp_path / "openapi.json"
    subprocess.run([sys.executable, str(ROOT / "tools" / "write-openapi"), str(written)], cwd=ROOT, check=True, timeout=120)
    committed = (ROOT / "sdks" / "openapi.json").read_text(encoding="utf-8")
    assert written.read_text(encoding="utf-8") == committed, "run `tools/write-openapi`, and then `sdks/generate.py`"


def test_server_returns_the_same_document(tmp_path: Path) -> None:
    from openruntime_jupyter.server.openapi.document import document
    from openruntime_jupyter.server.routes import ROUTES

    with running_server(tmp_path, STANDALONE) as server:
        assert server.get("/openapi.json") == document(ROUTES, without_token=True)
