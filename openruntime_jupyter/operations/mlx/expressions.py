"""The language of `compute`: Python's syntax for arithmetic, comparisons and calls, and nothing else of Python.

An expression is parsed to Python's own syntax tree and every node of it is checked here, in the server; what is left can name
nothing but inputs, constants and the functions below, so it is safe to offer to anybody.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from pydantic_core import PydanticCustomError

from openruntime_jupyter.operations.inputs import wrong
from openruntime_jupyter.operations.mlx import functions as _functions

MAX_LENGTH = 2000
MAX_NODES = 200
MAX_DEPTH = 100
MAX_INTEGER = 2**53
MAX_TEXT = 100

CONSTANTS = {"pi": math.pi, "e": math.e, "inf": math.inf}
BINARY: dict[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.FloorDiv: "floor_divide",
    ast.Mod: "remainder",
    ast.Pow: "power",
    ast.MatMult: "matmul",
}
COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
_PLAIN = """
    abs all any arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort astype broadcast_to ceil clip concatenate
    cos cosh cummax cummin cumprod cumsum degrees diag divide einsum equal erf exp expand_dims expm1 flatten flip floor floor_divide
    greater greater_equal imag inner isfinite isinf isnan kron less less_equal log log10 log1p log2 logaddexp logical_and logical_not
    logical_or logsumexp matmul max maximum mean median min minimum multiply nan_to_num negative not_equal ones_like outer power prod
    radians real reciprocal remainder repeat reshape round rsqrt sigmoid sign sin sinh softmax sort sqrt square squeeze stack std
    subtract sum swapaxes tan tanh tensordot tile topk trace transpose tril triu trunc var vecdot where zeros_like
"""
_LINALG = "cholesky cross det eigvalsh inv norm pinv solve"
_FFT = "fft fft2 ifft ifft2 irfft rfft"
FUNCTIONS: dict[str, str] = {
    **{name: name for name in _PLAIN.split()},
    **{name: f"linalg.{name}" for name in _LINALG.split()},
    **{name: f"fft.{name}" for name in _FFT.split()},
}
"""What may be called: the name in an expression to the function of `mlx.core`. Each gives one array, and none takes indices."""

_ALLOWED = (
    "allowed are numbers, inputs, the constants pi, e and inf, + - * / // % ** @, one comparison, parentheses, and calls of functions"
)


@dataclass(frozen=True)
class Expression:
    """A checked expression: its text on one line, its tree, and the names of inputs in it."""

    source: str
    tree: ast.expr
    names: frozenset[str]

    @property
    def operations(self) -> int:
        """How many operations and calls it has."""
        return sum(isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare | ast.Call) for node in ast.walk(self.tree))


def place(source: str, node: ast.expr | ast.keyword) -> str:
    """Where `node` is, for people: `column 5 (inv(a))`, columns counted from 1."""
    line = source.encode()
    text = line[node.col_offset : node.end_col_offset].decode(errors="replace")
    column = len(line[: node.col_offset].decode(errors="replace")) + 1
    return f"column {column} ({text if len(text) <= 40 else text[:40] + '…'})"


@lru_cache(maxsize=256)
def parse(source: str, inputs: tuple[str, ...]) -> Expression:
    """The expression in `source` over the named inputs; raises what pydantic turns into a validation error that names the position."""
    if not source.strip():
        raise wrong(f"it is empty; {_ALLOWED}")
    if len(source) > MAX_LENGTH:
        raise wrong(f"{len(source):,} characters; the most is {MAX_LENGTH:,}")
    for sign in "\\#\0":
        if sign in source:
            raise wrong(f"at column {source.index(sign) + 1}: {sign!r} has no place in it; {_ALLOWED}")
    line = "".join(" " if letter.isspace() else letter for letter in source)  # so that it may be written on several lines
    blanks = len(line) - len(line.lstrip())
    try:
        tree = ast.parse(line.strip(), mode="eval").body
    except SyntaxError as problem:
        raise wrong(f"at column {(problem.offset or len(line.strip()) + 1) + blanks}: {problem.msg}; {_ALLOWED}") from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as problem:
        raise wrong(f"it cannot be read: {str(problem) or type(problem).__name__}; {_ALLOWED}") from None
    checker = _Checker(line.strip(), frozenset(inputs))
    checker.check(tree, 0)
    return Expression(line.strip(), tree, frozenset(checker.names))


class _Checker:
    """Walks a tree and raises at the first node that is not allowed."""

    def __init__(self, source: str, inputs: frozenset[str]) -> None:
        self._source = source
        self._inputs = inputs
        self._nodes = 0
        self.names: set[str] = set()

    def _refused(self, node: ast.expr | ast.keyword, problem: str) -> PydanticCustomError:
        return wrong(f"at {place(self._source, node)}: {problem}")

    def check(self, node: ast.expr, depth: int, in_call: bool = False) -> None:
        """Check a node and all below it; strings, lists, None and truth values may only stand in a call."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise wrong(f"more than {MAX_NODES} numbers, names and operations")
        if depth > MAX_DEPTH:
            raise wrong(f"nested more than {MAX_DEPTH} deep")
        for child, as_argument in self._children(node, in_call):
            self.check(child, depth + 1, as_argument)

    def _children(self, node: ast.expr, in_call: bool) -> Iterator[tuple[ast.expr, bool]]:
        match node:
            case ast.Constant():
                self._constant(node, in_call)
            case ast.Name():
                self._name(node)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
                yield from ((left, False), (right, False))
            case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
                yield operand, False
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARISONS:
                yield from ((left, False), (right, False))
            case ast.Call():
                yield from ((argument, True) for argument in self._call(node))
            case ast.List(elts=elements) | ast.Tuple(elts=elements) if in_call:
                yield from ((element, True) for element in elements)
            case _:
                raise self._refused(node, _advice(node))

    def _constant(self, node: ast.Constant, in_call: bool) -> None:
        value = node.value
        if value is None or isinstance(value, bool | str):
            if not in_call:
                raise self._refused(node, "it may only be an argument of a function")
            if isinstance(value, str) and len(value) > MAX_TEXT:
                raise self._refused(node, f"a text of {len(value)} characters; the most is {MAX_TEXT}")
        elif isinstance(value, int):
            if value > MAX_INTEGER:
                raise self._refused(node, f"a whole number may be {MAX_INTEGER} at the most")
        elif not isinstance(value, float):
            raise self._refused(node, f"{type(value).__name__} is no number that is allowed; {_ALLOWED}")

    def _name(self, node: ast.Name) -> None:
        if node.id in self._inputs:
            self.names.add(node.id)
        elif node.id in FUNCTIONS:
            raise self._refused(node, f"{node.id} is a function: call it, as in {node.id}(a)")
        elif node.id not in CONSTANTS:
            there = ", ".join(sorted(self._inputs)) or "none"
            raise self._refused(node, f"there is no input of that name; the inputs are: {there}")

    def _call(self, node: ast.Call) -> list[ast.expr]:
        if not isinstance(node.func, ast.Name):
            raise self._refused(node.func, f"only a function's name can be called; {_ALLOWED}")
        if node.func.id not in FUNCTIONS:
            near = difflib.get_close_matches(node.func.id, FUNCTIONS, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(FUNCTIONS))}"
            raise self._refused(node.func, f"there is no such function here; {hint}")
        signature = _functions.signature(FUNCTIONS[node.func.id])
        for index, keyword in enumerate(node.keywords):
            if keyword.arg is None:
                raise self._refused(keyword, "arguments are written one by one, without **")
            if keyword.arg not in signature.by_name:
                raise self._refused(keyword, f"{node.func.id} has no {keyword.arg}; it is {signature.text}")
            if any(other.arg == keyword.arg for other in node.keywords[:index]):
                raise self._refused(keyword, f"{keyword.arg} is given twice")
        return [*node.args, *(keyword.value for keyword in node.keywords)]


def _advice(node: ast.expr) -> str:
    """Why that kind of node is refused, and what does its work."""
    advice: dict[type[ast.AST], str] = {
        ast.Attribute: "attributes are not allowed: write sum(a), not a.sum()",
        ast.Subscript: "there is no indexing",
        ast.BoolOp: "use logical_and(x, y) or logical_or(x, y)",
        ast.IfExp: "use where(condition, x, y)",
        ast.Compare: "compare two things, and join comparisons by logical_and(x, y)",
        ast.List: "a list may only be an argument of a function; numbers of your own are inputs",
        ast.Tuple: "a tuple may only be an argument of a function; numbers of your own are inputs",
        ast.UnaryOp: "use logical_not(x)",
        ast.Starred: "arguments are written one by one, without *",
    }
    return advice.get(type(node), f"{type(node).__name__} is not allowed; {_ALLOWED}")
