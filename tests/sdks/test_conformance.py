"""All SDKs behave alike: each plays the conformance cases against one real server, through a proxy with planned faults.

The examples of docs/sdks/index.md run with the same server.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.schemas.endpoints import ENDPOINTS, OPENAI
from sdks.conformance.proxy import Fault
from sdks.conformance.runner import Adapter, Case, Target, cases, mismatches, play
from tests.sdks import toolchains
from tests.support import STANDALONE, Home, Server, running_server, wait_until
from tests.tiny_model import make_tiny_model

CASES = {case.name: case for case in cases()}
INDEX = (toolchains.ROOT / "docs" / "sdks" / "index.md").read_text()
OTHER_CLIENTS = {each for each in ENDPOINTS if each.path in ("/docs", "/dashboard") or each.tag == OPENAI}
"""Endpoints that no SDK needs: pages for browsers, and those for OpenAI's clients, which have the same as `POST /ai/tasks`."""


def javascript(folder: Path) -> list[str]:
    """Return the command of the JavaScript adapter, which uses the packed package."""
    program = toolchains.javascript_package(folder)
    shutil.copy(toolchains.SDKS / "conformance" / "adapters" / "javascript.mjs", program)
    return [toolchains.node(), str(program / "javascript.mjs")]


def go(folder: Path) -> list[str]:
    """Return the command of the Go adapter."""
    return [str(toolchains.go_program(toolchains.SDKS / "conformance" / "adapters" / "go", folder / "adapter"))]


def python(folder: Path) -> list[str]:
    """Return the command of the Python adapter. The package is built as for its wheel, into the adapter's folder, which is in its path."""
    program = folder / "adapter.py"
    shutil.copy(toolchains.SDKS / "conformance" / "adapters" / "python.py", program)
    runpy.run_path(str(toolchains.SDKS / "python" / "hatch_build.py"))["build"](folder / "openruntime")
    return [sys.executable, str(program)]


ADAPTERS: dict[str, Callable[[Path], list[str]]] = {"javascript": javascript, "go": go, "python": python}

OTHERWISE = {
    "python": {
        # `connect` requests the health of the server first.
        "a wrong token is not allowed, and is not retried",
        "events with a wrong token are not allowed",
        # Only `run` has a deadline.
        "an abort ends a backoff",
        "an abort cancels the prompt",
    }
}
"""Cases in which an SDK behaves otherwise."""


def plays(sdk: str, case: Case) -> bool:
    """Return whether an SDK plays a case."""
    return case.name not in OTHERWISE.get(sdk, ())


PLAYED = [pytest.param(sdk, name, id=f"{sdk}: {name}") for sdk in ADAPTERS for name, case in CASES.items() if plays(sdk, case)]


@dataclass
class Played:
    """Problems of each case, and the requests of all of them, of one SDK."""

    problems: dict[str, list[str]] = field(default_factory=dict)
    requests: set[tuple[str, str]] = field(default_factory=set)
    failure: BaseException | None = None


@dataclass
class Player:
    """Plays cases with all SDKs side by side."""

    folder: Path
    home: Home
    target: Target
    played: dict[str, Played]
    adapters: dict[str, Adapter] = field(default_factory=dict)

    def start(self, sdk: str) -> None:
        """Start the adapter of an SDK."""
        folder = self.folder / sdk
        folder.mkdir()
        environment = {**os.environ, "OPENRUNTIME_DATA_DIR": str(self.home.data_dir), "OPENRUNTIME_TEST_FOLDER": str(folder)}
        self.adapters[sdk] = Adapter(ADAPTERS[sdk](folder), environment)

    def mark(self, sdk: str, case: Case) -> str:
        """Return the name of the case's tasks."""
        return f"{sdk}-{list(CASES).index(case.name)}"

    def play(self, sdk: str, case: Case) -> None:
        """Play a case."""
        problems, requests = play(case, self.adapters[sdk], self.target, self.mark(sdk, case))
        self.played[sdk].problems[case.name] = problems
        self.played[sdk].requests |= set(requests)

    def each(self, what: Callable[[str], None]) -> list[threading.Thread]:
        """Call `what` for each SDK that works, in separate threads."""

        def guarded(sdk: str) -> None:
            try:
                what(sdk)
            except BaseException as problem:  # reported by the tests of this SDK
                self.played[sdk].failure = problem

        threads = [threading.Thread(target=guarded, args=(sdk,)) for sdk, played in self.played.items() if played.failure is None]
        for thread in threads:
            thread.start()
        return threads


def joined(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def player(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    """Play the selected cases with the selected SDKs, those with a restart at the end and all at once."""
    selected = [
        item.callspec.params for item in request.session.items if isinstance(item, pytest.Function) and "player" in item.fixturenames
    ]
    sdks = dict.fromkeys(str(params["sdk"]) for params in selected)
    chosen = [case for case in CASES.values() if any(params.get("case", case.name) == case.name for params in selected)]
    folder = tmp_path_factory.mktemp("conformance")
    make_tiny_model(folder / "models" / "tiny", context=4096)
    config = {"OpenRuntimeApp": {"models_dir": str(folder / "models"), "cpu_slots": 4, "max_parameters_bytes": 1_500_000}}
    with ExitStack() as stack:
        server = stack.enter_context(running_server(folder, STANDALONE, config=config))
        player = Player(folder, server.home, Target(server.url, str(server.token)), {sdk: Played() for sdk in sdks})
        stack.callback(lambda: [adapter.close() for adapter in player.adapters.values()])

        def all_but_restarts(sdk: str) -> None:
            player.start(sdk)
            for case in chosen:
                if plays(sdk, case) and not case.restart:
                    player.play(sdk, case)

        joined(player.each(all_but_restarts))
        for case in chosen:
            if case.restart:
                server = _restarted(player, case, server, stack, config)
        yield player


def _restarted(player: Player, case: Case, server: Server, stack: ExitStack, config: Mapping[str, Any]) -> Server:
    """Play a case, and kill and restart the server once the tasks of all SDKs run. Return the new server."""
    sdks = [sdk for sdk, played in player.played.items() if played.failure is None and plays(sdk, case)]
    threads = player.each(lambda sdk: player.play(sdk, case) if sdk in sdks else None)
    marks = [player.mark(sdk, case) for sdk in sdks]
    try:
        wait_until(
            lambda: all(task["status"] == "running" for mark in marks for task in player.target.tasks(mark) or [{"status": ""}]),
            what="running tasks of all SDKs",
        )
    finally:
        server.kill()
        port = int(server.url.rpartition(":")[2])
        server = stack.enter_context(running_server(player.home, STANDALONE, config=config, port=port))
        joined(threads)
    return server


@pytest.mark.parametrize(("sdk", "case"), PLAYED)
def test_sdk_passes_case(player: Player, sdk: str, case: str) -> None:
    played = player.played
    failure = played[sdk].failure
    if failure is not None and case not in played[sdk].problems:
        raise AssertionError(f"{sdk} ended before this case: {failure}") from failure
    assert played[sdk].problems[case] == []


@pytest.mark.parametrize("sdk", ADAPTERS)
def test_sdk_uses_all_endpoints(player: Player, sdk: str) -> None:
    played = player.played

    def requested(method: str, path: str) -> bool:
        pattern = re.sub(r"\{\w+\}", "[^/]+", path)
        return any(method == verb and re.fullmatch(pattern, found) for verb, found in played[sdk].requests)

    assert played[sdk].failure is None
    assert not [each for each in ENDPOINTS if each not in OTHER_CLIENTS and not requested(each.method, each.path)]


@pytest.mark.parametrize(("sdk", "language"), [("python", "python"), ("javascript", "js"), ("go", "go")])
def test_example_of_index_runs(player: Player, sdk: str, language: str) -> None:
    assert player.played[sdk].failure is None
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", INDEX, re.MULTILINE | re.DOTALL)
    text = text.replace("http://localhost:8000", player.target.url)
    folder = player.folder / sdk
    if sdk == "go":
        (folder / "index").mkdir()
        (folder / "index" / "go.mod").write_text(toolchains.GO_MODULE)
        (folder / "index" / "main.go").write_text(text)
        command = [str(toolchains.go_program(folder / "index", folder / "index" / "program"))]
    else:
        program = folder / ("index.mjs" if sdk == "javascript" else "index.py")
        program.write_text(text)
        command = [toolchains.node() if sdk == "javascript" else sys.executable, str(program)]
    output = toolchains.run(command, folder)
    assert float(output.split()[0]) > 0
    assert "size" in output


def test_fault_that_no_request_meets_fails_its_case() -> None:
    assert Fault("GET", "/tasks", times=2, lose=True, met=1).missed
    assert Fault("GET", "/tasks", times=0, lose=True).missed
    assert not Fault("GET", "/tasks", times=0, lose=True, met=1).missed


def test_mismatches_name_the_place() -> None:
    assert mismatches({"a": {"b": 1}, "c": "*"}, {"a": {"b": 2}, "c": None}) == [".a.b is 2, not 1", '.c is null, not "*"']
    assert mismatches({"n": {">=": 2}}, {"n": 3, "more": 1}) == []
    assert mismatches({"n": {">=": 2}}, {"n": 1}) != []
