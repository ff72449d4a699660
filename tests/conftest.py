"""Fixtures and order of all tests."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Generator, Iterator

import psutil
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from openruntime_jupyter.client.code import execution_environment
from tests import loopback
from tests.reaper import watched
from tests.support import alive, wait_until

# Background jobs of a shell ignore SIGINT, and child processes of the tests would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)

FOREIGN = ("OPENRUNTIME_URL", "OPENRUNTIME_TOKEN", "OPENRUNTIME_SERVER_PID")


LONG = ("tests/browser/", "tests/test_notebooks_", "tests/acceptance/")
"""Tests that take minutes."""

MEASURED = ("tests/notebook/", "tests/operations/", "tests/server/")
"""Tests whose kernels, servers and workers are measured too: they run most of the code of these rooms."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs all tests over another engine."""
    parser.addoption(
        "--engine", choices=["local", "agent", "dask"], default="local", help="engine of the runtimes in the tests' own process"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of `every_engine` over each, those of clients over HTTP and embedded."""
    mark = metafunc.definition.get_closest_marker("every_engine")
    if mark is None or metafunc.config.getoption("--engine") != "local":
        return
    engines = ["local", "agent", *(["dask"] if mark.kwargs.get("dask") else [])]
    if "backend" in metafunc.fixturenames:
        kinds = [("http", "local"), *(("embedded", engine) for engine in engines)]
        # As a mark, because it replaces the parameters of the fixture.
        metafunc.definition.add_marker(pytest.mark.parametrize(("backend", "engine"), kinds, indirect=True, scope="module"))
    else:
        metafunc.parametrize("engine", engines, indirect=True, scope="module")


@pytest.fixture(scope="session")
def dask_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Dask cluster with one worker."""
    from tests.engine_kinds import dask_cluster  # late: most tests need no runtime

    with dask_cluster(tmp_path_factory.mktemp("dask")) as address:
        yield address


@pytest.fixture(scope="module", autouse=True)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Engine of the runtimes that the tests start in their own process."""
    kind = getattr(request, "param", request.config.getoption("--engine"))
    if kind == "local":
        yield kind
        return
    from tests.engine_kinds import agents, dask_workers, on_hosts  # late: most tests need no runtime

    with on_hosts(dask_workers(request.getfixturevalue("dask_address")) if kind == "dask" else agents(tmp_path_factory.mktemp(kind))):
        yield kind


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Disable the garbage collector during collection, of which it takes a third, and freeze the collected objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run short tests first in one process, and long tests first in parallel, so that no worker runs them alone at the end.

    Skip those that are not for the engine of `--engine`.
    """
    engine = config.getoption("--engine")
    for item in items:
        for mark in item.iter_markers("not_over"):
            if engine in mark.args:
                item.add_marker(pytest.mark.skip(f"not over {engine}: {mark.kwargs['reason']}"))
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    items.sort(key=lambda item: item.nodeid.startswith(LONG) != parallel)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Group tests by file, because they share servers, and all browser tests, because two browsers need four cores."""
    return _Files(config, log)


class _Files(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return "tests/browser" if nodeid.startswith("tests/browser/") else str(super()._split_scope(nodeid))


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Check that no child process is left at the end, and kill all of them if the run is killed."""
    with watched():
        yield
    me = psutil.Process()
    wait_until(
        lambda: not [child for child in me.children(recursive=True) if alive(child)],
        10,
        lambda: f"end of {me.children(recursive=True)}",
    )


@pytest.fixture(scope="module", autouse=True)
def event_threads_have_ended() -> Iterator[None]:
    """Check that each file closes its event subscriptions, whose threads would disturb the next files of the process."""
    yield
    wait_until(
        lambda: not [thread for thread in threading.enumerate() if thread.name == "openruntime-events"], 20, "end of the event threads"
    )


@pytest.fixture(scope="module", autouse=True)
def only_some_processes_are_measured(request: pytest.FixtureRequest) -> Iterator[None]:
    """Measure the coverage of processes in `MEASURED` only: it costs 0.1 s and half of the processor time of each process."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.node.nodeid.startswith(MEASURED):
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def only_local_connections() -> Iterator[None]:
    """Reject connections to other machines, and disable model downloads in child processes."""
    with pytest.MonkeyPatch.context() as patch:
        loopback.guard(patch)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def variables_of_pytest_are_not_passed_to_tasks() -> Iterator[None]:
    """Exclude variables that change from test to test: with them, a spare worker could serve only one test."""
    with pytest.MonkeyPatch.context() as patch:
        names = ("PYTEST_CURRENT_TEST", "COVERAGE_PROCESS_CONFIG")
        patch.setattr(execution_environment, "RESERVED", (*execution_environment.RESERVED, *names))
        yield


@pytest.fixture(scope="session", autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Isolate tests from the files and running runtimes of the current user."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("OPENRUNTIME_DATA_DIR", os.fspath(home / "openruntime"))
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, os.fspath(home / name.lower()))
        yield
