"""Modules of a worker: stale bytecode and changed files."""

from __future__ import annotations

import importlib
import json
import os
import py_compile
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from openruntime_jupyter.worker.imports import Imports, installed_folders

PACKAGE = "ahead_of_its_task"


def run_fresh(folder: Path, code: str) -> str:
    """Run code in a new process with the imports of a worker and `folder` first on its path; return its output."""
    start = (
        "from openruntime_jupyter.worker.imports import installed_folders, read_fresh_sources\n"
        f"import sys\nread_fresh_sources(installed_folders())\nsys.path.insert(0, {str(folder)!r})\n"
    )
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with one installed package, after a folder of the caller on the path."""
    site, own = tmp_path / "site-packages", tmp_path / "own"
    for folder in (site, own):
        folder.mkdir()
    (site / f"{PACKAGE}.py").write_text("VERSION = 1\n")
    os.utime(site / f"{PACKAGE}.py", (1, 1))
    monkeypatch.setattr(sys, "path", [str(own), str(site), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    yield site
    for name in (PACKAGE, "helper_of_a_burst"):
        sys.modules.pop(name, None)


def imports_of(site: Path) -> Imports:
    found = Imports((os.path.join(os.path.realpath(site), ""),))
    found.ready()
    return found


def test_same_size_edit_within_a_second_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "settings_of_mine.py"
    module.write_text("RATE = 1\n")
    os.utime(module, ns=(10**18, 10**18))
    py_compile.compile(str(module))
    bytecode = Path(importlib.util.cache_from_source(str(module)))
    os.utime(bytecode, ns=(10**18 + 1, 10**18 + 1))
    look = "import settings_of_mine; print(settings_of_mine.RATE)"
    assert run_fresh(tmp_path, look) == "1"
    module.write_text("RATE = 2\n")
    os.utime(module, ns=(10**18 + 500, 10**18 + 500))
    plain = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {look}"], capture_output=True, check=True
    )
    assert plain.stdout.strip() == b"1", "Python itself takes the bytecode for current: the case is a real one"
    assert run_fresh(tmp_path, look) == "2"


def test_edit_that_keeps_the_time_of_the_file_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "copied_of_mine.py"
    for rate in (1, 2):
        module.write_text(f"RATE = {rate}\n")
        os.utime(module, (10**9, 10**9))
        assert run_fresh(tmp_path, "import copied_of_mine; print(copied_of_mine.RATE)") == str(rate)


def test_current_bytecode_is_used(tmp_path: Path) -> None:
    module = tmp_path / "compiled_of_mine.py"
    module.write_text("RATE = 2\n")
    recorded = tmp_path / "recorded.py"
    recorded.write_text("RATE = 1\n")
    py_compile.compile(str(recorded))
    bytecode = bytearray(Path(importlib.util.cache_from_source(str(recorded))).read_bytes())
    bytecode[8:12] = int(module.stat().st_mtime).to_bytes(4, "little")
    cached = Path(importlib.util.cache_from_source(str(module)))
    cached.write_bytes(bytecode)
    os.utime(cached, ns=(module.stat().st_ctime_ns + 1,) * 2)
    assert run_fresh(tmp_path, "import compiled_of_mine; print(compiled_of_mine.RATE)") == "1"


def test_installed_folders_hold_packages_but_not_the_working_directory() -> None:
    folders = installed_folders()
    assert os.path.realpath(pytest.__file__).startswith(folders)
    assert os.path.realpath(json.__file__).startswith(folders)
    assert not os.path.realpath(__file__).startswith(folders)


def test_change_since_import_ahead_is_named(installed: Path) -> None:
    own, package = installed.parent / "own", installed / f"{PACKAGE}.py"
    imports = imports_of(installed)
    imports.import_ahead([PACKAGE, "no_such_module"])
    assert PACKAGE in sys.modules
    (own / "unrelated.py").touch()
    assert imports.changed(reused=False) is None
    shadow = own / f"{PACKAGE}.py"
    shadow.write_text("VERSION = 'mine'\n")
    assert imports.changed(reused=False) == str(shadow)
    package.write_text("VERSION = 22\n")
    assert imports.changed(reused=False) == str(package)
    (installed / "another-1.0.dist-info").mkdir()
    assert imports.changed(reused=False) == os.path.join(os.path.realpath(installed), ""), "another package was installed"


def test_module_of_the_caller_is_never_imported_ahead(installed: Path) -> None:
    own = installed.parent / "own"
    (own / f"{PACKAGE}.py").write_text("VERSION = 'mine'\n")
    importlib.invalidate_caches()
    imports_of(installed).import_ahead([PACKAGE])
    assert PACKAGE not in sys.modules


def test_modules_that_a_task_imported_are_reported_if_installed(installed: Path) -> None:
    imports = imports_of(installed)
    (installed.parent / "own" / "helper_of_a_burst.py").write_text("X = 1\n")
    importlib.invalidate_caches()
    for name in (PACKAGE, "helper_of_a_burst"):
        importlib.import_module(name)
    assert imports.new_installed() == [PACKAGE]


def test_module_edited_between_calls_of_a_burst_is_noticed(installed: Path) -> None:
    imports = imports_of(installed)
    helper = installed.parent / "own" / "helper_of_a_burst.py"
    helper.write_text("X = 1\n")
    importlib.invalidate_caches()
    importlib.import_module("helper_of_a_burst")
    assert imports.end_task(begun=helper.stat().st_ctime_ns + 1)
    assert imports.changed(reused=True) is None
    helper.write_text("X = 22\n")
    assert imports.changed(reused=True) == str(helper)


def test_module_written_during_a_call_ends_the_burst(installed: Path) -> None:
    imports = imports_of(installed)
    (installed.parent / "own" / "helper_of_a_burst.py").write_text("X = 1\n")
    importlib.invalidate_caches()
    importlib.import_module("helper_of_a_burst")
    assert not imports.end_task(begun=0)
