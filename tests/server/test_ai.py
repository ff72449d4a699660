"""AI tasks on real servers with a fake provider on a real socket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
import websockets.sync.client

from tests.ai.provider_server import ProviderServer, providing
from tests.server.ai_support import KEY, ask, post, profile, steered, told
from tests.server.conftest import error_of
from tests.support import STANDALONE, TOKEN, Server, running_server, wait_until


@pytest.fixture(scope="module")
def provider() -> Iterator[ProviderServer]:
    with providing(steered) as serving:
        yield serving


@pytest.fixture(scope="module")
def server(provider: ProviderServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ai")
    (folder / "agents").mkdir()
    (folder / "agents" / "poet.md").write_text("---\nrole: POET\nname: Poet\ncapabilities: rhyme\n---\nAnswer in verse.\n")
    (folder / "agents" / "bad.md").write_text("Be bad.")
    config = profile(provider.url)
    config["OpenRuntimeApp"]["agents_dir"] = str(folder / "agents")
    with running_server(folder, STANDALONE, token=TOKEN, config=config, environment={"THE_KEY": KEY}) as running:
        yield running


def sent(provider: ProviderServer, prompt: str) -> dict[str, Any]:
    """Return the provider's last request with that prompt."""
    return next(request.json for request in reversed(provider.requests) if prompt in request.json["messages"][-1]["content"])


def messages(provider: ProviderServer, prompt: str) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in sent(provider, prompt)["messages"]]


def test_reference_ai_task_has_reference_response(server: Server, provider: ProviderServer) -> None:
    task = ask(server, "Create fibonacci", "code_generation", parameters={"language": "python", "style": "functional"}, timeout=30)
    assert task["task_id"].startswith("ai_task_")
    assert (task["status"], task["result"], task["model_used"], task["tokens_used"]) == (
        "completed",
        "You said: Create fibonacci",
        "tiny",
        15,
    )
    assert 0 < task["execution_time"] < 30
    (role, system), user = messages(provider, "Create fibonacci")
    assert role == "system"
    assert system.endswith("Programming language: python.\n\nStyle: functional.")
    assert user == ("user", "Create fibonacci")


def test_only_given_parameters_are_sent(server: Server, provider: ProviderServer) -> None:
    prompt = "  {braces} and\nlines  "
    task = ask(server, prompt)
    assert task["result"] == f"You said: {prompt}"
    body = sent(provider, prompt)
    assert body.pop("messages") == [{"role": "user", "content": prompt}]
    assert body.pop("stream") is True
    body.pop("stream_options", None)
    assert body == {"model": "tiny"}
    given = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "stop": ["x"], "seed": 3, "model": "other"}
    ask(server, "with parameters", parameters={**given, "system": "Be short.", "context": "a,b"})
    body = sent(provider, "with parameters")
    assert {name: body[name] for name in given} == given
    assert messages(provider, "with parameters") == [("system", "Be short."), ("user", "a,b\n\nwith parameters")]


def test_analysis_includes_runtime_metrics(server: Server, provider: ProviderServer) -> None:
    server.finished(server.submit("matrix_multiply", {"size": 64})["task_id"])
    ask(server, "Why so slow?", "system_analysis", parameters={"timeframe": "5m"})
    system = messages(provider, "Why so slow?")[0][1]
    device = server.get("/devices")["devices"][0]
    assert f"device_0: {device['name']}" in system
    assert "tasks that ended: " in system
    assert " completed" in system
    assert "run_time: " in system


def test_numbers_missing_in_model_input_are_reported(server: Server) -> None:
    assert ask(server, "Are 37 percent much?", "system_analysis")["unverified_numbers"] == [], "the prompt told them"
    assert ask(server, "make up a figure", "system_analysis")["unverified_numbers"] == ["98765.4"]
    assert ask(server, "make up a figure")["unverified_numbers"] == [], "only analyses are checked"


def test_settings_optimization_excludes_user_folders(server: Server, provider: ProviderServer) -> None:
    ask(server, "Tune it", "optimization", parameters={"target": "settings"})
    system = messages(provider, "Tune it")[0][1]
    assert "max_pending = 10000" in system
    assert str(server.home.path) not in system
    ask(server, "Tune this", "optimization", parameters={"language": "C"})
    assert "max_pending" not in messages(provider, "Tune this")[0][1]


def test_agent_selects_instructions_and_unknown_agent_is_rejected(server: Server, provider: ProviderServer) -> None:
    task = ask(server, "roses", parameters={"agent": "poet"})
    assert task["agent"] == "POET"
    assert messages(provider, "roses") == [("system", "Answer in verse."), ("user", "roses")]
    told = error_of(post(server, "x", parameters={"agent": "nobody"}), 422)
    assert "'nobody'" in told["error"]
    assert "ANALYST, DEVELOPER, OPTIMIZER, RESEARCHER, POET" in told["error"]


def test_agent_list_includes_invalid_files(server: Server) -> None:
    listed = server.get("/ai/agents")
    assert [agent["role"] for agent in listed["agents"]][-1] == "POET"
    assert len(listed["problems"]) == 1
    assert "bad.md: " in listed["problems"][0]


def test_ai_validation_errors_name_the_field(server: Server) -> None:
    assert "'poetry'" in error_of(post(server, "x", "poetry", stream=True), 422)["error"]
    details = error_of(post(server, "x", parameters={"tone": "dry"}), 422)["data"]["details"]
    assert details[0]["field"] == "parameters.tone"
    assert error_of(post(server, ""), 422)["data"]["details"][0]["field"] == "prompt"
    assert "local, cloud" in error_of(post(server, "x", parameters={"profile": "x"}), 422)["error"]
    assert "GET /tasks/{task_id}/tokens" in error_of(post(server, "x", stream=True, wait=False), 422)["error"]


def test_timed_out_ai_task_closes_provider_stream(server: Server, provider: ProviderServer) -> None:
    task = ask(server, "hold on", timeout=0.5)
    assert task["status"] == "timed_out"
    assert not provider.problems


def test_only_completed_ai_tasks_are_counted(server: Server) -> None:
    before = server.get("/metrics")["ai_tasks_processed"]
    ask(server, "count me")
    failed = ask(server, "fail me")
    assert (failed["status"], failed["result"], failed["answer"]) == ("failed", None, None)
    assert "no such thing" in failed["error"]
    server.submit("matrix_multiply", {"size": 16})
    assert server.get("/metrics")["ai_tasks_processed"] == before + 1
    assert server.get("/health")["metrics"]["ai_tasks_processed"] == before + 1


def test_stream_sends_tokens_then_task(server: Server) -> None:
    body = {"workflow_type": "model_inference", "prompt": "slow words", "stream": True}
    with server.client.stream("POST", f"{server.url}/ai/tasks", json=body, headers=server.headers, timeout=30) as response:
        assert response.status_code == 200
        began = time.monotonic()
        got = [(name, data, time.monotonic() - began) for name, data in told(response)]
    pieces = [data for name, data, _ in got if name == "token"]
    assert "".join(piece["text"] for piece in pieces) == "You said: slow words"
    assert [piece["index"] for piece in pieces[:2]] == [0, 10]
    assert got[-1][0] == "task"
    task = got[-1][1]
    assert (task["status"], task["result"], task["tokens_used"]) == ("completed", "You said: slow words", 15)
    assert response.headers["Location"].endswith(f"/tasks/{task['task_id']}")
    # The provider delays the second chunk by half a second.
    assert got[0][2] < got[1][2] - 0.2


def test_stream_disconnect_cancels_task(server: Server, provider: ProviderServer) -> None:
    body = {"workflow_type": "model_inference", "prompt": "hold the stream", "stream": True}
    with server.client.stream("POST", f"{server.url}/ai/tasks", json=body, headers=server.headers, timeout=30) as response:
        assert next(told(response))[0] == "token"
        task_id = response.headers["Location"].rpartition("/")[2]
    assert server.finished(task_id)["status"] == "cancelled"
    assert not provider.problems


def test_asynchronous_ai_task_can_be_streamed_from_any_position(server: Server) -> None:
    response = post(server, "slow but sure", wait=False)
    assert response.status_code == 202
    task = response.json()
    assert task["result"] is None
    where = f"{server.url}/tasks/{task['task_id']}/tokens"
    headed = server.client.head(where, headers=server.headers, timeout=30)
    assert (headed.status_code, headed.headers["Content-Type"], headed.content) == (200, "text/event-stream", b"")
    with server.client.stream("GET", where, headers=server.headers, timeout=30) as first:
        got = list(told(first))
    assert "".join(data["text"] for name, data in got if name == "token") == "You said: slow but sure"
    assert got[-1][1]["result"] == "You said: slow but sure"
    # Finished tasks can be read again, and interrupted readers can resume.
    for query, headers in (("?since=10", {}), ("", {"Last-Event-ID": "10"})):
        with server.client.stream("GET", where + query, headers={**server.headers, **headers}, timeout=30) as again:
            (name, piece), (last, _) = told(again)
        assert (name, piece, last) == ("token", {"text": "slow but sure", "index": 10}, "task")


def test_repeated_ai_request_creates_one_task(server: Server) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    conversation = uuid4().hex
    once = ask(server, "only once", "system_analysis", headers=headers, parameters={"conversation": conversation})
    server.submit("matrix_multiply", {"size": 16})  # which changes the metrics that the prompt contains
    again = ask(server, "only once", "system_analysis", headers=headers, parameters={"conversation": conversation})
    assert once["task_id"] == again["task_id"]
    assert server.get(f"/ai/conversations/{conversation}")["turns"] == 1
    assert "another request" in error_of(post(server, "other", headers=headers), 422)["error"]


def test_conversation_includes_previous_turns(server: Server, provider: ProviderServer) -> None:
    name = f"about it {uuid4().hex}"
    first = ask(server, "my name is Ada", parameters={"conversation": name})
    failed = ask(server, "please fail", parameters={"conversation": name})
    second = ask(server, "what is my name?", parameters={"conversation": name, "agent": "poet"})
    assert failed["status"] == "failed"
    assert messages(provider, "what is my name?") == [
        ("system", "Answer in verse."),
        ("user", "my name is Ada"),
        ("assistant", "You said: my name is Ada"),
        ("user", "what is my name?"),
    ]
    assert (second["conversation"], second["left_out"]) == (name, 0)
    conversation = server.get(f"/ai/conversations/{name.replace(' ', '%20')}")
    assert [turn["task_id"] for turn in conversation["messages"]] == [first["task_id"], second["task_id"]]
    assert conversation["messages"][0]["prompt"] == "my name is Ada"
    assert server.request("DELETE", f"/ai/conversations/{name}").json()["turns"] == 2
    assert repr(name) in error_of(server.request("GET", f"/ai/conversations/{name}"), 404)["error"]
    assert server.get(f"/tasks/{first['task_id']}")["status"] == "completed"


def test_concurrent_prompts_of_conversation_run_in_order(server: Server, provider: ProviderServer) -> None:
    name = uuid4().hex
    began = threading.Event()

    def one(number: int) -> Any:
        if number:
            assert began.wait(10)
        return ask(server, f"slow turn {number}", parameters={"conversation": name})

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(one, 0)
        wait_until(lambda: any("slow turn 0" in request.body.decode() for request in provider.requests), 10, "the first is asked")
        began.set()
        others = [pool.submit(one, number) for number in (1, 2)]
        tasks = [first.result(30), *(each.result(30) for each in others)]
    assert [task["status"] for task in tasks] == ["completed"] * 3
    said = server.get(f"/ai/conversations/{name}")["messages"]
    assert said[0]["prompt"] == "slow turn 0"
    assert {turn["prompt"] for turn in said} == {f"slow turn {number}" for number in range(3)}
    # Each prompt was sent with all previous turns.
    for place, turn in enumerate(said):
        before = [content for role, content in messages(provider, turn["prompt"])[:-1] if role == "user"]
        assert before == [earlier["prompt"] for earlier in said[:place]]


def test_websocket_sends_tokens_to_subscribers(server: Server) -> None:
    with websockets.sync.client.connect(server.ws_url, additional_headers=server.headers, proxy=None) as socket:
        socket.send(json.dumps({"type": "subscribe", "topics": ["ai_token"]}))
        while json.loads(socket.recv(timeout=10))["type"] != "subscribed":
            pass
        task = ask(server, "tell the socket")
        got: list[dict[str, Any]] = []
        while sum(len(each["text"]) for each in got) < len(task["result"]):
            message = json.loads(socket.recv(timeout=10))
            if message["type"] == "ai_token":
                got.append(message["data"])
    assert {each["task_id"] for each in got} == {task["task_id"]}
    assert "".join(each["text"] for each in got) == task["result"]
    assert [each["index"] for each in got[:2]] == [0, 10]


def test_profile_is_listed_without_key(server: Server) -> None:
    listed = server.get("/models")
    assert listed["profiles"] == [{"name": "cloud", "model": "tiny", "default": True}]
    task = ask(server, "where is the key?")
    answers = [server.request("GET", path).text for path in ("/models", f"/tasks/{task['task_id']}", "/openapi.json", "/tasks", "/health")]
    assert not [text for text in (*answers, server.log.read_text()) if KEY in text]
    kept = [path for path in server.home.data_dir.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not kept


def test_owner_programs_use_remote_provider_without_token(server: Server) -> None:
    # On Linux, peer credentials prove that the client belongs to the owner.
    response = server.client.post(f"{server.url}/ai/tasks", json={"workflow_type": "model_inference", "prompt": "no token"}, timeout=30)
    assert response.json()["status"] == "completed"


def test_error_without_provider_and_model_names_both_fixes(standalone: Server) -> None:
    response = post(standalone, "Is anybody there?")
    told = error_of(response, 503)
    assert "OPENAI_API_KEY" in told["error"]
    assert "jupyter openruntime pull" in told["error"]
    assert told["data"]["code"] == "no_model"
    assert "Retry-After" not in response.headers, "waiting does not install a model"
    assert standalone.get("/models") == {"models": [], "profiles": []}


def test_tokens_of_other_task_are_404(standalone: Server) -> None:
    task = standalone.submit("matrix_multiply", {"size": 16})
    assert "/output" in error_of(standalone.request("GET", f"/tasks/{task['task_id']}/tokens"), 404)["error"]
