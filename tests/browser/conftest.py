"""Event loop of the browser, which all tests share."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest

from tests.browser import chromium
from tests.browser.lab import LAB
from tests.support import Home, Server, running_server


@pytest.fixture(scope="session")
def browser_loop(nothing_is_left_behind: None) -> Iterator[asyncio.AbstractEventLoop]:
    """Event loop of the browser, which is closed at the end, before the check for processes."""
    yield chromium.loop()
    chromium.close()


@pytest.fixture(scope="module", autouse=True)
def jp_asyncio_loop(browser_loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Event loop of the tests of this folder."""
    return browser_loop


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutines on the event loop of the browser."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    chromium.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}))
    return True


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab and Notebook 7 for tests that need nothing else."""
    with running_server(Home(tmp_path_factory.mktemp("lab")), LAB, base_url="/user/x/") as running:
        yield running
