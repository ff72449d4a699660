"""Examples of responses in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from openruntime_jupyter.schemas import insights
from openruntime_jupyter.schemas.batch import BatchAnswer, BatchProblem, ResultsAnswer
from openruntime_jupyter.schemas.problems import ErrorEnvelope
from openruntime_jupyter.schemas.system import Health, ServiceInfo, Session, SystemMetrics, Worker
from openruntime_jupyter.schemas.tasks import Task, TaskOutput, TaskPage

Schema = dict[str, Any]


def _example(model: type[BaseModel], **fields: Any) -> Schema:
    """Return an example of a model: these fields, and the defaults of the others."""
    return model.model_validate(fields).model_dump(mode="json")


NOW = "2026-01-01T12:00:02.000000Z"
NOTEBOOK = "/home/jovyan/work/train.ipynb"
TASK = _example(
    Task,
    task_id="task_01kdw8m3s0fs5g8c1v5x2k",
    status="completed",
    operation="matrix_multiply",
    notebook=NOTEBOOK,
    device_used="device_0",
    attempt=1,
    timestamp=NOW,
    submitted_at="2026-01-01T12:00:01.000000Z",
    started_at="2026-01-01T12:00:01.002000Z",
    finished_at=NOW,
    execution_time=0.998,
    result={"execution_time": 0.991, "device_used": "device_0", "output": {"gflops": 171.2, "iterations": 10}},
    performance_metrics={
        "execution_time_ms": 998.0,
        "memory_used_mb": 12.0,
        "gpu_utilization": 0.0,
        "peak_memory_mb": 141.6,
        "device_time_s": 0.998,
    },
    runtime="rt_01kdw8hq5b7r3m9t0q6d1n",
)
SESSION = _example(
    Session,
    id="session_01kdw8m3rzfs5g8c1v5x",
    name="train",
    state="busy",
    notebook=NOTEBOOK,
    kernel="6f0d3b0e5f0b4f2c9a8d7e6c5b4a3f21",
    interpreter="/usr/bin/python3",
    directory="/home/jovyan/work",
    worker="worker_2",
    resident_bytes=151_000_000,
    task_id=TASK["task_id"],
    tasks=12,
    created_at="2026-01-01T11:30:00.000000Z",
    used_at=NOW,
)
METRICS: dict[str, Any] = {
    "gpu_utilization": 0.0,
    "memory_usage": 32.1,
    "active_tasks": 2,
    "ai_tasks_processed": 0,
    "cpu_utilization": 51.5,
    "pending_tasks": 7,
}
SPIKE: dict[str, Any] = {
    "kind": "peak",
    "severity": "warning",
    "text": "Memory usage spiked to 92% at 11:30:10Z, from 11:30:00Z to 11:30:40Z (40 s), where the median is 41%. Then ran "
    f"{TASK['task_id']} (`matrix_multiply`; 9.60 GB at its peak).",
    "advice": "Let such tasks work on smaller pieces, or bound them: `memory_limit` of a task, or OpenRuntimeApp.memory_limit for all (now "
    "nine tenths of the machine's memory, 14.40 GB), stops one that grows past it.",
    "figure": "memory_usage",
    "figures": {"peak": 92.0, "median": 41.2, "seconds": 40.0},
    "start": "2026-01-01T11:30:00.000000Z",
    "end": "2026-01-01T11:30:40.000000Z",
    "at": "2026-01-01T11:30:10.000000Z",
    "tasks": [{name: TASK[name] for name in ("task_id", "operation", "name", "owner", "status", "started_at", "finished_at")}],
}
INSIGHTS: dict[str, Any] = {
    "insights": f"Based on the last hour of memory data:\n\n1. {SPIKE['text']} {SPIKE['advice']}",
    "metrics": METRICS,
    "timestamp": NOW,
    "metric_type": "memory",
    "timeframe": "1h",
    "findings": [SPIKE],
    "data": {
        "timeframe": "1h",
        "start": "2026-01-01T11:30:00.000000Z",
        "end": "2026-01-01T11:30:40.000000Z",
        "resolution_s": 20,
        "timestamps": ["2026-01-01T11:30:00.000000Z", "2026-01-01T11:30:20.000000Z"],
        "series": {"memory_usage": {"unit": "percent", "min": [41.0, 41.5], "mean": [80.2, 79.9], "max": [92.0, 91.8]}},
        "marks": [
            {
                "finding": 1,
                "figure": "memory_usage",
                "value": 92.0,
                **{name: SPIKE[name] for name in ("kind", "severity", "start", "end", "at")},
            }
        ],
    },
    "basis": {
        "start": "2026-01-01T11:00:02.000000Z",
        "end": NOW,
        "span_s": 3600.0,
        "observed_s": 3600.0,
        "resolution_s": 10,
        "tasks": 412,
        "tasks_examined": 412,
        "enough": True,
    },
    "worded_by": "none",
    "notice": None,
}
DETAIL = {"field": "priority", "problem": "must be less than or equal to 10"}
ERROR = "priority: must be less than or equal to 10"
INVALID_PRIORITY = _example(BatchProblem, code=422, error_code="invalid_request", message=ERROR, details=[DETAIL])
UNKNOWN_TASK = _example(BatchProblem, code=404, error_code="task_not_found", message="Unknown task 'task_0'")

EXAMPLES: dict[type[BaseModel], list[Any]] = {
    ServiceInfo: [{"name": "OpenRuntime", "version": "2.0.0", "status": "running"}],
    ErrorEnvelope: [{"status": "error", "data": {"code": "invalid_request", "details": [DETAIL]}, "error": ERROR, "timestamp": NOW}],
    ResultsAnswer: [
        {
            "results": [
                {"task_id": TASK["task_id"], "task": TASK},
                {"task_id": "task_0", "error": UNKNOWN_TASK},
            ]
        }
    ],
    BatchAnswer: [{"tasks": [{"task": TASK}, {"error": INVALID_PRIORITY}]}],
    Task: [TASK],
    TaskPage: [{"tasks": [TASK], "total_count": 1250, "next_before": TASK["task_id"], "timestamp": NOW}],
    TaskOutput: [
        _example(
            TaskOutput,
            task_id=TASK["task_id"],
            items=[{"output_type": "stream", "name": "stdout", "text": "42\n"}],
            next=1,
            finished=True,
        )
    ],
    Worker: [
        _example(
            Worker,
            id="worker_2",
            device="device_0",
            state="busy",
            interpreter="/usr/bin/python3",
            started_at=NOW,
            task_id=TASK["task_id"],
            session=SESSION["id"],
            session_name=SESSION["name"],
            tasks=12,
            device_time_s=7.25,
            resident_bytes=151_000_000,
            resident_peak_bytes=312_000_000,
            mlx_peak_bytes=96_000_000,
        )
    ],
    Session: [SESSION],
    SystemMetrics: [{**METRICS, "uptime": "2h 15m", "timestamp": NOW}],
    insights.Insights: [INSIGHTS],
    Health: [_example(Health, status="healthy", timestamp=NOW, version="2.0.0", devices=1, metrics=METRICS, runtime=TASK["runtime"])],
}
