"""The deployment page lists every setting, with the default that it has."""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, fields
from pathlib import Path

import pytest

from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.server.traits import NO_TRAIT, SettingsTraits

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "deployment.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
TABLE = PAGE.split("## Settings", 1)[1].split("## ", 1)[0]
IN_WORDS = {"": "empty", None: "`locks` in `data_dir`"}


SETTINGS = [field for field in fields(Settings) if field.name not in NO_TRAIT]


def test_every_setting_is_in_the_table_and_no_other() -> None:
    assert [name for name, _, _ in ROW.findall(TABLE)] == [field.name for field in SETTINGS]


def test_every_setting_is_a_trait_that_can_be_configured() -> None:
    assert set(SettingsTraits.class_trait_names(config=True)) == {field.name for field in SETTINGS}


@pytest.mark.parametrize("field", [field for field in SETTINGS if field.name not in ("data_dir", "label")], ids=lambda field: field.name)
def test_a_default_in_the_table_is_the_one_in_the_code(field: Field[object]) -> None:
    assert field.default is not MISSING
    shown = next(default for name, default, _ in ROW.findall(TABLE) if name == field.name).strip()
    if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
        assert float(shown.replace(" ", "")) == field.default
    else:
        assert shown == IN_WORDS.get(field.default, f"`{field.default}`")  # type: ignore[call-overload]
