"""Validation of responses against the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from openruntime_jupyter.schemas.endpoints import ENVELOPE, JSON
from openruntime_jupyter.server.openapi.document import document
from openruntime_jupyter.server.routes import ROUTES

Schema = dict[str, Any]

UNDESCRIBED = ("options",)
"""Methods outside of the document, which Jupyter handles."""


def _items(validator: Any, items: Any, instance: Any, schema: Schema) -> Iterator[ValidationError]:
    """Validate only one of equal scalars: an hour of metrics has a hundred thousand, at tens of microseconds each."""
    if isinstance(instance, list) and "prefixItems" not in schema and not any(isinstance(item, list | dict) for item in instance):
        instance = list({(type(item), item): item for item in instance}.values())
    yield from Draft202012Validator.VALIDATORS["items"](validator, items, instance, schema)


Validator = extend(Draft202012Validator, {"items": _items})


@cache
def description() -> Schema:
    """Return the OpenAPI document, whose responses have no further fields: none may be undocumented."""
    result = document(ROUTES)
    close(result)
    return result


def close(node: Any) -> None:
    """Allow no further fields in the objects of a document."""
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            node.setdefault("additionalProperties", False)
        for value in node.values():
            close(value)
    elif isinstance(node, list):
        for value in node:
            close(value)


@cache
def validator(pointer: str) -> Any:
    """Return a validator of the schema at `pointer` in the document."""
    return Validator({"$ref": f"#{pointer}", **description()}, format_checker=FormatChecker())


@cache
def _paths() -> dict[str, re.Pattern[str]]:
    """Return the paths of the document with patterns of their instances; paths without parameters come first."""
    paths = sorted(description()["paths"], key=lambda known: known.count("{"))
    return {known: re.compile(re.sub(r"\{\w+\}", "[^/]+", known)) for known in paths}


def path_of(path: str) -> str | None:
    """Return the path in the document that matches `path`."""
    return next((known for known, pattern in _paths().items() if pattern.fullmatch(path or "/")), None)


def pointed(*keys: str) -> str:
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)


def must_fit(base: str, response: httpx.Response) -> None:
    """Raise AssertionError for a response of the server at the URL `base` that violates the document.

    Responses outside of `base` are ignored. Unknown paths and methods must be answered with the error envelope, those below `/v1` with an
    error in OpenAI's format.
    """
    url, verb = response.request.url, response.request.method.lower()
    root = httpx.URL(base)
    if (url.host, url.port) != (root.host, root.port) or verb in UNDESCRIBED:
        return
    mount, raw = root.raw_path.decode().rstrip("/"), url.raw_path.decode().partition("?")[0]
    if raw != mount and not raw.startswith(f"{mount}/"):
        return
    kind = response.headers.get("Content-Type", "").split(";")[0]
    known = path_of(raw.removeprefix(mount))
    entry = description()["paths"].get(known, {}).get("get" if verb == "head" else verb)
    if verb == "head" and entry is not None and "x-websocket" in entry:
        entry = None  # a WebSocket has no HEAD
    where = f"{response.request.method} {raw}: {response.status_code} as {kind}"
    if entry is None:
        openai = raw.removeprefix(mount).startswith("/v1/")
        allowed = (403, 404, 405, 400, 413, 429, 503, *((401,) if openai else ()))
        assert response.status_code in allowed, f"{where} for an undocumented path or method"
        pointer = pointed("components", "schemas", "OpenAiError" if openai else "ErrorEnvelope")
    else:
        status = str(response.status_code)
        assert status in entry["responses"], f"{where} is undocumented"
        keys = (
            ("components", "responses", status)
            if "$ref" in entry["responses"][status]
            else ("paths", str(known), verb, "responses", status)
        )
        if verb == "head":
            return
        answer = description()
        for key in keys:
            answer = answer[key]
        content = answer.get("content", {})
        documented = JSON if kind == ENVELOPE else kind
        assert documented in content or not (content or kind), f"{where} is not among {list(content)}"
        pointer = pointed(*keys, "content", documented, "schema")
    if kind.endswith("json") and verb != "head":
        response.read()
        body = response.json()
        if kind == ENVELOPE:
            must_be(pointed("components", "schemas", "SuccessEnvelope"), body, where)
            body = body["data"]
        must_be(pointer, body, where)


def must_be(pointer: str, body: Any, where: str) -> None:
    """Raise AssertionError for a body that violates the schema at `pointer` in the document."""
    problem = next(iter(validator(pointer).iter_errors(body)), None)
    assert problem is None, f"{where} does not fit: {problem}"
