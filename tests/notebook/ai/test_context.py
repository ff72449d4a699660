"""Descriptions of variables for a model, and insertable code of answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from openruntime_jupyter.client.ai_response import Reply, Usage
from openruntime_jupyter.notebook.ai.context import COLUMNS, LONGEST, LONGEST_FILLED, describe, fill
from openruntime_jupyter.notebook.ai.magic import insert, insertable


def test_data_frame_description_has_schema_and_head() -> None:
    import pandas as pd

    frame = pd.DataFrame({"name": ["Ann", None, "a" * 500] * 10, "age": range(30)})
    told = describe({"people": frame})
    assert told.startswith("Variable `people`: a pandas DataFrame of 30 rows and 2 columns\nColumns:\n- name: ")
    assert ", 10 missing\n- age: int64\nFirst 5 rows:\nname | age\nAnn | 0\n" in told
    assert len(told.splitlines()) == 11
    assert max(map(len, told.splitlines())) < 200
    assert "It has no rows." in describe({"none": frame.head(0)})
    assert "as a data frame" in describe({"column": frame["age"]})
    wide = describe({"wide": pd.DataFrame([range(COLUMNS + 20)])})
    assert "and 20 more columns" in wide
    twice = describe({"twice": pd.DataFrame([[1, 2]], columns=["a", "a"])})
    assert "a | a\n1 | 2" in twice


def test_array_description_has_shape_and_dtype_only() -> None:
    import mlx.core as mx

    told = describe({"a": np.full((3, 4), 7.5), "b": mx.full((2,), 7.5)})
    assert told.split("\n\n") == [
        "Variable `a`: numpy.ndarray of shape (3, 4) and dtype float64",
        "Variable `b`: mlx.core.array of shape (2,) and dtype mlx.core.float32",
    ]


class Broken:
    def __repr__(self) -> str:
        raise ValueError("no repr")


@pytest.mark.parametrize(
    "value",
    ["x" * 100_000, list(range(100_000)), {n: [n] * 1000 for n in range(1000)}, Broken(), [Broken()], {"deep": [[[[[[[1]]]]]]]}, None, len],
)
def test_other_descriptions_are_bounded(value: Any) -> None:
    told = describe({"thing": value})
    assert told.startswith("Variable `thing`: ")
    assert len(told) < LONGEST + 200


def test_long_values_are_truncated_but_strings_are_not() -> None:
    assert fill("{a}", {"a": "x" * 100_000}) == "x" * 100_000
    cut = fill("{a}", {"a": list(range(100_000))})
    assert len(cut) < LONGEST_FILLED + 100
    assert "characters in total" in cut


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("So:\n```python\na = 1\n```\nthen\n```\nb = 2\n```\nand\n```sh\nls\n```", "a = 1\n\nb = 2"),
        ("```bash\nls\n```", "%%bash\nls"),
        ("```rust\nfn main() {}\n```", ""),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("print(1)", "print(1)"),
        ("Paris", ""),
        ("Answer: 42", ""),
        ("```python\n\n```", ""),
    ],
)
def test_insertable_code_of_an_answer(text: str, code: str) -> None:
    assert insertable(Reply(text, None, "local", None, Usage(), "ai_task_1")) == code


FAILED = "%%openruntime\nx = 1 / 0  # why?\n"


@pytest.mark.parametrize(
    ("code", "finish_reason", "why"),
    [
        ("%%openruntime\nx = 1 / 2", "stop", ""),
        ("%%openruntime --out x\nx = 1 / 0", "stop", ""),
        ("!pip install x\nawait y", None, ""),
        ("%%bash\nfor f in *; do cat $f; done", "stop", ""),
        ("x = 1 / 2", "length", "cut off"),
        ("x = (1 / 2", "stop", "not valid"),
        ("%%openruntime\nx = (1 / 2", "stop", "not valid"),
        ("%%openruntime\n# here\nx = 1/0", "stop", "same"),
    ],
)
def test_only_complete_valid_and_new_code_is_inserted(code: str, finish_reason: str | None, why: str) -> None:
    inserted: list[str] = []
    shell: Any = SimpleNamespace(
        transform_cell=TransformerManager().transform_cell, set_next_input=lambda code, replace: inserted.append(code)
    )
    session: Any = SimpleNamespace(shell=shell)
    note = insert(session, Reply(f"So:\n```python\n{code}\n```", None, "local", finish_reason, Usage(), "ai_task_1"), FAILED)
    assert inserted == ([] if why else [code])
    assert why in note.text()
