"""Compare docs/ai.md with the code: workflows, parameters, settings, limits, and the example agent."""

from __future__ import annotations

import re
from pathlib import Path

from openruntime_jupyter.ai.agents import parse
from openruntime_jupyter.ai.conversations import PATIENCE
from openruntime_jupyter.ai.workflows import UNKNOWN_CONTEXT, WORKFLOWS, Shared
from openruntime_jupyter.server.config.ai_traits import AiTraits

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ai.md").read_text()


def rows(title: str) -> list[list[str]]:
    """Return the cells of all table rows under a heading that begin with a name."""
    section = re.split(r"^## ", PAGE.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^\| `(\w+)` \|(.*)\|$", section, re.MULTILINE)
    return [[name, *(cell.strip() for cell in rest.split("|"))] for name, rest in found]


def names(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def test_page_lists_workflows_with_agent_and_parameters() -> None:
    shown = {name: (agent, names(parameters)) for name, agent, _, parameters in rows("Workflows")}
    own = {kind.name: set(kind.parameters.model_fields) - set(Shared.model_fields) for kind in WORKFLOWS.values()}
    assert shown == {kind.name: (kind.agent or "none", own[kind.name]) for kind in WORKFLOWS.values()}


def test_page_lists_all_parameters() -> None:
    shared = [name for name, *rest in rows("Parameters") if len(rest) == 1]
    assert shared == list(Shared.model_fields)
    others = {name: names(workflows) for name, *rest in rows("Parameters") if len(rest) == 2 for workflows in rest[:1]}
    assert others == {
        name: {kind.name for kind in WORKFLOWS.values() if name in kind.parameters.model_fields}
        for kind in WORKFLOWS.values()
        for name in set(kind.parameters.model_fields) - set(Shared.model_fields)
    }


def test_page_lists_all_settings() -> None:
    assert sorted(name for name, *_ in rows("Model selection")) == sorted(AiTraits.class_own_traits(config=True))


def test_example_agent_is_valid() -> None:
    text = re.search(r"```markdown\n(.*?)```", PAGE, re.DOTALL)
    assert text is not None
    assert parse(text[1]).info.capabilities == ["review", "security"]


def test_limits_match_code() -> None:
    assert f"{PATIENCE:g} seconds" in " ".join(PAGE.split())
    assert f"{UNKNOWN_CONTEXT:,}" in PAGE
