"""Run the Python, magics and curl examples of the README with a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import STANDALONE, Server, running_server

PAGE = (Path(__file__).resolve().parents[2] / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
# Each block is a cell of one notebook. Placeholders of the examples are defined here.
RUN = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance(colors="nocolor")
shell.user_ns["size"] = 64
for cell in json.load(sys.stdin):
    shell.run_cell(cell).raise_error()
print("total" in shell.user_ns, shell.user_ns["handle"].status)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), STANDALONE) as running:
        yield running


def cells(task_id: str) -> list[str]:
    """Return the README's code blocks as cells, with one line magic per cell."""
    found = []
    for block in PYTHON:
        text = re.sub(r"task_01\.\.\.", task_id, re.sub(r"\bID\b", task_id, block))
        lines = text.splitlines()
        magics = all(line.startswith("%openruntime") for line in lines)
        found += lines if magics else [text]
    return found


def test_python_and_magics_of_readme_run(server: Server) -> None:
    done = server.submit("matrix_multiply", {"size": 32})
    script = cells(done["task_id"])
    assert len(script) > 10
    process = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(script),
        env=server.home.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.splitlines()[-1] == "True completed"
    assert server.get("/tasks", params={"operation": "python"})["total_count"] == 4, "including the cell of the doctor"
    assert server.get("/tasks", params={"operation": "call"})["total_count"] > 1, "the call, and the chunks of the map"


def test_standalone_example_of_readme_runs(server: Server) -> None:
    (command,) = re.findall(r"^curl -X POST (http://localhost:8000.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    command = "curl -sS --fail-with-body -X POST " + command.replace("http://localhost:8000", server.url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["status"] == "completed"
