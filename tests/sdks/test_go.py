"""The Go SDK: format, vet, unit tests, and the examples of its README with a real server."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sdks.toolchains import GO, GO_MODULE, OFFLINE, go, go_program, run
from tests.support import STANDALONE, Server, running_server
from tests.tiny_model import make_tiny_model

README = (GO / "README.md").read_text()
PROGRAM, *EXAMPLES = re.findall(r"^```go\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
"""The first example is a program; the others are statements with its `ctx` and `client`."""
PACKAGES = ("context", "errors", "fmt", "log", "os", "time")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    make_tiny_model(folder / "models" / "tiny")
    with running_server(folder, STANDALONE, config={"OpenRuntimeApp": {"models_dir": str(folder / "models")}}) as running:
        yield running


def test_module_is_formatted_and_has_no_dependencies() -> None:
    assert run([str(Path(go()).with_name("gofmt")), "-l", "."], GO) == ""
    assert run([go(), "list", "-m", "all"], GO, OFFLINE) == "github.com/openruntime/sdk-go\n"


def test_vet_and_units() -> None:
    run([go(), "test", "-vet=all", "./..."], GO, OFFLINE)


def examples(url: str) -> str:
    """Return one program with all examples, which runs the one whose number is its argument."""
    functions = [PROGRAM.partition("func main() {\n")[2].rpartition("}")[0].partition("\n\n")[2], *EXAMPLES]
    body = "\n".join(
        f"func example{number}(ctx context.Context, client *openruntime.Client) {{\n{text}}}\n" for number, text in enumerate(functions)
    )
    calls = "\n".join(f'\tcase "{number}":\n\t\texample{number}(ctx, client)' for number in range(len(functions)))
    start = PROGRAM.partition("func main() {\n")[2].partition("\n\n")[0].replace("http://localhost:8000", url)
    imports = "\n".join(f'\t"{name}"' for name in PACKAGES)
    head = f'package main\n\nimport (\n{imports}\n\n\topenruntime "github.com/openruntime/sdk-go"\n)\n'
    return f"{head}\nfunc main() {{\n{start}\n\tswitch os.Args[1] {{\n{calls}\n\t}}\n}}\n\n{body}"


def test_examples_of_readme_run(server: Server, tmp_path: Path) -> None:
    assert len(EXAMPLES) >= 7
    (tmp_path / "go.mod").write_text(GO_MODULE)
    (tmp_path / "main.go").write_text(examples(server.url))
    program = go_program(tmp_path, tmp_path / "examples")
    environment = {**os.environ, "TOKEN": str(server.token), "OPENRUNTIME_DATA_DIR": str(server.home.data_dir)}
    started = [
        subprocess.Popen([str(program), str(number)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for number in range(len(EXAMPLES) + 1)
    ]
    outputs = [each.communicate(timeout=120)[0] for each in started]
    failed = [output for each, output in zip(started, outputs, strict=True) if each.returncode]
    assert not failed, "\n".join(failed)
    assert "Task completed in" in outputs[0]
    assert outputs[1] == "healthy <nil>\n"
    assert "true" in outputs[3]
    assert "ZeroDivisionError" in outputs[4]


def test_first_example_is_a_program(tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text(GO_MODULE)
    (tmp_path / "main.go").write_text(PROGRAM)
    run([go(), "vet", "."], tmp_path, OFFLINE)
