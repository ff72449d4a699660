from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from openruntime_jupyter.engines.protocol import WorkerReport, WorkerState
from openruntime_jupyter.memory import Memory
from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.runtime.metrics.counters import Counters
from openruntime_jupyter.schemas.endpoints import VERSIONS, TextType
from openruntime_jupyter.schemas.system import Device
from openruntime_jupyter.schemas.tasks import TaskState
from openruntime_jupyter.server.handlers.prometheus import exposition
from tests.runtime.test_counters import change, entry
from tests.runtimes import cell, ended, runtime_in, submit, until
from tests.support import Server

PARSERS = {"text/plain": parse_text, "application/openmetrics-text": parse_open}
# Accept header of Prometheus 2.
SCRAPE = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;q=0.3,*/*;q=0.2"
BASE_UNITS = ("seconds", "bytes", "ratio", "celsius", "watts")


def families(content: bytes, media: TextType) -> dict[str, Any]:
    """Return the metric families by name, as read by the parser of Prometheus."""
    found = list(PARSERS[media](content.decode()))
    assert len({family.name for family in found}) == len(found), "duplicate metric family"
    return {family.name: family for family in found}


def value(found: dict[str, Any], sample: str, **labels: str) -> float:
    (only,) = [
        each.value for family in found.values() for each in family.samples if each.name == sample and labels.items() <= each.labels.items()
    ]
    return float(only)


GPU = Device(
    id="device_0",
    name='GeForce "RTX" \\ 5090\n',
    type="gpu",
    status="busy",
    capabilities=["cuda"],
    memory_total=34_000_000_000,
    memory_available=30_000_000_000,
    utilization=87.5,
    temperature_celsius=61.0,
    power_watts=320.5,
    slots=1,
    running=1,
    pending=7,
)
CPU = Device(
    id="device_1", name="EPYC", type="cpu", status="available", capabilities=[], memory_total=2, memory_available=1, blas="OpenBLAS"
)


def report(state: WorkerState, resident: int | None) -> WorkerReport:
    return WorkerReport("worker_1", state, resident, 0.0, "python")


@pytest.fixture
def runtime() -> Iterator[Any]:
    """Return a fake runtime with a GPU, which test machines lack."""
    counters = Counters(10.0)
    for number, state in enumerate((TaskState.COMPLETED, TaskState.COMPLETED, TaskState.FAILED)):
        change(counters, entry(f"task_{number}", state, attempt=1, execution_time=0.05 * (number + 1)))
    change(counters, entry("task_late", TaskState.RUNNING, attempt=1, started_mono=9.5, operation='odd "name"'))
    change(counters, entry("task_late", TaskState.CANCELLED, operation='odd "name"'))
    return SimpleNamespace(
        version="2.0.0",
        metrics_service=SimpleNamespace(counters=counters),
        health=lambda: SimpleNamespace(status="degraded"),
        metrics=lambda: SimpleNamespace(active_tasks=1, pending_tasks=7, cpu_utilization=12.5),
        memory=lambda: Memory(1000, 400),
        devices=lambda: [GPU, CPU],
        engine=SimpleNamespace(
            hosts=lambda: [SimpleNamespace(state="ready"), SimpleNamespace(state="lost")],
            workers=lambda: [report("idle", 100), report("busy", 250), report("starting", None)],
        ),
    )


@pytest.mark.parametrize("media", VERSIONS)
def test_prometheus_parses_every_metric(runtime: Any, media: TextType) -> None:
    content, content_type = exposition(runtime, media)
    assert content_type.startswith(f"{media}; version={VERSIONS[media]}; charset=utf-8")
    found = families(content, media)
    assert value(found, "openruntime_build_info", version="2.0.0") == 1
    assert value(found, "openruntime_healthy") == 0
    assert [value(found, "openruntime_hosts", state=state) for state in ("ready", "lost", "refused")] == [1, 1, 0]
    assert value(found, "openruntime_start_time_seconds") == runtime.metrics_service.counters.began
    assert value(found, "openruntime_tasks_total", state="completed", operation="call") == 2
    assert value(found, "openruntime_tasks_total", state="failed", operation="call") == 1
    assert value(found, "openruntime_tasks_total", state="cancelled", operation='odd "name"') == 1
    assert value(found, "openruntime_tasks_total", state="timed_out", operation="python") == 0, "there before it first happens"
    assert value(found, "openruntime_tasks_running") == 1
    assert value(found, "openruntime_tasks_pending") == 7
    assert value(found, "openruntime_memory_used_bytes") == 600
    assert value(found, "openruntime_memory_total_bytes") == 1000
    assert value(found, "openruntime_cpu_utilization_ratio") == 0.125
    assert value(found, "openruntime_device_info", device="device_0", name=GPU.name, type="gpu") == 1
    assert value(found, "openruntime_device_utilization_ratio", device="device_0") == 0.875
    assert value(found, "openruntime_device_temperature_celsius", device="device_0") == 61
    assert value(found, "openruntime_device_power_watts", device="device_0") == 320.5
    assert value(found, "openruntime_device_memory_total_bytes", device="device_0") == GPU.memory_total
    assert value(found, "openruntime_device_memory_available_bytes", device="device_1") == 1
    assert value(found, "openruntime_device_slots", device="device_1") == 1
    assert value(found, "openruntime_device_tasks_running", device="device_0") == 1
    assert value(found, "openruntime_device_tasks_pending", device="device_0") == 7
    assert {state: value(found, "openruntime_workers", state=state) for state in ("idle", "busy", "starting")} == {
        "idle": 1,
        "busy": 1,
        "starting": 1,
    }
    assert value(found, "openruntime_worker_memory_bytes") == 350
    assert value(found, "openruntime_worker_deaths_total") == 0


@pytest.mark.parametrize("media", VERSIONS)
def test_histograms_are_cumulative(runtime: Any, media: TextType) -> None:
    found = families(exposition(runtime, media)[0], media)
    for name, count, total in (("openruntime_task_run_seconds", 3, 0.3), ("openruntime_task_queue_seconds", 1, 9.5)):
        assert found[name].type == "histogram"
        buckets = [each for each in found[name].samples if each.name == f"{name}_bucket"]
        values = [each.value for each in buckets]
        assert values == sorted(values)
        assert (buckets[-1].labels["le"], values[-1]) == ("+Inf", count)
        assert value(found, f"{name}_count") == count
        assert value(found, f"{name}_sum") == pytest.approx(total)
    assert value(found, "openruntime_task_run_seconds_bucket", le="0.1") == 2, "a bound belongs to its bucket"


def test_metric_names_have_units_and_bounded_labels(runtime: Any) -> None:
    found = families(exposition(runtime, "application/openmetrics-text")[0], "application/openmetrics-text")
    for name, family in found.items():
        assert name.startswith("openruntime_")
        assert family.documentation.endswith(".")
        assert family.type in ("gauge", "counter", "histogram", "info")
        unit = name.rpartition("_")[2]
        assert family.unit == (unit if unit in BASE_UNITS else ""), name
        labels = {label for sample in family.samples for label in sample.labels}
        assert labels <= {"state", "operation", "device", "host", "le", "version", "name", "type", "blas", "mlx_version"}, name
    states = [state for state in TaskState if state.terminal]
    assert len(found["openruntime_tasks"].samples) == len(operations()) * len(states) + 1
    assert not {each.name for each in REGISTRY.collect() if each.name.startswith("openruntime")}, "nothing global"


@pytest.mark.parametrize("media", VERSIONS)
def test_unreadable_metric_is_omitted(runtime: Any, media: TextType) -> None:
    runtime.devices = lambda: [CPU]
    runtime.engine = SimpleNamespace(hosts=list, workers=lambda: [report("idle", None)])
    runtime.metrics = lambda: SimpleNamespace(active_tasks=0, pending_tasks=0, cpu_utilization=None)
    found = families(exposition(runtime, media)[0], media)
    for name in (
        "device_utilization_ratio",
        "device_temperature_celsius",
        "device_power_watts",
        "cpu_utilization_ratio",
        "worker_memory_bytes",
    ):
        assert f"openruntime_{name}" not in found


async def test_real_runtime_counts_tasks(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, spare_workers=1) as runtime:
        assert (await ended(runtime, await submit(runtime, "call"))).status == "completed"
        assert (await ended(runtime, await cell(runtime, "1 / 0"))).status == "failed"
        died = await ended(runtime, await cell(runtime, "import os; os.kill(os.getpid(), 9)"))
        assert died.status == "failed"
        await until(lambda: any(worker.resident for worker in runtime.engine.workers()), 20, "a spare")
        found = families(exposition(runtime, "text/plain")[0], "text/plain")
        assert value(found, "openruntime_tasks_total", state="completed", operation="call") == 1
        assert value(found, "openruntime_tasks_total", state="failed", operation="python") == 2
        assert value(found, "openruntime_worker_deaths_total") == 1
        assert value(found, "openruntime_task_run_seconds_count") == 3
        assert value(found, "openruntime_task_queue_seconds_count") == 3
        assert value(found, "openruntime_worker_memory_bytes") > 1e6
        assert value(found, "openruntime_device_info", device="device_0") == 1


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (SCRAPE, "application/openmetrics-text"),
        ("text/plain", "text/plain"),
        ("text/plain;q=0.9,application/json;q=0.1", "text/plain"),
        ("*/*", None),
        ("application/json", None),
        ("text/plain;q=0.1,application/json;q=0.9", None),
    ],
)
def test_accept_header_selects_metrics_format(jupyter: Server, accept: str, media: TextType | None) -> None:
    response = jupyter.request("GET", "/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["Vary"] == "Accept"
    if media is None:
        assert response.headers["Content-Type"] == "application/json"
        assert "gpu_utilization" in response.json()
    else:
        assert response.headers["Content-Type"].startswith(media)
        assert value(families(response.content, media), "openruntime_build_info") == 1
