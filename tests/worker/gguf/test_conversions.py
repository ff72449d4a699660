"""Converted weights that are kept for the next load: whole ones only, and not too many of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import mlx.core as mx
import pytest

from openruntime_jupyter.local_models.gguf import conversions
from openruntime_jupyter.local_models.gguf.conversions import Conversions

SHAPES = {"weight": (4, 8)}


def source(folder: Path, name: str) -> Path:
    path = folder / f"{name}.gguf"
    path.write_text(name)
    return path


def weights(value: float) -> dict[str, mx.array]:
    return {"weight": mx.full((4, 8), value, mx.float32)}


def aged(kept: Conversions, file: Path, seconds: float) -> None:
    os.utime(kept.place(file), (time.time() - seconds,) * 2)


def test_what_was_kept_is_found_as_long_as_its_source_is_what_it_was(tmp_path: Path) -> None:
    kept, file = Conversions(tmp_path / "kept"), source(tmp_path, "a")
    assert kept.find(file, SHAPES) is None
    kept.keep(file, weights(3.0))
    found = kept.find(file, SHAPES)
    assert found is not None
    assert mx.array_equal(found["weight"], weights(3.0)["weight"])
    assert kept.place(file).stat().st_mode & 0o077 == 0
    file.write_text("another")
    assert kept.find(file, SHAPES) is None


@pytest.mark.parametrize("damage", ["cut", "other shapes", "no file of weights"])
def test_what_is_damaged_is_removed_and_made_again(tmp_path: Path, damage: str) -> None:
    kept, file = Conversions(tmp_path / "kept"), source(tmp_path, "a")
    kept.keep(file, weights(3.0))
    place = kept.place(file)
    if damage == "cut":
        os.truncate(place, place.stat().st_size - 4)
    elif damage == "no file of weights":
        place.write_bytes(b"\xff" * 100)
    assert kept.find(file, {"weight": (8, 4)} if damage == "other shapes" else SHAPES) is None
    assert not place.exists()


def test_the_least_recently_used_ones_go(tmp_path: Path) -> None:
    kept = Conversions(tmp_path / "kept")
    files = [source(tmp_path, str(number)) for number in range(conversions.MOST_FILES)]
    for age, file in enumerate(files):
        kept.keep(file, weights(age))
        aged(kept, file, 1000 - 100 * age)
    kept.find(files[0], SHAPES)
    kept.keep(source(tmp_path, "new"), weights(9.0))
    assert [kept.find(file, SHAPES) is not None for file in files] == [True, False, True, True]


def test_what_is_too_large_for_all_bounds_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, file = Conversions(tmp_path / "kept"), source(tmp_path, "a")
    monkeypatch.setattr(conversions, "MOST_BYTES", 100)
    kept.keep(file, weights(1.0))
    assert not list((tmp_path / "kept").iterdir())


def test_a_half_written_file_goes_once_nobody_can_be_writing_it(tmp_path: Path) -> None:
    kept = Conversions(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    old, young = (tmp_path / "kept" / f"{name}.part{conversions.SUFFIX}" for name in ("old", "young"))
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - conversions.ABANDONED - 60,) * 2)
    kept.keep(source(tmp_path, "a"), weights(1.0))
    assert (old.exists(), young.exists()) == (False, True)
