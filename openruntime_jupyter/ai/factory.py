"""A runtime with its AI: what both hosts, a server and a kernel, start."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from openruntime_jupyter.ai.profiles import profiles_from
from openruntime_jupyter.ai.providers.remote import RemoteProvider
from openruntime_jupyter.ai.service import AiService
from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings

log = logging.getLogger(__name__)


def host(settings: Settings, config: AiConfig | None = None, environ: Mapping[str, str] = os.environ) -> AiService:
    """The service, around a runtime that is not started yet.

    A configured profile that is wrong leaves all of them out, which `/health` tells: the queue has other work to do.
    """
    config = config or AiConfig()
    notices: list[str] = []
    try:
        profiles = profiles_from(config.profiles, environ, config.default_profile)
    except InvalidRequest as problem:
        notices.append(f"The configured profiles were left out, so no remote provider is asked by them: {problem}")
        log.warning("%s", notices[0])
        profiles = profiles_from({}, environ)
    provider = RemoteProvider(profiles, environ)
    settings = replace(settings, secret_variables=(*settings.secret_variables, *sorted(profiles.secret_variables)))
    runtime = Runtime(settings, inline={"chat": provider.run})
    runtime.notices += [*notices, *profiles.problems]
    return AiService(runtime, config, profiles, provider.close)


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
