# Kept word for word as it was given, but for BASE_URL.
# fmt: off
# ruff: noqa: E501, F401, PLW1510, PT018, T201
"""The reference's examples, each checked against the shape that the reference prints for it."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import requests

BASE_URL = os.environ.get("BASE_URL", "http://localhost:8000")
WITH_AI = "--no-ai" not in sys.argv
ISO = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")
NUMBER = (int, float)
METRICS = {"gpu_utilization": NUMBER, "memory_usage": NUMBER, "active_tasks": int}

results: list[bool] = []


def check(name, action):
    try:
        action()
    except Exception as problem:  # every failure is one line of the report
        results.append(False)
        print(f"FAIL {name}: {type(problem).__name__}: {problem}"[:400])
    else:
        results.append(True)
        print(f"ok   {name}")


def shape(value, wanted, where="$"):
    """Fail unless `value` has at least the keys and types of `wanted`."""
    if isinstance(wanted, dict):
        assert isinstance(value, dict), f"{where} is no object: {value!r}"
        for key, inner in wanted.items():
            assert key in value, f"{where}.{key} is missing"
            shape(value[key], inner, f"{where}.{key}")
    elif isinstance(wanted, list):
        assert isinstance(value, list) and value, f"{where} is no filled list: {value!r}"
        shape(value[0], wanted[0], f"{where}[0]")
    elif isinstance(wanted, re.Pattern):
        assert isinstance(value, str) and wanted.match(value), f"{where} is {value!r}"
    elif callable(wanted) and not isinstance(wanted, type):
        assert wanted(value), f"{where} is {value!r}"
    else:
        assert isinstance(value, wanted) and not (wanted is not bool and isinstance(value, bool)), f"{where} is {value!r}"


def get(path, wanted, **params):
    answer = requests.get(f"{BASE_URL}{path}", params=params, timeout=60)
    assert answer.status_code == 200, (answer.status_code, answer.text[:200])
    shape(answer.json(), wanted)
    return answer.json()


def post(path, body, wanted, status=200):
    answer = requests.post(f"{BASE_URL}{path}", json=body, timeout=300)
    assert answer.status_code == status, (answer.status_code, answer.text[:300])
    shape(answer.json(), wanted)
    return answer.json()


DEVICE = {
    "id": str,
    "name": str,
    "type": str,
    "status": str,
    "capabilities": list,
    "memory_total": lambda n: isinstance(n, int) and n > 0,
    "memory_available": lambda n: isinstance(n, int) and n > 0,
}
TASK = {
    "task_id": re.compile(r"^task_\w+$"),
    "status": re.compile("^completed$"),
    "execution_time": NUMBER,
    "timestamp": ISO,
    "result": {"execution_time": NUMBER, "device_used": str, "output": dict},
}
AI_TASK = {
    "task_id": re.compile(r"^ai_task_\w+$"),
    "status": re.compile("^completed$"),
    "result": str,
    "model_used": str,
    "tokens_used": lambda n: isinstance(n, int) and n > 0,
    "execution_time": NUMBER,
}
ERROR = {"status": re.compile("^error$"), "error": str, "timestamp": ISO}

check("GET /", lambda: get("/", {"name": re.compile("^OpenRuntime$"), "version": str, "status": re.compile("^running$")}))
check(
    "GET /health",
    lambda: get(
        "/health",
        {
            "status": re.compile("^healthy$"),
            "timestamp": ISO,
            "service": str,
            "version": str,
            "devices": int,
            "metrics": {**METRICS, "ai_tasks_processed": int},
        },
    ),
)
check(
    "GET /metrics",
    lambda: get("/metrics", {**METRICS, "ai_tasks_processed": int, "uptime": re.compile(r"^(\d+[dhms] ?)+$"), "timestamp": ISO}),
)
check("GET /devices", lambda: get("/devices", {"devices": [DEVICE]}))
check(
    "POST /tasks, the reference's body",
    lambda: post(
        "/tasks",
        {"operation": "matrix_multiply", "parameters": {"size": 1000, "iterations": 10}, "device_preference": "auto", "priority": 1},
        TASK,
    ),
)
for operation in ("compute", "matrix_multiply", "vector_operations", "memory_bandwidth", "mlx_operation"):
    check(f"POST /tasks {operation} with no parameters", lambda o=operation: post("/tasks", {"operation": o, "parameters": {}}, TASK))
check(
    "GET /tasks/enhanced",
    lambda: get(
        "/tasks/enhanced",
        {
            "tasks": [
                {
                    "task_id": str,
                    "operation": str,
                    "status": str,
                    "timestamp": ISO,
                    "performance_metrics": {"execution_time_ms": NUMBER, "memory_used_mb": NUMBER, "gpu_utilization": NUMBER},
                }
            ],
            "total_count": int,
            "timestamp": ISO,
        },
        limit=5,
    ),
)


def page():
    first = get("/tasks/enhanced", {}, limit=2)
    second = get("/tasks/enhanced", {}, limit=2, offset=2)
    ids = [task["task_id"] for task in first["tasks"] + second["tasks"]]
    assert len(ids) == len(set(ids)) == 4, ids


check("GET /tasks/enhanced pages", page)
if WITH_AI:
    check("GET /ai/agents", lambda: get("/ai/agents", {"agents": [{"role": str, "name": str, "description": str, "capabilities": [str]}]}))

    def roles():
        found = {agent["role"] for agent in get("/ai/agents", {})["agents"]}
        assert {"DEVELOPER", "ANALYST"} <= found, found

    check("agents DEVELOPER and ANALYST", roles)
    for metric in ("performance", "memory", "efficiency", "errors"):
        for timeframe in ("5m", "15m", "1h", "6h", "24h", "7d"):
            check(
                f"POST /ai/insights {metric} {timeframe}",
                lambda m=metric, t=timeframe: post(
                    "/ai/insights",
                    {"metric_type": m, "timeframe": t},
                    {
                        "insights": lambda s: isinstance(s, str) and len(s) > 40,
                        "metrics": {**METRICS, "ai_tasks_processed": int},
                        "timestamp": ISO,
                    },
                ),
            )
    check(
        "POST /ai/tasks, the reference's body",
        lambda: post(
            "/ai/tasks",
            {
                "workflow_type": "code_generation",
                "prompt": "Create a Python function to calculate fibonacci numbers",
                "parameters": {"language": "python", "style": "functional", "max_tokens": 64},
                "timeout": 120,
            },
            AI_TASK,
        ),
    )
    check(
        "POST /ai/tasks, the Python example",
        lambda: post(
            "/ai/tasks",
            {"workflow_type": "code_generation", "prompt": "Create a sorting algorithm", "parameters": {"max_tokens": 48}},
            AI_TASK,
        ),
    )


def refuses(path, body, status, raw=False):
    answer = requests.post(
        f"{BASE_URL}{path}", timeout=30, headers={"Content-Type": "application/json"}, data=body if raw else json.dumps(body)
    )
    assert answer.status_code == status, (answer.status_code, answer.text[:200])
    shape(answer.json(), ERROR)


check("400 malformed JSON", lambda: refuses("/tasks", "{", 400, raw=True))
check("422 unknown operation", lambda: refuses("/tasks", {"operation": "nope", "parameters": {}}, 422))
check("422 priority 11", lambda: refuses("/tasks", {"operation": "compute", "parameters": {}, "priority": 11}, 422))
if WITH_AI:
    check("422 unknown timeframe", lambda: refuses("/ai/insights", {"metric_type": "memory", "timeframe": "1y"}, 422))
    check("422 unknown workflow", lambda: refuses("/ai/tasks", {"workflow_type": "poetry", "prompt": "x"}, 422))

CURL = [
    "curl -sf http://localhost:8000/health",
    """curl -sf -X POST http://localhost:8000/tasks -H "Content-Type: application/json" -d '{"operation": "matrix_multiply", "parameters": {"size": 1000}}'""",
    "curl -sf http://localhost:8000/ai/agents",
    """curl -sf -X POST http://localhost:8000/ai/insights -H "Content-Type: application/json" -d '{"metric_type": "performance", "timeframe": "1h"}'""",
]
CURL = [line.replace("http://localhost:8000", BASE_URL) for line in CURL]
for line in CURL if WITH_AI else [line for line in CURL if "/ai/" not in line]:
    check(line[:60], lambda text=line: json.loads(subprocess.run(["bash", "-c", text], check=True, capture_output=True, text=True).stdout))

NODE = """
const wanted = new Set(['connected', 'heartbeat', 'task_update']);
const ws = new WebSocket('ws://localhost:8000/ws');
const late = setTimeout(() => { console.error('missing', [...wanted]); process.exit(1); }, 20000);
ws.onmessage = async (event) => {
  const data = JSON.parse(event.data);
  if (data.type === 'connected' && !(data.timestamp && data.message)) process.exit(2);
  if (data.type === 'heartbeat' && typeof data.metrics.gpu_utilization !== 'number') process.exit(3);
  if (data.type === 'task_update' && !(data.data.task_id && data.data.status)) process.exit(4);
  wanted.delete(data.type);
  if (data.type === 'connected') {
    const response = await fetch('http://localhost:8000/tasks', { method: 'POST', headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ operation: 'matrix_multiply', parameters: { size: 1000 } }) });
    const result = await response.json();
    if (typeof result.execution_time !== 'number') process.exit(5);
  }
  if (wanted.size === 0) { clearTimeout(late); ws.close(); process.exit(0); }
};
ws.onerror = (error) => { console.error(String(error.message)); process.exit(6); };
"""


def node():
    with tempfile.NamedTemporaryFile("w", suffix=".mjs") as script:
        script.write(NODE.replace("localhost:8000", BASE_URL.partition("://")[2]))
        script.flush()
        done = subprocess.run(["node", "--experimental-websocket", script.name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr[-300:])


check("JavaScript: fetch, and WebSocket connected + heartbeat + task_update", node)
print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
sys.exit(0 if all(results) else 1)
