"""Invalid bodies get a 4xx status in the envelope, never 5xx: hypothesis tests of the schemas on a real server."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations import registry
from openruntime_jupyter.schemas.tasks import TaskRequest
from openruntime_jupyter.server.http.requests import read_json
from tests.server.conftest import error_of
from tests.support import Server

SLOW_OR_RARE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=SLOW_OR_RARE)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=50)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4), max_leaves=12
)

RAW = [
    b"",
    b"{",
    b"null",
    b"{}",
    b'{"operation": "compute", "parameters": {"x": NaN}}',
    b'{"operation": "compute", "parameters": {"x": 1e999}}',
    b'{"operation": "compute", "parameters": {"x": ' + b"9" * 5000 + b"}}",
    b'{"operation": "compute", "parameters": {"x": ' + b"[" * 300 + b"]" * 300 + b"}}",
    b'{"operation": "compute", "parameters": ' + b'{"a":' * 150 + b"1" + b"}" * 150 + b"}",
    b"[" * 1_000_000,
    b'{"operation": "\xff\xfe", "parameters": {}}',
    b'{"operation": "\\ud800", "parameters": {}}',
    b'{"operation": "\\u0000", "parameters": {}}',
    b'{"operation": "compute", "operation": "nope", "parameters": {}}',
    b'{"operation": "matrix_multiply", "parameters": {"size": 10000000000000000000000000000000}}',
    b'{"operation": "matrix_multiply", "parameters": {"size": "1e3"}}',
    "{}".encode("utf-16"),
    b"operation=compute&parameters=",
    b"\x1f\x8b\x08\x00garbage",
]


def refused(response: httpx.Response) -> Any:
    assert 400 <= response.status_code < 500, f"{response.status_code}: {response.text[:300]}"
    return error_of(response, response.status_code)


def post(server: Server, content: bytes) -> httpx.Response:
    return server.request("POST", "/tasks", content=content, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("body", RAW, ids=lambda body: repr(body[:40]))
def test_invalid_task_body_is_rejected(standalone: Server, body: bytes) -> None:
    refused(post(standalone, body))
    refused(standalone.request("PATCH", "/tasks/task_0", content=body, headers={"Content-Type": "application/json"}))


@EXAMPLES
@given(body=ANYTHING)
def test_random_json_is_rejected(standalone: Server, body: Any) -> None:
    refused(post(standalone, json.dumps(body).encode()))
    refused(standalone.request("PATCH", "/tasks/task_0", json=body))


def details_of(validate: Callable[[], object]) -> list[dict[str, str]]:
    """Return the problems that a validation finds."""
    try:
        validate()
    except InvalidRequest as problem:
        return problem.details
    return []


@EXAMPLES
@given(value=ANYTHING)
@pytest.mark.parametrize("field", sorted(TaskRequest.model_fields))
def test_invalid_task_field_is_named(field: str, value: Any) -> None:
    body = {"operation": "compute", "parameters": {}, field: value}
    details = details_of(lambda: read_json(TaskRequest, json.dumps(body).encode(), "application/json"))
    assert not details or any(detail["field"].split(".")[0] == field for detail in details)


@pytest.mark.parametrize("operation", ["compute", "matrix_multiply", "vector_operations", "mlx_operation", "python", "call"])
@EXAMPLES
@given(data=st.data())
def test_invalid_operation_parameter_is_named(standalone: Server, operation: str, data: st.DataObject) -> None:
    kind = registry.operation(operation)
    parameters = {data.draw(st.sampled_from([*kind.params.model_fields, "no such parameter"])): data.draw(ANYTHING)}
    details = details_of(lambda: kind.validate(parameters))
    assume(details)
    told = refused(post(standalone, json.dumps({"operation": operation, "parameters": parameters, "wait": False}).encode()))
    assert told["data"]["details"] == details


def test_missing_and_unknown_fields_are_named(standalone: Server) -> None:
    told = refused(post(standalone, b'{"parameters": {}, "priorty": 3}'))
    assert {detail["field"] for detail in told["data"]["details"]} == {"operation", "priorty"}


@EXAMPLES
@given(
    query=st.dictionaries(
        st.sampled_from(["limit", "before", "offset", "state", "operation", "owner", "token"]), st.text(max_size=20), min_size=1
    )
)
def test_random_query_never_causes_server_error(standalone: Server, query: dict[str, str]) -> None:
    for path in ("/tasks", "/tasks/enhanced"):
        response = standalone.request("GET", path, params=query)
        assert response.status_code < 500, response.text
        if response.status_code != 200:
            refused(response)


@pytest.mark.parametrize(
    "query",
    [
        "limit=%ff",
        "token=%ff",
        "%ff=1",
        "before=%00%00",
        "&&==;",
        "limit=" + "9" * 5000,
    ],
)
def test_random_query_bytes_never_cause_server_error(standalone: Server, query: str) -> None:
    response = standalone.request("GET", f"/tasks?{query}")
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        refused(response)


@pytest.mark.parametrize("task_id", ["%ff", "%00", "x" * 5000, "%F0%9F%98%80", "%2e%2e%2f"])
@pytest.mark.parametrize("verb", ["GET", "DELETE"])
def test_random_id_never_causes_server_error(standalone: Server, task_id: str, verb: str) -> None:
    for path in (f"/tasks/{task_id}", f"/tasks/{task_id}/output", f"/tasks/{task_id}/payload"):
        refused(standalone.request(verb, path))


def test_too_large_body_is_rejected_without_memory(standalone: Server) -> None:
    import psutil

    process = psutil.Process(standalone.pid)
    before = process.memory_info().rss
    large = b'{"operation": "compute", "parameters": {"expression": "' + b"x" * 150_000_000 + b'"}}'
    told = error_of(post(standalone, large), 413)
    assert "max_parameters_bytes" in told["error"]
    assert process.memory_info().rss - before < 120e6
    assert standalone.get("/health")["status"] == "healthy"


def test_chunked_body_size_is_limited(standalone: Server) -> None:
    def chunks() -> Any:
        for _ in range(100):
            yield b"[" * 1_000_000

    error_of(standalone.request("POST", "/tasks", content=chunks(), headers={"Content-Type": "application/json"}), 413)


def test_unauthorized_large_body_gets_403(standalone: Server) -> None:
    response = standalone.client.post(f"{standalone.url}/tasks", content=b"x" * 5_000_000, headers={"Authorization": "token wrong"})
    error_of(response, 403)


def test_connection_continues_after_rejected_request(standalone: Server) -> None:
    with httpx.Client(trust_env=False, limits=httpx.Limits(max_connections=1)) as client:
        ports = set()
        for content in (b"{", b"x" * 100_000, b"{}"):
            headers = {**standalone.headers, "Content-Type": "application/json"}
            with client.stream("POST", f"{standalone.url}/tasks", content=content, headers=headers) as response:
                response.read()
                refused(response)
                ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        assert len(ports) == 1


@pytest.mark.parametrize(("verb", "path"), [("GET", "/tasks/%ff"), ("BREW", "/tasks")])
def test_invalid_request_line_closes_connection(standalone: Server, verb: str, path: str) -> None:
    response = standalone.request(verb, path)
    refused(response)
    assert response.headers["Connection"] == "close"


def test_client_that_leaves_within_a_small_body_submits_nothing(standalone: Server) -> None:
    known = standalone.get("/tasks")["total_count"]
    address = urlsplit(standalone.url)
    body = json.dumps({"operation": "compute", "parameters": {"expression": "1 + 1"}}).encode()
    head = f"POST /tasks HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port or 80)) as connection:
        connection.sendall(head.encode() + body[:10])
    assert standalone.get("/tasks")["total_count"] == known
    assert "Uncaught exception" not in standalone.log.read_text()


@pytest.mark.parametrize("more", [0, 100_000], ids=["whole", "in pieces"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "in chunks"])
def test_body_result_is_independent_of_chunking(standalone: Server, more: int, chunked: bool) -> None:
    body = json.dumps({"operation": "compute", "parameters": {"expression": "sum(a)", "inputs": {"a": [1, 2]}}}).encode() + b" " * more
    content = iter([body[:20], body[20:]]) if chunked else body
    answer = standalone.request("POST", "/tasks", content=content, headers={"Content-Type": "application/json"})
    assert answer.json()["result"]["output"]["value"] == 3
