"""The page of AI says what is so: its tables are the workflows' and the settings' own, its agent is one."""

from __future__ import annotations

import re
from pathlib import Path

from openruntime_jupyter.ai.agents import parse
from openruntime_jupyter.ai.conversations import PATIENCE
from openruntime_jupyter.ai.messages import UNKNOWN_CONTEXT
from openruntime_jupyter.ai.workflows import WORKFLOWS, Shared
from openruntime_jupyter.server.config.ai_traits import AiTraits

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ai.md").read_text()


def rows(title: str) -> list[list[str]]:
    """The cells of every row under a heading that begin with a name."""
    section = re.split(r"^## ", PAGE.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^\| `(\w+)` \|(.*)\|$", section, re.MULTILINE)
    return [[name, *(cell.strip() for cell in rest.split("|"))] for name, rest in found]


def names(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def test_every_workflow_is_on_the_page_with_its_agent_and_its_own_parameters() -> None:
    shown = {name: (agent, names(parameters)) for name, agent, _, parameters in rows("Workflows")}
    own = {kind.name: set(kind.parameters.model_fields) - set(Shared.model_fields) for kind in WORKFLOWS.values()}
    assert shown == {kind.name: (kind.agent or "none", own[kind.name]) for kind in WORKFLOWS.values()}


def test_every_parameter_is_on_the_page_and_no_other() -> None:
    shared = [name for name, *rest in rows("Parameters") if len(rest) == 1]
    assert shared == list(Shared.model_fields)
    others = {name: names(workflows) for name, *rest in rows("Parameters") if len(rest) == 2 for workflows in rest[:1]}
    assert others == {
        name: {kind.name for kind in WORKFLOWS.values() if name in kind.parameters.model_fields}
        for kind in WORKFLOWS.values()
        for name in set(kind.parameters.model_fields) - set(Shared.model_fields)
    }


def test_every_setting_is_on_the_page() -> None:
    assert sorted(name for name, *_ in rows("Who answers")) == sorted(AiTraits.class_own_traits(config=True))


def test_the_agent_on_the_page_is_one() -> None:
    text = re.search(r"```markdown\n(.*?)```", PAGE, re.DOTALL)
    assert text is not None
    assert parse(text[1]).info.capabilities == ["review", "security"]


def test_the_figures_on_the_page_are_those_of_the_code() -> None:
    assert f"kept waiting for {PATIENCE:g} seconds" in " ".join(PAGE.split())
    assert f"{UNKNOWN_CONTEXT:,}" in PAGE
