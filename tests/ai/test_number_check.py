from __future__ import annotations

import pytest

from openruntime_jupyter.ai.number_check import faithful, figures_of, unverified_numbers
from tests.ai.insights.test_rewriting import COMPUTED, WORDED

TOLD = """Recorded figures, 2026-01-01T14:31:07.250Z, up for 3m 58s:
cpu_utilization: 3.0 %, 61.4 %, 100.0 %
tasks that ended: 12,500 completed, 1 failed"""


def test_figures_are_numbers_times_and_ids_outside_words() -> None:
    assert figures_of(COMPUTED) == ["92", "14:30:10", "14:30:00", "2026-01-01T14:31", "1250", "task_01kdw8m3s0", "75.5", "1"]
    assert figures_of("float32 and x1 of ai_task_12ab, 0.5") == ["ai_task_12ab", "0.5"]


def test_text_with_all_figures_is_faithful() -> None:
    assert faithful(WORDED, COMPUTED)
    assert faithful(COMPUTED, COMPUTED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("92%", "91%"),
        ("14:30:10", "14:30:11"),
        ("2026-01-01T14:31Z", "2026-01-02T14:31Z"),
        ("task_01kdw8m3s0", "task_01kdw8m3s1"),
        ("above 1", "above 2"),
        ("well used", "well used, 3 times as much as before"),
        ("well used", "well used, " + "really " * 500),
    ],
)
def test_changed_lost_or_added_figure_is_not_faithful(old: str, new: str) -> None:
    assert old in WORDED
    assert not faithful(WORDED.replace(old, new), COMPUTED)


@pytest.mark.parametrize(
    "answer",
    [
        "It is busy.",
        "At 14:31 it was up for 3m 58s, and the CPU at 61.4 %.",
        "About 61 % of the CPU, and 12500 tasks.",
        "1. The CPU is busy.\n2. 12,500 tasks completed.\n3. 1 failed.",
        "A float32 has what it has.",
    ],
)
def test_rounded_and_reformatted_figures_are_known(answer: str) -> None:
    assert unverified_numbers(answer, TOLD) == []


def test_unknown_figures_are_listed_in_order() -> None:
    assert unverified_numbers("The CPU is at 62 %, at most 100.0 %, 16.1 % of it since 14:32; 62 % is a lot.", TOLD) == [
        "62",
        "16.1",
        "14:32",
    ]
