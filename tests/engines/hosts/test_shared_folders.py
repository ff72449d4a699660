"""Proof that a runtime and an agent share a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from openruntime_jupyter.arrays import blocks
from openruntime_jupyter.engines.hosts.shared_folders import FolderProof, SharedFolders, prove


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Folder of arrays, which is empty at the end."""
    made = tmp_path / "arrays"
    made.mkdir()
    yield made
    assert not list(made.iterdir())


def answered(offered: SharedFolders) -> tuple[FolderProof, ...]:
    """Return the proofs of an agent, which has closed its leases."""
    proofs, leases = prove(tuple(offered.contents))
    for descriptor in leases:
        os.close(descriptor)
    return proofs


def test_shared_folder_is_proved_with_leases(folder: Path) -> None:
    offered = SharedFolders.offer([str(folder), "/does/not/exist"])
    proofs, leases = prove(tuple(offered.contents))
    assert offered.verify(proofs) == {str(folder): True}
    for descriptor in leases:
        os.close(descriptor)


def test_folder_without_leases_is_shared_only_if_files_are_not_reused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = SharedFolders.offer([str(folder)])
    assert offered.verify(answered(offered)) == {}, "the lease was not seen"

    def no_locks(path: Path) -> bool:
        raise OSError("no locks")

    offered = SharedFolders.offer([str(folder)])
    monkeypatch.setattr(blocks, "leased", no_locks)
    monkeypatch.setattr(blocks, "leases_hold", lambda path: False)
    assert offered.verify(answered(offered)) == {str(folder): False}


def test_another_folder_under_the_same_path_is_not_shared(folder: Path, tmp_path: Path) -> None:
    offered = SharedFolders.offer([str(folder)])
    ((path, content),) = offered.contents.items()
    (real,) = answered(offered)
    elsewhere = tmp_path / "proof-there.part"
    elsewhere.write_text(real.answer)
    for wrong in (
        FolderProof(path, "0" * 64, real.answer_path, real.answer),
        FolderProof(path, content, real.answer_path, "0" * 64),
        FolderProof(path, content, str(elsewhere), real.answer),
        FolderProof(path, content, str(folder / "proof-missing.part"), real.answer),
        FolderProof("/etc/passwd", content, real.answer_path, real.answer),
    ):
        assert SharedFolders(dict(offered.contents)).verify((wrong,)) == {}
    Path(real.answer_path).unlink()


def test_agent_reads_only_files_of_this_proof(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    link = tmp_path / "proof-link.part"
    link.symlink_to(secret)
    assert prove((str(secret), str(link), str(folder / "proof-missing.part"))) == ((), [])
