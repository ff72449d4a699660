"""`POST /ai/insights` over HTTP: the reference's example, findings in a synthetic history, and invalid bodies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest

from openruntime_jupyter.schemas.insights import Insights
from openruntime_jupyter.schemas.system import TIMEFRAMES
from tests.ai.insights.synthetic import Story, planted
from tests.runtime.history_support import opened
from tests.runtimes import live
from tests.server.conftest import error_of
from tests.support import STANDALONE, Home, Server, running_server

METRICS = ("performance", "memory", "efficiency", "errors")


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Story]]:
    """Start a server with an hour of synthetic history, and return it with the expected findings."""
    home = Home(tmp_path_factory.mktemp("home"))
    story = planted("1h", time.time())

    async def write() -> None:
        async with opened(home.data_dir) as history:
            await story.tell(history)

    live(write())
    with running_server(home, STANDALONE) as server:
        yield server, story


def asked(server: Server, **body: Any) -> Any:
    return server._json(server.request("POST", "/ai/insights", json=body))


def test_reference_insights_example_has_reference_shape(past: tuple[Server, Story]) -> None:
    told = asked(past[0], metric_type="performance", timeframe="1h")
    assert told["insights"].startswith("Based on the last hour of performance data:\n\n1. ")
    assert {"gpu_utilization", "memory_usage", "active_tasks", "ai_tasks_processed"} <= set(told["metrics"])
    assert told["timestamp"].endswith("Z")
    Insights.model_validate(told)


def test_planted_findings_are_returned(past: tuple[Server, Story]) -> None:
    server, story = past
    told = asked(server, metric_type="performance", timeframe="1h", wording="none")
    found = {finding["kind"]: finding for finding in told["findings"]}
    assert {"burst", "leak", "peak"} <= set(found)
    train = next(task for task in story.tasks if task.name == "train")
    assert found["peak"]["tasks"][0]["task_id"] == train.task_id
    assert found["peak"]["tasks"][0]["owner"] == "alice"
    for finding in found.values():
        assert finding["text"] in told["insights"]
    assert {mark["kind"] for mark in told["data"]["marks"]} >= {"burst", "leak", "peak"}


@pytest.mark.parametrize(("metric_type", "timeframe"), [*zip(cycle(METRICS), TIMEFRAMES, strict=False)])
def test_all_metric_types_and_timeframes_are_supported(past: tuple[Server, Story], metric_type: str, timeframe: str) -> None:
    told = asked(past[0], metric_type=metric_type, timeframe=timeframe)
    assert (told["metric_type"], told["timeframe"], told["data"]["timeframe"]) == (metric_type, timeframe, timeframe)
    assert told["findings"]
    assert told["basis"]["span_s"] == TIMEFRAMES[timeframe]  # type: ignore[index]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"metric_type", "timeframe"}),
        ({"metric_type": "speed", "timeframe": 3600}, {"metric_type", "timeframe"}),
        ({"metric_type": "memory", "timeframe": "1h", "wording": "poetic"}, {"wording"}),
        ({"metric_type": "memory", "timeframe": "1h", "more": 1}, {"more"}),
    ],
)
def test_invalid_insights_body_names_fields(jupyter: Server, body: dict[str, Any], fields: set[str]) -> None:
    told = error_of(jupyter.request("POST", "/ai/insights", json=body), 422)
    assert {detail["field"] for detail in told["data"]["details"]} == fields


def test_insights_without_model_are_computed_with_notice(jupyter: Server) -> None:
    told = asked(jupyter, metric_type="memory", timeframe="5m", wording="remote")
    assert told["worded_by"] == "none"
    assert "insights_wording" in told["notice"]
