"""What every test has: a home of its own, away from the user's, and its turn."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator

import psutil
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from openruntime_jupyter.client import execution_environment
from tests import loopback
from tests.reaper import watched
from tests.support import alive, wait_until

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

FOREIGN = ("OPENRUNTIME_URL", "OPENRUNTIME_TOKEN", "OPENRUNTIME_SERVER_PID")


LONG = ("tests/browser/", "tests/test_notebooks_", "tests/acceptance/")
"""Tests that take minutes."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing is garbage while tests are collected, nor is what they are made of later: looking for it takes a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One by one, the quick answers come first; side by side, the long ones, so that no worker stands alone with them at the end."""
    beside = "PYTEST_XDIST_WORKER" in os.environ
    items.sort(key=lambda item: item.nodeid.startswith(LONG) != beside)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """What one worker does: a file, since its tests share servers, or all of the browser's tests, since two browsers want four cores."""
    return _Files(config, log)


class _Files(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return "tests/browser" if nodeid.startswith("tests/browser/") else str(super()._split_scope(nodeid))


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Whatever a test started has ended when the last one has, also where the run is killed."""
    with watched():
        yield
    me = psutil.Process()
    wait_until(
        lambda: not [child for child in me.children(recursive=True) if alive(child)],
        10,
        lambda: f"the end of {me.children(recursive=True)}",
    )


@pytest.fixture(scope="session", autouse=True)
def on_this_machine_alone() -> Iterator[None]:
    """No test connects to another machine, and what tests start fetches no model from a hub."""
    with pytest.MonkeyPatch.context() as patch:
        loopback.guard(patch)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def current_test_is_no_variable_of_tasks() -> Iterator[None]:
    """Pytest names the running test in an environment variable: spare workers would serve one test each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution_environment, "RESERVED", (*execution_environment.RESERVED, "PYTEST_CURRENT_TEST"))
        yield


@pytest.fixture(scope="session", autouse=True)
def away_from_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes what belongs to whoever runs it, nor reaches a runtime that they have open."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("OPENRUNTIME_DATA_DIR", os.fspath(home / "openruntime"))
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, os.fspath(home / name.lower()))
        yield
