"""The table of commands in this process: invalid lines, completion and help, with an embedded runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.error import UsageError

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.embedded import EmbeddedBackend
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.notebook.ai.magic import HELP as AI_HELP
from openruntime_jupyter.notebook.arguments import CELL_OPTIONS
from openruntime_jupyter.notebook.commands import COMMANDS, HELP, run_cell_magic, run_line
from openruntime_jupyter.notebook.completion import CompletionSources, PartialLine, assigned_names, complete, typed_in
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.runtime.settings import Settings


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackend]:
    embedded = EmbeddedBackend(Settings(data_dir=tmp_path_factory.mktemp("commands"), embedded=True))
    yield embedded
    embedded.stop()


@pytest.fixture
def session(backend: EmbeddedBackend) -> Session:
    variables = {"weights_of_the_test": [1], "bias_of_the_test": 2, "len": 3, "re": re}
    shell: Any = SimpleNamespace(user_ns=variables, user_ns_hidden={}, history_manager=None, execution_count=1)
    made = Session(shell)
    made._client = Client(backend)
    return made


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("matrix_multipy", "matrix_multiply"),
        ("zzzz", "%openruntime operations"),
        ("cancel", "id of one task"),
        ("status extra", "no further arguments"),
        ("connect", "the URL of a runtime"),
        ("connect http://127.0.0.1:9", "127.0.0.1:9"),
        ("status --bg", "no options"),
        ("cancel task_1 hard=True", "hard"),
        ("insights metric=colour", "efficiency"),
        ("insights errors 25h", "did you mean 24h?"),
        ("dashboard timeframe=2y", "24h"),
        ("unload nobody_of_that_name", "nobody_of_that_name"),
        ("priority task_1 11", "10 is the most urgent"),
        ("matrix_multiply 64", "name=value"),
        ("tasks colour=red", "limit"),
        ("tasks state=sleeping", "interrupted"),
        ("tasks limit=many", "limit"),
        ("size=3", "matrix_multiply"),
        ("cancel len", "len"),
        ("cancel task_nobody", "task_nobody"),
        ("output task_1 --set", "%openruntime result TASK --set"),
        ("matrix_multiply --set", "%openruntime result TASK"),
    ],
)
def test_invalid_line_error_suggests_alternatives(session: Session, line: str, said: str) -> None:
    with pytest.raises((UsageError, OpenRuntimeError)) as caught:
        run_line(session, line)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("line", ["", "ai"])
def test_empty_cell_is_rejected(session: Session, line: str) -> None:
    with pytest.raises(UsageError, match="the cell is empty"):
        run_cell_magic(session, line, "  \n ")


def test_help_lists_all_commands_and_options(session: Session) -> None:
    for line in ("", "help", "--help"):
        assert run_line(session, line) is HELP
    assert run_cell_magic(session, "--help", "1") is HELP
    assert run_line(session, "ai") is run_line(session, "ai --help") is run_cell_magic(session, "ai --help", "x") is AI_HELP
    for name in {*COMMANDS} - {"again"}:
        assert f"%openruntime {name}" in HELP.text()
    assert set(CELL_OPTIONS) <= set(re.findall(r"--[a-z-]+", HELP.text()))
    assert "<code>embedded</code>" in HELP.html()
    assert "`" not in HELP.html()


def completions(session: Session, code: str) -> set[str]:
    """Return the completions at the sign `|`, each as the completed line up to the cursor."""
    before = code[: code.index("|")]
    lines = before.split("\n")
    typed = typed_in(code.replace("|", "", 1), len(lines) - 1, len(lines[-1]))
    assert typed is not None
    found = complete(CompletionSources(session), typed)
    return {lines[-1].removesuffix(found.fragment) + text for text in found.texts}


@pytest.mark.parametrize(
    ("code", "offered"),
    [
        ("%openruntime st|", {"%openruntime status"}),
        ("%openruntime matrix|", {"%openruntime matrix_multiply"}),
        ("found = %openruntime stat|", {"found = %openruntime status"}),
        ("%openruntime tasks st|", {"%openruntime tasks state="}),
        ("%openruntime tasks state=fai|", {"%openruntime tasks state=failed"}),
        ("%openruntime tasks runn|", {"%openruntime tasks running"}),
        ("%openruntime insights errors 24|", {"%openruntime insights errors 24h"}),
        ("%openruntime dashboard timeframe=7|", {"%openruntime dashboard timeframe=7d"}),
        ("%openruntime connect emb|", {"%openruntime connect embedded"}),
        ("%openruntime matrix_multiply iterations=2 dt|", {"%openruntime matrix_multiply iterations=2 dtype="}),
        ("%openruntime matrix_multiply dtype=bf|", {"%openruntime matrix_multiply dtype=bfloat16"}),
        ("%openruntime matrix_multiply size=8 --device c|", {"%openruntime matrix_multiply size=8 --device cpu"}),
        ("%openruntime mlx_operation function=linalg.nor|", {"%openruntime mlx_operation function=linalg.norm"}),
        ("%openruntime compute return_arrays=T|", {"%openruntime compute return_arrays=True"}),
        ("%openruntime retry task --b|", {"%openruntime retry task --bg"}),
        ("%openruntime result task --s|", {"%openruntime result task --set"}),
        ("%%openruntime --not|\n1", {"%%openruntime --notify"}),
        ("%%openruntime --device |\n1", {"%%openruntime --device auto", "%%openruntime --device gpu", "%%openruntime --device cpu"}),
        ("%%openruntime --in weig|\n1", {"%%openruntime --in weights_of_the_test"}),
        ("%%openruntime --in weights_of_the_test, bia|\n1", {"%%openruntime --in weights_of_the_test, bias_of_the_test"}),
        ("%%openruntime --bg --out prod|\nproduct_of_the_cell = 1\nfor broken", {"%%openruntime --bg --out product_of_the_cell"}),
    ],
)
def test_tab_offers_matching_candidates(session: Session, code: str, offered: set[str]) -> None:
    found = completions(session, code)
    # Ids of devices are offered in addition if the runtime knows them.
    assert {each for each in found if "device_" not in each.rpartition(" ")[2]} == offered


@pytest.mark.parametrize(
    ("text", "line", "column", "expected"),
    [
        ("%openruntime a b", 0, 16, PartialLine(("a",), "b")),
        ("%openruntime a b ", 0, 17, PartialLine(("a", "b"), "")),
        ("%openruntime", 0, 12, None),
        ("print(1)", 0, 8, None),
        ("\n%%openruntime --in a\nb = 1", 1, 20, PartialLine(("--in",), "a", "b = 1")),
        ("%%openruntime\n%openruntime st", 1, 15, PartialLine((), "st")),
        ("x = 1\n%%openruntime a", 1, 15, None),
        ("%openruntime op a='b", 0, 20, None),
        ("# %openruntime st", 0, 17, None),
    ],
)
def test_the_magic_at_the_cursor_is_found(text: str, line: int, column: int, expected: PartialLine | None) -> None:
    assert typed_in(text, line, column) == expected


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("a = b = 1\nc, (d, *e) = f()\nwith open('x') as g:\n    h: int = 3", ["a", "b", "c", "d", "e", "g", "h"]),
        ("def f():\n    local = 1\nclass C: pass\nl = [i for i in x]", ["f", "C", "l"]),
        ("a = 1\nif a == 2\nb = 2", ["a", "b"]),
        ("%%time\na = 1", ["a"]),
    ],
)
def test_assigned_names_are_known_before_the_cell_runs(code: str, names: list[str]) -> None:
    assert assigned_names(code) == names
