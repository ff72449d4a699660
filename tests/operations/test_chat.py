from __future__ import annotations

from typing import Any

import pytest

from openruntime_jupyter.errors import EngineError, InvalidRequest
from openruntime_jupyter.operations.chat import REJECTED, operation
from openruntime_jupyter.worker.context import TaskContext

HELLO = [{"role": "user", "content": "Hello"}]


def test_a_prompt_is_all_that_is_needed() -> None:
    params = operation.validate({"messages": HELLO})
    assert params.model_dump(exclude_unset=True) == {"messages": HELLO}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "parameters.messages: give at least one"),
        ({"messages": []}, "parameters.messages: give at least one"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "parameters.messages.0.role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "parameters.messages: half of a character"),
        ({"messages": HELLO, "parameters": {"temperature": float("nan")}}, "parameters.parameters: not JSON"),
        ({"messages": HELLO, "parameters": {"user": "\udc00"}}, "parameters.parameters: not JSON"),
        ({"messages": HELLO, "temperature": 1}, "parameters.temperature"),
    ],
)
def test_what_is_wrong_is_named(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        operation.validate(parameters)
    assert said in str(raised.value)


@pytest.mark.parametrize("name", REJECTED)
def test_what_is_ours_to_say_is_refused_with_what_to_do_instead(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} can't be given here: {REJECTED[name]}"):
        operation.validate({"messages": HELLO, "parameters": {name: "x"}})


def test_no_worker_runs_it() -> None:
    assert operation.inline
    assert operation.answers_prompts
    with pytest.raises(EngineError, match="the runtime does"):
        operation.run(operation.validate({"messages": HELLO}), TaskContext("task_1"))
