"""Large and hostile JSON bodies: bounded errors, and a loop that other requests do not wait for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from openruntime_jupyter.errors import BodyTooLarge, InvalidRequest, MalformedRequest
from openruntime_jupyter.operations.registry import operation, operations
from openruntime_jupyter.schemas.ai import AiRequest
from openruntime_jupyter.schemas.arrays import ArrayRequest
from openruntime_jupyter.schemas.batch import BatchRequest, ResultsRequest
from openruntime_jupyter.schemas.chat_completions import ChatCompletionRequest
from openruntime_jupyter.schemas.insights import InsightsRequest
from openruntime_jupyter.schemas.tasks import TaskChange, TaskRequest
from openruntime_jupyter.server.http import requests
from openruntime_jupyter.server.http.requests import MOST_VALUES, read_json
from tests.support import STANDALONE, TOKEN, Server, running_server, slowness

LONGEST_WAIT = 0.5
"""Seconds that another request may take on an idle machine; one of 50 ms is an aim that a busy machine cannot show."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("large"), STANDALONE, token=TOKEN) as server:
        server.submit("matrix_multiply", {"size": 8})
        yield server


@contextmanager
def others_are_served(server: Server) -> Iterator[None]:
    """Check that other requests are answered during the block."""
    slowest, done = [0.0], threading.Event()

    def ask() -> None:
        with httpx.Client(headers=server.headers, trust_env=False) as client:
            while not done.is_set():
                begun = time.perf_counter()
                client.get(f"{server.url}/", timeout=120.0)
                slowest.append(time.perf_counter() - begun)
                done.wait(0.005)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        factor = slowness()
        done.set()
        thread.join()
    assert max(slowest) < LONGEST_WAIT * factor


def post(server: Server, path: str, body: Any) -> httpx.Response:
    content = json.dumps(body).encode()
    with others_are_served(server):
        return server.request("POST", path, content=content, headers={"Content-Type": "application/json"}, timeout=300.0)


def fields(number: int) -> dict[str, int]:
    return {f"field{index}": index for index in range(number)}


@pytest.mark.parametrize("parameters", [False, True])
def test_thousands_of_unknown_fields_give_a_short_error(server: Server, parameters: bool) -> None:
    given = fields(50_000)
    body = {"operation": "matrix_multiply", "parameters": given} if parameters else {"operation": "compute", "parameters": {}, **given}
    response = post(server, "/tasks", body)
    assert response.status_code == 422
    assert len(response.json()["data"]["details"]) <= 20
    assert "and 49,995 more" in response.json()["error"]
    assert len(response.content) < 10_000


def test_batch_of_invalid_tasks_gives_a_short_answer(server: Server) -> None:
    broken = {"operation": "matrix_multiply", "parameters": fields(25)}
    response = post(server, "/tasks/batch", {"tasks": [{**broken, "x" * 5_000: 1}] * 1_000})
    assert response.status_code == 202
    assert {item["error"]["code"] for item in response.json()["tasks"]} == {422}
    assert len(response.content) < 6_000_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tasks/batch", {"tasks": [{"operation": "matrix_multiply", "parameters": fields(60_000)}] * 10}),
        ("/tasks", {"operation": "python", "parameters": {"code": "1", "inputs": fields(500_000)}, "wait": False}),
        ("/tasks", {"operation": "python", "parameters": {"code": "1", "inputs": {"a": [[[1]]] * 1_000_000}}, "wait": False}),
    ],
    ids=["batch", "inputs", "nested"],
)
def test_body_with_too_many_values_is_rejected(server: Server, path: str, body: Any) -> None:
    response = post(server, path, body)
    assert response.status_code == 413
    assert f"{MOST_VALUES:,}" in response.json()["error"]
    assert "/arrays/" in response.json()["error"]


def test_large_task_with_few_values_is_accepted(server: Server) -> None:
    text = "1,[{" * 1_000_000
    response = post(
        server, "/tasks", {"operation": "python", "parameters": {"code": "size = len(text)", "inputs": {"text": text}, "outputs": ["size"]}}
    )
    assert response.status_code == 200
    assert response.json()["status"] == "completed", response.json()["error"]


def test_long_integers_are_rejected() -> None:
    body = b'{"tasks": [], "wait": [' + b",".join([b"9" * 4_300] * 3_600) + b"]}"
    with pytest.raises(BodyTooLarge, match="JSON values"):
        read_json(ResultsRequest, body, "application/json")


@pytest.mark.parametrize("offset", range(0, 400, 25))
def test_infinite_number_is_found_in_a_large_body(offset: int) -> None:
    start = requests.PIECE - offset
    body = b'{"tasks": ["' + b"x" * start + b'"], "wait": ' + b"9" * 300 + b"e10, " + b" " * 70_000 + b'"at_least": 1}'
    with pytest.raises(MalformedRequest, match="too large for a 64-bit float"):
        read_json(ResultsRequest, body, "application/json")


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a model and the models in its fields."""
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from models(kind)


def number_of_errors(model: type[BaseModel], value: Any) -> int:
    try:
        model.model_validate(value)
    except ValidationError as problem:
        return problem.error_count()
    return 0


BODIES = [TaskRequest, TaskChange, BatchRequest, ResultsRequest, AiRequest, ChatCompletionRequest, InsightsRequest, ArrayRequest]


@pytest.mark.parametrize("model", [*BODIES, *(kind.params for kind in operations().values())], ids=lambda model: model.__module__)
def test_wrong_items_of_a_field_give_a_bounded_number_of_errors(model: type[BaseModel]) -> None:
    """A field with typed items limits their number, because pydantic creates all errors in one call, which blocks the loop."""
    number = 11_000
    some: list[Any] = [[{}] * number, {str(index): [{}] for index in range(number)}]
    for each in models(model):
        for name, field in each.model_fields.items():
            for items in some if "dict[" in str(field.annotation) else some[:1]:
                assert number_of_errors(each, {name: items}) < number, (each, name)


def test_many_errors_are_sampled_without_false_ones() -> None:
    messages = [{"role": "user", "content": "x", "unknown": 1}] * 9_000
    with pytest.raises(InvalidRequest, match="and 8,995 more") as problem:
        operation("generate").validate({"messages": messages})
    assert {detail["problem"] for detail in problem.value.details} == {"unknown field"}
    assert len(problem.value.details) == 20


def test_long_names_and_many_invalid_items_are_shortened() -> None:
    body = json.dumps({"x" * 1_000_000: 1}).encode()
    with pytest.raises(InvalidRequest) as problem:
        read_json(ResultsRequest, body, "application/json")
    assert len(str(problem.value)) < 2_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(alphabet='a",\\[{é\n'),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(alphabet='b",\\[{'), inner, max_size=5),
    max_leaves=30,
)


def count(value: Any) -> int:
    """Return the number of commas, colons and opening brackets of a value."""
    if isinstance(value, (list, dict)):
        inside = value.values() if isinstance(value, dict) else value
        keys = len(value) if isinstance(value, dict) else 0
        return 1 + max(0, len(value) - 1) + keys + sum(map(count, inside))
    return 0


@settings(max_examples=200, deadline=None)
@given(value=JSON, piece=st.integers(1, 20))
@example(value=["\\", '\\"', '"'], piece=1)
def test_values_are_counted_outside_of_strings(value: Any, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "PIECE", piece)
        patch.setattr(requests, "ESCAPES", 10**9)
        assert requests._survey(json.dumps(value).encode())[0] == count(value)


@pytest.mark.parametrize("number", ["9" * 300 + "e10", "-" + "1" * 250 + ".5e90", "1e400", "9" * 310 + ".0"])
def test_infinite_number_is_rejected(number: str) -> None:
    with pytest.raises(MalformedRequest, match="too large"):
        read_json(ResultsRequest, f'{{"tasks": ["x"], "wait": {number}}}'.encode(), "application/json")
