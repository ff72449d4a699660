"""Fixtures of the runtime's tests."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.runtime.storage.store import History
from tests.runtime.array_support import store_in
from tests.runtime.history_support import opened
from tests.runtimes import jp_asyncio_loop, runtime

__all__ = ["jp_asyncio_loop", "runtime"]


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A real tmpfs of 8 MiB. Only root can mount one."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def history(tmp_path: Path, jp_asyncio_loop: asyncio.AbstractEventLoop) -> Iterator[History]:
    """An open history in `tmp_path`."""
    opening = opened(tmp_path)
    yield jp_asyncio_loop.run_until_complete(opening.__aenter__())
    jp_asyncio_loop.run_until_complete(opening.__aexit__(None, None, None))


@pytest.fixture
def store(tmp_path: Path, jp_asyncio_loop: asyncio.AbstractEventLoop) -> Iterator[ArrayStore]:
    """An open array store in `tmp_path`."""
    opening = store_in(tmp_path)
    yield jp_asyncio_loop.run_until_complete(opening.__aenter__())
    jp_asyncio_loop.run_until_complete(opening.__aexit__(None, None, None))
