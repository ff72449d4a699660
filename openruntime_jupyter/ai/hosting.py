"""A runtime with its AI: what both hosts, a server and a kernel, start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.ai.profiles import profiles_from
from openruntime_jupyter.ai.providers.remote import RemoteProvider
from openruntime_jupyter.ai.service import AiService
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings


def host(settings: Settings, config: AiConfig | None = None, environ: Mapping[str, str] = os.environ) -> AiService:
    """The service, around a runtime that is not started yet; raises `InvalidRequest` where a profile is wrong."""
    config = config or AiConfig()
    profiles = profiles_from(config.profiles, environ, config.default_profile)
    provider = RemoteProvider(profiles, environ)
    settings = replace(settings, secret_variables=(*settings.secret_variables, *sorted(profiles.secret_variables)))
    return AiService(Runtime(settings, inline={"chat": provider.run}), config, profiles, provider.close)
