"""A runtime with its AI: what both hosts, a server and a kernel, start."""

from __future__ import annotations

from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.ai.service import AiService
from openruntime_jupyter.ai_models import ProfileInfo
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings


class _NoProfiles(dict[str, ProfileInfo]):
    default: str | None = None

    def info(self) -> list[ProfileInfo]:
        return []


def host(settings: Settings, config: AiConfig | None = None) -> AiService:
    """The service, around a runtime that is not started yet."""
    return AiService(Runtime(settings), config or AiConfig(), _NoProfiles())
