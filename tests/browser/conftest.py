"""The browser that all tests of this folder share ends with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import chromium


@pytest.fixture(scope="session", autouse=True)
def one_browser() -> Iterator[None]:
    """Started by the first page that a test opens, ended after the last test."""
    yield
    chromium.close()
