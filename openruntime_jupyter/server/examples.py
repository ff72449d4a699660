"""An answer of each kind, as it was given by a real server: the description of the API shows them, and a test holds that they fit."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from openruntime_jupyter import models
from openruntime_jupyter.server import answers

NOW = "2026-01-01T12:00:02.000000Z"
TASK: dict[str, Any] = {
    "task_id": "task_01kdw8m3s0fs5g8c1v5x2k",
    "status": "completed",
    "operation": "matrix_multiply",
    "name": None,
    "owner": None,
    "origin": "rest",
    "priority": 5,
    "device_preference": "auto",
    "device_used": "device_0",
    "timeout": None,
    "retries": 0,
    "attempt": 1,
    "wait": True,
    "memory_limit": None,
    "timestamp": NOW,
    "submitted_at": "2026-01-01T12:00:01.000000Z",
    "started_at": "2026-01-01T12:00:01.002000Z",
    "finished_at": NOW,
    "execution_time": 0.998,
    "position": None,
    "estimated_start": None,
    "waiting_for": None,
    "progress": None,
    "cancel_stage": None,
    "result": {
        "execution_time": 0.991,
        "device_used": "device_0",
        "output": {"gflops": 171.2, "iterations": 10},
        "payload": None,
        "arrays": [],
    },
    "error": None,
    "failure": None,
    "performance_metrics": {
        "execution_time_ms": 998.0,
        "memory_used_mb": 12.0,
        "gpu_utilization": 0.0,
        "peak_memory_mb": 141.6,
        "device_time_s": 0.998,
    },
    "runtime": "rt_01kdw8hq5b7r3m9t0q6d1n",
    "here": True,
    "parameters": None,
}
METRICS: dict[str, Any] = {
    "gpu_utilization": 0.0,
    "memory_usage": 32.1,
    "active_tasks": 2,
    "ai_tasks_processed": 0,
    "cpu_utilization": 51.5,
    "pending_tasks": 7,
}
DETAIL = {"field": "priority", "problem": "Input should be less than or equal to 10"}
TOLD = "priority: Input should be less than or equal to 10"

EXAMPLES: dict[type[BaseModel], list[Any]] = {
    answers.ServiceInfo: [{"name": "OpenRuntime", "version": "2.0.0", "status": "running"}],
    answers.ErrorEnvelope: [{"status": "error", "data": {"details": [DETAIL]}, "error": TOLD, "timestamp": NOW}],
    answers.BatchAnswer: [{"tasks": [{"task": TASK}, {"error": {"code": 422, "message": TOLD, "details": [DETAIL], "retry_after": None}}]}],
    models.Task: [TASK],
    models.TaskPage: [{"tasks": [TASK], "total_count": 1250, "next_before": TASK["task_id"], "timestamp": NOW}],
    models.TaskOutput: [
        {
            "task_id": TASK["task_id"],
            "items": [{"output_type": "stream", "name": "stdout", "text": "42\n", "data": None, "metadata": None}],
            "next": 1,
            "truncated": False,
            "finished": True,
        }
    ],
    models.Worker: [
        {
            "id": "worker_2",
            "device": "device_0",
            "state": "busy",
            "interpreter": "/usr/bin/python3",
            "started_at": NOW,
            "task_id": TASK["task_id"],
            "model": None,
            "tasks": 12,
            "device_time_s": 7.25,
            "resident_bytes": 151_000_000,
            "resident_peak_bytes": 312_000_000,
            "mlx_peak_bytes": 96_000_000,
            "gpu_utilization": None,
        }
    ],
    models.SystemMetrics: [{**METRICS, "uptime": "2h 15m", "timestamp": NOW}],
    models.Health: [
        {
            "status": "healthy",
            "timestamp": NOW,
            "service": "OpenRuntime",
            "version": "2.0.0",
            "devices": 1,
            "metrics": METRICS,
            "problems": [],
            "runtime": TASK["runtime"],
        }
    ],
}
