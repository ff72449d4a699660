"""Factory for a runtime with AI, used by both hosts: the server and the kernel."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace

from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.ai.profiles import profiles_from
from openruntime_jupyter.ai.providers.remote import RemoteProvider
from openruntime_jupyter.ai.service import AiService
from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings

log = logging.getLogger(__name__)


def host(settings: Settings, config: AiConfig | None = None, environ: Mapping[str, str] = os.environ) -> AiService:
    """Return the AI service with a runtime that is not started yet.

    One invalid profile disables all configured profiles, which `/health` reports. The queue works without them.
    """
    config = config or AiConfig()
    notices: list[str] = []
    try:
        profiles = profiles_from(config.profiles, environ, config.default_profile)
    except InvalidRequest as problem:
        notices.append(f"The configured profiles are disabled because of an error: {problem}")
        log.warning("%s", notices[0])
        profiles = profiles_from({}, environ)
    provider = RemoteProvider(profiles, environ)
    settings = replace(settings, secret_variables=(*settings.secret_variables, *sorted(profiles.secret_variables)))
    runtime = Runtime(settings, inline={"chat": provider.run})
    runtime.notices += [*notices, *profiles.problems]
    return AiService(runtime, config, profiles, provider.close)
