"""Messages with tool calls, and options of responses: their validation, and what an engine gets."""

from __future__ import annotations

from typing import Any

import pytest

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.local_models.language_model import require_reasoning_effort, require_tools, template_arguments
from openruntime_jupyter.operations.generate import ANY_OBJECT, Params
from openruntime_jupyter.operations.registry import operation
from openruntime_jupyter.schemas.ai import Message, ToolCall
from openruntime_jupyter.schemas.values import GenerationOptions

HELLO = [{"role": "user", "content": "hello"}]
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string", "default": None}}}


def tool(name: str, parameters: dict[str, Any] = CITY) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "city", "schema": value}}


@pytest.mark.parametrize(
    ("wrong", "field", "reason"),
    [
        ({"messages": [{"role": "user"}]}, "messages.0", "content is required"),
        ({"messages": [{"role": "tool", "content": "3"}]}, "messages.0", "needs tool_call_id"),
        ({"messages": [{"role": "user", "content": "3", "tool_call_id": "1"}]}, "messages.0", "only for the role tool"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "part 0 is not a text part"),
        ({"tools": []}, "tools", "at least 1"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "required"),
        ({"tools": [tool("two words")]}, "tools.0.function.name", "pattern"),
        ({"tools": [tool("f"), tool("f")]}, "tools", "several functions named 'f'"),
        ({"tools": [tool("f")], "tool_choice": "maybe"}, "tool_choice", "must be 'none', 'auto', 'required'"),
        ({"tools": [tool("f")], "tool_choice": tool("g") | {"function": {"name": "g"}}}, "tool_choice", "'g', but tools has f"),
        ({"tool_choice": "auto"}, "tool_choice", "requires tools"),
        ({"messages": None, "prompt": "hello", "tools": [tool("f")]}, "", "requires messages"),
        ({"messages": None, "prompt": "hello", "reasoning_effort": "none"}, "", "requires messages"),
        ({"top_logprobs": 3}, "top_logprobs", "requires logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "require each other"),
        ({"response_format": schema({"type": "text"})}, "response_format", "type: 'text' is not one of"),
        ({"response_format": schema({"properties": {"a": {"type": 1}}})}, "response_format", "properties.a.type"),
        ({"tools": [tool("f", {"type": "text"})]}, "tools", "type: 'text' is not one of"),
    ],
)
def test_invalid_option_is_rejected_by_name(wrong: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        operation("generate").validate({"messages": HELLO, **wrong})
    assert [detail["field"] for detail in refused.value.details] == ["parameters" + (f".{field}" if field else "")]


def test_deeply_nested_schema_is_rejected() -> None:
    nested: dict[str, Any] = {}
    for _ in range(400):
        nested = {"items": nested}
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        operation("generate").validate({"response_format": schema(nested)})


def test_messages_keep_their_fields_without_nulls() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    given = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ]
    assert Params(messages=[Message.model_validate(each) for each in given]).conversation == [
        {"role": "system", "content": "be brief"},
        *given[1:],
    ]
    assert ToolCall.model_validate(call).model_dump() == call


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"schema": ANY_OBJECT}),
        ({"response_format": schema(CITY)}, {"schema": CITY}),
        ({"tools": [tool("f"), tool("g")]}, {"tools": (tool("f"), tool("g"))}),
        ({"tools": [tool("f")], "tool_choice": "none"}, {}),
        ({"tools": [tool("f")], "tool_choice": "required"}, {"tools": (tool("f"),), "call_required": True}),
        (
            {"tools": [tool("f"), tool("g")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            {"tools": (tool("g"),), "call_required": True},
        ),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 5}, {"logprobs": 5}),
        ({"presence_penalty": 1, "frequency_penalty": -1}, {"presence_penalty": 1.0, "frequency_penalty": -1.0}),
    ],
)
def test_engines_get_the_options_of_the_request(given: dict[str, Any], expected: dict[str, Any]) -> None:
    parameters = operation("generate").validate({"messages": HELLO, **given})
    assert isinstance(parameters, Params)
    assert parameters.options == GenerationOptions(512, **expected)


CAN_SWITCH = "{% if enable_thinking %}<think>{% endif %}"
CAN_SET = "{{ reasoning_effort }}"


@pytest.mark.parametrize(
    ("effort", "template", "reason"),
    [
        (None, "", None),
        ("none", CAN_SWITCH, None),
        ("low", CAN_SET, None),
        ("xhigh", CAN_SET + "{% if reasoning_effort == 'xhigh' %}{% endif %}", None),
        ("low", CAN_SWITCH, "can't set it to 'low': use 'none', or remove it"),
        ("none", CAN_SET, "can't set it to 'none': use 'low' or 'medium' or 'high', or remove it"),
        ("xhigh", CAN_SET + "{# high, xhigh #}", "can't set it to 'xhigh': use 'low'"),
        ("max", CAN_SET + CAN_SWITCH, "can't set it to 'max': use 'none' or 'low'"),
        ("high", "", "has no setting for reasoning"),
    ],
)
def test_reasoning_effort_requires_a_template_with_it(effort: Any, template: str, reason: str | None) -> None:
    options = GenerationOptions(8, reasoning_effort=effort)
    if reason is None:
        require_reasoning_effort(options, "tiny", template)
        assert set(template_arguments(options)) <= {"enable_thinking", "reasoning_effort"}
        return
    with pytest.raises(InvalidRequest, match=f"tiny {reason}") as refused:
        require_reasoning_effort(options, "tiny", template)
    assert refused.value.details[0]["field"] == "parameters.reasoning_effort"


def test_tools_require_a_template_with_tools() -> None:
    require_tools(GenerationOptions(8), "tiny", supported=False)
    with pytest.raises(InvalidRequest, match=r"parameters\.tools: tiny can't call tools, because its chat template has none"):
        require_tools(GenerationOptions(8, tools=(tool("f"),)), "tiny", supported=False)
