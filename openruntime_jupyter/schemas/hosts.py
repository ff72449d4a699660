"""Hosts on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from openruntime_jupyter.schemas.base import Timestamp, Wire

HostState = Literal["connecting", "ready", "silent", "lost", "refused"]


class Host(Wire):
    """Machine that runs tasks of this runtime. A value is null until the machine has reported it."""

    name: str = Field(description="Name of the host: the first part of the ids of its devices, such as `mac2` in `mac2.device_0`.")
    state: HostState = Field(
        description="`silent`: it does not respond, and is lost if it stays so; `refused`: it can't be used before `advice` is followed."
    )
    address: str = Field(description="How it is reached, such as `ssh me@mac2.local`.")
    problem: str | None = Field(None, description="Why it is not ready.")
    advice: str | None = Field(None, description="What to do so that it becomes ready, such as a command to run on that host.")
    devices: list[str] = Field(default_factory=list, description="Ids of its devices.")
    slots: int = Field(0, description="Maximum number of tasks that run on it at once.")
    running: int = Field(0, description="Number of tasks that run on it.")
    memory_total: int | None = Field(None, description="Memory in bytes.")
    memory_available: int | None = Field(None, description="Available memory in bytes.")
    cores: int | None = Field(None, description="Number of logical cores.")
    cpu_utilization: float | None = Field(None, description="CPU utilization in percent.")
    models: list[str] = Field(default_factory=list, description="Names of the language models in its folders.")
    python: str | None = Field(None, description="Version of its Python.")
    version: str | None = Field(None, description="Version of this package on it.")
    mlx_version: str | None = Field(None, description="Version of MLX.")
    platform: str | None = Field(None, description="Operating system and processor, such as `macOS arm64`.")
    round_trip_s: float | None = Field(None, description="Time from the last ping to its answer in seconds.")
    shares_folder: bool | None = Field(
        None, description="true if it reads and writes arrays directly in a folder that it shares with the runtime."
    )
    since: Timestamp = Field(description="Time of the last change of the state.")


class HostList(Wire):
    """Response of `GET /hosts`."""

    hosts: list[Host] = Field(description="Hosts by name; empty if all tasks run on this machine.")
