"""Fixture that closes the shared browser after the last test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import chromium


@pytest.fixture(scope="session", autouse=True)
def one_browser() -> Iterator[None]:
    """Close the browser after the last test; the first page starts it."""
    yield
    chromium.close()
