from __future__ import annotations

from typing import Any

import pytest

from openruntime_jupyter.errors import EngineError, InvalidRequest
from openruntime_jupyter.operations.chat import REJECTED, operation
from openruntime_jupyter.operations.context import TaskContext

HELLO = [{"role": "user", "content": "Hello"}]


def test_messages_are_the_only_required_parameter() -> None:
    params = operation.validate({"messages": HELLO})
    assert params.model_dump(exclude_unset=True) == {"messages": HELLO}


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({}, "parameters.messages: give at least one"),
        ({"messages": []}, "parameters.messages: give at least one"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "parameters.messages.0.role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "parameters.messages: has half of a surrogate pair"),
        ({"messages": HELLO, "parameters": {"temperature": float("nan")}}, "parameters.parameters: not JSON"),
        ({"messages": HELLO, "parameters": {"user": "\udc00"}}, "parameters.parameters: not JSON"),
        ({"messages": HELLO, "temperature": 1}, "parameters.temperature"),
    ],
)
def test_invalid_parameter_is_named(parameters: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        operation.validate(parameters)
    assert problem in str(raised.value)


@pytest.mark.parametrize("name", REJECTED)
def test_reserved_parameter_is_rejected_with_advice(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} is not allowed here: {REJECTED[name]}"):
        operation.validate({"messages": HELLO, "parameters": {name: "x"}})


def test_chat_does_not_run_in_a_worker() -> None:
    assert operation.inline
    assert operation.answers_prompts
    with pytest.raises(EngineError, match="runs in the runtime"):
        operation.run(operation.validate({"messages": HELLO}), TaskContext("task_1"))
