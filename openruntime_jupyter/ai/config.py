"""What a host can be told about AI, beside the runtime's own settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

InsightsWording = Literal["none", "local", "remote"]


@dataclass(slots=True)
class AiConfig:
    """The server's traits mirror these one to one. Times are in seconds."""

    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Remote providers by name; see `ai/profiles.py` for what each may say. Never a key, only where it is found."""
    default_profile: str = ""
    """The profile that answers where a prompt names none; empty: the environment's, else a local model. `local`: always a local model."""
    default_model: str = ""
    """The local model that answers where a prompt names none; empty: the only or the pulled one."""
    agents_dir: Path | None = None
    """Folder of agents' files, which override and add to ours; None: ours alone."""
    insights_wording: InsightsWording = "local"
    """Who may put insights into words unasked: no model; a local one that is in memory; or a remote one too, which is sent the findings."""
