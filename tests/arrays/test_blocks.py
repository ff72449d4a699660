"""Free blocks: one owner at a time, never a leased file, and never under the name of another array."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from openruntime_jupyter.arrays import array_file, blocks, conversion
from openruntime_jupyter.arrays.array_layout import Layout
from openruntime_jupyter.errors import ArrayNotFound

MIB = 1 << 20


def stored(path: Path, value: int, elements: int = 2 * MIB) -> int:
    """Store an array filled with `value`; return the inode of its file."""
    conversion.store(np.full(elements, value, np.uint8), path)
    return path.stat().st_ino


@pytest.mark.parametrize("elements", [2 * MIB, 2 * MIB - 300_000, 2 * MIB + 300_000], ids=["same", "smaller", "larger"])
def test_array_of_similar_size_reuses_the_file(tmp_path: Path, elements: int) -> None:
    number = stored(tmp_path / "a", 1)
    (tmp_path / "a").chmod(0o400)
    assert blocks.retire(tmp_path / "a", reuse=True)
    assert [block.size for block in blocks.free(tmp_path)] == [Layout((2 * MIB,), "uint8").size]
    assert stored(tmp_path / "b", 2, elements) == number
    assert not blocks.free(tmp_path)
    state = (tmp_path / "b").stat()
    assert state.st_size == Layout((elements,), "uint8").size
    assert state.st_blocks * 512 >= state.st_size, "it is sparse"
    assert state.st_mode & 0o777 == 0o600
    back = conversion.view(tmp_path / "b", "b")
    assert back.shape == (elements,)
    assert (back == 2).all()


def test_unsuitable_files_are_not_reused(tmp_path: Path) -> None:
    stored(tmp_path / "a", 1)
    blocks.retire(tmp_path / "a", reuse=True)
    stored(tmp_path / "b", 2, 4 * MIB)
    assert len(blocks.free(tmp_path)) == 1
    stored(tmp_path / "c", 3, 1000)
    assert blocks.retire(tmp_path / "c", reuse=True)
    os.truncate(tmp_path / "b", 40 * MIB)
    assert blocks.retire(tmp_path / "b", reuse=True)
    assert len(blocks.free(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [blocks.FREE]


def test_existing_file_is_not_overwritten_by_block(tmp_path: Path) -> None:
    stored(tmp_path / "a", 1)
    blocks.retire(tmp_path / "a", reuse=True)
    (tmp_path / "b").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        stored(tmp_path / "b", 2)
    assert (tmp_path / "b").read_bytes() == b"mine"


def test_slice_of_view_prevents_reuse(tmp_path: Path) -> None:
    number = stored(tmp_path / "a", 1)
    part = conversion.view(tmp_path / "a", "a")[5:10]
    gc.collect()
    assert not blocks.retire(tmp_path / "a", reuse=True)
    assert stored(tmp_path / "b", 2) != number
    assert (part == 1).all()
    del part
    assert blocks.retire(tmp_path / "a", reuse=True)
    assert stored(tmp_path / "c", 3) == number


def test_view_in_forked_child_prevents_reuse(tmp_path: Path) -> None:
    program = """
import os, sys
from openruntime_jupyter.arrays import conversion
view = conversion.view(sys.argv[1], "a")
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0 if (view == 1).all() else 1)
del view
print("alone", flush=True)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    stored(tmp_path / "a", 1)
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "a")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"alone\n"
    assert not blocks.retire(tmp_path / "a", reuse=True)
    parent.communicate()
    assert parent.returncode == 0
    assert blocks.retire(tmp_path / "a", reuse=True)


def test_descriptor_of_reused_file_is_detected(tmp_path: Path) -> None:
    number = stored(tmp_path / "a", 1)
    early = os.open(tmp_path / "a", os.O_RDWR)
    blocks.retire(tmp_path / "a", reuse=True)
    assert not blocks.lease(early, tmp_path / "a"), "it is a free block"
    os.close(early)
    early = os.open(blocks.free(tmp_path)[0].path, os.O_RDWR)
    assert stored(tmp_path / "b", 2) == number
    assert not blocks.lease(early, tmp_path / "a"), "it belongs to another array"
    stored(tmp_path / "a", 3)
    assert not blocks.lease(early, tmp_path / "a"), "a new file has the old name"
    os.close(early)
    with pytest.raises(ArrayNotFound, match="no longer exists"):
        conversion.view(tmp_path / "c", "c")


def test_reused_file_under_same_name_is_readable(tmp_path: Path) -> None:
    number = stored(tmp_path / "weights", 1)
    early = os.open(tmp_path / "weights", os.O_RDONLY)
    blocks.retire(tmp_path / "weights", reuse=True)
    assert stored(tmp_path / "weights", 2, 2 * MIB - 4) == number
    assert blocks.lease(early, tmp_path / "weights")
    assert array_file.read(early, "weights").shape == (2 * MIB - 4,)
    os.close(early)


def test_file_being_retired_can_not_be_opened(tmp_path: Path) -> None:
    stored(tmp_path / "a", 1)
    with (tmp_path / "a").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ArrayNotFound, match="is being deleted"):
            conversion.view(tmp_path / "a", "a")
        assert blocks.leased(tmp_path / "a")
        assert not blocks.retire(tmp_path / "a", reuse=True)


def test_concurrent_takers_get_different_blocks(tmp_path: Path) -> None:
    for number in range(8):
        stored(tmp_path / f"old{number}", number)
    for number in range(8):
        blocks.retire(tmp_path / f"old{number}", reuse=True)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: stored(tmp_path / f"new{number}", number), range(24)))
    assert len({path.stat().st_ino for path in tmp_path.glob("new*")}) == 24
    assert not blocks.free(tmp_path)
    for number in range(24):
        assert (conversion.view(tmp_path / f"new{number}", "x") == number).all()


def test_oldest_blocks_are_deleted_first(tmp_path: Path) -> None:
    for number in range(4):
        stored(tmp_path / str(number), number)
    for number in range(4):
        blocks.retire(tmp_path / str(number), reuse=True)
    first, second, *others = blocks.free(tmp_path)
    assert blocks.give_back(tmp_path, first.size + 1) == first.size + second.size
    assert blocks.free(tmp_path) == others
    assert blocks.give_back(tmp_path / "absent", 10) == 0


def test_prepared_block_is_fully_allocated_or_absent(tmp_path: Path) -> None:
    assert blocks.prepare(tmp_path, 3 * MIB, lambda: False)
    (block,) = blocks.free(tmp_path)
    assert block.path.stat().st_blocks * 512 >= block.size == 3 * MIB
    assert not blocks.prepare(tmp_path, 3 * MIB, lambda: True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        assert not blocks.prepare(tmp_path, 3 * MIB, lambda: False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / blocks.FREE).iterdir()) == [block.path]


def test_process_wide_locks_are_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocks.leases_hold(tmp_path)
    monkeypatch.setattr(fcntl, "flock", fcntl.lockf)  # like NFS
    assert not blocks.leases_hold(tmp_path)
    assert not list(tmp_path.iterdir())
