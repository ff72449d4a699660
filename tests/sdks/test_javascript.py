"""The JavaScript SDK: its types, size and package, its unit tests, and the examples of its README with a real server."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sdks.toolchains import JAVASCRIPT, javascript_package, node, run
from tests.support import STANDALONE, Server, running_server
from tests.tiny_model import make_tiny_model

LARGEST = 8_000
"""Maximum size of the minified and compressed package in bytes."""
README = (JAVASCRIPT / "README.md").read_text()
EXAMPLES = re.findall(r"^```js\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a program with the packed package."""
    return javascript_package(tmp_path_factory.mktemp("javascript"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    make_tiny_model(folder / "models" / "tiny")
    config = {"OpenRuntimeApp": {"models_dir": str(folder / "models")}}
    with running_server(folder, STANDALONE, config=config) as running:
        yield running


def test_package_has_no_dependencies_and_only_its_files(package: Path) -> None:
    installed = package / "node_modules" / "@openruntime" / "sdk"
    described = json.loads((installed / "package.json").read_text())
    assert not {"dependencies", "peerDependencies", "optionalDependencies"} & set(described)
    assert {path.name for path in installed.iterdir()} == {"LICENSE", "README.md", "dist", "package.json"}
    assert {path.suffix for path in (installed / "dist").iterdir()} == {".js", ".ts"}


def test_minified_package_is_small(package: Path) -> None:
    options = ["--bundle", "--minify", "--format=esm", "--platform=browser", f"--outfile={package / 'min.js'}"]
    run([node(), "node_modules/esbuild/bin/esbuild", "dist/index.js", *options, "--log-level=error"], JAVASCRIPT)
    size = len(gzip.compress((package / "min.js").read_bytes()))
    assert size <= LARGEST, f"{size:,} bytes"


def test_types_accept_valid_and_reject_invalid_programs(package: Path) -> None:
    options = ["--strict", "--noEmit", "--skipLibCheck", "--module", "nodenext", "--target", "es2022", "--exactOptionalPropertyTypes"]
    (package / "types.mts").write_text((JAVASCRIPT / "test" / "types.ts").read_text())
    types = ["--types", "node", "--typeRoots", str(JAVASCRIPT / "node_modules" / "@types")]
    run([node(), str(JAVASCRIPT / "node_modules" / "typescript" / "bin" / "tsc"), *options, *types, "types.mts"], package)


def test_units(package: Path) -> None:
    test = (JAVASCRIPT / "test" / "client.test.mjs").read_text().replace("../dist/", "./node_modules/@openruntime/sdk/dist/")
    (package / "client.test.mjs").write_text(test)
    run([node(), "--test", "client.test.mjs"], package)


def test_examples_of_readme_run(package: Path, server: Server) -> None:
    assert len(EXAMPLES) >= 9
    environment = {"TOKEN": str(server.token), "OPENRUNTIME_DATA_DIR": str(server.home.data_dir)}
    programs = []
    for number, text in enumerate(EXAMPLES):
        program = package / f"example-{number}.mjs"
        program.write_text(text.replace("http://localhost:8000", server.url))
        command = [node(), str(program)]
        programs.append(
            subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [program.communicate(timeout=120)[0] for program in programs]
    failed = [output for program, output in zip(programs, outputs, strict=True) if program.returncode]
    assert not failed, "\n".join(failed)
    assert "Task completed in" in outputs[0]
    assert outputs[1] == "healthy\n"
    assert "ZeroDivisionError" in outputs[4]
