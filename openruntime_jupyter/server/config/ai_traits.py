"""The settings of AI as traits: one for each field of `ai/config.py`, by the same name."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from traitlets import Dict, Enum, HasTraits, Unicode

from openruntime_jupyter.ai.config import AiConfig, InsightsWording

DEFAULTS = AiConfig()


class AiTraits(HasTraits):
    """What beside the runtime's own settings `jupyter server --help-all` shows."""

    profiles = Dict(
        key_trait=Unicode(),
        value_trait=Dict(),
        default_value=dict(DEFAULTS.profiles),
        help="""Remote providers that speak OpenAI's protocol, by name, such as {"cloud": {"base_url": "https://api.openai.com/v1",
        "model": "gpt-4o", "api_key": "env:CLOUD_KEY", "timeout": 60}}; docs/profiles.md lists what each may say. A key is never written
        here, only where it is found: in an environment variable of the server, or in the keyring. Empty: the environment alone
        (OPENAI_API_KEY, OPENAI_BASE_URL).""",
    ).tag(config=True)
    default_profile = Unicode(
        DEFAULTS.default_profile,
        help="""Name of the profile that answers where a prompt names neither profile nor local model; `local`: always a model of this
        machine. Empty: the provider that the environment sets up (OPENAI_API_KEY), else a model of this machine.""",
    ).tag(config=True)
    default_model = Unicode(
        DEFAULTS.default_model,
        help="""Name of the model of this machine that answers where a prompt names none: one in models_dir or in allowed_models. Empty: the
        one that `jupyter openruntime pull` fetched, else the first by name.""",
    ).tag(config=True)
    agents_dir = Unicode(
        allow_none=True,
        default_value=None,
        help="""Folder of agents, one .md file each: one with the role of an agent of ours is used in its place, another role is added.
        Changes count at once. None: the agents that there are. A file that can't be used is told by GET /ai/agents.""",
    ).tag(config=True)
    insights_wording = Enum(
        ("none", "local", "remote"),
        DEFAULTS.insights_wording,
        help="""Who may put insights into words where their request does not say: `none`, no model; `local`, a model of this machine that is
        in memory already; `remote`, else the default provider too, to which findings from your history are sent then.""",
    ).tag(config=True)

    def ai_config(self) -> AiConfig:
        """The traits as an `AiConfig`."""
        return AiConfig(
            profiles={name: dict(profile) for name, profile in self.profiles.items()},
            default_profile=self.default_profile,
            default_model=self.default_model,
            agents_dir=Path(self.agents_dir).expanduser() if self.agents_dir else None,
            insights_wording=cast("InsightsWording", self.insights_wording),
        )
