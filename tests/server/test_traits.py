from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from traitlets import TraitError
from traitlets.config import Config

from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.server.app import OpenRuntimeApp
from openruntime_jupyter.server.traits import NO_TRAIT, AiTraits, SettingsTraits

NAMES = [field.name for field in fields(Settings) if field.name not in NO_TRAIT]


def test_settings_and_traits_match() -> None:
    assert sorted(SettingsTraits.class_own_traits(config=True)) == sorted(NAMES)
    assert set(NO_TRAIT) <= {field.name for field in fields(Settings)}


def test_every_ai_setting_is_trait_with_same_default() -> None:
    assert sorted(AiTraits.class_own_traits(config=True)) == sorted(field.name for field in fields(AiConfig))
    assert AiTraits().ai_config() == AiConfig()


def test_trait_defaults_match_settings() -> None:
    of_traits, settings = SettingsTraits().settings_of(), Settings()
    assert {name: getattr(of_traits, name) for name in NAMES} == {name: getattr(settings, name) for name in NAMES}


def test_out_of_range_value_names_trait() -> None:
    for name, value in (("gpu_slots", 0), ("cpu_slots", -1), ("aging_seconds", -0.5), ("device_lock", "some"), ("max_output_bytes", 1)):
        with pytest.raises(TraitError, match=name):
            SettingsTraits(**{name: value})


def test_configuration_reaches_the_settings(tmp_path: Path) -> None:
    config = Config({"OpenRuntimeApp": {"cpu_slots": 3, "data_dir": str(tmp_path), "device_lock_dir": "~/locks", "aging_seconds": 0.5}})
    settings = OpenRuntimeApp(config=config).settings_of()
    assert (settings.cpu_slots, settings.data_dir, settings.aging_seconds) == (3, tmp_path, 0.5)
    assert settings.device_lock_dir == Path("~/locks").expanduser()
