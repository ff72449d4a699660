"""`--map`: one prompt for many rows, in a real kernel."""

from __future__ import annotations

import pytest

from tests.ai.provider_server import ProviderServer
from tests.notebook.conftest import Cell, Kernel, error_of

MAP = "%%openruntime ai --map rows --out labels\nlabel {item}"


def test_map_returns_list_of_answers(kernel: Kernel) -> None:
    kernel.run("rows = [f'word{n}' for n in range(40)]")
    cell = kernel.run(MAP)
    assert cell.status == "ok", cell.error
    assert "completed · 40 of 40 rows" in cell.shown()[0]
    assert kernel.value("list(labels) == [row.upper() for row in rows], labels.failures, labels.missing") == "(True, {}, [])"
    assert "40 of 40 rows answered" in kernel.run("labels").value
    assert kernel.value("len(set(labels.task_ids))") == "40"


def test_map_skips_answered_rows(server_kernel: Kernel, provider: ProviderServer) -> None:
    server_kernel.run("rows = ['red', 'broken', 'blue']")
    cell = server_kernel.run(MAP)
    assert cell.status == "ok", cell.error
    assert (
        server_kernel.value("list(labels), list(labels.failures), 'no such thing' in labels.failures[1]")
        == "(['RED', None, 'BLUE'], [1], True)"
    )
    before = len(provider.requests)
    server_kernel.run("rows = ['green', 'blue', 'red']")
    again = server_kernel.run(MAP)
    assert "2 from earlier runs" in again.shown()[0]
    assert server_kernel.value("list(labels)") == "['GREEN', 'BLUE', 'RED']"
    assert len(provider.requests) - before == 1, "rows are identified by their prompt, not by their index"


def test_map_adds_columns_to_data_frame(server_kernel: Kernel, provider: ProviderServer) -> None:
    assert server_kernel.run("import pandas").status == "ok"
    server_kernel.run("frame = pandas.DataFrame({'colour': ['red', 'broken'], 'n': [1, 2]}, index=['a', 'b'])")
    cell = server_kernel.run("%%openruntime ai --map frame --out answered\nlabel {n} {colour}")
    assert cell.status == "ok", cell.error
    assert (
        server_kernel.value("list(answered.columns), list(answered.index)") == "(['colour', 'n', 'answer', 'task_id', 'error'], ['a', 'b'])"
    )
    assert server_kernel.value("answered.answer.iloc[0], answered.answer.isna().tolist()") == "('RED', [False, True])"
    before = len(provider.requests)
    server_kernel.run("frame.loc['b', 'colour'] = 'blue'")
    server_kernel.run("%%openruntime ai --map frame --out answered\nlabel {n} {colour}")
    assert server_kernel.value("answered.answer.tolist(), list(answered.columns)[-1]") == "(['RED', 'BLUE'], 'task_id')"
    assert len(provider.requests) - before == 1


def test_interrupt_of_map_keeps_answers_and_cancels_rest(kernel: Kernel) -> None:
    kernel.run("rows = ['one', 'hold'] + [f'hold{n}' for n in range(50)]")

    def one_is_there(cell: Cell) -> bool:
        return bool(cell.outputs) and "1 of 52 rows" in cell.shown()[0]

    cell = kernel.run("%%openruntime ai --map rows --out kept --name held\n{item}", one_is_there, kernel.interrupt)
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert "run the cell again" in error_of(cell)
    assert kernel.value("kept[0], len(kept.missing)") == "('You said: one', 51)"
    live = "[t for t in __import__('openruntime_jupyter').connect().tasks(states=['pending', 'running']).tasks if t.name == 'held']"
    assert kernel.value(live) == "[]"


def test_background_map_can_be_waited_for(server_kernel: Kernel) -> None:
    server_kernel.run("rows = ['a', 'b']")
    started = server_kernel.run(MAP.replace("--out labels", "--out later --bg --as batch --show-prompt"))
    assert "The first of 2 prompts" in started.shown()[0]
    assert "label a" in started.shown()[0]
    assert server_kernel.value("batch.wait(60), list(later)") == "(True, ['A', 'B'])"


def test_map_stops_after_consecutive_failures(server_kernel: Kernel, provider: ProviderServer) -> None:
    server_kernel.run("rows = [f'broken{n}' for n in range(200)]")
    before = len(provider.requests)
    cell = server_kernel.run(MAP.replace("labels", "none"))
    assert cell.status == "error"
    assert "No row was answered" in error_of(cell)
    assert len(provider.requests) - before < 100


@pytest.mark.parametrize(
    ("rows", "prompt", "what"),
    [
        ("'text'", "label {item}", "has no rows"),
        ("[]", "label {item}", "no rows"),
        ("['a']", "label", "{item}"),
        ("[{'a': 1}]", "label {b}", "{a}"),
    ],
)
def test_map_rejects_values_without_rows(server_kernel: Kernel, rows: str, prompt: str, what: str) -> None:
    server_kernel.run(f"rows = {rows}")
    assert what in server_kernel.run(f"%%openruntime ai --map rows --out labels2\n{prompt}").stream("stderr")
