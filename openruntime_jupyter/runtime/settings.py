"""Settings of a runtime, each with its unit and the meaning of 0. The server's traits correspond to them one to one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from openruntime_jupyter.environment import default_data_dir


@dataclass(slots=True)
class Settings:
    """Settings of a runtime. Times are in seconds, sizes in bytes."""

    data_dir: Path = field(default_factory=default_data_dir)
    """History, payloads and locks; private to the user (0700)."""
    embedded: bool = False
    """Hosted by a kernel: its tasks end with it and no other runtime takes them over."""
    label: str = ""
    """Name that other runtimes on this machine show for this one, such as its URL."""

    cpu_slots: int = 0
    """Tasks that may run on the CPU at once; 0: half of the cores, at least 2."""
    gpu_slots: int = 1
    """Tasks that may run on one GPU at once; at least 1."""
    aging_seconds: float = 30.0
    """Waiting time after which a task gains one step of priority."""
    max_pending: int = 10_000
    """Maximum number of pending tasks; further ones are rejected. 0 rejects all tasks that cannot start immediately."""
    cancel_grace: float = 0.5
    """Seconds between the stages of a cancel."""
    device_lock: Literal["gpu", "all", "none"] = "gpu"
    """Devices on which runtimes on the same machine take turns."""
    device_lock_dir: Path | None = None
    """Folder of the locks; None: `locks` in the data folder. With one folder for all users, their runtimes take turns as well."""

    memory_limit: int = 0
    """Resident bytes above which a worker is stopped; 0: nine tenths of the total memory."""
    memory_wait: float = 60.0
    """Time that an idle lane waits for memory before the task at its head fails with a report of the memory in use."""

    spare_workers: int = 1
    """Idle workers kept on a lane besides busy ones, so that a task after a kill need not wait for a start; 0: none."""
    idle_worker_seconds: float = 300.0
    """Idle time after which a worker ends, except spare workers and one per lane; 0: immediately."""
    max_sessions: int = 8
    """Sessions that may be open at once; 0: none."""
    session_idle_seconds: float = 3600.0
    """Idle time after which a session ends and loses its variables; 0: never."""
    start_timeout: float = 60.0
    """Maximum time from a worker's start until it is ready."""
    blas: str = ""
    """Path of the BLAS that workers load before MLX; empty: the best one found; `none`: MLX's own."""

    max_output_bytes: int = 1_000_000
    """Output kept per task; the middle of longer output is left out, with a note. At least 10,000."""
    max_parameters_bytes: int = 16_000_000
    """Maximum JSON bytes of one task's parameters."""

    history_durability: Literal["normal", "full"] = "normal"
    """`normal` survives kill -9, `full` a power loss as well (SQLite's synchronous)."""
    retention_days: float = 30.0
    """Age after which finished tasks are deleted; 0 keeps them."""
    retention_tasks: int = 1_000_000
    """Maximum number of finished tasks kept; 0 keeps all."""
    retention_payload_bytes: int = 5_000_000_000
    """Maximum bytes of payloads kept (results of `call`, outputs of cells); 0 keeps all."""

    spool_dir: str = ""
    """Folder of array files; empty: memory (`/dev/shm`) if it is large enough, else `arrays` in the data folder."""
    array_bytes: int = 0
    """Maximum bytes of arrays kept; 0: half of the total memory."""
    warm_bytes: int = -1
    """Bytes of free files kept for reuse, which makes new arrays faster; 0: none, -1: an eighth of the total memory.

    They count towards `array_bytes` and are released if memory or disk space is short. Fetched results are kept up to the same number of
    bytes before their files are reused."""
    array_seconds: float = 86_400.0
    """Lifetime of an unused array; 0: until it is deleted or the runtime stops."""

    models_dir: Path | None = None
    """Folder in which `jupyter openruntime pull` stores models; None: `models` in the data folder."""
    models_dirs: tuple[Path, ...] = ()
    """Other folders of models, such as the Hugging Face cache, and the folders of LM Studio and Ollama."""
    allowed_models: tuple[str, ...] = ()
    """Folders, files and hub names besides those in `models_dir` and `models_dirs` that all users may request.

    Users who may run code may name any file."""
    allow_hub: bool = False
    """Whether models may be downloaded from the Hugging Face hub by name."""
    keep_alive: float = 300.0
    """Seconds that a model stays in memory after its last prompt; 0: it is unloaded immediately."""
    max_models: int = 2
    """Maximum number of idle models in memory; the least recently used one is unloaded first. At least 1."""
    remote_slots: int = 8
    """Maximum number of concurrent prompts to remote providers; at least 1."""
    secret_variables: tuple[str, ...] = ()
    """Environment variables removed for workers, besides those known to hold secrets; a host adds those of its profiles."""

    sample_interval: float = 1.0
    """Seconds between samples while metrics are watched."""
    idle_sample_interval: float = 10.0
    """Seconds between samples otherwise."""

    untrusted_timeout: float = 300.0
    """Maximum run time in seconds of a task whose submitter did not log in."""

    engine: Literal["local", "ssh", "dask"] = "local"
    """Machines that run tasks: this one alone, or hosts that are reached by ssh or are the workers of a Dask cluster as well."""
    hosts: tuple[str, ...] = ()
    """Hosts of the engine `ssh`, as ssh takes them: names, `USER@HOST` or `USER@HOST:PORT`."""
    hosts_only: bool = False
    """Whether tasks run on hosts alone, and not on this machine."""
    dask_address: str = ""
    """Address of the scheduler of the engine `dask`; empty with `dask_cluster`."""
    dask_cluster: str = ""
    """Class of a Dask cluster that the runtime starts and ends, such as `dask_jobqueue.SLURMCluster`."""
    dask_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `dask_cluster`, and `minimum` and `maximum`, the numbers of workers between which the queue's length decides."""
    dask_insecure: bool = False
    """Whether connections to Dask beyond this machine may be unencrypted."""

    @property
    def locks(self) -> Path:
        """Folder of the device locks."""
        return self.device_lock_dir or self.data_dir / "locks"

    @property
    def runtimes(self) -> Path:
        """Folder of the lock files that show which runtimes are alive."""
        return self.data_dir / "runtimes"

    @property
    def payloads(self) -> Path:
        """Folder of opaque results that are too large for the history's file."""
        return self.data_dir / "payloads"

    @property
    def arrays(self) -> Path:
        """Folder of arrays that do not fit into memory."""
        return self.data_dir / "arrays"

    @property
    def models(self) -> Path:
        """Folder of pulled models."""
        return self.models_dir or self.data_dir / "models"

    @property
    def temporary(self) -> Path:
        """`TMPDIR` of workers, which holds MLX's compile cache."""
        return self.data_dir / "tmp"

    @property
    def cpu_slot_count(self) -> int:
        """Tasks that may run on the local CPU at once."""
        return self.slots_of("cpu", os.cpu_count() or 1)

    def slots_of(self, device_type: str, cores: int) -> int:
        """Return the number of tasks that may run at once on a device of a machine with so many cores."""
        return self.gpu_slots if device_type == "gpu" else self.cpu_slots or max(2, cores // 2)
