"""Player of the conformance cases: a case is a sequence of steps for an SDK, with faults of the network and the expected results.

An adapter is a program that reads one JSON object per line, with `url`, `token`, `mark` and `steps`, performs the steps with its SDK, and
prints a JSON list with the result of each. It knows no expectation; these are in cases.json only.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from sdks.conformance.proxy import Fault, Proxy

CASES = Path(__file__).with_name("cases.json")
STEP_SECONDS = 60.0
"""Time limit of a case unless it sets another one."""
LONGEST_CASE_SECONDS = 100.0
"""Time after which an adapter that does not respond is killed."""


def _expanded(value: Any) -> Any:
    """Replace `{"$repeat": [item, times]}` by a list."""
    if isinstance(value, dict) and "$repeat" in value:
        item, times = value["$repeat"]
        return [item] * times
    if isinstance(value, dict):
        return {name: _expanded(each) for name, each in value.items()}
    return [_expanded(each) for each in value] if isinstance(value, list) else value


@dataclass
class Case:
    """One case of cases.json."""

    name: str
    steps: list[dict[str, Any]]
    expect: list[Any]
    """Expected result of each step; see `mismatches`."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    token: str | None = None
    """Token in place of the server's."""
    tasks: list[str] | None = None
    """States of the tasks with the case's mark as their name, oldest first."""
    requests: dict[str, int] = field(default_factory=dict)
    """Number of requests by method and regular expression of the path."""
    at_least_s: float = 0.0
    at_most_s: float = STEP_SECONDS
    restart: bool = False
    """The server is killed and restarted while the steps run."""


def cases() -> list[Case]:
    """Return all cases."""
    return [Case(**_expanded(case)) for case in json.loads(CASES.read_text(encoding="utf-8"))]


def _marked(value: Any, mark: str) -> Any:
    """Replace `{mark}` in texts, so that the names in a case are unique."""
    return json.loads(json.dumps(value).replace("{mark}", mark))


def mismatches(expected: Any, found: Any, where: str = "") -> list[str]:
    """Return the differences. Objects may have more fields, `{">=": n}` is a minimum, and `"*"` is any value but null."""
    if isinstance(expected, dict) and set(expected) == {">="}:
        fits = isinstance(found, (int, float)) and found >= expected[">="]
    elif isinstance(expected, dict) and isinstance(found, dict):
        return [problem for name, value in expected.items() for problem in mismatches(value, found.get(name), f"{where}.{name}")]
    elif expected == "*":
        fits = found is not None
    else:
        fits = bool(expected == found)
    return [] if fits else [f"{where or 'result'} is {json.dumps(found)[:300]}, not {json.dumps(expected)[:300]}"]


class Adapter:
    """Running adapter of an SDK."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment))

    def perform(self, order: Mapping[str, Any]) -> list[Any]:
        """Return the result of each step. Raises `RuntimeError` if the adapter ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        limit = threading.Timer(LONGEST_CASE_SECONDS, self.process.kill)
        limit.start()
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        finally:
            limit.cancel()
        if not line:
            raise RuntimeError(f"the adapter ended with code {self.process.wait()}")
        return list(json.loads(line))

    def close(self) -> None:
        """End the adapter."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@dataclass(frozen=True)
class Target:
    """Server that the cases are played against."""

    url: str
    token: str

    def tasks(self, name: str) -> list[dict[str, Any]]:
        """Return the tasks with this name, oldest first."""
        request = Request(f"{self.url}/tasks?limit=1000&name={name}", headers={"Authorization": f"Bearer {self.token}"})
        with urlopen(request, timeout=30) as response:
            return [task for task in reversed(json.load(response)["tasks"]) if task["name"] == name]


def play(case: Case, adapter: Adapter, target: Target, mark: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Play a case. Return its problems, and the method and path of each request."""
    proxy = Proxy(target.url, [Fault(**fault) for fault in case.faults])
    try:
        started = time.monotonic()
        token = target.token if case.token is None else case.token
        order = {"url": proxy.url, "token": token, "mark": mark, "steps": _marked(case.steps, mark)}
        found = adapter.perform(order)
        took = time.monotonic() - started
    finally:
        proxy.close()
    problems = [
        f"step {number}: {problem}"
        for number, (expected, result) in enumerate(zip(_marked(case.expect, mark), found, strict=True), 1)
        for problem in mismatches(expected, result)
    ]
    problems += [f"no request met the planned {fault}" for fault in proxy.faults if fault.missed]
    if case.tasks is not None:
        states = [task["status"] for task in target.tasks(mark)]
        problems += mismatches(case.tasks, states, "states of tasks")
    for pattern, expected in case.requests.items():
        method, _, path = pattern.partition(" ")
        count = sum(method == verb and re.fullmatch(path, route) is not None for verb, route in proxy.requests)
        problems += mismatches(expected, count, f"number of requests {pattern}")
    if not case.at_least_s <= took <= case.at_most_s:
        problems.append(f"it took {took:.2f} s, not {case.at_least_s} to {case.at_most_s} s")
    return problems, proxy.requests
