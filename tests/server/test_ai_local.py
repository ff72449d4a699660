"""AI tasks on a real server with a tiny local model in a worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gguf_twin import write_twin
from tests.server.ai_support import ask, post, told
from tests.server.conftest import error_of
from tests.support import STANDALONE, TOKEN, Server, running_server, wait_until
from tests.tiny_model import STRICT_TEMPLATE, make_thinking_model, make_tiny_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("local")
    make_tiny_model(folder / "models" / "tiny", context=4096)
    config = {"OpenRuntimeApp": {"models_dir": str(folder / "models"), "cpu_slots": 1}}
    with running_server(folder, STANDALONE, token=TOKEN, config=config) as running:
        yield running


def short(**more: Any) -> dict[str, Any]:
    return {"max_tokens": 8, **more}


def test_local_model_answers_without_account(server: Server) -> None:
    task = ask(server, "Create a sorting algorithm", "code_generation", parameters=short(language="python"))
    assert (task["status"], task["model_used"], task["agent"]) == ("completed", "tiny", "DEVELOPER")
    answer = task["answer"]
    assert answer["provider"] == "local"
    assert 0 < answer["completion_tokens"] <= 8
    assert task["tokens_used"] == answer["prompt_tokens"] + answer["completion_tokens"]
    assert server.get(f"/tasks/{task['task_id']}")["device_used"] == "device_0"


def test_client_without_login_may_use_local_model(server: Server) -> None:
    body = {"workflow_type": "model_inference", "prompt": "hello", "parameters": short()}
    response = server.client.post(f"{server.url}/ai/tasks", json=body, timeout=180)
    assert response.json()["status"] == "completed"
    assert server.client.get(f"{server.url}/models").json()["models"][0]["path"] is None


def test_local_model_streams_text(server: Server) -> None:
    body = {"workflow_type": "model_inference", "prompt": "on and on", "parameters": short(max_tokens=40), "stream": True}
    with server.client.stream("POST", f"{server.url}/ai/tasks", json=body, headers=server.headers, timeout=180) as response:
        got = list(told(response))
    assert got[-1][1]["status"] == "completed"
    assert "".join(data["text"] for name, data in got if name == "token") == got[-1][1]["result"]


def test_model_list_shows_loaded_model_and_unload_frees_it(server: Server) -> None:
    ask(server, "load it", parameters=short())
    (model,) = server.get("/models")["models"]
    assert (model["name"], model["kind"], model["engine"], model["context_length"], model["default"]) == (
        "tiny",
        "mlx",
        "mlx-lm",
        4096,
        True,
    )
    assert model["path"].endswith("/models/tiny")
    assert model["abilities"][0] == "chat"
    assert model["memory_bytes"] > 0
    newest = ask(server, "how fast?", parameters=short())["answer"]
    measured = server.get("/models")["models"][0]
    assert (measured["tokens_per_second"], measured["prompt_tokens_per_second"]) == (
        newest["tokens_per_second"],
        newest["prompt_tokens_per_second"],
    )
    (resident,) = model["resident"]
    assert (resident["state"], resident["lane"]) == ("idle", "device_0")
    assert resident["resident_bytes"] > 0
    answer = server.request("DELETE", "/models/tiny")
    assert answer.json() == {"unloaded": ["tiny"]}
    assert server.get("/models")["models"][0]["resident"] == []
    assert "not in memory" in error_of(server.request("DELETE", "/models/tiny"), 404)["error"]


def test_busy_model_is_not_unloaded_and_cancel_keeps_it(server: Server) -> None:
    task = ask(server, "for long", parameters={"max_tokens": 3000}, wait=False)
    wait_until(lambda: server.get(f"/tasks/{task['task_id']}")["status"] == "running", 60, "it runs")
    with server.client.stream("GET", f"{server.url}/tasks/{task['task_id']}/tokens", headers=server.headers, timeout=180) as response:
        assert next(told(response))[0] == "token"
    assert "ai_task_" in error_of(server.request("DELETE", "/models/tiny"), 409)["error"]
    assert server.request("DELETE", f"/tasks/{task['task_id']}").json()["status"] == "cancelled"
    assert server.get("/models")["models"][0]["resident"][0]["state"] == "idle"


def test_insights_skip_model_after_rejected_rewriting(server: Server) -> None:
    ask(server, "load it", parameters=short())
    body = {"metric_type": "performance", "timeframe": "5m"}
    first, second = (server.request("POST", "/ai/insights", json=body).json() for _ in range(2))
    assert "tiny" in first["notice"]
    assert (first["worded_by"], second["worded_by"], second["notice"]) == ("none", "none", None)
    assert first["insights"].startswith("Based on the last 5 minutes")
    asked = [task for task in server.get("/tasks")["tasks"] if task["operation"] == "generate"]
    assert server.request("POST", "/ai/insights", json={**body, "wording": "local"}).json()["notice"] == first["notice"]
    again = [task for task in server.get("/tasks")["tasks"] if task["operation"] == "generate"]
    assert len(again) == len(asked) + 1, "whoever asks for its words gets it asked"


def test_unknown_model_error_lists_available_models(server: Server) -> None:
    message = error_of(post(server, "x", parameters={"model": "huge"}), 422)["error"]
    assert "'huge'" in message
    assert "tiny" in message


def test_too_long_prompt_is_rejected_with_token_counts(server: Server) -> None:
    task = ask(server, "word " * 20_000, parameters=short())
    assert task["status"] == "failed"
    assert "4,096" in task["error"], task["error"]


def test_local_model_streams_its_reasoning(server: Server, tmp_path: Path) -> None:
    options = short(max_tokens=2000, temperature=1.0, model=str(make_thinking_model(tmp_path / "thinks")))
    body = {"workflow_type": "model_inference", "prompt": "why?", "parameters": options, "stream": True}
    with server.client.stream("POST", f"{server.url}/ai/tasks", json=body, headers=server.headers, timeout=180) as response:
        events = told(response)
        got = [next(events) for _ in range(3)]
        task_id = response.headers["Location"].rpartition("/")[2]
        output = server.get(f"/tasks/{task_id}/output?record=true")
    assert [name for name, _ in got] == ["reasoning"] * 3
    text = "".join(data["text"] for _, data in got)
    assert [data["index"] for _, data in got] == [0, len(got[0][1]["text"]), len(text) - len(got[2][1]["text"])]
    assert output["reasoning"].startswith(text), "the notebook shows the reasoning of a running task"
    assert "reasoning" not in server.get(f"/tasks/{task_id}/output")


def test_strict_template_answers_all_workflows_and_conversations(server: Server, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "strict", context=4096)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": STRICT_TEMPLATE}))
    model = str(write_twin(folder, tmp_path / "strict.gguf"))
    for workflow in ("model_inference", "code_generation", "optimization", "system_analysis"):
        task = ask(server, "Hello", workflow, parameters=short(model=model, context="a file"))
        assert task["status"] == "completed", (workflow, task["error"])
    for turn in range(3):
        task = ask(server, f"turn {turn}", parameters=short(model=model, conversation="strict", agent="DEVELOPER"))
        assert task["status"] == "completed", (turn, task["error"])
