"""The page of prompts in notebooks says what is so: its options, its bounds, and what an answer has."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from openruntime_jupyter.client.ai_response import Reply, Usage
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.notebook.ai import batch, context
from openruntime_jupyter.notebook.ai.options import OPTIONS
from openruntime_jupyter.notebook.commands import COMMANDS

PAGE = " ".join((Path(__file__).resolve().parents[2] / "docs" / "notebook-ai.md").read_text().split())


def test_every_option_is_on_the_page_and_no_other() -> None:
    assert set(re.findall(r"`(--[\w-]+)[^`]*`", PAGE)) | {"--as"} == set(OPTIONS)


def test_the_bounds_are_those_that_hold() -> None:
    assert f"first {context.ROWS} rows" in PAGE
    assert f"at most {context.LONGEST:,} characters" in PAGE
    assert f"room in it ({batch.MOST_AHEAD})" in PAGE
    assert f"After {batch.HOPELESS} failures in a row" in PAGE


def test_what_an_answer_has_is_there() -> None:
    table = PAGE.split("| of `made` |")[1].split("HTML in an answer")[0]
    told = {name for name in re.findall(r"`([a-z_]+)`", table) if name not in ("length", "max_tokens", "language", "source")}
    known = {field.name for field in (*fields(Reply), *fields(Usage))} | {"code", "code_blocks"}
    assert told <= known
    assert {field.name for field in fields(Reply)} <= told


def test_the_words_and_the_methods_are_there() -> None:
    words = re.findall(r"`%openruntime (\w+)", PAGE)
    assert {word for word in words if word not in COMMANDS} == {"ai", "fix"}
    for name in re.findall(r"`client\.(\w+)\(", PAGE):
        assert hasattr(Client, name), name
