"""Cache of converted weights: only complete files, within limits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import mlx.core as mx
import pytest

from openruntime_jupyter.local_models import conversions
from openruntime_jupyter.local_models.conversions import Conversions

SHAPES = {"weight": (4, 8)}


def source(folder: Path, name: str) -> Path:
    path = folder / f"{name}.gguf"
    path.write_text(name)
    return path


def weights(value: float) -> dict[str, mx.array]:
    return {"weight": mx.full((4, 8), value, mx.float32)}


def aged(kept: Conversions, file: Path, seconds: float) -> None:
    os.utime(kept.path_of(file), (time.time() - seconds,) * 2)


def test_stored_weights_are_found_while_source_is_unchanged(tmp_path: Path) -> None:
    kept, file = Conversions(tmp_path / "kept"), source(tmp_path, "a")
    assert kept.find(file, SHAPES) is None
    kept.keep(file, weights(3.0))
    found = kept.find(file, SHAPES)
    assert found is not None
    assert mx.array_equal(found["weight"], weights(3.0)["weight"])
    assert kept.path_of(file).stat().st_mode & 0o077 == 0
    file.write_text("another")
    assert kept.find(file, SHAPES) is None


@pytest.mark.parametrize("damage", ["cut", "other shapes", "no file of weights"])
def test_damaged_file_is_deleted_and_rebuilt(tmp_path: Path, damage: str) -> None:
    kept, file = Conversions(tmp_path / "kept"), source(tmp_path, "a")
    kept.keep(file, weights(3.0))
    path = kept.path_of(file)
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 4)
    elif damage == "no file of weights":
        path.write_bytes(b"\xff" * 100)
    assert kept.find(file, {"weight": (8, 4)} if damage == "other shapes" else SHAPES) is None
    assert not path.exists()


def test_least_recently_used_files_are_deleted(tmp_path: Path) -> None:
    kept = Conversions(tmp_path / "kept")
    files = [source(tmp_path, str(number)) for number in range(conversions.MOST_FILES)]
    for age, file in enumerate(files):
        kept.keep(file, weights(age))
        aged(kept, file, 1000 - 100 * age)
    kept.find(files[0], SHAPES)
    kept.keep(source(tmp_path, "new"), weights(9.0))
    assert [kept.find(file, SHAPES) is not None for file in files] == [True, False, True, True]


def test_oversized_weights_are_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, file = Conversions(tmp_path / "kept"), source(tmp_path, "a")
    monkeypatch.setattr(conversions, "MOST_BYTES", 100)
    kept.keep(file, weights(1.0))
    assert not list((tmp_path / "kept").iterdir())


def test_abandoned_file_is_deleted(tmp_path: Path) -> None:
    kept = Conversions(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    old, young = (tmp_path / "kept" / f"{name}.part{conversions.SUFFIX}" for name in ("old", "young"))
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - conversions.ABANDONED - 60,) * 2)
    kept.keep(source(tmp_path, "a"), weights(1.0))
    assert (old.exists(), young.exists()) == (False, True)
