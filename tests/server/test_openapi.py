"""The description of the API is of what there is: every route, every answer (`tests/fits.py` looks at each), and valid OpenAPI."""

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

from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.server.openapi.decorator import Answer, described, description_of
from openruntime_jupyter.server.openapi.document import ALWAYS, VERBS, document
from openruntime_jupyter.server.openapi.examples import EXAMPLES
from openruntime_jupyter.server.routes import ROUTES, routes
from tests.fits import must_fit, path_of, pointed, validator
from tests.support import STANDALONE, Server, running_server

DOCUMENT = document(ROUTES)
TABLE = {
    (pattern, verb, handler)
    for pattern, handler in ROUTES
    for verb in VERBS
    if getattr(handler, verb) is not getattr(web.RequestHandler, verb)
}


def test_it_is_valid_openapi() -> None:
    for without_token in (False, True):
        OpenAPIV31SpecValidator(document(ROUTES, "/user/x/openruntime/", without_token=without_token)).validate()


def test_every_route_and_verb_of_the_table_is_in_it_and_nothing_else_is() -> None:
    told = {(path, verb) for path, verbs in DOCUMENT["paths"].items() for verb in verbs}
    served = {(re.sub(r"\([^()]*\)", "{}", pattern).replace("/?", "/"), verb) for pattern, verb, _ in TABLE}
    assert {(re.sub(r"\{\w+\}", "{}", path), verb) for path, verb in told} == served
    assert len(told) == len(served)


def test_the_real_table_has_no_route_beyond_it() -> None:
    *ours, last = routes("/openruntime")
    assert [handler for _, handler in ours] == [handler for _, handler in ROUTES]
    assert last[0] == "/openruntime/.*"


def test_a_verb_that_nobody_described_is_a_mistake_that_is_told() -> None:
    class Bare(web.RequestHandler):
        def get(self) -> None:
            """Nothing."""

    with pytest.raises(ValueError, match=r"Bare\.get has no @described"):
        document([("/bare", Bare)])


@pytest.mark.parametrize(("pattern", "verb", "handler"), sorted(TABLE, key=str), ids=str)
def test_what_is_described_is_what_the_code_reads(pattern: str, verb: str, handler: type[web.RequestHandler]) -> None:
    said = description_of(handler, verb)
    assert said is not None
    source = inspect.getsource(inspect.unwrap(getattr(handler, verb)))
    queries, bodies = re.findall(r"self\.query\((\w+)\)", source), re.findall(r"self\.body\((\w+)\)", source)
    assert queries == ([said.query.__name__] if said.query else [])
    assert bodies == ([said.body.__name__] if said.body else [])
    assert ("Idempotency-Key" in source) == any(header.name == "Idempotency-Key" for header in said.headers)


def test_everything_is_said_in_words() -> None:
    for path, verbs in DOCUMENT["paths"].items():
        for verb, said in verbs.items():
            where = f"{verb} {path}"
            assert 5 < len(said["summary"]) < 140, where
            assert said["description"], where
            for parameter in said["parameters"]:
                assert parameter.get("description") or parameter["in"] == "path", f"{where}: {parameter['name']}"
            for status in ALWAYS:
                assert str(status) in said["responses"], where
            if "requestBody" in said and "application/json" in said["requestBody"]["content"]:
                assert said["requestBody"]["content"]["application/json"]["examples"], where
    names = [said["operationId"] for verbs in DOCUMENT["paths"].values() for said in verbs.values()]
    assert len(names) == len(set(names))


def test_every_error_is_the_envelope_and_what_may_be_tried_again_says_when() -> None:
    for verbs in DOCUMENT["paths"].values():
        for said in verbs.values():
            for status, answer in said["responses"].items():
                if int(status) >= 400:
                    real = DOCUMENT["components"]["responses"][status] if "$ref" in answer else answer
                    assert real["content"] == {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorEnvelope"}}}
                    assert ("Retry-After" in real.get("headers", {})) == (status in ("429", "503"))


@pytest.mark.parametrize("model", EXAMPLES, ids=lambda model: model.__name__)
def test_an_example_of_an_answer_fits(model: Any) -> None:
    assert model.__name__ in DOCUMENT["components"]["schemas"]
    for example in EXAMPLES[model]:
        validator(pointed("components", "schemas", model.__name__)).validate(example)
        model.model_validate(example)


def test_an_example_of_a_body_fits() -> None:
    for path, verbs in DOCUMENT["paths"].items():
        for verb, said in verbs.items():
            for kind, content in said.get("requestBody", {}).get("content", {}).items():
                for example in content.get("examples", {}).values():
                    validator(pointed("paths", path, verb, "requestBody", "content", kind, "schema")).validate(example["value"])


def test_the_parameters_of_every_operation_are_in_it() -> None:
    for name in operations():
        schema = DOCUMENT["components"]["schemas"][f"parameters.{name}"]
        assert schema["title"] == name
        Draft202012Validator({"$ref": f"#/components/schemas/parameters.{name}", **DOCUMENT}).validate({})


def test_who_needs_no_token_is_told_so_only_where_that_is_true(standalone: Server, jupyter: Server, tmp_path: Any) -> None:
    assert {} in standalone.get("/openapi.json")["paths"]["/tasks"]["post"]["security"]
    told = jupyter.get("/openapi.json")
    assert {} not in told["paths"]["/tasks"]["post"]["security"]
    assert {"cookie": [], "xsrf": []} in told["paths"]["/tasks"]["post"]["security"]
    assert {"cookie": []} in told["paths"]["/tasks"]["get"]["security"]
    config = {"StandaloneIdentity": {"allow_local": False}}
    with running_server(tmp_path, STANDALONE, config=config) as closed:
        assert {} not in closed.get("/openapi.json")["paths"]["/tasks"]["post"]["security"]


def test_head_is_described_wherever_get_is_without_a_body() -> None:
    told = {path: verbs for path, verbs in DOCUMENT["paths"].items() if "get" in verbs and path != "/ws"}
    for path, verbs in told.items():
        assert verbs["head"]["parameters"] == verbs["get"]["parameters"], path
        assert all("content" not in answer for status, answer in verbs["head"]["responses"].items() if status < "300"), path
    assert "head" not in DOCUMENT["paths"]["/ws"]
    assert {"200", "409"} <= set(told["/arrays/{array_id}"]["head"]["responses"])
    assert not {"206", "416"} & set(told["/arrays/{array_id}"]["head"]["responses"]), "ranges are GET's alone"


def test_a_server_says_where_its_paths_are(standalone: Server, jupyter: Server) -> None:
    assert standalone.get("/openapi.json")["servers"] == [{"url": "/"}]
    told = jupyter.get("/openapi.json")
    assert told["servers"] == [{"url": "/user/x/openruntime"}]
    assert set(told["paths"]) == set(DOCUMENT["paths"])


def answered(url: str, status: int, body: Any, kind: str = "application/json") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.Response(status, headers={"Content-Type": kind}, content=content, request=httpx.Request("GET", url))


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/", 200, {"name": "OpenRuntime", "version": "2.0.0", "status": "walking"}),
        ("/", 200, {"name": "OpenRuntime", "version": "2.0.0"}),
        ("/", 200, {"name": "OpenRuntime", "version": "2.0.0", "status": "running", "more": 1}),
        ("/", 418, {}),
        ("/nothing", 200, {}),
        ("/nothing", 404, {"error": "no"}),
        ("/tasks/task_1", 200, {"task_id": "task_1"}),
        ("/tasks/task_1", 404, {"message": "Not Found", "reason": None}),
    ],
)
def test_an_answer_that_does_not_fit_is_found(path: str, status: int, body: Any) -> None:
    with pytest.raises(AssertionError):
        must_fit("http://127.0.0.1:8000/base", answered(f"http://127.0.0.1:8000/base{path}", status, body))


def test_an_answer_that_fits_and_what_is_somebody_elses_pass() -> None:
    base, service = "http://127.0.0.1:8000/base", {"name": "OpenRuntime", "version": "2.0.0", "status": "running"}
    must_fit(base, answered(f"{base}/?x=1", 200, service))
    must_fit(base, answered(base, 200, service))
    must_fit(base, answered("http://127.0.0.1:8000/basement", 418, {}))
    must_fit(base, answered(f"{base}/tasks/x/payload", 200, b"\x00", "application/octet-stream"))
    with pytest.raises(AssertionError):
        must_fit(base, answered(f"{base}/tasks/x/payload", 200, b"<p>", "text/html"))


def test_the_first_path_without_parameters_counts() -> None:
    assert path_of("/tasks/enhanced") == "/tasks/enhanced"
    assert path_of("/tasks/task_1/output") == "/tasks/{task_id}/output"
    assert path_of("/tasks/a/b/c") is None


def test_a_description_survives_the_decorators_around_it() -> None:
    said = described("Tasks", Answer(description="Yes."), errors={409: "No."})(lambda: None)
    holder = type("Holder", (), {"get": staticmethod(said)})
    found = description_of(holder, "GET")
    assert found is not None
    assert (found.tag, found.errors) == ("Tasks", {409: "No."})
