"""OpenAPI 3.1 document, generated from the route table and the wire types."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema
from tornado import web

from openruntime_jupyter import __version__
from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.schemas import insights
from openruntime_jupyter.schemas.batch import BatchAnswer, BatchProblem, ResultsAnswer
from openruntime_jupyter.schemas.endpoints import ENVELOPE, JSON, RETRY_AFTER, TAGS, VERSION_HEADER, Answer, Endpoint, Header
from openruntime_jupyter.schemas.problems import ErrorEnvelope
from openruntime_jupyter.schemas.system import Health, ServiceInfo, Session, SystemMetrics, Worker
from openruntime_jupyter.schemas.tasks import Task, TaskOutput, TaskPage
from openruntime_jupyter.server.http.base import endpoint_of
from openruntime_jupyter.server.http.requests import MOST_VALUES

Schema = dict[str, Any]
Route = tuple[str, type[web.RequestHandler]]

SCHEMAS = "#/components/schemas/"
VERBS = ("get", "put", "post", "delete", "head", "patch")
"""HTTP methods in the document. Jupyter handles `options` for browsers."""
WRITES = ("put", "post", "delete", "patch")

ABOUT = f"""One shared, visible, killable queue for MLX work.

Bodies are JSON, UTF-8. Times are UTC in ISO 8601 and end in `Z`. Sizes are in bytes and durations in seconds, unless the name has
another unit. Unknown values are `null`. All errors are an `ErrorEnvelope`. To get the envelope for successful responses as well, send
`Accept: {ENVELOPE}`. All routes with `GET` support `HEAD`.

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


@dataclass(frozen=True)
class Operation:
    """Method of an endpoint with its docstring. `verb` is in lower case, and `head` for the headers of a GET response."""

    verb: str
    endpoint: Endpoint[Any]
    text: str


def document(routes: Sequence[Route], url: str = "/", *, without_token: bool = False) -> Schema:
    """Return the OpenAPI document for `routes`, which are served below `url`.

    `without_token` means that local programs need no token except to run their own code. Raises ValueError for a method without an
    endpoint.
    """
    found = [operation for _, handler in routes for operation in _operations(handler)]
    schemas, refs = _schemas([each.endpoint for each in found])
    paths: dict[str, Schema] = {}
    for each in found:
        paths.setdefault(each.endpoint.path, {})[each.verb] = _operation(each, schemas, refs, without_token)
    for name in {each.endpoint.query.__name__ for each in found if each.endpoint.query is not None}:
        del schemas[name]
    used = {each.endpoint.tag for each in found}
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


def _operations(handler: type[web.RequestHandler]) -> Iterator[Operation]:
    """Yield the operations of a handler."""
    for verb in VERBS:
        method = getattr(handler, verb)
        if method is getattr(web.RequestHandler, verb):
            continue
        endpoint = endpoint_of(handler, verb)
        if endpoint is None:
            raise ValueError(f"{handler.__name__}.{verb} has no endpoint: add @serves with an entry of schemas/endpoints.py")
        head = f"Headers of the GET response: {endpoint.path}"
        yield Operation(verb, endpoint, head if verb == "head" else inspect.getdoc(method) or "")


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


def _schemas(endpoints: list[Endpoint[Any]]) -> tuple[dict[str, Schema], dict[type[BaseModel], Schema]]:
    """Return the schemas of all models by name, and a reference to each."""
    modes: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(ErrorEnvelope, "serialization"): None}
    for each in endpoints:
        for model in (each.query, each.body):
            if model is not None:
                modes[model, "validation"] = None
        if each.model is not None:
            modes[each.model, "serialization"] = None
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


def _operation(each: Operation, schemas: dict[str, Schema], refs: dict[type[BaseModel], Schema], without_token: bool) -> Schema:
    endpoint = each.endpoint
    summary, _, more = each.text.partition("\n\n")
    result: Schema = {
        "operationId": "_".join([each.verb, *re.findall(r"\w+", endpoint.path)]),
        "tags": [endpoint.tag],
        "summary": " ".join(summary.split()).rstrip("."),
        "description": more,
        "parameters": [*map(_in_path, endpoint.names), *_in_query(endpoint, schemas), *map(_in_header, endpoint.headers)],
        "responses": _responses(endpoint, refs, head=each.verb == "head"),
        "security": _security(each.verb, without_token),
    }
    if not more:
        del result["description"]
    if endpoint.messages is not None:
        client, server = endpoint.messages
        result["x-websocket"] = {"client": client.model_json_schema(), "server": server}
    if endpoint.body is not None or endpoint.media:
        content: Schema = {kind: {"schema": schema} for kind, schema in endpoint.media.items()}
        if endpoint.body is not None:
            content[JSON] = {"schema": refs[endpoint.body]}
            if endpoint.examples:
                content[JSON]["examples"] = {name: {"value": value} for name, value in endpoint.examples.items()}
        result["requestBody"] = {"required": True, "content": content}
    return result


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _in_query(endpoint: Endpoint[Any], schemas: dict[str, Schema]) -> Iterator[Schema]:
    if endpoint.query is None:
        return
    schema = schemas[endpoint.query.__name__]
    for name, field_schema in schema["properties"].items():
        field = {key: value for key, value in field_schema.items() if key not in ("title", "description")}
        if "anyOf" in field:  # queries have no null
            bounds = field.pop("anyOf")[0]
            field = {**bounds, **{key: value for key, value in field.items() if value is not None}}
        result = {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": field}
        yield {**result, "description": field_schema["description"]} if "description" in field_schema else result


def _in_header(header: Header) -> Schema:
    return {"name": header.name, "in": "header", "description": header.description, "schema": dict(header.schema)}


def _responses(endpoint: Endpoint[Any], refs: dict[type[BaseModel], Schema], *, head: bool) -> Schema:
    """Return the responses by status. HEAD has those of GET without bodies and ranges."""
    result = {str(status): _answer(endpoint, answer, refs, head) for status, answer in endpoint.answers.items()}
    errors = {404: NOT_FOUND} if endpoint.names else {}
    if endpoint.query is not None or endpoint.body is not None:
        errors[422] = INVALID
    result |= {str(status): _error(meaning, status) for status, meaning in {**errors, **endpoint.errors}.items()}
    if head:
        result = {status: answer for status, answer in result.items() if status not in ("206", "416")}
    for status in ALWAYS:
        result.setdefault(str(status), {"$ref": f"#/components/responses/{status}"})
    return dict(sorted(result.items()))


def _answer(endpoint: Endpoint[Any], answer: Answer, refs: dict[type[BaseModel], Schema], head: bool) -> Schema:
    content: Schema = {}
    if answer.json and endpoint.model is not None:
        content[JSON] = {"schema": refs[endpoint.model]}
        content[ENVELOPE] = {"schema": _success(refs[endpoint.model])}
    content.update({kind: {"schema": dict(schema)} for kind, schema in answer.media.items()})
    result: Schema = {"description": answer.description}
    if content and not head:
        result["content"] = content
    return {**result, "headers": _headers(answer.headers)} if answer.headers else result


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
    return {**result, "headers": _headers((RETRY_AFTER_HEADER,))} if status in (429, 503) else result


def _headers(headers: Sequence[Header]) -> Schema:
    return {header.name: {"description": header.description, "schema": dict(header.schema)} for header in headers}


def _security(verb: str, without_token: bool) -> list[Schema]:
    """Return the alternative security requirements of a method."""
    cookie: Schema = {"cookie": [], "xsrf": []} if verb in WRITES else {"cookie": []}
    ways: list[Schema] = [{"token": []}, {"bearer": []}, {"query": []}, cookie]
    return [*ways, {}] if without_token else ways


def _example(model: type[BaseModel], **fields: Any) -> Schema:
    """Return an example of a model: these fields, and the defaults of the others."""
    return model.model_validate(fields).model_dump(mode="json")


NOW = "2026-01-01T12:00:02.000000Z"
NOTEBOOK = "/home/jovyan/work/train.ipynb"
TASK = _example(
    Task,
    task_id="task_01kdw8m3s0fs5g8c1v5x2k",
    status="completed",
    operation="matrix_multiply",
    notebook=NOTEBOOK,
    device_used="device_0",
    attempt=1,
    timestamp=NOW,
    submitted_at="2026-01-01T12:00:01.000000Z",
    started_at="2026-01-01T12:00:01.002000Z",
    finished_at=NOW,
    execution_time=0.998,
    result={"execution_time": 0.991, "device_used": "device_0", "output": {"gflops": 171.2, "iterations": 10}},
    performance_metrics={
        "execution_time_ms": 998.0,
        "memory_used_mb": 12.0,
        "gpu_utilization": 0.0,
        "peak_memory_mb": 141.6,
        "device_time_s": 0.998,
    },
    runtime="rt_01kdw8hq5b7r3m9t0q6d1n",
)
SESSION = _example(
    Session,
    id="session_01kdw8m3rzfs5g8c1v5x",
    name="train",
    state="busy",
    notebook=NOTEBOOK,
    kernel="6f0d3b0e5f0b4f2c9a8d7e6c5b4a3f21",
    interpreter="/usr/bin/python3",
    directory="/home/jovyan/work",
    worker="worker_2",
    resident_bytes=151_000_000,
    task_id=TASK["task_id"],
    tasks=12,
    created_at="2026-01-01T11:30:00.000000Z",
    used_at=NOW,
)
METRICS: dict[str, Any] = {
    "gpu_utilization": 0.0,
    "memory_usage": 32.1,
    "active_tasks": 2,
    "ai_tasks_processed": 0,
    "cpu_utilization": 51.5,
    "pending_tasks": 7,
}
SPIKE: dict[str, Any] = {
    "kind": "peak",
    "severity": "warning",
    "text": "Memory usage spiked to 92% at 11:30:10Z, from 11:30:00Z to 11:30:40Z (40 s), where the median is 41%. Then ran "
    f"{TASK['task_id']} (`matrix_multiply`; 9.60 GB at its peak).",
    "advice": "Let such tasks work on smaller pieces, or bound them: `memory_limit` of a task, or OpenRuntimeApp.memory_limit for all (now "
    "nine tenths of the machine's memory, 14.40 GB), stops one that grows past it.",
    "figure": "memory_usage",
    "figures": {"peak": 92.0, "median": 41.2, "seconds": 40.0},
    "start": "2026-01-01T11:30:00.000000Z",
    "end": "2026-01-01T11:30:40.000000Z",
    "at": "2026-01-01T11:30:10.000000Z",
    "tasks": [{name: TASK[name] for name in ("task_id", "operation", "name", "owner", "status", "started_at", "finished_at")}],
}
INSIGHTS: dict[str, Any] = {
    "insights": f"Based on the last hour of memory data:\n\n1. {SPIKE['text']} {SPIKE['advice']}",
    "metrics": METRICS,
    "timestamp": NOW,
    "metric_type": "memory",
    "timeframe": "1h",
    "findings": [SPIKE],
    "data": {
        "timeframe": "1h",
        "start": "2026-01-01T11:30:00.000000Z",
        "end": "2026-01-01T11:30:40.000000Z",
        "resolution_s": 20,
        "timestamps": ["2026-01-01T11:30:00.000000Z", "2026-01-01T11:30:20.000000Z"],
        "series": {"memory_usage": {"unit": "percent", "min": [41.0, 41.5], "mean": [80.2, 79.9], "max": [92.0, 91.8]}},
        "marks": [
            {
                "finding": 1,
                "figure": "memory_usage",
                "value": 92.0,
                **{name: SPIKE[name] for name in ("kind", "severity", "start", "end", "at")},
            }
        ],
    },
    "basis": {
        "start": "2026-01-01T11:00:02.000000Z",
        "end": NOW,
        "span_s": 3600.0,
        "observed_s": 3600.0,
        "resolution_s": 10,
        "tasks": 412,
        "tasks_examined": 412,
        "enough": True,
    },
    "worded_by": "none",
    "notice": None,
}
DETAIL = {"field": "priority", "problem": "must be less than or equal to 10"}
ERROR = "priority: must be less than or equal to 10"
INVALID_PRIORITY = _example(BatchProblem, code=422, error_code="invalid_request", message=ERROR, details=[DETAIL])
UNKNOWN_TASK = _example(BatchProblem, code=404, error_code="task_not_found", message="Unknown task 'task_0'")

EXAMPLES: dict[type[BaseModel], list[Any]] = {
    ServiceInfo: [{"name": "OpenRuntime", "version": "2.0.0", "status": "running"}],
    ErrorEnvelope: [{"status": "error", "data": {"code": "invalid_request", "details": [DETAIL]}, "error": ERROR, "timestamp": NOW}],
    ResultsAnswer: [
        {
            "results": [
                {"task_id": TASK["task_id"], "task": TASK},
                {"task_id": "task_0", "error": UNKNOWN_TASK},
            ]
        }
    ],
    BatchAnswer: [{"tasks": [{"task": TASK}, {"error": INVALID_PRIORITY}]}],
    Task: [TASK],
    TaskPage: [{"tasks": [TASK], "total_count": 1250, "next_before": TASK["task_id"], "timestamp": NOW}],
    TaskOutput: [
        _example(
            TaskOutput,
            task_id=TASK["task_id"],
            items=[{"output_type": "stream", "name": "stdout", "text": "42\n"}],
            next=1,
            finished=True,
        )
    ],
    Worker: [
        _example(
            Worker,
            id="worker_2",
            device="device_0",
            state="busy",
            interpreter="/usr/bin/python3",
            started_at=NOW,
            task_id=TASK["task_id"],
            session=SESSION["id"],
            session_name=SESSION["name"],
            tasks=12,
            device_time_s=7.25,
            resident_bytes=151_000_000,
            resident_peak_bytes=312_000_000,
            mlx_peak_bytes=96_000_000,
        )
    ],
    Session: [SESSION],
    SystemMetrics: [{**METRICS, "uptime": "2h 15m", "timestamp": NOW}],
    insights.Insights: [INSIGHTS],
    Health: [_example(Health, status="healthy", timestamp=NOW, version="2.0.0", devices=1, metrics=METRICS, runtime=TASK["runtime"])],
}
