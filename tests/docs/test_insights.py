"""`docs/insights.md` says what is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from openruntime_jupyter.ai.insights import dataset, failures, finding, report, rewriting, statistics, trends
from openruntime_jupyter.runtime.storage import insights as history_insights
from openruntime_jupyter.schemas.insights import FindingKind, WordingChoice
from openruntime_jupyter.schemas.system import TIMEFRAMES

PAGE = " ".join((Path(__file__).resolve().parents[2] / "docs" / "insights.md").read_text().split())
WORDS = {"eight": 8, "six": 6}


def test_the_kinds_and_the_wordings_on_the_page_are_those_that_there_are() -> None:
    kinds = re.findall(r"\| `(\w+)` \|", PAGE.split("## What is looked for")[1].split("## How far")[0])
    assert sorted(kinds) == sorted(get_args(FindingKind))
    assert sorted(re.findall(r"\| `(\w+)` \|", PAGE.split("| `wording` | who |")[1])) == sorted(get_args(WordingChoice))


def test_the_bounds_on_the_page_are_those_of_the_code() -> None:
    assert f"At most {next(word for word, number in WORDS.items() if number == report.MOST_FINDINGS)} are told" in PAGE
    assert f"over {statistics.BLOCKS} medians" in PAGE
    assert statistics.CHANCE == 0.001
    assert "one in a thousand" in PAGE
    assert trends.MEMORY[0].least(None) == 8  # type: ignore[arg-type]
    assert {course.least(None) for course in trends.LOAD[:2]} == {30}  # type: ignore[arg-type]
    assert f"more than {history_insights.MOST_TASKS:,} tasks" in PAGE
    assert f"the newest {history_insights.MOST_FAILURES:,} of each state" in PAGE
    assert f"A model has {rewriting.SECONDS:g} seconds" in PAGE
    assert "at least eight tasks" in PAGE
    assert dataset.LEAST_COMPARED == 8
    assert f"up to {'five'} tasks" in (Path(__file__).resolve().parents[2] / "docs" / "api-reference.md").read_text()
    assert (finding.MOST_TASKS, failures.MOST_BURSTS) == (5, 3)


def test_the_resolutions_on_the_page_are_those_of_the_code() -> None:
    assert "10 seconds up to one hour, 30 seconds in six hours, a minute in a day, five in a week" in PAGE
    assert {name: TIMEFRAMES[name] / points for name, points in dataset.POINTS.items()} == {
        "5m": 10,
        "15m": 10,
        "1h": 10,
        "6h": 30,
        "24h": 60,
        "7d": 300,
    }
