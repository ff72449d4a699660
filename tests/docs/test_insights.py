"""Compare docs/insights.md with the code: kinds, authors of the text, resolutions, and limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from openruntime_jupyter.ai.insights import dataset, report, rewriting, statistics
from openruntime_jupyter.runtime.storage import insights as history_insights
from openruntime_jupyter.schemas.insights import FindingKind, WordingChoice
from openruntime_jupyter.schemas.system import TIMEFRAMES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "insights.md").read_text()
NUMBERS = {8: "eight"}


def section(title: str) -> str:
    """Return the text under a heading of level 2."""
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def table(title: str, head: str) -> list[list[str]]:
    """Return the rows of the table in a section whose header begins with `head`."""
    found = re.search(rf"^\| {re.escape(head)} \|.*\n\|[ -|]+\n((?:\|.*\n?)+)", section(title), re.MULTILINE)
    assert found, head
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]


def test_page_lists_finding_kinds() -> None:
    assert sorted(row[0].strip("`") for row in table("Kinds of findings", "kind")) == sorted(get_args(FindingKind))


def test_page_lists_wordings() -> None:
    assert sorted(row[0].strip("`") for row in table("In words", "`wording`")) == sorted(get_args(WordingChoice))


def test_resolutions_match_code() -> None:
    shown = {
        name: float(resolution.removesuffix(" s"))
        for names, resolution in table("Kinds of findings", "timeframe")
        for name in re.findall(r"`(\w+)`", names)
    }
    assert shown == {name: TIMEFRAMES[name] / points for name, points in dataset.POINTS.items()}


@pytest.mark.parametrize(
    ("title", "number", "noun"),
    [
        ("Kinds of findings", report.MOST_FINDINGS, "findings"),
        ("Methods and reliability", statistics.BLOCKS, "medians"),
        ("Methods and reliability", dataset.LEAST_COMPARED, "tasks"),
        ("Methods and reliability", history_insights.MOST_TASKS, "tasks"),
        ("Methods and reliability", history_insights.MOST_FAILURES, "of each state"),
        ("In words", rewriting.SECONDS, "seconds"),
    ],
)
def test_limit_matches_code(title: str, number: float, noun: str) -> None:
    shown = f"(?:{number:,g}|{NUMBERS.get(int(number), number)})"
    assert re.search(rf"\b{shown} {noun}", " ".join(section(title).split()))


def test_trend_probability_matches_code() -> None:
    assert f"below {statistics.CHANCE:g} " in " ".join(section("Methods and reliability").split())
