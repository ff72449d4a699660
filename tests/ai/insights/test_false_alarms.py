"""Healthy histories (flat, noisy, random walk, daily oscillation) cause no warnings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openruntime_jupyter.ai.insights.dataset import EARLIER
from openruntime_jupyter.schemas.system import Timeframe
from tests.ai.insights.synthetic import DAY, Story, look, ordinary
from tests.runtimes import live

SEEDS = 2


def flat(story: Story) -> None:
    levels = {"memory_usage": 40.0, "cpu_utilization": 5.0, "worker_memory": 1e9}
    levels |= dict.fromkeys(("gpu_utilization", "active_tasks", "pending_tasks"), 0.0)
    story.courses = {name: lambda at, level=level: level for name, level in levels.items()}  # type: ignore[misc]


def noisy(story: Story) -> None:
    story.work(story.span / 300, 0.3, peak=3e8)


def failing_now_and_then(story: Story) -> None:
    story.work(story.span / 300, 0.3, failing=0.04)


def wandering(story: Story) -> None:
    def walk(level: float, deviation: float) -> Callable[[float], float]:
        place = [level]

        def step(_: float) -> float:
            place[0] = max(0.0, place[0] + story.dice.gauss(0, deviation))
            return place[0]

        return step

    story.courses |= {"memory_usage": walk(40, 0.1), "worker_memory": walk(1.5e9, 1e7)}


def daily(story: Story) -> None:
    story.spans = 1.0 + EARLIER[story.timeframe]
    story.courses |= {
        "memory_usage": story.daily(40, 15, 1),
        "cpu_utilization": story.daily(40, 30, 5),
        "worker_memory": story.daily(1.5e9, 1e9, 3e7),
        "active_tasks": story.daily(1, 0.8, 0.1),
    }


@pytest.mark.parametrize(
    ("course", "timeframe"),
    [
        *((course, timeframe) for course in (flat, noisy, failing_now_and_then, wandering) for timeframe in ("5m", "1h", "7d")),
        *((daily, timeframe) for timeframe in ("1h", "6h", "24h", "7d")),
    ],
)
def test_nothing_wrong_is_told_as_nothing_wrong(tmp_path: Path, course: Callable[[Story], None], timeframe: Timeframe) -> None:
    for seed in range(SEEDS if timeframe in ("5m", "1h") else 1):
        story = ordinary(Story(timeframe, time.time(), seed=seed))
        course(story)
        _, found = live(look(story, tmp_path / str(seed), "performance", "memory", "efficiency", "errors"))
        for drafts in found:
            alarms = [draft.text for draft in drafts if draft.severity != "info" or draft.kind in ("peak", "leak", "burst")]
            # Failures are reported without further conclusions.
            assert not [text for text in alarms if course is not failing_now_and_then or "did not complete" not in text]
        if course is not failing_now_and_then:
            assert "nothing" in {draft.kind for draft in found[0]}


def test_what_rises_all_morning_as_it_did_yesterday_is_not_said_to_go_on(tmp_path: Path) -> None:
    now = time.time()
    story = ordinary(Story("6h", now, spans=1.0 + EARLIER["6h"]))
    story.courses["memory_usage"] = lambda at: 40 + 15 * math.sin(2 * math.pi * (at - now) / DAY + 1.0) + story.dice.gauss(0, 1)
    _, [drafts] = live(look(story, tmp_path, "memory"))
    [rise] = [draft for draft in drafts if draft.kind == "trend"]
    assert rise.severity == "info"
    assert "earlier, too" in rise.text
