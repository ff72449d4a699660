"""Fixtures of these tests."""

from __future__ import annotations

from tests.runtimes import jp_asyncio_loop

__all__ = ["jp_asyncio_loop"]
