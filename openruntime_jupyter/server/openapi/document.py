"""OpenAPI 3.1 document, generated from the route table and the wire types."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema
from tornado import web

from openruntime_jupyter import __version__
from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.server.http.base import ENVELOPE
from openruntime_jupyter.server.openapi.decorator import JSON, Description, Parameter, Response, description_of
from openruntime_jupyter.server.openapi.examples import EXAMPLES
from openruntime_jupyter.server.responses import ErrorEnvelope

Schema = dict[str, Any]
Route = tuple[str, type[web.RequestHandler]]

SCHEMAS = "#/components/schemas/"
VERBS = ("get", "put", "post", "delete", "head", "patch")
"""HTTP methods in the document. Jupyter handles `options` for browsers."""
WRITES = ("put", "post", "delete", "patch")

ABOUT = f"""One shared, visible, killable queue for MLX work.

Bodies are JSON, UTF-8. Times are UTC in ISO 8601 and end in `Z`. Sizes are in bytes and durations in seconds, unless the name has
another unit. Unknown values are `null`. All errors are an `ErrorEnvelope`. To get the envelope for successful responses as well, send
`Accept: {ENVELOPE}`. All routes with `GET` support `HEAD`."""

TAGS = {
    "The service": "Version, health, devices, workers, operations and metrics.",
    "Tasks": "Submit, list, inspect, reprioritise, cancel and delete tasks.",
    "Sessions": "Workers whose variables persist between tasks.",
    "Arrays": "Binary transfer of large arrays.",
    "AI": "Prompts to models, and insights into the recorded history.",
    "Events": "Live events by WebSocket.",
    "About the API": "The OpenAPI document and this page.",
}

ALWAYS = {
    400: "The body is invalid JSON, compressed, or not sent as `application/json`.",
    403: "Not logged in, or missing permission; `error` has the reason.",
    413: "The body is too large.",
    429: "Too many requests or too many concurrent requests of one user or address, if the server has limits.",
    500: "Internal server error. The message has the id of the log entry.",
    503: "Temporarily unavailable: the server is starting or stopping, the queue is full, the history cannot be written, or no worker "
    "can start.",
}
"""Errors of every method: status and reason."""
NOT_FOUND = "Unknown id."
INVALID = "Invalid value, field, operation or device; `data.details` lists all problems."
RETRY_AFTER = Parameter("Retry-After", "Seconds to wait before a retry.", {"type": "integer", "minimum": 1})

SECURITY_SCHEMES: dict[str, Schema] = {
    "token": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "The server's token, as `Authorization: token 0123...`.",
    },
    "bearer": {"type": "http", "scheme": "bearer", "description": "The same token, as `Authorization: Bearer 0123...`."},
    "query": {"type": "apiKey", "in": "query", "name": "token", "description": "The same token, if the client cannot set headers."},
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "username",
        "description": "Jupyter's login cookie. Its name ends in the server's host and port, for example `username-localhost-8888`.",
    },
    "xsrf": {
        "type": "apiKey",
        "in": "header",
        "name": "X-XSRFToken",
        "description": "Value of the cookie `_xsrf`, required with the cookie for methods other than GET and HEAD.",
    },
}


def document(routes: Sequence[Route], url: str = "/", *, without_token: bool = False) -> Schema:
    """Return the OpenAPI document for `routes`, which are served below `url`.

    `without_token` means that local programs need no token except to run their own code. Raises ValueError for a method without a
    description.
    """
    methods = [(path, verb, names, handler, _described(handler, verb)) for path, verb, names, handler in _verbs(routes)]
    schemas, refs = _schemas([description for *_, description in methods])
    paths: dict[str, Schema] = {}
    for path, verb, names, handler, description in methods:
        paths.setdefault(path, {})[verb] = _operation(path, verb, names, handler, description, schemas, refs, without_token)
    for name in {description.query.__name__ for *_, description in methods if description.query is not None}:
        del schemas[name]
    used = {description.tag for *_, description in methods}
    return {
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
            "schemas": dict(sorted({**schemas, **_parameters_of_operations()}.items())),
            "responses": {str(status): _error(meaning, status) for status, meaning in ALWAYS.items()},
            "securitySchemes": SECURITY_SCHEMES,
        },
    }


def path_of(pattern: str, names: Sequence[str]) -> str:
    """Convert the regular expression of a route to an OpenAPI path: `/tasks/([^/]+)` becomes `/tasks/{task_id}`."""
    left = iter(names)
    return re.sub(r"\([^()]*\)", lambda group: "{" + next(left) + "}", pattern).replace("/?", "/")


def _verbs(routes: Sequence[Route]) -> Iterator[tuple[str, str, list[str], type[web.RequestHandler]]]:
    """Yield path, verb, names of path parameters and handler of every method."""
    for pattern, handler in routes:
        for verb in VERBS:
            method = getattr(handler, verb)
            if method is not getattr(web.RequestHandler, verb):
                names = [name for name in inspect.signature(method).parameters if name != "self"]
                yield path_of(pattern, names), verb, names, handler


def _described(handler: type[web.RequestHandler], verb: str) -> Description:
    description = description_of(handler, verb)
    if description is None:
        raise ValueError(f"{handler.__name__}.{verb} has no @described: add the decorator of server/openapi/decorator.py")
    return description


class _Schemas(GenerateJsonSchema):
    """Schema generator that marks the fields of responses as required if they are always present."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Return True for all fields of a response except omitted ones."""
        if self.mode == "serialization":
            return not (field.get("serialization_exclude") or field.get("serialization_exclude_if"))
        return super().field_is_required(field, total)

    def default_schema(self, schema: Any) -> Schema:
        """Omit the defaults of responses."""
        return self.generate_inner(schema["schema"]) if self.mode == "serialization" else super().default_schema(schema)


def _schemas(descriptions: list[Description]) -> tuple[dict[str, Schema], dict[type[BaseModel], Schema]]:
    """Return the schemas of all models by name, and a reference to each."""
    modes: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(ErrorEnvelope, "serialization"): None}
    for each in descriptions:
        for model in (each.query, each.body):
            if model is not None:
                modes[model, "validation"] = None
        for response in each.responses.values():
            if response.model is not None:
                modes[response.model, "serialization"] = None
    refs, result = models_json_schema(list(modes), ref_template=SCHEMAS + "{model}", schema_generator=_Schemas)
    schemas: dict[str, Schema] = result["$defs"]
    for model, examples in EXAMPLES.items():
        if model.__name__ in schemas:
            schemas[model.__name__]["examples"] = examples
    return schemas, {model: refs[model, mode] for model, mode in modes}


def _parameters_of_operations() -> dict[str, Schema]:
    """Return the schemas of `parameters` of a TaskRequest by operation."""
    result = {}
    for operation in operations().values():
        name = f"parameters.{operation.name}"
        schema = operation.params.model_json_schema(ref_template=f"{SCHEMAS}{name}/$defs/{{model}}")
        result[name] = {**schema, "title": operation.name, "description": operation.summary}
    return result


def _operation(
    path: str,
    verb: str,
    names: list[str],
    handler: type[web.RequestHandler],
    description: Description,
    schemas: dict[str, Schema],
    refs: dict[type[BaseModel], Schema],
    without_token: bool,
) -> Schema:
    text = f"Headers of the GET response: {path}" if verb == "head" else inspect.getdoc(getattr(handler, verb)) or ""
    summary, _, more = text.partition("\n\n")
    result: Schema = {
        "operationId": "_".join([verb, *re.findall(r"\w+", path)]),
        "tags": [description.tag],
        "summary": " ".join(summary.split()).rstrip("."),
        "description": text if more else summary,
        "parameters": [*map(_in_path, names), *_in_query(description, schemas), *map(_in_header, description.headers)],
        "responses": _responses(_bodiless(description) if verb == "head" else description, bool(names), refs),
        "security": _security(verb, without_token),
        **description.extra,
    }
    if description.body is not None or description.media:
        content: Schema = {kind: {"schema": schema} for kind, schema in description.media.items()}
        if description.body is not None:
            content[JSON] = {"schema": refs[description.body]}
            if description.examples:
                content[JSON]["examples"] = {name: {"value": value} for name, value in description.examples.items()}
        result["requestBody"] = {"required": True, "content": content}
    return result


def _bodiless(description: Description) -> Description:
    """Return the description of HEAD for a description of GET."""
    responses = {status: replace(response, model=None, media={}) for status, response in description.responses.items() if status != 206}
    return replace(description, responses=responses, errors={status: when for status, when in description.errors.items() if status != 416})


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _in_query(description: Description, schemas: dict[str, Schema]) -> Iterator[Schema]:
    if description.query is None:
        return
    schema = schemas[description.query.__name__]
    for name, field_schema in schema["properties"].items():
        field = {key: value for key, value in field_schema.items() if key not in ("title", "description")}
        if "anyOf" in field:  # queries have no null
            bounds = field.pop("anyOf")[0]
            field = {**bounds, **{key: value for key, value in field.items() if value is not None}}
        result = {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": field}
        yield {**result, "description": field_schema["description"]} if "description" in field_schema else result


def _in_header(header: Parameter) -> Schema:
    return {"name": header.name, "in": "header", "description": header.description, "schema": dict(header.schema)}


def _responses(description: Description, has_id: bool, refs: dict[type[BaseModel], Schema]) -> Schema:
    result = {str(status): _response(response, refs) for status, response in description.responses.items()}
    errors = {404: NOT_FOUND} if has_id else {}
    if description.query is not None or description.body is not None:
        errors[422] = INVALID
    for status, meaning in {**errors, **description.errors}.items():
        result[str(status)] = _error(meaning, status)
    for status in ALWAYS:
        result.setdefault(str(status), {"$ref": f"#/components/responses/{status}"})
    return dict(sorted(result.items()))


def _response(response: Response, refs: dict[type[BaseModel], Schema]) -> Schema:
    content: Schema = {}
    if response.model is not None:
        content[JSON] = {"schema": refs[response.model]}
        content[ENVELOPE] = {"schema": _success(refs[response.model])}
    content.update({kind: {"schema": dict(schema)} for kind, schema in response.media.items()})
    result: Schema = {"description": response.description}
    if content:
        result["content"] = content
    return {**result, "headers": _headers(response.headers)} if response.headers else result


def _success(data: Schema) -> Schema:
    """Return the schema of the envelope of a successful response; see `errors.enveloped`."""
    properties = {
        "status": {"const": "success"},
        "data": data,
        "error": {"type": "null"},
        "timestamp": {"type": "string", "format": "date-time"},
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _error(meaning: str, status: int) -> Schema:
    result: Schema = {"description": meaning, "content": {JSON: {"schema": {"$ref": f"{SCHEMAS}ErrorEnvelope"}}}}
    return {**result, "headers": _headers((RETRY_AFTER,))} if status in (429, 503) else result


def _headers(headers: Sequence[Parameter]) -> Schema:
    return {header.name: {"description": header.description, "schema": dict(header.schema)} for header in headers}


def _security(verb: str, without_token: bool) -> list[Schema]:
    """Return the alternative security requirements of a method."""
    cookie: Schema = {"cookie": [], "xsrf": []} if verb in WRITES else {"cookie": []}
    ways: list[Schema] = [{"token": []}, {"bearer": []}, {"query": []}, cookie]
    return [*ways, {}] if without_token else ways
