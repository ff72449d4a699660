"""The description of the API as OpenAPI 3.1, made from the route table that serves and the models that it reads and writes."""

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
from openruntime_jupyter.server.openapi.decorator import JSON, Answer, Description, Parameter, description_of
from openruntime_jupyter.server.openapi.examples import EXAMPLES
from openruntime_jupyter.server.responses import ErrorEnvelope

Schema = dict[str, Any]
Route = tuple[str, type[web.RequestHandler]]

SCHEMAS = "#/components/schemas/"
VERBS = ("get", "put", "post", "delete", "head", "patch")
"""Not `options`: browsers ask by it, and Jupyter answers."""
WRITES = ("put", "post", "delete", "patch")

ABOUT = f"""One shared, visible, killable queue for MLX work.

Bodies are JSON, UTF-8. Times are UTC in ISO 8601 and end in `Z`. Sizes are bytes and durations seconds, unless a name says otherwise. A
figure that is not known is `null`. An error of any path is an `ErrorEnvelope`. Who wants the same envelope around a success asks for it
by `Accept: {ENVELOPE}`. `HEAD` is answered wherever `GET` is."""

TAGS = {
    "The service": "What this is, what it has, and how it is.",
    "Tasks": "Submit, look, list, reprioritise, cancel, erase.",
    "Sessions": "Workers whose variables stay from one task to the next.",
    "Arrays": "Large arrays, beside JSON.",
    "AI": "Prompts to models, and what the recorded history tells.",
    "Events": "What happens, as it happens.",
    "About the API": "This description.",
}

ALWAYS = {
    400: "The request could not be read: no JSON, compressed, or not sent as `application/json`.",
    403: "Not logged in, or not allowed; `error` says which, and what is missing.",
    413: "The body is too large.",
    429: "More requests, or more at once, than one user or address may have; only where the server limits that.",
    500: "A fault of the server's own, logged there under the id that the message names.",
    503: "Not now: the server starts or stops, the queue is full, the history cannot be written, no worker can be started.",
}
"""What every verb may answer, and when."""
NOT_FOUND = "There is nothing of that id."
INVALID = "A value, field, operation or device is wrong; `data.details` lists each."
RETRY_AFTER = Parameter("Retry-After", "Seconds after which to try again.", {"type": "integer", "minimum": 1})

SECURITY_SCHEMES: dict[str, Schema] = {
    "token": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "The server's token, as `Authorization: token 0123...`.",
    },
    "bearer": {"type": "http", "scheme": "bearer", "description": "The same token, as `Authorization: Bearer 0123...`."},
    "query": {"type": "apiKey", "in": "query", "name": "token", "description": "The same token, where no header can be set."},
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "username",
        "description": "Jupyter's login. The cookie's name ends in the server's host and port, such as `username-localhost-8888`.",
    },
    "xsrf": {
        "type": "apiKey",
        "in": "header",
        "name": "X-XSRFToken",
        "description": "Beside the cookie, to change something: the value of the cookie `_xsrf`.",
    },
}


def document(routes: Sequence[Route], url: str = "/", *, without_token: bool = False) -> Schema:
    """The OpenAPI document for `routes`, which are served below `url`.

    `without_token`: programs of the same machine need none, but to run code of their own. Raises ValueError for a verb that nobody
    has described.
    """
    found = [(path, verb, names, handler, _described(handler, verb)) for path, verb, names, handler in _verbs(routes)]
    schemas, refs = _schemas([said for *_, said in found])
    paths: dict[str, Schema] = {}
    for path, verb, names, handler, said in found:
        paths.setdefault(path, {})[verb] = _operation(path, verb, names, handler, said, schemas, refs, without_token)
    for name in {said.query.__name__ for *_, said in found if said.query is not None}:
        del schemas[name]
    used = {said.tag for *_, said in found}
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
    """A route's regular expression as OpenAPI writes it: `/tasks/([^/]+)` is `/tasks/{task_id}`."""
    left = iter(names)
    return re.sub(r"\([^()]*\)", lambda group: "{" + next(left) + "}", pattern).replace("/?", "/")


def _verbs(routes: Sequence[Route]) -> Iterator[tuple[str, str, list[str], type[web.RequestHandler]]]:
    """Path, verb, names in the path and handler of every verb that there is."""
    for pattern, handler in routes:
        for verb in VERBS:
            method = getattr(handler, verb)
            if method is not getattr(web.RequestHandler, verb):
                names = [name for name in inspect.signature(method).parameters if name != "self"]
                yield path_of(pattern, names), verb, names, handler


def _described(handler: type[web.RequestHandler], verb: str) -> Description:
    said = description_of(handler, verb)
    if said is None:
        raise ValueError(f"{handler.__name__}.{verb} has no @described: see server/openapi/decorator.py")
    return said


class _Schemas(GenerateJsonSchema):
    """pydantic's, which says of answers also which fields are always there."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """In an answer every field is, unless the model leaves it out."""
        if self.mode == "serialization":
            return not (field.get("serialization_exclude") or field.get("serialization_exclude_if"))
        return super().field_is_required(field, total)

    def default_schema(self, schema: Any) -> Schema:
        """An answer has no defaults."""
        return self.generate_inner(schema["schema"]) if self.mode == "serialization" else super().default_schema(schema)


def _schemas(said: list[Description]) -> tuple[dict[str, Schema], dict[type[BaseModel], Schema]]:
    """The schema of every model, by name, and a reference to each."""
    wanted: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(ErrorEnvelope, "serialization"): None}
    for each in said:
        for given in (each.query, each.body):
            if given is not None:
                wanted[given, "validation"] = None
        for answer in each.answers.values():
            if answer.model is not None:
                wanted[answer.model, "serialization"] = None
    refs, made = models_json_schema(list(wanted), ref_template=SCHEMAS + "{model}", schema_generator=_Schemas)
    schemas: dict[str, Schema] = made["$defs"]
    for model, examples in EXAMPLES.items():
        if model.__name__ in schemas:
            schemas[model.__name__]["examples"] = examples
    return schemas, {model: refs[model, mode] for model, mode in wanted}


def _parameters_of_operations() -> dict[str, Schema]:
    """What `parameters` of a TaskRequest may be for each operation."""
    made = {}
    for operation in operations().values():
        name = f"parameters.{operation.name}"
        schema = operation.params.model_json_schema(ref_template=f"{SCHEMAS}{name}/$defs/{{model}}")
        made[name] = {**schema, "title": operation.name, "description": operation.summary}
    return made


def _operation(
    path: str,
    verb: str,
    names: list[str],
    handler: type[web.RequestHandler],
    said: Description,
    schemas: dict[str, Schema],
    refs: dict[type[BaseModel], Schema],
    without_token: bool,
) -> Schema:
    told = f"What GET answers, without its body: {path}" if verb == "head" else inspect.getdoc(getattr(handler, verb)) or ""
    summary, _, more = told.partition("\n\n")
    made: Schema = {
        "operationId": "_".join([verb, *re.findall(r"\w+", path)]),
        "tags": [said.tag],
        "summary": " ".join(summary.split()).rstrip("."),
        "description": told if more else summary,
        "parameters": [*map(_in_path, names), *_in_query(said, schemas), *map(_in_header, said.headers)],
        "responses": _responses(_bodiless(said) if verb == "head" else said, bool(names), refs),
        "security": _security(verb, without_token),
        **said.extra,
    }
    if said.body is not None or said.media:
        content: Schema = {kind: {"schema": schema} for kind, schema in said.media.items()}
        if said.body is not None:
            content[JSON] = {"schema": refs[said.body]}
            if said.examples:
                content[JSON]["examples"] = {name: {"value": value} for name, value in said.examples.items()}
        made["requestBody"] = {"required": True, "content": content}
    return made


def _bodiless(said: Description) -> Description:
    """What HEAD answers where GET answers that."""
    answers = {status: replace(answer, model=None, media={}) for status, answer in said.answers.items() if status != 206}
    return replace(said, answers=answers, errors={status: when for status, when in said.errors.items() if status != 416})


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _in_query(said: Description, schemas: dict[str, Schema]) -> Iterator[Schema]:
    if said.query is None:
        return
    schema = schemas[said.query.__name__]
    for name, given in schema["properties"].items():
        field = {key: value for key, value in given.items() if key not in ("title", "description")}
        if "anyOf" in field:  # a query has no null
            bounds = field.pop("anyOf")[0]
            field = {**bounds, **{key: value for key, value in field.items() if value is not None}}
        made = {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": field}
        yield {**made, "description": given["description"]} if "description" in given else made


def _in_header(header: Parameter) -> Schema:
    return {"name": header.name, "in": "header", "description": header.description, "schema": dict(header.schema)}


def _responses(said: Description, has_id: bool, refs: dict[type[BaseModel], Schema]) -> Schema:
    made = {str(status): _answer(answer, refs) for status, answer in said.answers.items()}
    errors = {404: NOT_FOUND} if has_id else {}
    if said.query is not None or said.body is not None:
        errors[422] = INVALID
    for status, meaning in {**errors, **said.errors}.items():
        made[str(status)] = _error(meaning, status)
    for status in ALWAYS:
        made.setdefault(str(status), {"$ref": f"#/components/responses/{status}"})
    return dict(sorted(made.items()))


def _answer(answer: Answer, refs: dict[type[BaseModel], Schema]) -> Schema:
    content: Schema = {}
    if answer.model is not None:
        content[JSON] = {"schema": refs[answer.model]}
        content[ENVELOPE] = {"schema": _success(refs[answer.model])}
    content.update({kind: {"schema": dict(schema)} for kind, schema in answer.media.items()})
    made: Schema = {"description": answer.description}
    if content:
        made["content"] = content
    return {**made, "headers": _headers(answer.headers)} if answer.headers else made


def _success(data: Schema) -> Schema:
    """The envelope around an answer; see `errors.envelope`."""
    properties = {
        "status": {"const": "success"},
        "data": data,
        "error": {"type": "null"},
        "timestamp": {"type": "string", "format": "date-time"},
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _error(meaning: str, status: int) -> Schema:
    made: Schema = {"description": meaning, "content": {JSON: {"schema": {"$ref": f"{SCHEMAS}ErrorEnvelope"}}}}
    return {**made, "headers": _headers((RETRY_AFTER,))} if status in (429, 503) else made


def _headers(headers: Sequence[Parameter]) -> Schema:
    return {header.name: {"description": header.description, "schema": dict(header.schema)} for header in headers}


def _security(verb: str, without_token: bool) -> list[Schema]:
    """Any of these lets in."""
    cookie: Schema = {"cookie": [], "xsrf": []} if verb in WRITES else {"cookie": []}
    ways: list[Schema] = [{"token": []}, {"bearer": []}, {"query": []}, cookie]
    return [*ways, {}] if without_token else ways
