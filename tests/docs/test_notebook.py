"""Compare docs/notebook.md and the help of the magics with the commands and options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openruntime_jupyter.notebook.arguments import CELL_OPTIONS
from openruntime_jupyter.notebook.commands import COMMANDS
from openruntime_jupyter.operations.registry import operations

ROOT = Path(__file__).resolve().parents[2]


def page() -> str:
    return (ROOT / "docs" / "notebook.md").read_text()


def words(text: str) -> set[str]:
    """Return the commands after `%openruntime`, including comma-separated lists of them."""
    found = re.findall(r"(?<!%)%openruntime ([a-z_]+)", text)
    shared = re.findall(r"`%openruntime [a-z]+`((?:, `[a-z]+`)+)", text)
    return {*found, *(word for group in shared for word in re.findall(r"[a-z]+", group))}


@pytest.mark.parametrize("name", ["docs/notebook.md", "README.md"])
def test_documented_commands_and_options_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    assert words(text) - set(COMMANDS) - set(operations()) == set()
    assert set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", page())) <= set(CELL_OPTIONS)


def test_all_commands_are_documented() -> None:
    documented = {word for path in (ROOT / "docs").glob("*.md") for word in words(path.read_text())}
    assert set(COMMANDS) - documented - {"again"} == set()
