"""Schemas of the wire types, of the parameters of operations and of named values, as components of the OpenAPI document."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from openruntime_jupyter.operations import memory_bandwidth, numerics, vector_operations
from openruntime_jupyter.operations.mlx import functions
from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.schemas import ai, arrays, chat_completions, events, hosts, insights, system, tasks, values
from openruntime_jupyter.schemas.outputs import OUTPUTS
from openruntime_jupyter.schemas.problems import CODES

Schema = dict[str, Any]
Use = tuple[type[BaseModel], JsonSchemaMode]
"""Model, and whether it is part of a request ("validation") or of a response ("serialization")."""

PREFIX = "#/components/schemas/"


def reference(name: str) -> Schema:
    """Return a reference to a component."""
    return {"$ref": PREFIX + name}


def _named_values() -> dict[tuple[Any, ...], str]:
    """Return the names of the sets of values that become components."""
    types = {
        "AgentSource": ai.AgentSource,
        "ArrayDtype": values.ArrayDtype,
        "ArrayKind": values.ArrayKind,
        "ArrayState": arrays.ArrayState,
        "CompletionEnd": chat_completions.CompletionEnd,
        "DeviceStatus": system.DeviceStatus,
        "DeviceType": system.DeviceType,
        "FindingKind": insights.FindingKind,
        "FloatDtype": numerics.FloatDtype,
        "HealthStatus": system.HealthStatus,
        "HostState": hosts.HostState,
        "MemoryKernel": memory_bandwidth.KernelName,
        "MetricType": insights.MetricType,
        "MetricUnit": system.MetricUnit,
        "ModelAbility": values.ModelAbility,
        "ModelEngine": values.Engine,
        "ModelKind": ai.ModelKind,
        "Origin": tasks.Origin,
        "OutputType": tasks.OutputType,
        "ResponseType": ai.ResponseType,
        "Role": ai.Role,
        "Severity": insights.Severity,
        "StreamName": tasks.StreamName,
        "SubscriptionChange": events.SubscriptionChange,
        "TaskOrder": tasks.TaskOrder,
        "Timeframe": system.Timeframe,
        "ToolMode": ai.ToolMode,
        "Topic": events.Topic,
        "VectorFunction": vector_operations.Name,
        "Wording": insights.WordingChoice,
        "WorkerState": system.WorkerState,
    }
    return {CODES: "ErrorCode", tuple(functions.functions()): "MlxFunction", **{get_args(each): name for name, each in types.items()}}


class _Generator(GenerateJsonSchema):
    """Schema generator for clients that are generated from the document.

    Fields of responses are required if they are always present, and responses may have further fields, because newer servers say more.
    A nullable type is a list of types rather than a union, and fields have no titles, which generators would use as names of types.
    """

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Return True for all fields of a response except omitted ones."""
        if self.mode == "serialization":
            return not (field.get("serialization_exclude") or field.get("serialization_exclude_if"))
        return super().field_is_required(field, total)

    def default_schema(self, schema: Any) -> Schema:
        """Omit the defaults of responses."""
        return self.generate_inner(schema["schema"]) if self.mode == "serialization" else super().default_schema(schema)

    def model_schema(self, schema: Any) -> Schema:
        """Allow further fields in responses."""
        result = super().model_schema(schema)
        if self.mode == "serialization" and "properties" in result:
            result.pop("additionalProperties", None)
        return result

    def nullable_schema(self, schema: Any) -> Schema:
        """Return a list of types instead of a union with null."""
        result = super().nullable_schema(schema)
        inner = result.get("anyOf", [{}])[0]
        if len(result.get("anyOf", ())) == 2 and isinstance(inner.get("type"), str) and not {"enum", "const"} & set(inner):
            return {**inner, "type": [inner["type"], "null"]}
        return result

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False."""
        return False


def components(uses: list[Use]) -> tuple[dict[str, Schema], dict[type[BaseModel], Schema]]:
    """Return the components for the models by name, and a reference to each model.

    The parameters of each operation are the component `parameters.NAME`, and the output of a built-in one is `output.NAME`.
    """
    parts: dict[str, Use] = {f"parameters.{name}": (operation.params, "validation") for name, operation in operations().items()}
    parts |= {f"output.{name}": (model, "serialization") for name, model in OUTPUTS.items()}
    all_uses = list(dict.fromkeys([*uses, *parts.values()]))
    refs, result = models_json_schema(all_uses, ref_template=PREFIX + "{model}", schema_generator=_Generator)
    found: dict[str, Schema] = result["$defs"]
    _merge_forms(found)
    for name, use in parts.items():
        schema = found[_name_of(refs[use])]
        found[name] = {**schema, "title": name.partition(".")[2]}
    for name, operation in operations().items():
        found[f"parameters.{name}"]["description"] = operation.summary
    known = {model: reference(_name_of(refs[model, mode])) for model, mode in uses}
    used = _referenced([*found.values(), *known.values()])
    return {name: schema for name, schema in found.items() if "." in name or name in used}, known


def _name_of(ref: Schema) -> str:
    name: str = ref["$ref"].removeprefix(PREFIX)
    return name.removesuffix("-Input").removesuffix("-Output")


def _merge_forms(found: dict[str, Schema]) -> None:
    """Give a model that is part of requests and of responses one component, the form in requests: clients send back what they got."""
    for name in [name for name in found if name.endswith("-Output")]:
        del found[name]
    for name in [name for name in found if name.endswith("-Input")]:
        found[name.removesuffix("-Input")] = found.pop(name)

    def rename(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                node.update(reference(_name_of(node)))
            for value in node.values():
                rename(value)
        elif isinstance(node, list):
            for value in node:
                rename(value)

    rename(found)


def _referenced(node: Any) -> set[str]:
    """Return the names of the components to which a part of the document refers."""
    if isinstance(node, dict):
        own = {node["$ref"].removeprefix(PREFIX)} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(_referenced, node.values()))
    return set().union(*map(_referenced, node)) if isinstance(node, list) else set()


def name_values(document: Schema) -> None:
    """Replace each set of values in the document that has a name by a reference to a component with that name."""
    named = _named_values()
    found: dict[str, Schema] = {}

    def replace(node: Any) -> None:
        if isinstance(node, dict):
            for value in node.values():
                replace(value)
            if isinstance(node.get("enum"), list) and (name := named.get(tuple(node["enum"]))) is not None:
                found[name] = {"type": node.pop("type", "string"), "title": name, "enum": node.pop("enum")}
                node.update(reference(name))
        elif isinstance(node, list):
            for value in node:
                replace(value)

    replace(document)
    schemas = document["components"]["schemas"]
    document["components"]["schemas"] = dict(sorted({**schemas, **found}.items()))
