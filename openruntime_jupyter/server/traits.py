"""Settings as traits: one for each field of `runtime/settings.py` and of `ai/config.py`, with the same name."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from traitlets import Bool, Dict, Enum, Float, HasTraits, Int, List, Unicode

from openruntime_jupyter.ai.config import AiConfig, InsightsWording
from openruntime_jupyter.environment import default_data_dir
from openruntime_jupyter.runtime.settings import Settings

NO_TRAIT = {"embedded": "only kernels host an embedded runtime, servers never do"}
"""Fields without a trait, each with the reason."""

DEFAULTS = Settings()
AI_DEFAULTS = AiConfig()


def default_of(name: str) -> Any:
    """Return the default of a field of `Settings`."""
    return getattr(DEFAULTS, name)


class SettingsTraits(HasTraits):
    """Traits of the runtime settings, which configuration files set as `c.OpenRuntimeApp.<name>`."""

    data_dir = Unicode(
        help="""Folder of the history, results and locks, readable only by its owner. Servers that share a folder share their history
        and take over pending tasks when one of them stops. Empty: $OPENRUNTIME_DATA_DIR, otherwise the platform's data folder of
        the user.""",
    ).tag(config=True)
    label = Unicode(
        help="""Name of this runtime in messages of other runtimes on the same machine that wait for it. Empty: the server's address.""",
    ).tag(config=True)

    cpu_slots = Int(
        default_of("cpu_slots"),
        min=0,
        max=4096,
        help="""Maximum number of tasks that run on the CPU at once. They share the BLAS threads evenly. 0: half of the cores, at
        least 2.""",
    ).tag(config=True)
    gpu_slots = Int(
        default_of("gpu_slots"),
        min=1,
        max=64,
        help="""Maximum number of tasks that run on one GPU at once. At least 1, which is recommended: parallel processes on Metal time
        out and swap. Ignored without a GPU.""",
    ).tag(config=True)
    aging_seconds = Float(
        default_of("aging_seconds"),
        min=0.0,
        help="""Seconds after which the priority of a pending task increases by one, which prevents starvation. 0: priorities are
        ignored, and the oldest task is next.""",
    ).tag(config=True)
    max_pending = Int(
        default_of("max_pending"),
        min=0,
        help="""Maximum number of pending tasks. Further submissions get status 503 with Retry-After. 0: tasks that cannot start
        immediately are rejected.""",
    ).tag(config=True)
    cancel_grace = Float(
        default_of("cancel_grace"),
        min=0.0,
        help="""Seconds between the stages of a cancellation: interrupt, SIGTERM, SIGKILL. 0: the worker is killed immediately, and the
        next task waits for a new worker.""",
    ).tag(config=True)
    device_lock = Enum(
        ("gpu", "all", "none"),
        default_of("device_lock"),
        help="""Devices that this runtime shares with other runtimes on the same machine by a lock: `gpu`, `all`, or `none`. All
        runtimes must use the same lock folder, see device_lock_dir.""",
    ).tag(config=True)
    device_lock_dir = Unicode(
        allow_none=True,
        default_value=None,
        help="""Folder of the device locks. With a folder that all users can write to, the runtimes of all users share the devices.
        None: `locks` in data_dir, for the runtimes of one user. Ignored if device_lock is `none`.""",
    ).tag(config=True)

    memory_limit = Int(
        default_of("memory_limit"),
        min=0,
        help="""Maximum resident memory of a worker in bytes, unless the task sets its own limit. A worker that exceeds it is stopped.
        0: nine tenths of the machine's memory, or of the container's limit.""",
    ).tag(config=True)
    memory_wait = Float(
        default_of("memory_wait"),
        min=0.0,
        help="""Seconds that an idle device waits for free memory before its next task fails. The error lists the memory in use. 0: the
        task fails immediately.""",
    ).tag(config=True)

    spare_workers = Int(
        default_of("spare_workers"),
        min=0,
        max=64,
        help="""Number of idle workers per device in addition to the busy ones, so that a cell or call does not wait for a worker to
        start. 0: no idle workers, which saves memory and delays such tasks.""",
    ).tag(config=True)
    idle_worker_seconds = Float(
        default_of("idle_worker_seconds"),
        min=0.0,
        help="""Seconds after which an idle worker exits. One worker per device and spare_workers are kept. 0: it exits immediately, and
        the next task waits for a new worker.""",
    ).tag(config=True)
    max_sessions = Int(
        default_of("max_sessions"),
        min=0,
        max=1000,
        help="""Maximum number of open sessions (workers that keep their variables, `--session NAME`). Each uses the memory of a
        process. 0: sessions are disabled.""",
    ).tag(config=True)
    session_idle_seconds = Float(
        default_of("session_idle_seconds"),
        min=0.0,
        help="""Seconds without a task after which a session ends and its variables are deleted. 0: never.""",
    ).tag(config=True)
    start_timeout = Float(
        default_of("start_timeout"),
        min=0.1,
        help="""Maximum start time of a worker in seconds. At least 0.1. It cannot be disabled, because a task would wait indefinitely
        for an interpreter that hangs.""",
    ).tag(config=True)
    blas = Unicode(
        default_of("blas"),
        help="""Path of the BLAS library that workers load before MLX. `none`: MLX's built-in library, which is slow in float32.
        Empty: the best library on the machine. Linux only.""",
    ).tag(config=True)

    max_output_bytes = Int(
        default_of("max_output_bytes"),
        min=10_000,
        help="""Maximum output per task in bytes. Output beyond it is omitted in the middle and replaced by a note. At least 10,000.""",
    ).tag(config=True)
    max_parameters_bytes = Int(
        default_of("max_parameters_bytes"),
        min=1_000,
        help="""Maximum size of a task's parameters in bytes of JSON. Larger bodies get status 413. At least 1,000. Values above
        ServerApp.max_body_size have no effect.""",
    ).tag(config=True)

    history_durability = Enum(
        ("normal", "full"),
        default_of("history_durability"),
        help="""Durability of the history: `normal` survives the crash of any process; `full` also survives a power loss, but each
        asynchronous submission waits for the disk.""",
    ).tag(config=True)
    retention_days = Float(
        default_of("retention_days"),
        min=0.0,
        help="""Days after which finished tasks are deleted. 0: no tasks are deleted because of their age.""",
    ).tag(config=True)
    retention_tasks = Int(
        default_of("retention_tasks"),
        min=0,
        help="""Maximum number of finished tasks in the history. The oldest are deleted first. 0: no limit.""",
    ).tag(config=True)
    retention_payload_bytes = Int(
        default_of("retention_payload_bytes"),
        min=0,
        help="""Maximum size of stored results of `python` and `call` in bytes. The oldest are deleted first, with their tasks. 0: no
        limit.""",
    ).tag(config=True)

    spool_dir = Unicode(
        default_of("spool_dir"),
        help="""Folder for arrays that notebooks and tasks exchange. A subfolder is created in it. Empty: memory (/dev/shm) if it is
        large enough for the array, otherwise `arrays` in data_dir.""",
    ).tag(config=True)
    array_bytes = Int(
        default_of("array_bytes"),
        min=0,
        help="""Maximum size of all stored arrays in bytes. Results that were already fetched are deleted to make room. If that is not
        enough, new arrays are rejected with the sizes in the message. 0: half of the machine's memory.""",
    ).tag(config=True)
    warm_bytes = Int(
        default_of("warm_bytes"),
        min=-1,
        help="""Maximum size in bytes of free files that are kept for reuse, which makes writing new arrays several times as fast. They
        count towards array_bytes and are deleted when memory is low. Fetched results up to the same size are kept before their files
        are reused. 0: none; -1: an eighth of the machine's memory.""",
    ).tag(config=True)
    array_seconds = Float(
        default_of("array_seconds"),
        min=0.0,
        help="""Seconds after which an unused array is deleted. Arrays of pending and running tasks are in use. 0: arrays are kept until
        they are deleted explicitly or the server stops.""",
    ).tag(config=True)

    models_dir = Unicode(
        allow_none=True,
        default_value=None,
        help="""Folder for models downloaded by `jupyter openruntime pull`. Prompts can select all models in it by name. None: `models`
        in data_dir.""",
    ).tag(config=True)
    models_dirs = List(
        Unicode(),
        [],
        help="""More folders of models, which are searched three levels down, so that models of other programs need no second download:
        the Hugging Face cache (`~/.cache/huggingface/hub`), LM Studio (`~/.lmstudio/models`) or Ollama (`~/.ollama/models`). All users
        who can submit tasks may select the models in them. Empty: none.""",
    ).tag(config=True)
    allowed_models = List(
        Unicode(),
        list(default_of("allowed_models")),
        help="""Paths of model folders and GGUF files, and hub names, that all users who can submit tasks may select in addition to the
        models in models_dir and models_dirs. Hub names also need allow_hub. Empty: none. Users with the permission to execute code may
        select any file in any case.""",
    ).tag(config=True)
    allow_hub = Bool(
        default_of("allow_hub"),
        help="""True: models may be downloaded from the Hugging Face hub by name, which can take gigabytes. False: only local
        models.""",
    ).tag(config=True)
    keep_alive = Float(
        default_of("keep_alive"),
        min=0.0,
        help="""Seconds that a model stays in memory after its last prompt, unless the prompt sets another value. 0: it is unloaded
        immediately, and the next prompt loads it again.""",
    ).tag(config=True)
    max_models = Int(
        default_of("max_models"),
        min=1,
        max=64,
        help="""Maximum number of idle models in memory. The least recently used one is unloaded first. At least 1.""",
    ).tag(config=True)
    remote_slots = Int(
        default_of("remote_slots"),
        min=1,
        max=1000,
        help="""Maximum number of concurrent prompts to remote providers. Further prompts wait. At least 1.""",
    ).tag(config=True)
    secret_variables = List(
        Unicode(),
        list(default_of("secret_variables")),
        help="""Environment variables that are hidden from the processes of tasks, in addition to tokens, names that end in _API_KEY or
        _API_TOKEN, and variables in the profiles of remote providers. Empty: no additional variables.""",
    ).tag(config=True)

    sample_interval = Float(
        default_of("sample_interval"),
        min=0.05,
        help="""Seconds between two samples of the machine's metrics while a client watches them. At least 0.05.""",
    ).tag(config=True)
    idle_sample_interval = Float(
        default_of("idle_sample_interval"),
        min=0.05,
        help="""Seconds between two samples of the machine's metrics while no client watches them. At least 0.05.""",
    ).tag(config=True)

    untrusted_timeout = Float(
        default_of("untrusted_timeout"),
        min=1.0,
        help="""Maximum run time in seconds of tasks that were submitted without a login. At least 1. Such tasks only exist in
        `jupyter openruntime`, and only if StandaloneIdentity.allow_local is on.""",
    ).tag(config=True)

    engine = Enum(
        ("local", "ssh", "dask"),
        default_of("engine"),
        help="""Machines that run tasks. `local`: this machine. `ssh`: also the machines in hosts. `dask`: also the workers of a Dask
        cluster, see dask_address and dask_cluster. docs/cluster.md has the setup.""",
    ).tag(config=True)
    hosts = List(
        Unicode(),
        list(default_of("hosts")),
        help="""Machines that run tasks with engine `ssh`, in the form `HOST`, `USER@HOST` or `USER@HOST:PORT`. They are reached by
        your own `ssh`, which must log in without a password. Each needs this version of openruntime-jupyter; `hosts.toml` in your
        configuration folder sets its Python and environment. Empty: none.""",
    ).tag(config=True)
    hosts_only = Bool(
        default_of("hosts_only"),
        help="""True: tasks run only on the hosts of engine `ssh` or `dask`. False: also on this machine.""",
    ).tag(config=True)
    dask_address = Unicode(
        default_of("dask_address"),
        help="""Address of the scheduler with engine `dask`, for example tls://10.0.0.1:8786. Each of its workers becomes a host. Empty:
        dask_cluster is started instead.""",
    ).tag(config=True)
    dask_cluster = Unicode(
        default_of("dask_cluster"),
        help="""Class of a Dask cluster that is started with engine `dask` and ended with the server, for example `distributed.LocalCluster`
        or `dask_jobqueue.SLURMCluster`. Empty: none is started, see dask_address.""",
    ).tag(config=True)
    dask_arguments = Dict(
        key_trait=Unicode(),
        default_value=dict(default_of("dask_arguments")),
        help="""Arguments of dask_cluster, for example {"queue": "gpu", "cores": 8, "memory": "32GB", "maximum": 10}. `minimum` and
        `maximum` are not passed on: they are the numbers of workers between which the length of the queue decides. Without them, the
        number of workers does not change, except that an empty cluster gets one. Empty: the defaults of the class.""",
    ).tag(config=True)
    dask_insecure = Bool(
        default_of("dask_insecure"),
        help="""True: connections to Dask on other machines may be unencrypted. Whoever reaches an unencrypted Dask scheduler or worker can
        run code there, so use it only in a network of your own. False: such addresses are rejected.""",
    ).tag(config=True)

    def settings_of(self) -> Settings:
        """Return the traits as `Settings`."""
        values = {field.name: getattr(self, field.name) for field in fields(Settings) if field.name not in NO_TRAIT}
        values["data_dir"] = Path(self.data_dir).expanduser() if self.data_dir else default_data_dir()
        for folder in ("device_lock_dir", "models_dir"):
            values[folder] = Path(values[folder]).expanduser() if values[folder] else None
        values["models_dirs"] = tuple(Path(folder).expanduser() for folder in self.models_dirs)
        for names in ("allowed_models", "secret_variables", "hosts"):
            values[names] = tuple(values[names])
        return Settings(**values)


class AiTraits(HasTraits):
    """Traits of the AI settings."""

    profiles = Dict(
        key_trait=Unicode(),
        value_trait=Dict(),
        default_value=dict(AI_DEFAULTS.profiles),
        help="""Remote providers with an OpenAI-compatible API, by name. Example: {"cloud": {"base_url": "https://api.openai.com/v1",
        "model": "gpt-4o", "api_key": "env:CLOUD_KEY", "timeout": 60}}. docs/profiles.md lists all fields. Do not set the key itself
        here, only its location: an environment variable of the server, or the keyring. Empty: only the provider in the environment
        (OPENAI_API_KEY, OPENAI_BASE_URL).""",
    ).tag(config=True)
    default_profile = Unicode(
        AI_DEFAULTS.default_profile,
        help="""Name of the profile for prompts that name neither a profile nor a local model. `local`: always a local model. Empty: the
        provider in the environment (OPENAI_API_KEY), otherwise a local model.""",
    ).tag(config=True)
    default_model = Unicode(
        AI_DEFAULTS.default_model,
        help="""Name of the local model for prompts that name no model: one in models_dir, models_dirs or allowed_models. Empty: the model
        downloaded by `jupyter openruntime pull`, otherwise the first by name.""",
    ).tag(config=True)
    agents_dir = Unicode(
        allow_none=True,
        default_value=None,
        help="""Folder of agents with one .md file per agent. An agent with the role of a built-in agent replaces it; other roles are
        added. Changes take effect immediately. GET /ai/agents lists invalid files. None: only the built-in agents.""",
    ).tag(config=True)
    insights_wording = Enum(
        ("none", "local", "remote"),
        AI_DEFAULTS.insights_wording,
        help="""Model that may rewrite insights if the request does not specify one. `none`: no model; `local`: a local model that is
        already in memory; `remote`: a local model in memory, otherwise the default provider, which then receives findings from your
        history.""",
    ).tag(config=True)

    def ai_config(self) -> AiConfig:
        """Return the traits as an `AiConfig`."""
        return AiConfig(
            profiles={name: dict(profile) for name, profile in self.profiles.items()},
            default_profile=self.default_profile,
            default_model=self.default_model,
            agents_dir=Path(self.agents_dir).expanduser() if self.agents_dir else None,
            insights_wording=cast("InsightsWording", self.insights_wording),
        )
