"""AI settings of a host, in addition to the runtime's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

InsightsWording = Literal["none", "local", "remote"]


@dataclass(slots=True)
class AiConfig:
    """AI settings, mirrored by the server's traits. Times are in seconds."""

    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Remote providers by name; see `ai/profiles.py` for the fields. Contains references to keys, never the keys."""
    default_profile: str = ""
    """Default profile of prompts. Empty: the environment's profile, else a local model. `local`: always a local model."""
    default_model: str = ""
    """Default local model of prompts. Empty: the only or the pulled model."""
    agents_dir: Path | None = None
    """Folder of agent files that override and extend the built-in agents; None: only built-in agents."""
    insights_wording: InsightsWording = "local"
    """Models that rewrite insights by default: none, a local one in memory, or also a remote one, which then receives the findings."""
