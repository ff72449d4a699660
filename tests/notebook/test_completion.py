"""Tab completion in real kernels with an embedded runtime and with a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from openruntime_jupyter.notebook import completion
from openruntime_jupyter.notebook.completion import Candidates, PartialLine, typed_in
from openruntime_jupyter.notebook.completion_sources import assigned
from tests.notebook.conftest import Kernel, running_kernel
from tests.support import Home


@pytest.mark.parametrize(
    ("code", "offered"),
    [
        ("%openruntime st|", {"%openruntime status"}),
        ("%openruntime ins|", {"%openruntime insights"}),
        ("%openruntime matrix|", {"%openruntime matrix_multiply"}),
        ("found = %openruntime stat|", {"found = %openruntime status"}),
        ("one = 1\n%openruntime devic|", {"%openruntime devices"}),
        ("%openruntime tasks st|", {"%openruntime tasks state="}),
        ("%openruntime tasks state=fai|", {"%openruntime tasks state=failed"}),
        ("%openruntime tasks runn|", {"%openruntime tasks running"}),
        ("%openruntime insights err|", {"%openruntime insights errors"}),
        ("%openruntime insights errors 24|", {"%openruntime insights errors 24h"}),
        (
            "%openruntime insights timeframe=|",
            {f"%openruntime insights timeframe={each}" for each in ("5m", "15m", "1h", "6h", "24h", "7d")},
        ),
        ("%openruntime dashboard 7|", {"%openruntime dashboard 7d"}),
        ("%openruntime connect emb|", {"%openruntime connect embedded"}),
        ("%openruntime matrix_multiply iter|", {"%openruntime matrix_multiply iterations="}),
        ("%openruntime matrix_multiply iterations=2 dt|", {"%openruntime matrix_multiply iterations=2 dtype="}),
        ("%openruntime matrix_multiply dtype=bf|", {"%openruntime matrix_multiply dtype=bfloat16"}),
        ("%openruntime matrix_multiply --prio|", {"%openruntime matrix_multiply --priority"}),
        ("%openruntime matrix_multiply size=8 --device c|", {"%openruntime matrix_multiply size=8 --device cpu"}),
        ("%openruntime mlx_operation function=linalg.nor|", {"%openruntime mlx_operation function=linalg.norm"}),
        ("%openruntime compute return_arrays=T|", {"%openruntime compute return_arrays=True"}),
        ("%openruntime retry task --b|", {"%openruntime retry task --bg"}),
        ("%%openruntime --not|\n1", {"%%openruntime --notify"}),
        ("%%openruntime --device |\n1", {"%%openruntime --device auto", "%%openruntime --device gpu", "%%openruntime --device cpu"}),
        ("%%openruntime --in weig|\n1", {"%%openruntime --in weights_of_the_test"}),
        ("%%openruntime --in weights_of_the_test,bia|\n1", {"%%openruntime --in weights_of_the_test,bias_of_the_test"}),
        ("%%openruntime --in weights_of_the_test, bia|\n1", {"%%openruntime --in weights_of_the_test, bias_of_the_test"}),
        ("%%openruntime --out prod|\nproduct_of_the_cell = 1", {"%%openruntime --out product_of_the_cell"}),
        ("%%openruntime --bg --out prod|\nproduct_of_the_cell = 1\nfor broken", {"%%openruntime --bg --out product_of_the_cell"}),
    ],
)
def test_tab_offers_matching_candidates(kernel: Kernel, code: str, offered: set[str]) -> None:
    kernel.run("weights_of_the_test, bias_of_the_test = [1], 2")
    found = set(kernel.complete(code))
    # Ids of devices are offered in addition if the runtime knows them.
    assert {each for each in found if "device_" not in each.rpartition(" ")[2]} == offered


def test_tab_offers_tasks_in_the_right_state(kernel: Kernel) -> None:
    kernel.run("%openruntime matrix_multiply size=8 --as done_one")
    kernel.run("%%openruntime --bg --as waiting_one\nimport time; time.sleep(600)")
    done, live = kernel.value("done_one.id").strip("'"), kernel.value("waiting_one.id").strip("'")
    for word in ("result", "output", "retry"):
        assert f"%openruntime {word} {done}" in kernel.complete(f"%openruntime {word} task_|")
    for word in ("cancel", "wait"):
        offered = kernel.complete(f"%openruntime {word} |")
        assert f"%openruntime {word} {live}" in offered
        assert f"%openruntime {word} {done}" not in offered
        assert f"%openruntime {word} waiting_one" in offered, "the variable with its handle"
    kernel.run("waiting_one.cancel()")
    assert f"%openruntime cancel {live}" not in kernel.complete("%openruntime cancel |"), "ended tasks are not offered"


def test_tab_offers_known_devices(kernel: Kernel) -> None:
    kernel.run("%openruntime status")
    assert "%%openruntime --device device_0" in kernel.complete("%%openruntime --device dev|\n1")


def test_other_completion_is_unaffected(kernel: Kernel) -> None:
    kernel.run("weights_of_the_test = [1]")
    assert "weights_of_the_test" in kernel.complete("weights_of|")
    assert "%openruntime" in kernel.complete("%openrun|")
    assert "weights_of_the_test.append" in kernel.complete("%%openruntime --in weights_of_the_test\nweights_of_the_test.app|")


def test_tab_starts_no_runtime_and_unload_removes_completion(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with running_kernel(home) as kernel:
        assert kernel.complete("%openruntime vector_operations oper|") == ["%openruntime vector_operations operations="]
        assert kernel.complete("%openruntime cancel task_|") == []
        assert not home.data_dir.exists()
        kernel.run("%unload_ext openruntime_jupyter")
        assert "%openruntime status" not in kernel.complete("%openruntime sta|")


@pytest.fixture
def poem() -> Iterator[None]:
    """Register another kind of cell."""
    completion.FIRST_WORDS["poem"] = lambda _, typed: Candidates(typed.current).offer(["--rhyme", "--verse"], "option")
    yield
    del completion.FIRST_WORDS["poem"]


def test_registered_word_completes_its_arguments(poem: None) -> None:
    class Nothing:
        def operations(self) -> dict[str, object]:
            return {}

    nothing = Nothing()
    behind = typed_in("%%openruntime poem --rh\nof spring", 0, 23)
    assert behind is not None
    assert completion.complete(nothing, behind).texts == ["--rhyme"]  # type: ignore[arg-type]
    for line in ("%%openruntime po", "%openruntime po"):
        word = typed_in(line, 0, len(line))
        assert word is not None
        assert completion.complete(nothing, word).texts == ["poem"]  # type: ignore[arg-type]


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
    assert assigned(code) == names
