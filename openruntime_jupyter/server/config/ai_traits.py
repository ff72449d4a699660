"""AI settings as traits: one for each field of `ai/config.py`, with the same name."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from traitlets import Dict, Enum, HasTraits, Unicode

from openruntime_jupyter.ai.config import AiConfig, InsightsWording

DEFAULTS = AiConfig()


class AiTraits(HasTraits):
    """Traits of the AI settings."""

    profiles = Dict(
        key_trait=Unicode(),
        value_trait=Dict(),
        default_value=dict(DEFAULTS.profiles),
        help="""Remote providers with an OpenAI-compatible API, by name. Example: {"cloud": {"base_url": "https://api.openai.com/v1",
        "model": "gpt-4o", "api_key": "env:CLOUD_KEY", "timeout": 60}}. docs/profiles.md lists all fields. Do not set the key itself
        here, only its location: an environment variable of the server, or the keyring. Empty: only the provider in the environment
        (OPENAI_API_KEY, OPENAI_BASE_URL).""",
    ).tag(config=True)
    default_profile = Unicode(
        DEFAULTS.default_profile,
        help="""Name of the profile for prompts that name neither a profile nor a local model. `local`: always a local model. Empty: the
        provider in the environment (OPENAI_API_KEY), otherwise a local model.""",
    ).tag(config=True)
    default_model = Unicode(
        DEFAULTS.default_model,
        help="""Name of the local model for prompts that name no model: one in models_dir or in allowed_models. Empty: the model
        downloaded by `jupyter openruntime pull`, otherwise the first by name.""",
    ).tag(config=True)
    agents_dir = Unicode(
        allow_none=True,
        default_value=None,
        help="""Folder of agents with one .md file per agent. An agent with the role of a built-in agent replaces it; other roles are
        added. Changes take effect immediately. GET /ai/agents lists invalid files. None: only the built-in agents.""",
    ).tag(config=True)
    insights_wording = Enum(
        ("none", "local", "remote"),
        DEFAULTS.insights_wording,
        help="""Model that may rewrite insights if the request does not specify one. `none`: no model; `local`: a local model that is
        already in memory; `remote`: a local model in memory, otherwise the default provider, which then receives findings from your
        history.""",
    ).tag(config=True)

    def ai_config(self) -> AiConfig:
        """Return the traits as an `AiConfig`."""
        return AiConfig(
            profiles={name: dict(profile) for name, profile in self.profiles.items()},
            default_profile=self.default_profile,
            default_model=self.default_model,
            agents_dir=Path(self.agents_dir).expanduser() if self.agents_dir else None,
            insights_wording=cast("InsightsWording", self.insights_wording),
        )
