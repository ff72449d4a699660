"""One shared, visible, killable queue for MLX work inside Jupyter.

Every worker process imports this file, so it imports nothing itself. Attributes are imported on first access.
"""

from __future__ import annotations

from typing import Any

__version__ = "2.0.0"

_WHERE: dict[str, str] = {
    # attribute: the module that defines it under the same name
    "Dashboard": "openruntime_jupyter.notebook.dashboard.widget",
    "connect": "openruntime_jupyter.client.discovery",
    "load_ipython_extension": "openruntime_jupyter.notebook.extension",
    "progress": "openruntime_jupyter.current_task",
    "unload_ipython_extension": "openruntime_jupyter.notebook.extension",
}

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    try:
        module = _WHERE[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    from openruntime_jupyter.imports import load

    return getattr(load(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Return the extension points that Jupyter Server loads."""
    from openruntime_jupyter.server.app import OpenRuntimeApp

    return [{"module": "openruntime_jupyter.server.app", "app": OpenRuntimeApp}]
