"""Run the examples of docs/metrics.md, and compare its tables with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from openruntime_jupyter.runtime.metrics.counters import METRICS, TIERS
from openruntime_jupyter.server.handlers.prometheus import DEVICE_GAUGES
from tests.support import STANDALONE, Server, running_server, wait_until

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "metrics.md").read_text()
DEPLOYMENT = (DOCS / "deployment.md").read_text()
SUFFIX = {"counter": "_total", "info": "_info"}
SECONDS = {"second": 1, "minute": 60, "minutes": 60, "hours": 3600, "days": 86_400, "seconds": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), STANDALONE) as running:
        yield running


def table(head: str) -> list[list[str]]:
    """Return the cells of the rows of the table with this header."""
    found = re.search(rf"^\| {re.escape(head)} \|.*\n\|[ -|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found, head
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in found[1].splitlines()]


def span(words: str) -> int:
    number, _, unit = words.rpartition(" ")
    return int(number or 1) * SECONDS[unit]


def scraped(server: Server) -> dict[str, Any]:
    """Return the metrics by name, once the first CPU sample is available."""
    return wait_until(lambda: found if "openruntime_cpu_utilization_ratio" in (found := _scraped(server)) else None)


def _scraped(server: Server) -> dict[str, Any]:
    answer = server.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
    return {family.name + SUFFIX.get(family.type, ""): family for family in text_string_to_metric_families(answer.text)}


def test_page_lists_resolutions_and_retention() -> None:
    assert [(span(each), span(kept)) for kept, each in table("kept for")] == [(tier.seconds, tier.keep) for tier in TIERS]


def test_page_lists_series_with_units() -> None:
    assert [(name, unit) for name, unit, _ in table("series")] == [(figure.name, figure.unit) for figure in METRICS]


def test_page_lists_prometheus_metrics(server: Server) -> None:
    found = scraped(server)
    # Without a GPU, its metrics are missing.
    elsewhere = {f"openruntime_device_{name}" for name, _, _ in DEVICE_GAUGES} - set(found)
    listed = {name: kind for name, kind, _ in table("metric")}
    assert set(listed) == set(found) | elsewhere
    assert {name: family.type for name, family in found.items()} == {name: listed[name] for name in found}


def test_metrics_of_suggested_alerts_exist(server: Server) -> None:
    samples = {sample.name for family in scraped(server).values() for sample in family.samples}
    named = set(re.findall(r"\bopenruntime_\w+", DEPLOYMENT.split("## Monitoring", 1)[1].split("\n## ", 1)[0]))
    assert named
    assert named <= samples


def test_examples_run(server: Server) -> None:
    (python,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (bash,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    server.submit("matrix_multiply", {"size": 16})
    for command in ([sys.executable, "-c", python], ["bash", "-c", bash.replace("curl ", "curl -sS --fail-with-body ", 1)]):
        command[-1] = command[-1].replace("http://localhost:8000", server.url)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout, command
