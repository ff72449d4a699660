"""Fixtures of these tests."""

from __future__ import annotations

import pytest

from openruntime_jupyter.runtime.storage import store
from tests.runtimes import jp_asyncio_loop, runtime

__all__ = ["jp_asyncio_loop", "runtime"]


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pause before a failed write is repeated, to save time."""
    monkeypatch.setattr(store, "RETRY_SECONDS", 0.1)
