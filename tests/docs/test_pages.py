"""Compare the pages with the code where no table is generated: routes, commands, options, and examples of configuration."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from openruntime_jupyter.ai.agents import parse
from openruntime_jupyter.ai.profiles import from_environment, profiles_from
from openruntime_jupyter.notebook.arguments import CELL_OPTIONS, SET
from openruntime_jupyter.notebook.commands import COMMANDS
from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.schemas.insights import FindingKind, WordingChoice
from openruntime_jupyter.server.routes import ROUTES
from openruntime_jupyter.server.websocket import EventsSocket

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def page(name: str) -> str:
    return (ROOT / f"{name}.md").read_text()


def words(text: str) -> set[str]:
    """Return the commands after `%openruntime`."""
    return set(re.findall(r"(?<!%)%openruntime ([a-z_]+)", text))


def test_page_lists_all_routes() -> None:
    served = []
    for pattern, handler in ROUTES:
        path = pattern.replace("([^/]+)", "{id}").replace("/?", "/")
        verbs = ["WS"] if handler is EventsSocket else [verb for verb in VERBS if verb.lower() in vars(handler)]
        served += [(verb, path) for verb in verbs]
    assert sorted(re.findall(r"^### ([A-Z]+) (/\S*)$", page("docs/api-reference"), re.MULTILINE)) == sorted(served)


@pytest.mark.parametrize("name", ["docs/notebook", "README"])
def test_documented_commands_and_options_exist(name: str) -> None:
    assert words(page(name)) - set(COMMANDS) - set(operations()) == set()
    assert set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", page("docs/notebook"))) <= {*CELL_OPTIONS, SET}


def test_insights_page_lists_all_kinds_and_wordings() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", page("docs/insights"), re.MULTILINE))
    assert {*get_args(FindingKind), *get_args(WordingChoice)} <= listed


def test_example_agent_is_valid() -> None:
    (text,) = re.findall(r"```markdown\n(.*?)```", page("docs/ai"), re.DOTALL)
    assert parse(text).info.capabilities


def test_example_profiles_are_valid() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", page("docs/profiles"), re.DOTALL)
    app = SimpleNamespace()
    exec(code, {"c": SimpleNamespace(OpenRuntimeApp=app)})
    profiles = profiles_from(app.profiles, {}, app.default_profile)
    assert not profiles.problems
    assert profiles.default == app.default_profile
    assert {f"env:{name}" for name in profiles.secret_variables} == set(re.findall(r"env:\w+", code))


def test_page_lists_environment_variables_of_providers() -> None:
    class Environment(dict[str, str]):
        def get(self, name: str, default: Any = None) -> Any:
            read.add(name)
            return super().get(name, default)

    read: set[str] = set()
    from_environment(Environment(OPENAI_API_KEY="x"))
    from_environment(Environment(OPENRUNTIME_AI_BASE_URL="http://127.0.0.1/v1"))
    assert read == set(re.findall(r"`(OPEN\w+_\w+)`", "".join(re.findall(r"^\| `.*$", page("docs/profiles"), re.MULTILINE))))
