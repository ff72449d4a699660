"""Expressions of `compute`: rejected ones, positions in errors, and hostile input."""

from __future__ import annotations

import ast
import builtins
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations.compute import operation
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.mlx import expressions
from openruntime_jupyter.operations.mlx.expressions import FUNCTIONS, parse

INPUTS = {"a": [[1.0, 2.0], [3.0, 4.0]], "b": [5.0, 6.0], "n": 3}
NODES = (ast.Constant, ast.Name, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.List, ast.Tuple, ast.keyword)
ALLOWED_NODES = (*NODES, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context)


def refusal(expression: str) -> str:
    """Return the error for a rejected expression."""
    with pytest.raises(InvalidRequest) as refused:
        operation.validate({"expression": expression, "inputs": INPUTS})
    assert refused.value.details[0]["field"] == "parameters.expression"
    return refused.value.details[0]["problem"]


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("", "empty expression; allowed are numbers, inputs"),
        ("sum(a", "at column 4: '(' was never closed"),
        ("a +", "at column 4: invalid syntax"),
        ("a # b", "at column 3: '#' is not allowed"),
        ("a + x", "at column 5 (x): unknown input; the inputs are: a, b, n"),
        ("a + sum", "at column 5 (sum): sum is a function: call it, as in sum(a)"),
        ("summ(a)", "at column 1 (summ): unknown function; did you mean sum"),
        ("zzz(a)", "at column 1 (zzz): unknown function; available: abs, all, any"),
        ("a.T", "at column 1 (a.T): attributes are not allowed: write sum(a), not a.sum()"),
        ("a[0]", "at column 1 (a[0]): indexing is not supported"),
        ("[1, 2]", "at column 1 ([1, 2]): a list is allowed only as an argument"),
        ("a and b", "at column 1 (a and b): use logical_and(x, y)"),
        ("a if b else n", "at column 1 (a if b else n): use where(condition, x, y)"),
        ("a | b", "at column 1 (a | b): BinOp is not allowed"),
        ("sum(*a)", "at column 5 (*a): write arguments one by one, without *"),
        ("sum(**a)", "at column 5 (**a): write arguments one by one, without **"),
        ("sum(a, axis=0, axis=1)", "at column"),
        ("sum(a, axes=0)", "at column 8 (axes=0): sum has no parameter axes; the signature is sum(a: array"),
        ("'text'", "at column 1 ('text'): allowed only as an argument"),
        ("a + 2j", "at column 5 (2j): a number of type complex is not allowed"),
        ("a + 9007199254740993", "at column 5 (9007199254740993): integers may be at most 9007199254740992"),
        ("einsum('" + "i" * 101 + "', a)", "a text of 101 characters exceeds the maximum of 100"),
        ("-" * 120 + "a", "nested more than 100 levels"),
        ("sum(a" + ", a" * 250 + ")", "more than 200 numbers, names and operations"),
        ("a" + " " * 2000, "String should have at most 2000 characters"),
        ("(" * 900 + "a" + ")" * 900, "too many nested parentheses"),
        ("-" * 1999 + "a", ""),
        ("9" * 1999, ""),
        ("a" * 1999, "unknown input"),
    ],
    ids=lambda text: text[:30],
)
def test_rejected_expression_names_position_and_alternative(expression, problem):
    assert problem in refusal(expression)


def test_positions_count_characters_across_lines():
    assert "at column 9 (x)" in refusal("a +\n  b+x")
    with pytest.raises(PydanticCustomError) as refused:
        parse("größe + x", ("größe",))
    assert "at column 9 (x)" in str(refused.value)


def test_unusual_expressions_are_allowed():
    assert parse("\n sum(\n  a\n)\n + 1\n", ("a",)).names == {"a"}
    assert parse(" + ".join(["a"] * 90), ("a",)).operations == 89
    assert parse("e + pi", ("e",)).names == {"e"}, "an input shadows a constant"
    assert all(parse(f"{name}(a)", ("a",)).operations == 1 for name in FUNCTIONS)


PIECES = """
    a b n ( ) [ ] { } , . : ; + - * / ** // % @ < > == != := = -> ~ ^ & | ' " # \\ _ __ 0 1 2.5 1e9 1e999 0x10 1_0 2j lambda if else for
    in is not and or await yield async def class import from global None True False self ... __class__ __builtins__ __import__
    __subclasses__ .T .__class__ .tolist() [0] eval exec open print getattr globals vars type os sys mx f'{a}' b'x' *a **a axis=0
    keepdims=True dtype='float16' sum norm where reshape einsum concatenate astype
"""
HOSTILE = st.sampled_from([*PIECES.split(), "\n", "\0", "\u2028", "\u00e9", "\uff53um"])


@settings(max_examples=120, deadline=None)
@given(st.lists(HOSTILE, max_size=12).map(" ".join) | st.lists(HOSTILE, max_size=12).map("".join) | st.text(max_size=60))
def test_hostile_expression_is_rejected_or_consists_of_allowed_nodes(expression):
    try:
        params: Any = operation.validate({"expression": expression, "inputs": INPUTS})
    except InvalidRequest:
        return
    for node in ast.walk(params.parsed().tree):
        assert isinstance(node, ALLOWED_NODES), expression
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            assert node.func.id in FUNCTIONS
        elif isinstance(node, ast.Name):
            assert node.id in {*INPUTS, *FUNCTIONS, *expressions.CONSTANTS}
    with suppress(InvalidRequest):
        operation.run(params, TaskContext(memory_total=10_000_000))


def test_python_builtins_are_unreachable():
    names = {name for name in dir(builtins) if name.isidentifier()} - {*FUNCTIONS, "None", "True", "False", "__debug__"}
    for name in names:
        assert "at column" in refusal(f"{name}(a)")
        assert "at column" in refusal(f"a + {name}")


@pytest.mark.parametrize(
    "expression",
    [
        "a.__class__.__mro__[1].__subclasses__()",
        "sum.__globals__",
        "getattr(a, '__class__')",
        "where(a, (yield), b)",
        "__import__('os').system('true')",
        "f'{a.__class__}'",
    ],
)
def test_known_sandbox_escapes_are_rejected(expression):
    assert "at column" in refusal(expression)
