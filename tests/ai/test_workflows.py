from __future__ import annotations

from typing import Any

import pytest

from openruntime_jupyter.ai.agents import Agents
from openruntime_jupyter.ai.workflows import WORKFLOWS, RuntimeData, workflow, workflows
from openruntime_jupyter.errors import InvalidRequest


def test_the_references_workflows_are_there_and_each_tells_agent_context_and_parameters() -> None:
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


def test_an_unknown_workflow_names_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match="unknown workflow 'poetry'; available: code_generation, system_analysis, optimization"):
        workflow("poetry")


def test_an_unknown_parameter_names_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest) as raised:
        workflow("model_inference").read({"temprature": 1, "poetry": 2, "seed": -1})
    problems = {detail["field"]: detail["problem"] for detail in raised.value.details}
    assert problems.keys() == {"parameters.temprature", "parameters.poetry", "parameters.seed"}
    assert problems["parameters.temprature"] == "unknown field: did you mean temperature?"
    assert problems["parameters.poetry"].startswith("unknown field; known fields: profile, model, agent")


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"max_tokens": 0},
        {"stop": []},
        {"stop": ["x"] * 17},
        {"seed": 2**63},
        {"conversation": "a/b"},
        {"conversation": "a\nb"},
        {"conversation": ""},
        {"keep_alive": -1},
        {"context": ""},
    ],
)
def test_a_wrong_value_is_refused_by_its_name(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"parameters.{next(iter(given))}"):
        workflow("model_inference").read(given)


def test_language_and_style_become_sentences_and_are_not_there_where_they_are_not_given() -> None:
    code = WORKFLOWS["code_generation"]
    assert code.requirements(code.read({"language": "python", "style": "functional"})) == [
        "Programming language: python.",
        "Style: functional.",
    ]
    assert code.requirements(code.read({})) == []


def test_who_optimizes_settings_is_told_so_unless_there_are_instructions_of_ones_own() -> None:
    kind = workflow("optimization")
    (wish,) = kind.requirements(kind.read({"target": "settings"}))
    assert wish.startswith("Improve settings, not code")
    assert kind.requirements(kind.read({"target": "settings", "system": "Be brief."})) == []
    assert kind.requirements(kind.read({})) == []


def test_only_an_analysis_and_an_optimization_of_the_settings_tell_a_model_of_the_runtime() -> None:
    told = {name: kind.runtime_data(kind.read({})) for name, kind in WORKFLOWS.items()}
    assert [name for name, what in told.items() if what is not RuntimeData.NOTHING] == ["system_analysis"]
    optimization = WORKFLOWS["optimization"]
    assert optimization.runtime_data(optimization.read({"target": "settings"})) is RuntimeData.SETTINGS
