"""Run the examples of the API reference against a real server, and compare its tables with the schemas."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from openruntime_jupyter.operations.registry import BUILT_IN, operation
from openruntime_jupyter.schemas import ai, insights
from openruntime_jupyter.schemas.sessions import Session
from openruntime_jupyter.schemas.system import Device, Health, Metrics, MetricsHistory, OperationInfo
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, Task, TaskRequest, TaskState
from openruntime_jupyter.server.routes import ROUTES
from openruntime_jupyter.server.websocket import EventsSocket
from tests.support import STANDALONE, Server, running_server

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "api-reference.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROUTE = re.compile(r"^### ([A-Z]+) (/\S*)$", re.MULTILINE)
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
VERBS = ("GET", "POST", "PUT", "PATCH", "DELETE")
EXAMPLE_SECONDS = 60
TYPES: list[type[BaseModel]] = [
    TaskRequest,
    Task,
    Failure,
    Session,
    Device,
    Metrics,
    MetricsHistory,
    Health,
    OperationInfo,
    ai.AiRequest,
    ai.AiTask,
    ai.Answer,
    insights.Insights,
    insights.Finding,
]
# By default curl returns 0 for HTTP errors.
STRICT = 'set -euo pipefail\ncurl() { command curl --silent --show-error --fail-with-body "$@"; }\n'


def blocks(*languages: str) -> list[tuple[int, str, str]]:
    """Return line, language and text of the examples in `languages`."""
    found = [(PAGE[: match.start()].count("\n") + 1, match[1], match[2]) for match in BLOCK.finditer(PAGE)]
    return [block for block in found if block[1] in languages]


def section(title: str) -> str:
    """Return the text under a heading of level 3, up to the next heading."""
    found = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^#{{2,3}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"section {title} is missing"
    return found[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), STANDALONE) as running:
        yield running


@pytest.mark.parametrize(
    ("line", "language", "text"), blocks("python", "bash"), ids=lambda value: str(value) if isinstance(value, int) else ""
)
def test_example_runs(server: Server, tmp_path: Path, line: int, language: str, text: str) -> None:
    code = text.replace("http://localhost:8000", server.url).replace("ws://localhost:8000", server.ws_url.removesuffix("/ws"))
    assert "localhost" not in code
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-c", STRICT + code]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        command,
        env={**os.environ, "PATH": path, "TOKEN": server.token or ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=EXAMPLE_SECONDS,
    )
    assert done.returncode == 0, f"line {line}: {done.stdout}{done.stderr}\n{server.tail()}"


def test_page_lists_all_routes() -> None:
    served = set()
    for pattern, handler in ROUTES:
        path = pattern.replace("([^/]+)", "{id}").replace("/?", "/")
        verbs = {"WS"} if handler is EventsSocket else {verb for verb in VERBS if verb.lower() in vars(handler)}
        served |= {(verb, path) for verb in verbs}
    assert set(ROUTE.findall(PAGE)) == served
    assert len(ROUTE.findall(PAGE)) == len(served), "duplicate route on the page"


def test_json_examples_are_valid() -> None:
    for line, _, text in blocks("json"):
        assert json.loads(text), f"line {line}"


@pytest.mark.parametrize("model", TYPES, ids=lambda model: model.__name__)
def test_field_table_matches_schema(model: type[BaseModel]) -> None:
    assert ROW.findall(section(model.__name__)) == list(model.model_fields)


@pytest.mark.parametrize("name", BUILT_IN)
def test_parameter_table_matches_operation(name: str) -> None:
    assert ROW.findall(section(name)) == list(operation(name).params.model_fields)


@pytest.mark.parametrize("name", BUILT_IN)
def test_operation_defaults_match_page(name: str) -> None:
    for line in section(name).splitlines():
        for shown in re.findall(r"default (?:`([^`]+)`|([\d,]+\d|\d))", line):
            field = ROW.findall(line)[0]
            default = operation(name).validate({}).model_dump()[field]
            # `size` is resolved where it is used: 512 unless m, n and k are given.
            assert "".join(shown).replace(",", "") == str(512 if default is None else default)


def test_page_lists_states_and_failure_kinds() -> None:
    assert {state for state in TaskState if f"`{state}`" not in section("Task")} == set()
    assert {kind for kind in FailureKind if f"`{kind}`" not in section("Failure")} == set()


def test_service_response_matches_page(server: Server) -> None:
    shown = next(json.loads(text) for _, language, text in blocks("json") if '"running"' in text)
    assert server.get("/") == shown
