"""OpenAPI 3.1 document, generated from the route table and the wire types."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from tornado import web

from openruntime_jupyter import __version__
from openruntime_jupyter.schemas.endpoints import (
    ENVELOPE,
    EVENT_STREAM,
    JSON,
    OPERATION_IDS,
    RETRY_AFTER,
    TAGS,
    VERSION_HEADER,
    Answer,
    Endpoint,
    Header,
)
from openruntime_jupyter.schemas.problems import ErrorEnvelope, SuccessEnvelope
from openruntime_jupyter.server.http.base import endpoint_of
from openruntime_jupyter.server.http.requests import MOST_VALUES
from openruntime_jupyter.server.openapi.examples import EXAMPLES
from openruntime_jupyter.server.openapi.schemas import Schema, Use, components, name_values, reference

Route = tuple[str, type[web.RequestHandler]]

VERBS = ("get", "put", "post", "delete", "patch")
"""HTTP methods in the document. Each `get` has a `head` as well, and Jupyter handles `options` for browsers."""

ABOUT = f"""One shared, visible, killable queue for MLX work.

Bodies are JSON, UTF-8. Times are UTC in ISO 8601 and end in `Z`. Sizes are in bytes and durations in seconds, unless the name has
another unit. Unknown values are `null`. All errors are an `ErrorEnvelope`, except for those below `/v1`, which have OpenAI's format. All
routes with `GET` support `HEAD`. To get successful JSON responses in a `SuccessEnvelope`, send `Accept: {ENVELOPE}`.

Responses may have further fields, because newer servers say more. The parameters of an operation NAME are the schema `parameters.NAME`, and
its output is `output.NAME` if it is built in.

Every response has the header `{VERSION_HEADER}`. Errors have a code for programs in `data.code`. Responses with status 503 have the header
`Retry-After` only if a retry can succeed, and those with status 409 and the code `idempotency_key_in_use` have it as well."""

ALWAYS = {
    400: "The body is invalid JSON, compressed, or not sent as `application/json`.",
    403: "Not logged in, or missing permission; `error` has the reason.",
    408: "The body stalled, or was too slow.",
    413: f"The body is too large, or has more than {MOST_VALUES:,} JSON values.",
    429: "Too many requests or too many concurrent requests of one user or address, if the server has limits.",
    500: "Internal server error. The message has the id of the log entry.",
    503: "Temporarily unavailable: the server is starting or stopping, the queue is full, the history cannot be written, or no worker "
    "can start.",
}
"""Errors of every method: status and reason."""
NOT_FOUND = "Unknown id."
INVALID = "Invalid value, field, operation or device; `data.details` lists the first 20 problems."
RETRY_AFTER_HEADER = Header(RETRY_AFTER, "Seconds to wait before a retry; absent if it cannot succeed.", {"type": "integer", "minimum": 1})

SECURITY_SCHEMES: dict[str, Schema] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "The server's token, as `Authorization: Bearer 0123...`. `Authorization: token 0123...` is the same. Pages of the "
        "server itself use Jupyter's login cookie instead, and send the value of the cookie `_xsrf` as the header `X-XSRFToken` with "
        "methods other than GET and HEAD.",
    },
    "query": {"type": "apiKey", "in": "query", "name": "token", "description": "The same token, if the client cannot set headers."},
}

PATH_PARAMETERS = {
    "tasks": "Id of the task.",
    "arrays": "Id or name of the array.",
    "sessions": "Id of the session.",
    "conversations": "Name of the conversation.",
    "models": "Name of the model.",
}
"""Descriptions of path parameters by the preceding part of the path."""


@dataclass(frozen=True)
class Operation:
    """Method of an endpoint with its docstring. `verb` is in lower case."""

    verb: str
    endpoint: Endpoint[Any]
    text: str


def document(routes: Sequence[Route], url: str = "/", *, without_token: bool = False) -> Schema:
    """Return the OpenAPI document for `routes`, which are served below `url`.

    `without_token` means that local programs need no token except to run their own code. Raises ValueError for a method without an
    endpoint.
    """
    found = [operation for _, handler in routes for operation in _operations(handler)]
    schemas, refs = components(_uses([each.endpoint for each in found]))
    for model, examples in EXAMPLES.items():
        if model.__name__ in schemas:
            schemas[model.__name__]["examples"] = examples
    paths: dict[str, Schema] = {}
    for each in found:
        paths.setdefault(each.endpoint.path, {})[each.verb] = _operation(each, schemas, refs, without_token)
    for name in {each.endpoint.query.__name__ for each in found if each.endpoint.query is not None}:
        del schemas[name]
    used = {each.endpoint.tag for each in found}
    result: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "OpenRuntime",
            "version": __version__,
            "summary": "One shared, visible, killable queue for MLX work.",
            "description": ABOUT,
            "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"},
        },
        "servers": [{"url": url.rstrip("/") or "/"}],
        "tags": [{"name": name, "description": meaning} for name, meaning in TAGS.items() if name in used],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {str(status): _error(meaning, status, reference(ErrorEnvelope.__name__)) for status, meaning in ALWAYS.items()},
            "securitySchemes": SECURITY_SCHEMES,
        },
    }
    name_values(result)
    return result


def _uses(endpoints: list[Endpoint[Any]]) -> list[Use]:
    """Return the models of requests and responses."""
    uses: dict[Use, None] = {(ErrorEnvelope, "serialization"): None, (SuccessEnvelope, "serialization"): None}
    for each in endpoints:
        client, server = each.messages or (None, None)
        requests = (each.query, each.body, client)
        responses = (each.model, each.error, server, *(model for answer in each.answers.values() for model in answer.events.values()))
        uses.update({(model, "validation"): None for model in requests if model is not None})
        uses.update({(model, "serialization"): None for model in responses if model is not None})
    return list(uses)


def _operations(handler: type[web.RequestHandler]) -> Iterator[Operation]:
    """Yield the operations of a handler."""
    for verb in VERBS:
        method = getattr(handler, verb)
        if method is getattr(web.RequestHandler, verb):
            continue
        endpoint = endpoint_of(handler, verb)
        if endpoint is None:
            raise ValueError(f"{handler.__name__}.{verb} has no endpoint: add @serves with an entry of schemas/endpoints.py")
        yield Operation(verb, endpoint, inspect.getdoc(method) or "")


def _operation(each: Operation, schemas: dict[str, Schema], refs: dict[type[BaseModel], Schema], without_token: bool) -> Schema:
    endpoint = each.endpoint
    summary, _, more = each.text.partition("\n\n")
    result: Schema = {
        "operationId": OPERATION_IDS[endpoint],
        "tags": [endpoint.tag],
        "summary": " ".join(summary.split()).rstrip("."),
        "description": more,
        "parameters": [*_in_path(endpoint.path), *_in_query(endpoint, schemas), *map(_in_header, endpoint.headers)],
        "responses": _responses(endpoint, refs),
        "security": _security(without_token),
    }
    if not more:
        del result["description"]
    if endpoint.messages is not None:
        client, server = endpoint.messages
        result["x-websocket"] = {"client": refs[client], "server": refs[server]}
    if endpoint.body is not None or endpoint.media:
        content: Schema = {kind: {"schema": schema} for kind, schema in endpoint.media.items()}
        if endpoint.body is not None:
            content[JSON] = {"schema": refs[endpoint.body]}
            if endpoint.examples:
                content[JSON]["examples"] = {name: {"value": value} for name, value in endpoint.examples.items()}
        result["requestBody"] = {"required": True, "content": content}
    return result


def _in_path(path: str) -> Iterator[Schema]:
    for parent, name in re.findall(r"(\w+)/\{(\w+)\}", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": PATH_PARAMETERS[parent]}


def _in_query(endpoint: Endpoint[Any], schemas: dict[str, Schema]) -> Iterator[Schema]:
    if endpoint.query is None:
        return
    schema = schemas[endpoint.query.__name__]
    for name, field_schema in schema["properties"].items():
        field = {key: value for key, value in field_schema.items() if key != "description" and value is not None}
        if isinstance(field.get("type"), list):  # queries have no null
            field["type"] = field["type"][0]
        result = {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": field}
        yield {**result, "description": field_schema["description"]} if "description" in field_schema else result


def _in_header(header: Header) -> Schema:
    return {"name": header.name, "in": "header", "description": header.description, "schema": dict(header.schema)}


def _responses(endpoint: Endpoint[Any], refs: dict[type[BaseModel], Schema]) -> Schema:
    """Return the responses by status."""
    result = {str(status): _answer(endpoint, answer, refs) for status, answer in endpoint.answers.items()}
    enveloped = endpoint.error is ErrorEnvelope
    errors = {404: NOT_FOUND} if endpoint.names else {}
    if not enveloped:
        errors |= ALWAYS
    if enveloped and (endpoint.query is not None or endpoint.body is not None):
        errors[422] = INVALID
    result |= {str(status): _error(meaning, status, refs[endpoint.error]) for status, meaning in {**errors, **endpoint.errors}.items()}
    for status in ALWAYS:
        result.setdefault(str(status), {"$ref": f"#/components/responses/{status}"})
    return dict(sorted(result.items()))


def _answer(endpoint: Endpoint[Any], answer: Answer, refs: dict[type[BaseModel], Schema]) -> Schema:
    content: Schema = {}
    if answer.json and endpoint.model is not None:
        content[JSON] = {"schema": refs[endpoint.model]}
    content.update({kind: {"schema": dict(schema)} for kind, schema in answer.media.items()})
    if answer.events:
        content[EVENT_STREAM]["x-sse"] = {name: refs[model] for name, model in answer.events.items()}
    result: Schema = {"description": answer.description}
    if content:
        result["content"] = content
    return {**result, "headers": _headers(answer.headers)} if answer.headers else result


def _error(meaning: str, status: int, schema: Schema) -> Schema:
    result: Schema = {"description": meaning, "content": {JSON: {"schema": schema}}}
    return {**result, "headers": _headers((RETRY_AFTER_HEADER,))} if status in (429, 503) else result


def _headers(headers: Sequence[Header]) -> Schema:
    return {header.name: {"description": header.description, "schema": dict(header.schema)} for header in headers}


def _security(without_token: bool) -> list[Schema]:
    """Return the alternative security requirements."""
    ways: list[Schema] = [{"bearer": []}, {"query": []}]
    return [*ways, {}] if without_token else ways
