from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from traitlets import TraitError
from traitlets.config import Config

from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.server.app import OpenRuntimeApp
from openruntime_jupyter.server.auth.rate_limit import LimitsTraits
from openruntime_jupyter.server.traits import NO_TRAIT, AiTraits, SettingsTraits

NAMES = [field.name for field in fields(Settings) if field.name not in NO_TRAIT]


def test_settings_and_traits_match() -> None:
    assert sorted(SettingsTraits.class_own_traits(config=True)) == sorted(NAMES)


def test_every_ai_setting_is_trait_with_same_default() -> None:
    assert sorted(AiTraits.class_own_traits(config=True)) == sorted(field.name for field in fields(AiConfig))
    assert AiTraits().ai_config() == AiConfig()


def test_fields_without_trait_exist() -> None:
    assert set(NO_TRAIT) <= {field.name for field in fields(Settings)}


@pytest.mark.parametrize("name", NAMES)
def test_trait_defaults_match_settings(name: str) -> None:
    assert getattr(SettingsTraits().settings_of(), name) == getattr(Settings(), name)


@pytest.mark.parametrize("name", [*NAMES, *LimitsTraits.class_own_traits(config=True), *AiTraits.class_own_traits(config=True)])
def test_trait_help_has_unit_and_meaning_of_zero(name: str) -> None:
    trait = OpenRuntimeApp.class_traits()[name]
    words = " ".join(trait.help.split())
    assert len(words) > 60
    kind = type(trait).__name__
    if kind in ("Int", "Float"):
        assert " 0: " in words or "At least" in words, words
        assert any(unit in words.lower() for unit in ("seconds", "bytes", "days", "number of")), words
    elif kind in ("Unicode", "List", "Dict"):
        assert "Empty:" in words or "None:" in words, words


def test_out_of_range_value_names_trait() -> None:
    for name, value in (("gpu_slots", 0), ("cpu_slots", -1), ("aging_seconds", -0.5), ("device_lock", "some"), ("max_output_bytes", 1)):
        with pytest.raises(TraitError, match=name):
            SettingsTraits(**{name: value})


def test_configuration_reaches_the_settings(tmp_path: Path) -> None:
    config = Config({"OpenRuntimeApp": {"cpu_slots": 3, "data_dir": str(tmp_path), "device_lock_dir": "~/locks", "aging_seconds": 0.5}})
    settings = OpenRuntimeApp(config=config).settings_of()
    assert (settings.cpu_slots, settings.data_dir, settings.aging_seconds) == (3, tmp_path, 0.5)
    assert settings.device_lock_dir == Path("~/locks").expanduser()
