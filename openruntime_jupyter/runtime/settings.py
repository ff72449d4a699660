"""Every setting of a runtime, with its unit and what 0 means; the server's traits mirror these one to one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from platformdirs import user_data_dir


def default_data_dir() -> Path:
    """`OPENRUNTIME_DATA_DIR`, or the user's data folder of this platform."""
    return Path(os.environ.get("OPENRUNTIME_DATA_DIR") or user_data_dir("openruntime"))


@dataclass(slots=True)
class Settings:
    """What a runtime can be told. Times are in seconds, sizes in bytes."""

    data_dir: Path = field(default_factory=default_data_dir)
    """History, payloads and locks; private to the user (0700)."""
    embedded: bool = False
    """Hosted by a kernel: its tasks end with it and no other runtime takes them over."""
    label: str = ""
    """What other runtimes on this machine call this one, such as its URL."""

    cpu_slots: int = 0
    """Tasks that may compute on the CPU at once; 0 takes half of the cores, at least 2."""
    gpu_slots: int = 1
    """Tasks that may compute on one GPU at once; at least 1."""
    aging_seconds: float = 30.0
    """How long a task must wait to gain one step of priority."""
    max_pending: int = 10_000
    """Tasks that may wait; one more is refused. 0 refuses all that cannot start at once."""
    cancel_grace: float = 0.5
    """Seconds between the stages of a cancel."""
    device_lock: Literal["gpu", "all", "none"] = "gpu"
    """Which devices this runtime shares with the other runtimes of this machine by turns."""
    device_lock_dir: Path | None = None
    """Where the locks lie; None: `locks` in the data folder. One folder for all users makes them take turns too."""

    memory_limit: int = 0
    """Resident bytes past which a worker is stopped; 0: nine tenths of the machine's memory."""
    memory_wait: float = 60.0
    """How long an idle lane waits for memory before the task at its head fails with figures."""

    spare_workers: int = 1
    """Workers that stand by on a lane beside those at work, so that a task after a kill need not wait for a start; 0: none."""
    idle_worker_seconds: float = 300.0
    """How long a worker beyond those that stand by, and beyond one a lane, stays without work; 0: it leaves at once."""
    max_sessions: int = 8
    """Sessions that may be open at once; 0: none."""
    session_idle_seconds: float = 3600.0
    """Idle time after which a session ends, and its variables with it; 0: never."""
    start_timeout: float = 60.0
    """How long a worker may take from its start to its hello."""
    blas: str = ""
    """Path of the BLAS that workers load before MLX; empty: the best one found; `none`: MLX's own."""

    max_output_bytes: int = 1_000_000
    """Output kept of one task; the middle is left out and that is said. At least 10,000."""
    max_parameters_bytes: int = 16_000_000
    """JSON bytes of one task's parameters."""

    history_durability: Literal["normal", "full"] = "normal"
    """`normal` survives kill -9, `full` a power loss too (SQLite's synchronous)."""
    retention_days: float = 30.0
    """Age past which ended tasks are deleted; 0 keeps them."""
    retention_tasks: int = 1_000_000
    """Ended tasks kept at most; 0 keeps all."""
    retention_payload_bytes: int = 5_000_000_000
    """Bytes of payloads (results of `call`, outputs of cells) kept at most; 0 keeps all."""

    spool_dir: str = ""
    """Folder in which arrays lie; empty: memory (`/dev/shm`) where it is large enough, else `arrays` in the data folder."""
    array_bytes: int = 0
    """Bytes of arrays kept at most; 0: half of the machine's memory."""
    warm_bytes: int = -1
    """Bytes of free files that are kept for new arrays, which they make faster; 0: none, -1: an eighth of the machine's memory.

    They count towards `array_bytes`, and are given up where memory or room is short. Results that were fetched stay up to as many bytes,
    before they give their files to others."""
    array_seconds: float = 86_400.0
    """How long an array stays that nobody uses; 0: until it is deleted, or the runtime stops."""

    models_dir: Path | None = None
    """Where `jupyter openruntime pull` puts models; None: `models` in the data folder."""
    allowed_models: tuple[str, ...] = ()
    """Folders, files and hub names beyond those in `models_dir` that anybody may ask for; who may execute code may name any file."""
    allow_hub: bool = False
    """Whether models may be fetched from the Hugging Face hub by their name."""
    keep_alive: float = 300.0
    """Seconds that a model stays in memory after its last prompt; 0: it is unloaded at once."""
    max_models: int = 2
    """Models that stay in memory without work; the one unused for longest is unloaded for another. At least 1."""
    remote_slots: int = 8
    """Prompts that may be with remote providers at once; at least 1."""
    secret_variables: tuple[str, ...] = ()
    """Environment variables that workers don't get, beside those that are known to hold secrets; a host adds those of its profiles."""

    sample_interval: float = 1.0
    """Seconds between samples while somebody watches."""
    idle_sample_interval: float = 10.0
    """Seconds between samples while nobody does."""

    untrusted_timeout: float = 300.0
    """Longest run, in seconds, of a task whose submitter did not log in."""

    @property
    def locks(self) -> Path:
        """The folder of the device locks."""
        return self.device_lock_dir or self.data_dir / "locks"

    @property
    def payloads(self) -> Path:
        """The folder of opaque results that are too large for the history's file."""
        return self.data_dir / "payloads"

    @property
    def arrays(self) -> Path:
        """The folder of arrays that memory has no room for."""
        return self.data_dir / "arrays"

    @property
    def models(self) -> Path:
        """The folder of pulled models."""
        return self.models_dir or self.data_dir / "models"

    @property
    def temporary(self) -> Path:
        """The folder that is `TMPDIR` to workers, where MLX's compile cache lives on."""
        return self.data_dir / "tmp"

    @property
    def cpu_slot_count(self) -> int:
        """`cpu_slots` with 0 resolved."""
        return self.cpu_slots or max(2, (os.cpu_count() or 2) // 2)
