"""Run the examples of docs/operations.md, and compare their results with its tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.registry import operation

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
NAMES = ("compute", "matrix_multiply", "vector_operations", "memory_bandwidth", "mlx_operation")
EXAMPLES = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


def section(title: str) -> str:
    """Return the text under a heading, up to the next one of level 1 or 2."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, title
    return found.group(2)


def table(title: str, head: str) -> list[str]:
    """Return the first column of the table with this header in a section."""
    rows = re.search(rf"^\| {head} \|.*\n\|[ -|]+\n((?:\|.*\n)+)", section(title), re.MULTILINE)
    assert rows, (title, head)
    return re.findall(r"^\| `(\w+)`", rows.group(1), re.MULTILINE)


def outputs() -> dict[str, dict[str, Any]]:
    done: dict[str, dict[str, Any]] = {}
    for example in EXAMPLES:
        kind = operation(example["operation"])
        output = kind.run(kind.validate(example["parameters"]), TaskContext())
        assert isinstance(output, dict)
        done[kind.name] = output
    return done


def test_examples_return_documented_fields():
    given = outputs()
    assert tuple(given) == NAMES
    of_an_array = table("Arrays as results", "field")
    for name, output in given.items():
        assert list(output) == table(name, "result") + (of_an_array if name == "compute" else []), name
    assert list(given["mlx_operation"]["result"]) == of_an_array
    assert given["mlx_operation"]["result"]["value"] == pytest.approx([4, 3])
    assert given["compute"]["value"] == 0.0
    for name in ("vector_operations", "memory_bandwidth"):
        for measured in given[name][table(name, "result")[-1]].values():
            assert {field for field in measured if f"`{field}`" not in section(name)} == set(), name
