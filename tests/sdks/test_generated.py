"""The committed types of the SDKs are those of the committed OpenAPI document."""

from __future__ import annotations

import runpy
import subprocess
import sys

from tests.sdks.toolchains import SDKS

GENERATE = SDKS / "generate.py"


def test_generated_types_are_up_to_date() -> None:
    subprocess.run([sys.executable, str(GENERATE), "--check"], check=True, timeout=60)


def test_types_of_nullable_open_and_named_schemas() -> None:
    generate = runpy.run_path(str(GENERATE))
    nullable = {"type": ["number", "null"]}
    assert generate["ts_type"](nullable) == "number | null"
    assert generate["go_type"](nullable, False) == ("float64", True)
    union = {"anyOf": [{"type": "array", "items": {"enum": ["a", "b"]}}, {"$ref": "#/components/schemas/parameters.matrix_multiply"}]}
    assert generate["ts_type"](union) == '("a" | "b")[] | MatrixMultiplyParameters'
    assert generate["go_type"](union, True) == ("any", False)
    times = {"type": "object", "additionalProperties": {"type": ["string", "null"], "format": "date-time"}}
    assert generate["ts_type"](times) == "Record<string, string | null>"
    assert generate["go_type"](times, False) == ("map[string]*time.Time", False)
    assert generate["go_name"]("ai_task_id") == "AITaskID"
