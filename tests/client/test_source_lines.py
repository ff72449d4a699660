"""Source lines of notebook functions are sent along for tracebacks in the worker."""

from __future__ import annotations

import linecache
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.code.serialization import LONGEST_SOURCE, pack_call, sources_of
from openruntime_jupyter.errors import MapFailed, TaskFailed
from tests.client.conftest import over_http

CELL = """
    secret = "not sent"

    def outer(number):
        def inner():
            return 1 / (
                number
            )
        return inner()

    def unused():
        pass

    class Model:
        def fit(self, number):
            return outer(number)
    """


@pytest.fixture
def cell() -> Iterator[dict[str, Any]]:
    """Run a cell whose source only its kernel has, and return its definitions."""
    file, text = "/tmp/ipykernel_1/1234567890.py", textwrap.dedent(CELL)
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, file, "exec"), space)  # as IPython does
    yield space
    linecache.cache.pop(file, None)


def sent(function: Any, local: bool = True) -> list[dict[str, Any]]:
    codes: list[Any] = []
    pack_call(function, (1,), {}, None, codes)
    return sources_of(codes, local)


def test_the_functions_lines_are_sent_and_those_of_what_it_uses_but_no_others(cell: dict[str, Any]) -> None:
    (source,) = sent(cell["outer"])
    assert source["first"] == 4
    assert (
        source["text"] == "def outer(number):\n    def inner():\n        return 1 / (\n            number\n        )\n    return inner()\n"
    )
    (method, function) = sorted(sent(cell["Model"]().fit), key=lambda source: -source["first"])
    assert method["text"] == "    def fit(self, number):\n        return outer(number)\n"
    assert function == source


def test_a_file_that_the_worker_has_too_is_not_sent() -> None:
    def here(number: int) -> int:
        return number

    assert sent(here) == []
    (source,) = sent(here, local=False)
    assert source["file"] == __file__
    assert "return number" in source["text"]


def test_what_has_no_lines_or_very_long_ones_goes_without() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("def typed(number): return number", space)
    assert sent(space["typed"]) == []
    file, text = "<long>", f"def long(number):\n    return '{'x' * LONGEST_SOURCE}'\n"
    exec(compile(text, file, "exec"), space)
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    assert sent(space["long"]) == []
    assert sent(len) == []


@over_http
def test_a_traceback_shows_the_lines_of_a_cell(client: Client, cell: dict[str, Any]) -> None:
    with pytest.raises(TaskFailed, match="ZeroDivisionError") as caught:
        client.call(cell["Model"]().fit, 0)
    for place in ("line 16, in fit\n    return outer(number)\n", "line 9, in outer\n    return inner()\n", "in inner\n    return 1 / (\n"):
        assert place in str(caught.value)
    with pytest.raises(MapFailed) as failed:
        client.map(cell["outer"], [1, 0])
    assert "return inner()" in str(failed.value.failures[1])


@over_http
def test_the_lines_of_one_task_are_not_shown_for_the_next(client: Client, cell: dict[str, Any]) -> None:
    def known(file: str) -> int:
        import linecache

        return len(linecache.getlines(file))

    file = cell["outer"].__code__.co_filename
    assert client.call(known, file) == 0
    client.call(cell["outer"], 1)
    assert client.call(known, file) == 0


def test_a_file_of_the_worker_is_shown_as_it_is_there(tmp_path: Path) -> None:
    from openruntime_jupyter.operations import call as sources

    path = tmp_path / "module.py"
    path.write_text("one\ntwo\n")
    sources.show([sources.Source(file=str(path), first=2, text="three\n")])
    assert linecache.getlines(str(path)) == ["one\n", "two\n"]
    sources.show([sources.Source(file="<cell>", first=3, text="c\n"), sources.Source(file="<cell>", first=1, text="a\n")])
    assert linecache.getlines("<cell>") == ["a\n", "\n", "c\n"]
    linecache.checkcache()
    assert linecache.getline("<cell>", 3) == "c\n"
    sources.show([])
    assert linecache.getlines("<cell>") == []
