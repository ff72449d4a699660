"""Event loop of the browser, which all tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from jupyter_core.utils import ensure_event_loop

from tests.browser import chromium
from tests.browser.lab import LAB
from tests.support import Home, Server, running_server


@pytest.fixture(scope="package", autouse=True)
def jp_asyncio_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Event loop of all tests, whose first page starts the browser. The browser is closed after the last test."""
    loop = ensure_event_loop(prefer_selector_loop=True)
    yield loop
    chromium.close()
    loop.close()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab and Notebook 7 for tests that need nothing else."""
    with running_server(Home(tmp_path_factory.mktemp("lab")), LAB, base_url="/user/x/") as running:
        yield running
