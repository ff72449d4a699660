from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.runtime.metrics.counters import METRICS
from openruntime_jupyter.schemas.system import TIMEFRAMES, MetricsHistory
from tests.server.conftest import error_of
from tests.support import STANDALONE, Home, Server, running_server, wait_until

QUICK = {"OpenRuntimeApp": {"idle_sample_interval": 0.2}}


def last(told: dict[str, Any], figure: str, column: str = "mean") -> float | None:
    """Return the newest value of a metric."""
    return next((value for value in reversed(told["series"][figure][column]) if value is not None), None)


@pytest.mark.parametrize("timeframe", TIMEFRAMES)
@pytest.mark.parametrize("points", [10, 2000])
def test_metrics_history_has_equal_column_lengths(jupyter: Server, timeframe: str, points: int) -> None:
    told = jupyter.get("/metrics/history", params={"timeframe": timeframe, "points": points})
    assert MetricsHistory.model_validate(told).timeframe == timeframe
    assert 1 <= len(told["timestamps"]) <= points
    assert set(told["series"]) == {figure.name for figure in METRICS}
    for figure in METRICS:
        series = told["series"][figure.name]
        assert series["unit"] == figure.unit
        assert {len(series[column]) for column in ("min", "mean", "max")} == {len(told["timestamps"])}
    times = [datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() for text in (*told["timestamps"], told["end"])]
    assert {later - earlier for earlier, later in pairwise(times)} == {told["resolution_s"]}
    assert told["start"] == told["timestamps"][0]
    assert TIMEFRAMES[timeframe] - told["resolution_s"] <= times[-1] - times[0] <= TIMEFRAMES[timeframe] + told["resolution_s"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"timeframe": "2h"}, "timeframe"),
        ({"points": "9"}, "points"),
        ({"points": "many"}, "points"),
        ({"runtime": "x" * 201}, "runtime"),
    ],
)
def test_invalid_metrics_query_names_field(jupyter: Server, query: dict[str, str], field: str) -> None:
    told = error_of(jupyter.request("GET", "/metrics/history", params=query), 422)
    assert [detail["field"] for detail in told["data"]["details"]] == [field]


def test_metrics_history_defaults_to_last_hour(jupyter: Server) -> None:
    told = jupyter.get("/metrics/history")
    assert (told["timeframe"], told["resolution_s"]) == ("1h", 20)


def test_metrics_history_survives_kill_and_separates_runtimes(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with running_server(home, STANDALONE, config=QUICK) as first:
        first.submit("matrix_multiply", {"size": 64})
        first.request("POST", "/tasks", json={"operation": "compute", "parameters": {"expression": "no("}})
        name = first.get("/health")["runtime"]
        told = wait_until(lambda: _with_memory(first), 10.0, "the first samples")
        assert sum(value or 0 for value in told["series"]["completed_tasks"]["mean"]) == 1
        assert 0 < (last(told, "memory_usage") or 0) < 100
        assert last(told, "gpu_utilization") == 0.0, "there is none"
        assert (last(told, "worker_memory") or 0) > 1e6
        first.kill()
    with running_server(home, STANDALONE, config=QUICK) as second:
        both = second.get("/metrics/history", params={"timeframe": "5m"})
        earlier = second.get("/metrics/history", params={"timeframe": "5m", "runtime": name})
        here = second.get("/metrics/history", params={"timeframe": "5m", "runtime": second.get("/health")["runtime"]})
        for told, number in ((both, 1), (earlier, 1), (here, 0)):
            assert sum(value or 0 for value in told["series"]["completed_tasks"]["mean"]) == number
        assert last(earlier, "memory_usage") is not None
        assert last(both, "run_time") == last(earlier, "run_time") is not None


def _with_memory(server: Server) -> Any:
    told = server.get("/metrics/history", params={"timeframe": "5m"})
    return told if last(told, "memory_usage") is not None and last(told, "worker_memory") else None
