"""A runtime with its AI: what both hosts, a server and a kernel, start."""

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
