"""Compare docs/profiles.md with the code: fields, defaults, environment variables, error types, and the example."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openruntime_jupyter import errors
from openruntime_jupyter.ai.profiles import Profile, from_environment, profiles_from

PAGE = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text()


def rows(heading: str) -> list[list[str]]:
    table = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")]


def test_table_lists_fields_with_defaults() -> None:
    shown = {row[0].strip("`"): row[1].strip("`") for row in rows("By configuration")}
    defaults = {name: field.default for name, field in Profile.model_fields.items() if name != "name"}
    assert shown == {name: "none" if default in (None, {}) else str(default).removesuffix(".0") for name, default in defaults.items()}


def test_example_is_valid() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    app = SimpleNamespace()
    exec(code, {"c": SimpleNamespace(OpenRuntimeApp=app)})
    profiles = profiles_from(app.profiles, {}, app.default_profile)
    assert profiles.default == "cloud"
    assert profiles.secret_variables == {"CLOUD_KEY", "GATE_TOKEN"}


def test_page_lists_environment_variables() -> None:
    named = re.findall(r"`(OPEN\w+)`", "".join(row[0] for row in rows("By environment variables")))
    assert len(named) == 8

    class Environment(dict[str, str]):
        def get(self, name: str, default: Any = None) -> Any:
            found.add(name)
            return super().get(name, default)

    found: set[str] = set()
    from_environment(Environment(OPENAI_API_KEY="x"))
    from_environment(Environment(OPENRUNTIME_AI_BASE_URL="http://127.0.0.1/v1"))
    assert found == set(named)


def test_table_lists_error_types() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and errors.ProviderError in kind.__mro__[1:]}
    assert {row[0].strip("`") for row in rows("Errors")} == kinds
