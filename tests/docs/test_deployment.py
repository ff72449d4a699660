"""Compare docs/deployment.md with the settings, limits, events and files of a server."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, Field, fields
from pathlib import Path

import pytest

from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.server.auth.rate_limit import MAX_CLIENTS, REFERENCE, LimitsTraits
from openruntime_jupyter.server.config.traits import NO_TRAIT, SettingsTraits
from openruntime_jupyter.server.jupyter_events import SCHEMA
from tests.support import STANDALONE, running_server

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "deployment.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
TABLE = PAGE.split("## Settings", 1)[1].split("## ", 1)[0]
DISK = PAGE.split("## Files on disk", 1)[1].split("## ", 1)[0]
IN_WORDS = {"": "empty", (): "none"}
FOLDERS = {"device_lock_dir": "`locks` in `data_dir`", "models_dir": "`models` in `data_dir`"}


SETTINGS = [field for field in fields(Settings) if field.name not in NO_TRAIT]


def test_table_lists_all_settings() -> None:
    assert [name for name, _, _ in ROW.findall(TABLE)] == [field.name for field in SETTINGS]


def test_settings_are_configurable_traits() -> None:
    assert set(SettingsTraits.class_trait_names(config=True)) == {field.name for field in SETTINGS}


@pytest.mark.parametrize("field", [field for field in SETTINGS if field.name not in ("data_dir", "label")], ids=lambda field: field.name)
def test_default_in_table_matches_code(field: Field[object]) -> None:
    assert field.default is not MISSING
    shown = next(default for name, default, _ in ROW.findall(TABLE) if name == field.name).strip()
    if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
        assert float(shown.replace(" ", "")) == field.default
    else:
        assert shown == FOLDERS.get(field.name, IN_WORDS.get(field.default, f"`{field.default}`"))  # type: ignore[call-overload]


def test_page_lists_files_on_disk(tmp_path: Path) -> None:
    listed = set(re.findall(r"`([\w.-]+?)(?:/[\w.*]*)?`", DISK))
    with running_server(tmp_path, STANDALONE) as server:
        server.finished(server.submit("matrix_multiply", {"size": 16}, wait=False)["task_id"])
        found = {path.name: path for path in server.home.data_dir.iterdir()}
        assert not [path for path in server.home.data_dir.rglob("*") if path.stat().st_mode & 0o077]
    assert server.home.data_dir.stat().st_mode & 0o777 == 0o700
    assert {name for name in found if not re.search(r"-(wal|shm)$", name)} <= listed


def test_page_lists_limits_with_values() -> None:
    limits = PAGE.split("## Limits", 1)[1].split("\n## ", 1)[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*) \|", limits, re.MULTILINE))
    assert sorted(rows) == sorted(LimitsTraits.class_own_traits(config=True))
    assert {name: int(value.replace(" ", "")) for name, value in rows.items() if name in REFERENCE} == REFERENCE
    assert f"{MAX_CLIENTS:,}" in limits


def test_page_lists_event_fields() -> None:
    section = PAGE.split("## Events", 1)[1].split("\n## ", 1)[0]
    schema = json.loads(SCHEMA.read_text())
    fields = {name for row in re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert fields == set(schema["properties"])
    assert schema["$id"] in section
    for state in schema["properties"]["state"]["enum"]:
        assert f"`{state}`" in section
