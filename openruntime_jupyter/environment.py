"""Environment variables: which are secrets, and what this process had when the package was first used."""

from __future__ import annotations

import os

SECRETS = (
    "OPENRUNTIME_TOKEN",
    "OPENRUNTIME_URL",
    "JUPYTER_TOKEN",
    "JUPYTERHUB_API_TOKEN",
    "JPY_API_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "OPENAI_ADMIN_KEY",
    "OPENAI_CUSTOM_HEADERS",
    "OPENAI_WEBHOOK_SECRET",
)
SECRET_ENDINGS = ("_API_KEY", "_API_TOKEN")

AT_IMPORT = dict(os.environ)
"""The environment when this module was imported, which is the first statement of a notebook that uses the package."""


def is_secret(name: str) -> bool:
    """Return whether the variable `name` is kept from tasks."""
    return name in SECRETS or name.endswith(SECRET_ENDINGS)
