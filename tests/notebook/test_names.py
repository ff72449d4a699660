"""Variables that a cell uses and sets, as suggested for `--in` and `--out`."""

from __future__ import annotations

import pytest

from openruntime_jupyter.notebook.run.names import options, suggested

NAMESPACE = dict.fromkeys(("size", "rate", "np", "rows", "total", "scale"))


@pytest.mark.parametrize(
    ("source", "inputs", "outputs"),
    [
        ("import time\nfor i in range(3):\n    print(i, size * rate)\ntotal = size * rate", ["size", "rate"], ["total"]),
        ("total += 1", ["total"], ["total"]),
        ("size = 1\nprint(size)", [], ["size"]),
        ("x: int = np.zeros(size)\ny = [scale(row) for row in rows]", ["np", "size", "scale", "rows"], ["x", "y"]),
        ("def area(size):\n    return size * rate\nhalf = area(2)", ["rate"], ["half"]),
        ("with open('x') as file:\n    text = file.read()\n_, first = text", [], ["text", "first"]),
        ("%time total = 1\nprint(unknown)", [], []),
    ],
)
def test_variables_of_cell(source: str, inputs: list[str], outputs: list[str]) -> None:
    assert suggested(source, NAMESPACE) == (inputs, outputs)


def test_code_with_syntax_error_has_no_options() -> None:
    assert options("total = (") == ""
