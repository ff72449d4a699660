"""`docs/profiles.md` says what is so: its fields, its defaults, its example and its kinds of failure."""

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


def test_every_field_is_in_the_table_with_its_default() -> None:
    shown = {row[0].strip("`"): row[1].strip("`") for row in rows("By configuration")}
    defaults = {name: field.default for name, field in Profile.model_fields.items() if name != "name"}
    assert shown == {name: "none" if default in (None, {}) else str(default).removesuffix(".0") for name, default in defaults.items()}


def test_the_example_is_one() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    app = SimpleNamespace()
    exec(code, {"c": SimpleNamespace(OpenRuntimeApp=app)})
    profiles = profiles_from(app.profiles, {}, app.default_profile)
    assert profiles.default == "cloud"
    assert profiles.secret_variables == {"CLOUD_KEY", "GATE_TOKEN"}


def test_the_variables_make_a_profile() -> None:
    named = re.findall(r"`(OPEN\w+)`", "".join(row[0] for row in rows("By environment variables")))
    assert len(named) == 8

    class Looked(dict[str, str]):
        def get(self, name: str, default: Any = None) -> Any:
            found.add(name)
            return super().get(name, default)

    found: set[str] = set()
    from_environment(Looked(OPENAI_API_KEY="x"))
    from_environment(Looked(OPENRUNTIME_AI_BASE_URL="http://127.0.0.1/v1"))
    assert found == set(named)


def test_every_kind_of_failure_is_in_the_table() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and errors.ProviderError in kind.__mro__[1:]}
    assert {row[0].strip("`") for row in rows("What fails")} == kinds
