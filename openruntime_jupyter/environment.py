"""Names of secrets, the folders of the user, and loopback addresses."""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path

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


def is_secret(name: str) -> bool:
    """Return whether the variable `name` is withheld from tasks."""
    return name in SECRETS or name.endswith(SECRET_ENDINGS)


def default_data_dir() -> Path:
    """Return `OPENRUNTIME_DATA_DIR`, or the platform's data folder of the user."""
    given = os.environ.get("OPENRUNTIME_DATA_DIR")
    return Path(given) if given else _folder("XDG_DATA_HOME", "~/.local/share")


def default_config_dir() -> Path:
    """Return `OPENRUNTIME_CONFIG_DIR`, or the platform's folder of the user for configuration files."""
    given = os.environ.get("OPENRUNTIME_CONFIG_DIR")
    return Path(given) if given else _folder("XDG_CONFIG_HOME", "~/.config")


def _folder(variable: str, default: str) -> Path:
    """Return our folder in the platform's one, which elsewhere than on macOS and Windows `variable` may name."""
    if sys.platform == "darwin":
        return Path("~/Library/Application Support/openruntime").expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local", "openruntime").expanduser()
    return Path(os.environ.get(variable) or default, "openruntime").expanduser()


def is_loopback(host: str) -> bool:
    """Return whether `host` is a loopback address or its name, which other machines cannot reach."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
