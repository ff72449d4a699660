"""The OpenAPI document is valid and complete: every route, and every response (`tests/fits.py` checks each)."""

from __future__ import annotations

import inspect
import json
import re
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
from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.schemas.endpoints import CONNECT_EVENTS, ENDPOINTS, IDEMPOTENCY_KEY, PUT_ARRAY, STREAM_TOKENS, Endpoint
from openruntime_jupyter.server.http.base import endpoint_of
from openruntime_jupyter.server.openapi.document import ALWAYS, EXAMPLES, VERBS, document
from openruntime_jupyter.server.routes import ROUTES
from tests.fits import must_fit, pointed, validator
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
                assert parameter.get("description") or parameter["in"] == "path", f"{where}: {parameter['name']}"
            for status in ALWAYS:
                assert str(status) in operation["responses"], where
            if "requestBody" in operation and "application/json" in operation["requestBody"]["content"]:
                assert operation["requestBody"]["content"]["application/json"]["examples"], where
    names = [operation["operationId"] for verbs in DOCUMENT["paths"].values() for operation in verbs.values()]
    assert len(names) == len(set(names))


def test_errors_use_envelope_and_retry_after() -> None:
    for verbs in DOCUMENT["paths"].values():
        for operation in verbs.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    real = DOCUMENT["components"]["responses"][status] if "$ref" in answer else answer
                    assert real["content"] == {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorEnvelope"}}}
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


def test_head_is_described_like_get_without_body() -> None:
    found = {path: verbs for path, verbs in DOCUMENT["paths"].items() if "get" in verbs and path != "/ws"}
    for path, verbs in found.items():
        assert verbs["head"]["parameters"] == verbs["get"]["parameters"], path
        assert all("content" not in answer for status, answer in verbs["head"]["responses"].items() if status < "300"), path
    assert "head" not in DOCUMENT["paths"]["/ws"]
    assert {"200", "409"} <= set(found["/arrays/{array_id}"]["head"]["responses"])
    assert not {"206", "416"} & set(found["/arrays/{array_id}"]["head"]["responses"]), "only GET supports ranges"


def test_openapi_document_has_server_url(standalone: Server, jupyter: Server) -> None:
    assert standalone.get("/openapi.json")["servers"] == [{"url": "/"}]
    found = jupyter.get("/openapi.json")
    assert found["servers"] == [{"url": "/user/x/openruntime"}]
    assert set(found["paths"]) == set(DOCUMENT["paths"])


def test_security_without_token_only_if_allowed(standalone: Server, jupyter: Server) -> None:
    assert {} in standalone.get("/openapi.json")["paths"]["/tasks"]["post"]["security"]
    found = jupyter.get("/openapi.json")["paths"]["/tasks"]
    assert {} not in found["post"]["security"]
    assert {"cookie": [], "xsrf": []} in found["post"]["security"]
    assert {"cookie": []} in found["get"]["security"]


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
