"""The settings of a runtime as traits: one for each field of `runtime/settings.py`, by the same name."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from traitlets import Bool, Enum, Float, HasTraits, Int, List, Unicode

from openruntime_jupyter.runtime.settings import Settings, default_data_dir

NO_TRAIT = {"embedded": "a server's runtime never is: only a kernel hosts an embedded one"}
"""Fields that have no trait, each with the reason."""

DEFAULTS = Settings()


def own(name: str) -> Any:
    """The default of the field of that name, so that it stands in one place."""
    return getattr(DEFAULTS, name)


class SettingsTraits(HasTraits):
    """What `jupyter server --help-all` shows, and configuration files set as `c.OpenRuntimeApp.<name>`."""

    data_dir = Unicode(
        help="""Folder of the history, results and locks; it is made readable by you alone. Empty: $OPENRUNTIME_DATA_DIR, else the
        user's data folder of this platform. Servers that share a folder share their history and take over each other's waiting
        tasks when one ends.""",
    ).tag(config=True)
    label = Unicode(
        help="""What other runtimes on this machine call this one when they wait for it. Empty: the server's address.""",
    ).tag(config=True)

    cpu_slots = Int(
        own("cpu_slots"),
        min=0,
        max=4096,
        help="""How many tasks may compute on the CPU at once; the BLAS threads are shared out among them. 0: half of the cores, at
        least 2.""",
    ).tag(config=True)
    gpu_slots = Int(
        own("gpu_slots"),
        min=1,
        max=64,
        help="""How many tasks may compute on one GPU at once. At least 1, and 1 is advised: parallel processes on Metal time out and
        swap. Without effect where there is no GPU.""",
    ).tag(config=True)
    aging_seconds = Float(
        own("aging_seconds"),
        min=0.0,
        help="""Seconds a task must wait to gain one step of priority, so that nothing starves. 0: priority has no effect, and the
        oldest task is next.""",
    ).tag(config=True)
    max_pending = Int(
        own("max_pending"),
        min=0,
        help="""How many tasks may wait; one more is answered by 503 with Retry-After. 0: every task that cannot start at once is
        refused.""",
    ).tag(config=True)
    cancel_grace = Float(
        own("cancel_grace"),
        min=0.0,
        help="""Seconds between the stages of a cancel: interrupt, SIGTERM, SIGKILL. 0: a running task's worker is killed at once, so
        that its next task waits for another one.""",
    ).tag(config=True)
    device_lock = Enum(
        ("gpu", "all", "none"),
        own("device_lock"),
        help="""Which devices this runtime uses by turns with the other runtimes of this machine: `gpu`, `all`, or `none`. The others
        must use the same folder, see device_lock_dir.""",
    ).tag(config=True)
    device_lock_dir = Unicode(
        allow_none=True,
        default_value=None,
        help="""Folder of the device locks. None: `locks` in data_dir, so that one user's runtimes take turns. A folder that all users
        may write to makes them all take turns. Without effect if device_lock is `none`.""",
    ).tag(config=True)

    memory_limit = Int(
        own("memory_limit"),
        min=0,
        help="""Bytes of resident memory past which a worker is stopped, unless its task sets a limit of its own. 0: nine tenths of the
        machine's memory (of the container's, where there is a limit).""",
    ).tag(config=True)
    memory_wait = Float(
        own("memory_wait"),
        min=0.0,
        help="""Seconds an idle device waits for memory that others hold before the task at its head fails with figures. 0: it fails at
        once.""",
    ).tag(config=True)

    spare_workers = Int(
        own("spare_workers"),
        min=0,
        max=64,
        help="""How many workers stand by on a device beside those at work, so that a cell or call, which takes one, need not wait
        for a start. 0: none, which saves the memory of a process and takes such a task longer.""",
    ).tag(config=True)
    idle_worker_seconds = Float(
        own("idle_worker_seconds"),
        min=0.0,
        help="""Seconds a worker beyond one a device, and beyond spare_workers, stays without work. 0: it leaves at once, and the next
        task waits for another one to start.""",
    ).tag(config=True)
    max_sessions = Int(
        own("max_sessions"),
        min=0,
        max=1000,
        help="""How many sessions (workers that keep their variables, `--session NAME`) may be open at once. Each holds the memory of a
        process. 0: none.""",
    ).tag(config=True)
    session_idle_seconds = Float(
        own("session_idle_seconds"),
        min=0.0,
        help="""Seconds without a task after which a session ends and its variables are gone. 0: never.""",
    ).tag(config=True)
    start_timeout = Float(
        own("start_timeout"),
        min=0.1,
        help="""Seconds a worker may take to start. At least 0.1: there is no "never" here, or a task could wait for ever for an
        interpreter that hangs.""",
    ).tag(config=True)
    blas = Unicode(
        own("blas"),
        help="""Path of the BLAS library that workers load before MLX. Empty: the best one found on the machine; `none`: MLX's own,
        which is slow in float32. Linux only.""",
    ).tag(config=True)

    max_output_bytes = Int(
        own("max_output_bytes"),
        min=10_000,
        help="""Bytes of output kept of one task; what is beyond is left out in the middle, and that is said. At least 10,000.""",
    ).tag(config=True)
    max_parameters_bytes = Int(
        own("max_parameters_bytes"),
        min=1_000,
        help="""Bytes of JSON that one task's parameters may have; a larger body is answered by 413. At least 1,000. It is effective up
        to ServerApp.max_body_size only.""",
    ).tag(config=True)

    history_durability = Enum(
        ("normal", "full"),
        own("history_durability"),
        help="""What the history survives: `normal` the death of any process, `full` a power loss too, which makes each asynchronous
        submission wait for the disk.""",
    ).tag(config=True)
    retention_days = Float(
        own("retention_days"),
        min=0.0,
        help="""Days after which ended tasks are deleted. 0: age deletes none.""",
    ).tag(config=True)
    retention_tasks = Int(
        own("retention_tasks"),
        min=0,
        help="""How many ended tasks are kept; the oldest are deleted first. 0: their number deletes none.""",
    ).tag(config=True)
    retention_payload_bytes = Int(
        own("retention_payload_bytes"),
        min=0,
        help="""Bytes of results of `python` and `call` that are kept; the oldest are deleted first, with their tasks. 0: their size
        deletes none.""",
    ).tag(config=True)

    spool_dir = Unicode(
        own("spool_dir"),
        help="""Folder in which arrays lie on their way between notebooks and tasks; a folder of our own is made inside. Empty: memory
        (/dev/shm) where it is large enough for an array, else `arrays` in data_dir.""",
    ).tag(config=True)
    array_bytes = Int(
        own("array_bytes"),
        min=0,
        help="""Bytes of arrays that are kept at most; results that were fetched already make room for new ones, then it is refused
        with figures. 0: half of the machine's memory.""",
    ).tag(config=True)
    warm_bytes = Int(
        own("warm_bytes"),
        min=-1,
        help="""Bytes of free files that are kept for new arrays, which are written several times as fast then; they count towards
        array_bytes, and are given up where memory is short. Results that were fetched stay up to as many bytes before they give their
        files to new ones. 0: none; -1: an eighth of the machine's memory.""",
    ).tag(config=True)
    array_seconds = Float(
        own("array_seconds"),
        min=0.0,
        help="""Seconds that an array stays after its last use; waiting and running tasks keep theirs. 0: until it is deleted or the
        server stops.""",
    ).tag(config=True)

    models_dir = Unicode(
        allow_none=True,
        default_value=None,
        help="""Folder of the models that `jupyter openruntime pull` fetches; what lies in it may be asked for by its name. None: `models`
        in data_dir.""",
    ).tag(config=True)
    allowed_models = List(
        Unicode(),
        list(own("allowed_models")),
        help="""Paths of model folders and GGUF files, and names on the hub, that anybody who may submit tasks may ask for besides those in
        models_dir. Empty: none; who may execute code may name any file all the same. A name on the hub also needs allow_hub.""",
    ).tag(config=True)
    allow_hub = Bool(
        own("allow_hub"),
        help="""Whether a model may be fetched from the Hugging Face hub by its name, which may be gigabytes. Off: models are what lies
        on this machine.""",
    ).tag(config=True)
    keep_alive = Float(
        own("keep_alive"),
        min=0.0,
        help="""Seconds that a model stays in memory after its last prompt, unless the prompt says otherwise. 0: it is unloaded at once, and
        the next prompt waits for it to be loaded.""",
    ).tag(config=True)
    max_models = Int(
        own("max_models"),
        min=1,
        max=64,
        help="""How many models may stay in memory without work; the one unused for longest is unloaded for another. At least 1.""",
    ).tag(config=True)
    remote_slots = Int(
        own("remote_slots"),
        min=1,
        max=1000,
        help="""How many prompts may be with remote providers at once; the others wait. At least 1.""",
    ).tag(config=True)
    secret_variables = List(
        Unicode(),
        list(own("secret_variables")),
        help="""Environment variables that tasks' processes don't get, besides tokens, names that end in _API_KEY or _API_TOKEN, and those
        that the profiles of remote providers name. Empty: none more.""",
    ).tag(config=True)

    sample_interval = Float(
        own("sample_interval"),
        min=0.05,
        help="""Seconds between two readings of the machine's figures while somebody watches. At least 0.05.""",
    ).tag(config=True)
    idle_sample_interval = Float(
        own("idle_sample_interval"),
        min=0.05,
        help="""Seconds between two readings of the machine's figures while nobody watches. At least 0.05.""",
    ).tag(config=True)

    untrusted_timeout = Float(
        own("untrusted_timeout"),
        min=1.0,
        help="""Seconds that a task may run whose submitter did not log in, at most. At least 1. Only `jupyter openruntime` has such
        submitters, and only if StandaloneIdentity.allow_local is on.""",
    ).tag(config=True)

    def settings_of(self) -> Settings:
        """The traits as `Settings`."""
        values = {field.name: getattr(self, field.name) for field in fields(Settings) if field.name not in NO_TRAIT}
        values["data_dir"] = Path(self.data_dir).expanduser() if self.data_dir else default_data_dir()
        for folder in ("device_lock_dir", "models_dir"):
            values[folder] = Path(values[folder]).expanduser() if values[folder] else None
        for names in ("allowed_models", "secret_variables"):
            values[names] = tuple(values[names])
        return Settings(**values)
