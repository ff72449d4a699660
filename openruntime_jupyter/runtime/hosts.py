"""Other hosts of a runtime, from its settings."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from openruntime_jupyter.engines.hosts.finder import Finder, HostsSetup, InvalidHosts
from openruntime_jupyter.runtime.settings import Settings

OF_ENGINE = {
    "hosts": ("ssh",),
    "hosts_only": ("ssh", "dask"),
    "dask_address": ("dask",),
    "dask_cluster": ("dask",),
    "dask_arguments": ("dask",),
    "dask_insecure": ("dask",),
}
"""Engines that each setting belongs to."""


def hosts_of(settings: Settings) -> HostsSetup | None:
    """Return the other hosts that the settings name; None if all tasks run on this machine. Nothing is connected yet.

    Raises `InvalidHosts` for settings that do not go together.
    """
    for name, engines in OF_ENGINE.items():
        if getattr(settings, name) and settings.engine not in engines:
            raise InvalidHosts(f"{name} belongs to engine={' or engine='.join(engines)}, but the engine is {settings.engine}")
    if settings.engine == "local":
        return None
    finder = _ssh(settings) if settings.engine == "ssh" else _dask(settings)
    return HostsSetup(finder, local=not settings.hosts_only)


def _ssh(settings: Settings) -> Finder:
    from openruntime_jupyter.engines.hosts.hosts_file import default_file, ssh_hosts  # late: most runtimes have no other hosts
    from openruntime_jupyter.engines.hosts.ssh import SshFinder

    if not settings.hosts:
        raise InvalidHosts("""engine=ssh needs hosts, for example --OpenRuntimeApp.hosts='["mac2.local", "me@gpu1"]'""")
    return SshFinder(ssh_hosts(settings.hosts, default_file()))


def _dask(settings: Settings) -> Finder:
    from openruntime_jupyter.engines.hosts.dask import DaskFinder  # late: likewise

    if find_spec("distributed") is None:
        raise InvalidHosts("engine=dask needs Dask: pip install 'openruntime-jupyter[dask]'")
    if bool(settings.dask_address) == bool(settings.dask_cluster):
        raise InvalidHosts("engine=dask needs one of dask_address, for a cluster that runs, and dask_cluster, for one to start")
    if settings.dask_cluster:
        _check_cluster(settings)
    elif settings.dask_arguments:
        raise InvalidHosts("dask_arguments are those of dask_cluster, which is not set")
    return DaskFinder(settings.dask_address, settings.dask_cluster, settings.dask_arguments, settings.dask_insecure)


def _check_cluster(settings: Settings) -> None:
    module, _, name = settings.dask_cluster.rpartition(".")
    if not (module and name):
        raise InvalidHosts(f"dask_cluster: {settings.dask_cluster!r} is not a class with its module, such as dask_jobqueue.SLURMCluster")
    package = module.partition(".")[0]
    if find_spec(package) is None:
        raise InvalidHosts(f"dask_cluster: the package {package} is missing: install it beside openruntime-jupyter")
    least, most = (_number(settings, key) for key in ("minimum", "maximum"))
    if most is not None and most < max(least or 0, 1):
        raise InvalidHosts("dask_arguments: maximum must be at least 1, and not less than minimum")


def _number(settings: Settings, key: str) -> int | None:
    value: Any = settings.dask_arguments.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise InvalidHosts(f"dask_arguments: {key} must be a number of workers, not {value!r}")
    return value
