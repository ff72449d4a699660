from __future__ import annotations

from typing import Any

import pytest

from openruntime_jupyter.ai.agents import Agents
from openruntime_jupyter.ai.workflows import (
    WORKFLOWS,
    Shared,
    system_message,
    tokens_of,
    user_message,
    with_turns,
    workflow,
    workflows,
)
from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.schemas.ai import Message, Turn


def test_workflows_have_agent_context_and_parameters() -> None:
    told = {each.name: each for each in workflows().workflows}
    assert list(told) == ["code_generation", "system_analysis", "optimization", "model_inference"]
    assert [each.agent for each in told.values()] == ["DEVELOPER", "ANALYST", "OPTIMIZER", None]
    for each in told.values():
        assert each.summary.endswith(".")
        assert each.context
        for schema in each.parameters_schema["properties"].values():
            assert schema["description"]
        if each.agent is not None:
            assert Agents().find(each.agent)


def test_unknown_workflow_lists_workflows() -> None:
    with pytest.raises(InvalidRequest, match="unknown workflow 'poetry'; available: code_generation, system_analysis, optimization"):
        workflow("poetry")


def test_unknown_parameter_lists_parameters() -> None:
    with pytest.raises(InvalidRequest) as raised:
        workflow("model_inference").read({"temprature": 1, "poetry": 2, "seed": -1})
    problems = {detail["field"]: detail["problem"] for detail in raised.value.details}
    assert problems.keys() == {"parameters.temprature", "parameters.poetry", "parameters.seed"}
    assert problems["parameters.temprature"] == "unknown field: did you mean temperature?"
    assert problems["parameters.poetry"].startswith("unknown field; known fields: profile, model, agent")


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": float("nan")},
        {"stop": ["x"] * 17},
        {"conversation": "a/b"},
    ],
)
def test_invalid_value_names_its_parameter(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"parameters.{next(iter(given))}"):
        workflow("model_inference").read(given)


def test_language_and_style_become_requirements() -> None:
    code = WORKFLOWS["code_generation"]
    assert code.read({"language": "python", "style": "functional"}).requirements() == [
        "Programming language: python.",
        "Style: functional.",
    ]
    assert code.read({}).requirements() == []


def test_settings_requirement_is_omitted_with_custom_instructions() -> None:
    kind = workflow("optimization")
    (wish,) = kind.read({"target": "settings"}).requirements()
    assert wish.startswith("Improve settings, not code")
    assert kind.read({"target": "settings", "system": "Be brief."}).requirements() == []
    assert kind.read({}).requirements() == []


def test_only_analysis_and_settings_optimization_send_runtime_data() -> None:
    sent = {name: (kind.read({}).metrics_period(), kind.read({}).sends_settings()) for name, kind in WORKFLOWS.items()}
    nothing = (None, False)
    assert sent == {**dict.fromkeys(WORKFLOWS, nothing), "system_analysis": ("1h", False)}
    optimization = WORKFLOWS["optimization"].read({"target": "settings", "timeframe": "7d"})
    assert (optimization.metrics_period(), optimization.sends_settings()) == ("7d", True)


NOW = "2026-01-01T12:00:00.000000Z"


def turns(number: int) -> list[Turn]:
    return [Turn(task_id=f"ai_task_{each}", prompt=f"question {each}", answer=f"answer {each}", timestamp=NOW) for each in range(number)]


def test_messages_combine_instructions_parts_and_context() -> None:
    assert system_message(None, Shared()) == []
    assert system_message("Be.", Shared(), "Style: short.", "")[0].model_dump() == {"role": "system", "content": "Be.\n\nStyle: short."}
    assert system_message("Be.", Shared(system="Mine."))[0].content == "Mine."
    assert system_message("Be.", Shared(system="")) == []
    assert user_message("  {x}\n", Shared()).content == "  {x}\n"
    assert user_message("Why?", Shared(context="a,b\n1,2")).content == "a,b\n1,2\n\nWhy?"


def test_conversation_sends_all_turns_that_fit() -> None:
    user = Message(role="user", content="next")
    messages, left_out = with_turns([Message(role="system", content="Be.")], turns(2), [user], 4096, None)
    assert [message.content for message in messages] == ["Be.", "question 0", "answer 0", "question 1", "answer 1", "next"]
    assert [message.role for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert left_out == 0


def test_oldest_turns_are_left_out_and_counted() -> None:
    user = Message(role="user", content="next")
    one = tokens_of("question 0", "answer 0")
    room = tokens_of("next") + 100 + 3 * one
    messages, left_out = with_turns([], turns(10), [user], room, 100)
    assert [message.content for message in messages[:2]] == ["question 7", "answer 7"]
    assert (len(messages), left_out) == (7, 7)
    assert with_turns([], turns(10), [user], room - 1, 100)[1] == 8
    long = Message(role="user", content="x" * 10_000)
    assert with_turns([], turns(3), [long], 1000, None) == ([long], 3)


def test_token_estimate_counts_bytes() -> None:
    assert tokens_of("語" * 300) > 300
