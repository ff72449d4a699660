"""Data folders without room: missing ones in a read-only home, and full ones. The errors say what to do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.embedded import EmbeddedBackend
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import FailureKind, TaskState
from tests.runtimes import runtime_in, submit


@pytest.mark.parametrize("where", ["missing", "file"])
def test_embedded_runtime_works_without_a_data_folder_and_says_so(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    (tmp_path / "home").write_text("a file, because root can write to every folder")
    data = tmp_path / "home" if where == "file" else tmp_path / "home" / "share" / "openruntime"
    backend = EmbeddedBackend(Settings(data_dir=data, embedded=True, spare_workers=0, cpu_slots=1))
    client = Client(backend)
    try:
        task = client.submit("compute", expression="1 + 1")
        assert task.result() is not None
        assert [(each.task_id, each.status) for each in client.tasks().tasks] == [(task.id, "completed")]
        (problem,) = [problem for problem in client.health().problems if "data folder" in problem]
        assert str(data) in problem
        assert "OPENRUNTIME_DATA_DIR" in problem
        assert "until this process ends" in problem
        (folder,) = (tmp_path / "temporary").glob("openruntime-*")
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        backend.stop()


async def test_large_parameters_on_a_full_disk_fail_with_advice(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "tmp"
    folder.mkdir(parents=True, mode=0o700)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode()}")
    try:
        async with runtime_in(tmp_path / "data") as runtime:
            task_id = await submit(runtime, "python", {"code": "print(len(text))", "inputs": {"text": "x" * 2_000_000}})
            task = await runtime.tasks.wait(task_id, 30)
            assert task.failure is not None
            assert task.failure.kind is FailureKind.NOT_STARTED
            assert "The parameters of 2,000," in task.failure.message
            assert f"can't be stored in {folder} (No space left on device): free some space there" in task.failure.message
            assert not list(folder.glob("*.parameters"))
            assert (await runtime.tasks.wait(await submit(runtime, "python", {"code": "1"}), 30)).status is TaskState.COMPLETED
    finally:
        subprocess.run(["umount", folder], check=True)
