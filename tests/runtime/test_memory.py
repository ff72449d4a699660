from __future__ import annotations

import time
from pathlib import Path

import psutil

from openruntime_jupyter.memory import Machine, Memory, cgroup_memory, own_cgroups

GIB = 1 << 30


def group(folder: Path, **files: object) -> Path:
    """Create the folder of a cgroup with these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")
    return folder


def test_cgroup_v2_limit_counts_reclaimable_pages_as_free(tmp_path: Path) -> None:
    folder = group(tmp_path, memory__max=2 * GIB, memory__current=GIB, memory__stat=f"anon 5\ninactive_file {GIB // 2}\nfile 9")
    assert cgroup_memory(folder, second=True) == Memory(2 * GIB, GIB + GIB // 2)


def test_cgroup_v1_limit_counts(tmp_path: Path) -> None:
    folder = group(tmp_path)
    (folder / "memory.limit_in_bytes").write_text(f"{4 * GIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{GIB}\n")
    (folder / "memory.stat").write_text(f"total_inactive_file {GIB}\n")
    assert cgroup_memory(folder, second=False) == Memory(4 * GIB, 4 * GIB)


def test_missing_cgroup_limit_is_none(tmp_path: Path) -> None:
    assert cgroup_memory(group(tmp_path / "two", memory__max="max", memory__current=1), second=True) is None
    one = group(tmp_path / "one")
    (one / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (one / "memory.usage_in_bytes").write_text("1\n")
    assert cgroup_memory(one, second=False) is None
    assert cgroup_memory(tmp_path / "absent", second=True) is None


def test_cgroups_of_process_are_innermost_first(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    inner = group(root / "user" / "session")
    membership = tmp_path / "membership"
    membership.write_text("0::/user/session\n")
    assert own_cgroups(root, membership) == [(inner, True), (inner.parent, True), (root, True)]
    group(root / "memory" / "docker")
    membership.write_text("4:cpu,memory:/docker/gone\n1:name=systemd:/x\n")
    assert own_cgroups(root, membership) == [(root / "memory" / "docker", False), (root / "memory", False)]
    assert own_cgroups(root, tmp_path / "absent") == []


def test_tightest_limit_is_total_memory(tmp_path: Path) -> None:
    limit = psutil.virtual_memory().total // 4
    inner = group(tmp_path / "inner", memory__max=limit, memory__current=limit // 2, memory__stat="")
    outer = group(tmp_path / "outer", memory__max=2 * limit, memory__current=0, memory__stat="")
    memory = Machine(lambda: [(inner, True), (outer, True)]).memory()
    assert memory.total == limit
    assert memory.available <= limit // 2 + 1
    assert memory.percent_used >= 50.0
    assert Machine(list).memory().total == psutil.virtual_memory().total


def test_cpu_load_needs_a_minimum_interval() -> None:
    machine = Machine(list)
    assert machine.cpu_percent() is None
    busy_until = time.monotonic() + 0.15
    while time.monotonic() < busy_until:
        pass
    assert 0 < (machine.cpu_percent() or 0) <= 100
