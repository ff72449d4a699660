"""Compare docs/notebook-ai.md with the code: options, limits, commands, and attributes of an answer."""

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


def test_page_lists_all_options() -> None:
    assert set(re.findall(r"`(--[\w-]+)[^`]*`", PAGE)) | {"--as"} == set(OPTIONS)


def test_limits_match_code() -> None:
    assert f"first {context.ROWS} rows" in PAGE
    assert f"at most {context.LONGEST:,} characters" in PAGE
    assert f"Up to {batch.MOST_AHEAD} tasks" in PAGE
    assert f"After {batch.HOPELESS} failures in a row" in PAGE


def test_page_lists_answer_attributes() -> None:
    table = PAGE.split("| attribute of `made` |")[1].split("HTML in an answer")[0]
    documented = {name for name in re.findall(r"`([a-z_]+)`", table) if name not in ("length", "max_tokens", "language", "source")}
    known = {field.name for field in (*fields(Reply), *fields(Usage))} | {"code", "code_blocks"}
    assert documented <= known
    assert {field.name for field in fields(Reply)} <= documented


def test_documented_commands_and_methods_exist() -> None:
    words = re.findall(r"`%openruntime (\w+)", PAGE)
    assert set(words) <= set(COMMANDS)
    for name in re.findall(r"`client\.(\w+)\(", PAGE):
        assert hasattr(Client, name), name
