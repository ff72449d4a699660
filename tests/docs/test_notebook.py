"""docs/notebook.md and the magics' own help tell of the words and options that there are, and of no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openruntime_jupyter.notebook.ai.line_words import PROMPTS
from openruntime_jupyter.notebook.arguments import ALONE, FLAGS, OPTIONS, parse_cell
from openruntime_jupyter.notebook.commands import COMMANDS
from openruntime_jupyter.notebook.display.help import Help
from openruntime_jupyter.operations.registry import operations

ROOT = Path(__file__).resolve().parents[2]
EVERY_OPTION = {"--in", "--out", *(f"--{name.replace('_', '-')}" for name in OPTIONS), *FLAGS}


def page() -> str:
    return (ROOT / "docs" / "notebook.md").read_text()


def words(text: str) -> set[str]:
    """What stands behind `%openruntime`, those that share one with commas too."""
    found = re.findall(r"(?<!%)%openruntime ([a-z_]+)", text)
    shared = re.findall(r"`%openruntime [a-z]+`((?:, `[a-z]+`)+)", text)
    return {*found, *(word for group in shared for word in re.findall(r"[a-z]+", group))}


@pytest.mark.parametrize("name", ["docs/notebook.md", "README.md"])
def test_every_word_and_option_that_is_told_of_is_there(name: str) -> None:
    text = (ROOT / name).read_text()
    told = words(text)
    assert told - set(COMMANDS) - set(PROMPTS) - set(operations()) == set()
    assert set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", page())) <= EVERY_OPTION


def test_every_word_is_told_of() -> None:
    told = {word for path in (ROOT / "docs").glob("*.md") for word in words(path.read_text())}
    assert {*COMMANDS, *PROMPTS} - told - {"again"} == set()


def test_every_option_is_in_the_help_and_is_understood() -> None:
    assert EVERY_OPTION - set(re.findall(r"--[a-z-]+", Help().text())) == set()
    given = {"--priority": "1", "--timeout": "1", "--retries": "1", "--memory-limit": "1GB"}
    for option in EVERY_OPTION:
        parse_cell(option if option in ALONE else f"{option} {given.get(option, 'name')}")


@pytest.mark.parametrize("name", ["README.md", "docs/notebook.md", "notebooks/quickstart.ipynb"])
def test_first_pages_state_the_promise(name: str) -> None:
    assert "a task sees the code as it is on disk now, and nothing that an earlier task left behind" in (ROOT / name).read_text()
