"""Kernel process that runs code in a folder, like a notebook there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

LOOP = """
import json, sys
out, sys.stdout = sys.stdout, sys.stderr
space = {}
for line in sys.stdin:
    code, expression = json.loads(line)
    try:
        exec(code, space)
        told = [True, eval(expression, space)]
    except BaseException as problem:
        told = [False, f"{type(problem).__name__}: {problem}"]
    print(json.dumps(told), file=out, flush=True)
"""

WAYS = {
    "cell": "client.submit_code(code, outputs=('r',)).result()['r']",
    "map": "client.map(run, [code])[0]",
    "call": "client.call(run, code)",
    "executor": "client.executor().submit(run, code).result()",
    "python over REST": "rest(code)",
}
"""How code that leaves `r` is run as a task."""

SET_UP = """
from openruntime_jupyter import connect
from openruntime_jupyter.client.transport.protocol import new_key
from openruntime_jupyter.client.code.execution_environment import world
from openruntime_jupyter.schemas.endpoints import SUBMIT_TASK
client = connect()
def run(code):
    space = {}
    exec(code, space)
    return space["r"]
def rest(code):
    parameters = {"code": code, "outputs": ["r"], "world": world()}
    body = {"operation": "python", "parameters": parameters}
    task = client.backend.call(SUBMIT_TASK, body=body, key=new_key(), wait=20.0)
    return client.task(task.task_id).result()["r"]
def task(way, code):
    return eval(way, {**globals(), "code": code})
"""


class Caller:
    """Python process in a folder, with a client of the runtime from its environment."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        path = os.pathsep.join(filter(None, ("", environment.get("PYTHONPATH", ""))))
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOOP],
            cwd=folder,
            env={**environment, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.do(SET_UP)

    def do(self, code: str, expression: str = "None") -> Any:
        """Run code in this process and return the value of an expression. Raises RuntimeError with the process's error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([code, expression]) + "\n")
        self._process.stdin.flush()
        worked, value = json.loads(self._process.stdout.readline())
        if not worked:
            raise RuntimeError(value)
        return value

    def task(self, way: str, code: str) -> Any:
        """Run code as a task in one of `WAYS`, and return what it leaves in `r`."""
        return self.do("", f"task({WAYS[way]!r}, {code!r})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._process.communicate(timeout=60)
