"""Keys never appear in a real server's responses or files, even if the provider echoes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ai.provider_server import Connection, Request, chunk, providing
from tests.ai.providers.support import KEY
from tests.support import JUPYTER, Server, running_server

PROMPT = {"workflow_type": "model_inference", "prompt": "Hello"}


def echoes(connection: Connection, request: Request) -> None:
    """Echo the request as streamed text or, depending on the prompt, as an error."""
    sent = request.headers["authorization"]
    if "echo" not in request.json["messages"][-1]["content"]:
        connection.answer(f'{{"error": {{"message": "not with {sent}"}}}}', "401 Unauthorized", X_Sent=sent)
        return
    connection.begin()
    for start in range(0, len(sent), 5):
        connection.event(chunk(sent[start : start + 5]))
    connection.event({**chunk(None, "stop"), "model": sent})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with providing(echoes) as provider:
        profile = {"base_url": provider.url, "model": "m", "api_key": "env:THE_SECRET", "max_retries": 0}
        config = {"OpenRuntimeApp": {"profiles": {"p": profile}, "default_profile": "p", "cpu_slots": 1}, "Application": {"log_level": 10}}
        environment = {"THE_SECRET": KEY, "OPENAI_LOG": "debug"}
        with running_server(tmp_path, JUPYTER, config=config, environment=environment) as running:
            yield running


def test_echoed_key_is_stored_and_shown_nowhere(server: Server) -> None:
    failed = server.request("POST", "/ai/tasks", json=PROMPT).json()
    assert failed["status"] == "failed"
    assert "not with Bearer [key]" in failed["error"]
    answered = server.request("POST", "/ai/tasks", json={**PROMPT, "prompt": "echo"}).json()
    assert (answered["result"], answered["model_used"]) == ("Bearer [key]", "Bearer [key]")
    streamed = server.request("POST", "/ai/tasks", json={**PROMPT, "prompt": "echo", "stream": True}).text
    ids = [failed["task_id"], answered["task_id"]]
    told = [f"{server.get(f'/tasks/{each}')} {server.get(f'/tasks/{each}/output')}" for each in ids]
    environment = server.submit("python", {"code": "import os\nprint(dict(os.environ))"})
    assert environment["status"] == "completed", environment["error"]
    printed = str(server.get(f"/tasks/{environment['task_id']}/output"))
    assert "PATH" in printed
    told += [streamed, printed, str(failed), str(answered), str(server.get("/models")), str(server.get("/tasks"))]
    assert "[key]" in streamed
    assert not [text for text in told if KEY in text]
    assert KEY not in server.log.read_text()
    assert server.stop() == 0
    files = [path for path in server.home.path.rglob("*") if path.is_file()]
    assert any(path.suffix in (".sqlite", ".db", ".sqlite3") for path in files), files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
