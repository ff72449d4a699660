"""Run of schemathesis on a real server: generated requests, and sequences of them, checked against the OpenAPI document."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.support import Server

CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""
"""503 is the documented answer without a model, and to clients that have to try again."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


def installed() -> bool:
    """Return whether schemathesis is installed."""
    return find_spec("schemathesis") is not None


def failures(server: Server, seconds: int, seed: int, *, token: bool = True) -> str:
    """Return the report of a run of about `seconds`, half of it with sequences of requests; empty if all checks held."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "schemathesis.toml"
        config.write_text(CONFIG)
        words = [sys.executable, "-m", "schemathesis.cli", f"--config-file={config}", "run", f"{server.url}/openapi.json"]
        words += [f"--header=Authorization: token {server.token}"] if token else []
        words += [f"--checks={','.join(CHECKS)}", "--phases=fuzzing,stateful", f"--max-time={seconds}", f"--seed={seed}"]
        words += ["--no-shrink", "--continue-on-failure", "--request-timeout=60", "--warnings=off", "--no-color"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=seconds + 120, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr
