"""The OpenAPI document is valid and complete: every route, and every response (`tests/fits.py` checks each)."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from tornado import web

from openruntime_jupyter.client.array_data import Arrays
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.handles import PromptHandle, TaskHandle
from openruntime_jupyter.client.transport.embedded_handlers import HANDLERS
from openruntime_jupyter.operations.registry import BUILT_IN, operations
from openruntime_jupyter.schemas.endpoints import CONNECT_EVENTS, ENDPOINTS, IDEMPOTENCY_KEY, PUT_ARRAY, STREAM_TOKENS, Endpoint
from openruntime_jupyter.schemas.outputs import OUTPUTS
from openruntime_jupyter.server.http.base import endpoint_of
from openruntime_jupyter.server.openapi.document import ALWAYS, VERBS, document
from openruntime_jupyter.server.openapi.examples import EXAMPLES
from openruntime_jupyter.server.routes import ROUTES
from tests.fits import must_be, must_fit, pointed, validator
from tests.support import Server

DOCUMENT = document(ROUTES)
TABLE = {
    (pattern, verb, handler)
    for pattern, handler in ROUTES
    for verb in VERBS
    if getattr(handler, verb) is not getattr(web.RequestHandler, verb)
}


def test_openapi_document_is_valid() -> None:
    OpenAPIV31SpecValidator(document(ROUTES, "/user/x/openruntime/", without_token=True)).validate()


def test_openapi_document_has_all_routes_and_methods() -> None:
    found = {(path, verb) for path, verbs in DOCUMENT["paths"].items() for verb in verbs}
    served = {(re.sub(r"\([^()]*\)", "{}", pattern).replace("/?", "/"), verb) for pattern, verb, _ in TABLE}
    assert {(re.sub(r"\{\w+\}", "{}", path), verb) for path, verb in found} == served
    assert len(found) == len(served)


def test_method_without_endpoint_raises_value_error() -> None:
    class Bare(web.RequestHandler):
        def get(self) -> None:
            """Do nothing."""

    with pytest.raises(ValueError, match=r"Bare\.get has no endpoint"):
        document([("/bare", Bare)])


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: f"{each.method} {each.path}")
def test_endpoint_is_served_documented_and_has_its_client_method(endpoint: Endpoint[Any]) -> None:
    (handler,) = {handler for _, verb, handler in TABLE if endpoint_of(handler, verb) is endpoint}
    method = getattr(handler, endpoint.method.lower())
    assert list(inspect.signature(method).parameters)[1:] == endpoint.names
    source = inspect.getsource(inspect.unwrap(method))
    assert re.findall(r"self\.query\((\w+)\)", source) == ([endpoint.query.__name__] if endpoint.query else [])
    assert re.findall(r"self\.body\((\w+)\)", source) == ([endpoint.body.__name__] if endpoint.body else [])
    assert ("Idempotency-Key" in source) == (IDEMPOTENCY_KEY in endpoint.headers)
    assert endpoint.method.lower() in DOCUMENT["paths"][endpoint.path]
    if endpoint.client is not None:
        kind, _, name = endpoint.client.rpartition(".")
        assert hasattr({"": Client, "TaskHandle": TaskHandle, "PromptHandle": PromptHandle, "Arrays": Arrays}[kind], name)
        assert endpoint in HANDLERS or endpoint in (STREAM_TOKENS, CONNECT_EVENTS, PUT_ARRAY)


def test_every_operation_and_parameter_has_description() -> None:
    for path, verbs in DOCUMENT["paths"].items():
        for verb, operation in verbs.items():
            where = f"{verb} {path}"
            assert 5 < len(operation["summary"]) < 140, where
            for parameter in operation["parameters"]:
                assert parameter.get("description"), f"{where}: {parameter['name']}"
            for status in ALWAYS:
                assert str(status) in operation["responses"], where
            if "requestBody" in operation and "application/json" in operation["requestBody"]["content"]:
                assert operation["requestBody"]["content"]["application/json"]["examples"], where


def test_errors_use_envelope_and_retry_after() -> None:
    for path, verbs in DOCUMENT["paths"].items():
        model = "OpenAiError" if path.startswith("/v1/") else "ErrorEnvelope"
        for operation in verbs.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    real = DOCUMENT["components"]["responses"][status] if "$ref" in answer else answer
                    assert real["content"] == {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}
                    assert ("Retry-After" in real.get("headers", {})) == (status in ("429", "503"))


@pytest.mark.parametrize("model", EXAMPLES, ids=lambda model: model.__name__)
def test_example_responses_match_schemas(model: Any) -> None:
    assert model.__name__ in DOCUMENT["components"]["schemas"]
    for example in EXAMPLES[model]:
        validator(pointed("components", "schemas", model.__name__)).validate(example)
        model.model_validate(example)


def test_example_bodies_match_schemas() -> None:
    for path, verbs in DOCUMENT["paths"].items():
        for verb, operation in verbs.items():
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                for example in content.get("examples", {}).values():
                    validator(pointed("paths", path, verb, "requestBody", "content", kind, "schema")).validate(example["value"])


def test_openapi_document_has_operation_parameters() -> None:
    for name in operations():
        schema = DOCUMENT["components"]["schemas"][f"parameters.{name}"]
        assert schema["title"] == name
        Draft202012Validator({"$ref": f"#/components/schemas/parameters.{name}", **DOCUMENT}).validate({})


BODIES: dict[str, dict[str, Any]] = {
    "call": {},
    "compute": {"expression": "a > 1", "inputs": {"a": [1, 2]}},
    "matrix_multiply": {"size": 8, "iterations": 1},
    "memory_bandwidth": {"size_mb": 1, "iterations": 1},
    "mlx_operation": {"function": "divmod", "args": [[3, 4], [2, 2]]},
    "python": {"code": "x = [1, 2]\nx", "outputs": ["x"]},
    "vector_operations": {"size": 100, "iterations": 1},
}


@pytest.mark.parametrize("operation", BODIES)
def test_output_of_operation_fits_its_schema(standalone: Server, operation: str) -> None:
    task = standalone.submit(operation, BODIES[operation])
    must_be(pointed("components", "schemas", f"output.{operation}"), task["result"]["output"], operation)


def test_every_built_in_operation_has_output_schema() -> None:
    assert set(OUTPUTS) == set(BUILT_IN)
    for name in BUILT_IN:
        assert f"output.{name}" in SCHEMAS


def objects(node: Any) -> Iterator[Any]:
    """Yield all objects of a document."""
    if isinstance(node, dict):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from objects(value)


SCHEMAS = DOCUMENT["components"]["schemas"]


def test_operation_ids_are_verbs() -> None:
    ids = [operation["operationId"] for verbs in DOCUMENT["paths"].values() for operation in verbs.values()]
    assert {"list_tasks", "submit_task", "get_task", "cancel_task", "put_array", "mark_array_ready", "connect_events"} <= set(ids)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", each) for each in ids)
    assert len(ids) == len(set(ids))
    assert not {verb for verbs in DOCUMENT["paths"].values() for verb in verbs} & {"head", "options"}, "they are no methods of a client"


def test_schemas_are_shared_components() -> None:
    assert not [node for node in objects(DOCUMENT) if "$defs" in node]
    assert {"ArrayRef", "World", "Message", "About", "ToolCall"} <= set(SCHEMAS)
    assert not [name for name in SCHEMAS if "-" in name], "a type of requests and responses has two components"
    used = {node["$ref"].removeprefix("#/components/schemas/") for node in objects(DOCUMENT) if "/schemas/" in node.get("$ref", "")}
    assert used <= set(SCHEMAS)
    named = {name for name in SCHEMAS if "." not in name}
    assert named - used == {"SuccessEnvelope"}, "the description names it"


def test_sets_of_values_have_names() -> None:
    assert {"Timeframe", "Origin", "ArrayKind", "ArrayDtype", "MetricType", "FindingKind", "Severity", "WorkerState", "ErrorCode"} <= set(
        SCHEMAS
    )
    inside = [node for name, schema in SCHEMAS.items() for node in objects(schema) if node is not schema and len(node.get("enum", ())) > 1]
    assert inside + [node for node in objects(DOCUMENT["paths"]) if "enum" in node] == []


def test_nullable_values_have_types_instead_of_unions() -> None:
    for node in objects(SCHEMAS):
        kinds = node.get("anyOf", [])
        assert not (len(kinds) == 2 and {"type": "null"} in kinds) or any("$ref" in kind for kind in kinds), node
    assert SCHEMAS["Task"]["properties"]["execution_time"]["type"] == ["number", "null"]


def test_properties_have_descriptions_and_no_titles() -> None:
    for name, schema in SCHEMAS.items():
        for field, described in ((field, each) for node in objects(schema) for field, each in node.get("properties", {}).items()):
            if isinstance(described, dict):
                assert described.get("description"), f"{name}.{field}"
                assert "title" not in described, f"{name}.{field}"


def test_only_requests_reject_further_fields() -> None:
    bodies = {endpoint.body.__name__ for endpoint in ENDPOINTS if endpoint.body is not None}
    for name in bodies | {"ClientMessage"}:
        assert SCHEMAS[name]["additionalProperties"] is False, name
    for endpoint in ENDPOINTS:
        if endpoint.model is not None:
            assert "additionalProperties" not in SCHEMAS[endpoint.model.__name__], endpoint.path


def test_events_and_messages_have_schemas() -> None:
    prefix = "#/components/schemas/"
    for path, verb in (("/tasks/{task_id}/tokens", "get"), ("/ai/tasks", "post")):
        content = DOCUMENT["paths"][path][verb]["responses"]["200"]["content"]["text/event-stream"]
        events = {"token": "TokenEvent", "reasoning": "ReasoningEvent", "tool_call": "ToolCallEvent", "task": "AiTask"}
        assert content["x-sse"] == {event: {"$ref": prefix + name} for event, name in events.items()}
    messages = DOCUMENT["paths"]["/ws"]["get"]["x-websocket"]
    assert messages == {"client": {"$ref": prefix + "ClientMessage"}, "server": {"$ref": prefix + "ServerMessage"}}
    message = SCHEMAS["ServerMessage"]
    assert message["discriminator"]["propertyName"] == "type"
    assert set(message["discriminator"]["mapping"]) == {
        *("connected", "heartbeat", "subscribed", "error"),
        *("task_update", "task_progress", "task_output", "ai_token", "metrics"),
    }
    assert len(SCHEMAS["TaskNews"]["properties"]) == 12


def test_openapi_document_has_server_url(standalone: Server, jupyter: Server) -> None:
    assert standalone.get("/openapi.json")["servers"] == [{"url": "/"}]
    found = jupyter.get("/openapi.json")
    assert found["servers"] == [{"url": "/user/x/openruntime"}]
    assert set(found["paths"]) == set(DOCUMENT["paths"])


def test_security_without_token_only_if_allowed(standalone: Server, jupyter: Server) -> None:
    assert {} in standalone.get("/openapi.json")["paths"]["/tasks"]["post"]["security"]
    found = jupyter.get("/openapi.json")["paths"]["/tasks"]
    assert {} not in found["post"]["security"]
    assert found["post"]["security"] == [{"bearer": []}, {"query": []}]
    assert set(DOCUMENT["components"]["securitySchemes"]) == {"bearer", "query"}


def answered(url: str, status: int, body: Any, kind: str = "application/json") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.Response(status, headers={"Content-Type": kind}, content=content, request=httpx.Request("GET", url))


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/", 200, {"name": "OpenRuntime", "version": "2.0.0", "status": "running", "more": 1}),
        ("/", 418, {}),
        ("/nothing", 200, {}),
        ("/tasks/task_1", 404, {"message": "Not Found", "reason": None}),
    ],
)
def test_must_fit_rejects_invalid_response(path: str, status: int, body: Any) -> None:
    with pytest.raises(AssertionError):
        must_fit("http://127.0.0.1:8000/base", answered(f"http://127.0.0.1:8000/base{path}", status, body))


def test_must_fit_accepts_valid_and_foreign_responses() -> None:
    base, service = "http://127.0.0.1:8000/base", {"name": "OpenRuntime", "version": "2.0.0", "status": "running"}
    must_fit(base, answered(f"{base}/?x=1", 200, service))
    must_fit(base, answered(base, 200, service))
    must_fit(base, answered("http://127.0.0.1:8000/basement", 418, {}))
    must_fit(base, answered(f"{base}/tasks/x/payload", 200, b"\x00", "application/octet-stream"))
    with pytest.raises(AssertionError):
        must_fit(base, answered(f"{base}/tasks/x/payload", 200, b"<p>", "text/html"))
