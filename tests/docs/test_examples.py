"""Run the examples of the README and of the API reference, metrics and deployment pages with one real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import STANDALONE, Server, running_server, wait_until

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("api-reference", "metrics", "deployment", "insights")}
EXECUTABLE = ("api-reference", "metrics", "insights")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# By default curl returns 0 for HTTP errors.
STRICT = 'set -euo pipefail\ncurl() { command curl --silent --show-error --fail-with-body "$@"; }\n'
# Each block is a cell of one notebook. Placeholders of the examples are defined here.
NOTEBOOK = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance(colors="nocolor")
shell.user_ns["size"] = 64
for cell in json.load(sys.stdin):
    shell.run_cell(cell).raise_error()
print("total" in shell.user_ns, shell.user_ns["handle"].status)
"""


def blocks(language: str) -> list[Any]:
    """Return the examples in a language as parameters of a test, named by page and line."""
    found = [(name, match) for name in EXECUTABLE for match in BLOCK.finditer(PAGES[name]) if match[1] == language]
    return [pytest.param(match[2], id=f"{name}-{PAGES[name][: match.start()].count(chr(10)) + 1}") for name, match in found]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), STANDALONE) as running:
        yield running


def addressed(server: Server, text: str) -> str:
    code = text.replace("http://localhost:8000", server.url).replace("ws://localhost:8000", server.ws_url.removesuffix("/ws"))
    assert "localhost" not in code
    return code


def shell(server: Server, folder: Path, text: str) -> str:
    """Run an example in bash and return its output."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "TOKEN": server.token or ""}
    command = ["bash", "-c", STRICT + addressed(server, text)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{server.tail()}"
    return done.stdout


@pytest.mark.parametrize("text", blocks("python"))
def test_python_example_runs(server: Server, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TOKEN", server.token or "")
    exec(addressed(server, text), {})


@pytest.mark.parametrize("text", blocks("bash"))
def test_shell_example_runs(server: Server, tmp_path: Path, text: str) -> None:
    shell(server, tmp_path, text)


@pytest.mark.parametrize("text", blocks("json"))
def test_json_example_is_valid(text: str) -> None:
    assert json.loads(text)


def test_service_response_matches_page(server: Server) -> None:
    shown = next(json.loads(found[2]) for found in BLOCK.finditer(PAGES["api-reference"]) if '"running"' in found[2])
    assert server.get("/") == shown


def cells(task_id: str) -> list[str]:
    """Return the README's code blocks as cells, with one line magic per cell."""
    found = []
    for language, block in BLOCK.findall(README):
        text = re.sub(r"task_01\.\.\.", task_id, re.sub(r"\bID\b", task_id, block))
        lines = text.splitlines()
        if language == "python":
            found += lines if all(line.startswith("%openruntime") for line in lines) else [text]
    return found


def test_python_and_magics_of_readme_run(server: Server) -> None:
    done = server.submit("matrix_multiply", {"size": 32})
    before = {name: server.get("/tasks", params={"operation": name})["total_count"] for name in ("python", "call")}
    process = subprocess.run(
        [sys.executable, "-c", NOTEBOOK],
        input=json.dumps(cells(done["task_id"])),
        env=server.home.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.splitlines()[-1] == "True completed"
    after = {name: server.get("/tasks", params={"operation": name})["total_count"] for name in before}
    assert after["python"] - before["python"] == 4, "including the cell of the doctor"
    assert after["call"] - before["call"] > 1, "the call, and the chunks of the map"


def test_standalone_example_of_readme_runs(server: Server, tmp_path: Path) -> None:
    (command,) = re.findall(r"^curl -X POST http://localhost:8000/tasks.*?(?=^```)", README, re.MULTILINE | re.DOTALL)
    assert json.loads(shell(server, tmp_path, command))["status"] == "completed"


def test_metrics_of_suggested_alerts_exist(server: Server) -> None:
    named = set(re.findall(r"\bopenruntime_\w+", PAGES["deployment"].split("## Monitoring", 1)[1].split("\n## ", 1)[0]))
    assert named

    def all_exist() -> bool:
        text = server.request("GET", "/metrics", headers={"Accept": "text/plain"}).text
        return named <= {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}

    wait_until(all_exist, what=f"metrics {named}")


def test_page_lists_files_on_disk(server: Server) -> None:
    listed = set(re.findall(r"`([\w.-]+?)(?:/[\w.*]*)?`", PAGES["deployment"].split("## Files on disk", 1)[1].split("## ", 1)[0]))
    server.submit("matrix_multiply", {"size": 16})
    folder = server.home.data_dir
    found = {path.name for path in folder.iterdir()}
    assert {name for name in found if not name.endswith(("-wal", "-shm"))} <= listed
    assert not [path for path in (folder, *folder.rglob("*")) if path.exists() and path.stat().st_mode & 0o077]
