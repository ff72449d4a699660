"""Expressions of `compute`: Python syntax limited to arithmetic, comparisons and calls.

The server parses an expression to a Python syntax tree and checks every node. A valid expression can refer only to inputs, constants and
the functions below, so it is safe for untrusted callers.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from pydantic_core import PydanticCustomError

from openruntime_jupyter.operations.mlx import functions as _functions
from openruntime_jupyter.schemas.base import wrong

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
"""Functions of `mlx.core` by their name in an expression. Each returns one array, and none takes indices."""

_ALLOWED = "allowed are numbers, inputs, the constants pi, e and inf, + - * / // % ** @, one comparison, parentheses and function calls"


@dataclass(frozen=True)
class Expression:
    """Checked expression: its text on one line, its syntax tree, and the names of its inputs."""

    source: str
    tree: ast.expr
    names: frozenset[str]

    @property
    def operations(self) -> int:
        """Return the number of operations and calls."""
        return sum(isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare | ast.Call) for node in ast.walk(self.tree))


def place(source: str, node: ast.expr | ast.keyword) -> str:
    """Format the position of `node`: `column 5 (inv(a))`, columns from 1."""
    line = source.encode()
    text = line[node.col_offset : node.end_col_offset].decode(errors="replace")
    column = len(line[: node.col_offset].decode(errors="replace")) + 1
    return f"column {column} ({text if len(text) <= 40 else text[:40] + '…'})"


@lru_cache(maxsize=256)
def parse(source: str, inputs: tuple[str, ...]) -> Expression:
    """Parse the expression `source` over the named inputs; raise an error for pydantic with the position."""
    if not source.strip():
        raise wrong(f"empty expression; {_ALLOWED}")
    if len(source) > MAX_LENGTH:
        raise wrong(f"{len(source):,} characters exceed the maximum of {MAX_LENGTH:,}")
    for sign in "\\#\0":
        if sign in source:
            raise wrong(f"at column {source.index(sign) + 1}: {sign!r} is not allowed; {_ALLOWED}")
    line = "".join(" " if letter.isspace() else letter for letter in source)  # allows several lines
    blanks = len(line) - len(line.lstrip())
    try:
        tree = ast.parse(line.strip(), mode="eval").body
    except SyntaxError as problem:
        raise wrong(f"at column {(problem.offset or len(line.strip()) + 1) + blanks}: {problem.msg}; {_ALLOWED}") from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as problem:
        raise wrong(f"unreadable expression: {str(problem) or type(problem).__name__}; {_ALLOWED}") from None
    checker = _Checker(line.strip(), frozenset(inputs))
    checker.check(tree, 0)
    return Expression(line.strip(), tree, frozenset(checker.names))


class _Checker:
    """Checker of a syntax tree, which raises at the first node that is not allowed."""

    def __init__(self, source: str, inputs: frozenset[str]) -> None:
        self._source = source
        self._inputs = inputs
        self._nodes = 0
        self.names: set[str] = set()

    def _refused(self, node: ast.expr | ast.keyword, problem: str) -> PydanticCustomError:
        return wrong(f"at {place(self._source, node)}: {problem}")

    def check(self, node: ast.expr, depth: int, in_call: bool = False) -> None:
        """Check a node and its children; strings, lists, None and booleans are allowed only as arguments of a call."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise wrong(f"more than {MAX_NODES} numbers, names and operations")
        if depth > MAX_DEPTH:
            raise wrong(f"nested more than {MAX_DEPTH} levels deep")
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
                raise self._refused(node, "allowed only as an argument of a function")
            if isinstance(value, str) and len(value) > MAX_TEXT:
                raise self._refused(node, f"a text of {len(value)} characters exceeds the maximum of {MAX_TEXT}")
        elif isinstance(value, int):
            if value > MAX_INTEGER:
                raise self._refused(node, f"integers may be at most {MAX_INTEGER}")
        elif not isinstance(value, float):
            raise self._refused(node, f"a number of type {type(value).__name__} is not allowed; {_ALLOWED}")

    def _name(self, node: ast.Name) -> None:
        if node.id in self._inputs:
            self.names.add(node.id)
        elif node.id in FUNCTIONS:
            raise self._refused(node, f"{node.id} is a function: call it, as in {node.id}(a)")
        elif node.id not in CONSTANTS:
            names = ", ".join(sorted(self._inputs)) or "none"
            raise self._refused(node, f"unknown input; the inputs are: {names}")

    def _call(self, node: ast.Call) -> list[ast.expr]:
        if not isinstance(node.func, ast.Name):
            raise self._refused(node.func, f"only functions can be called by name; {_ALLOWED}")
        if node.func.id not in FUNCTIONS:
            near = difflib.get_close_matches(node.func.id, FUNCTIONS, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"available: {', '.join(sorted(FUNCTIONS))}"
            raise self._refused(node.func, f"unknown function; {hint}")
        signature = _functions.signature(FUNCTIONS[node.func.id])
        for index, keyword in enumerate(node.keywords):
            if keyword.arg is None:
                raise self._refused(keyword, "write arguments one by one, without **")
            if keyword.arg not in signature.by_name:
                raise self._refused(keyword, f"{node.func.id} has no parameter {keyword.arg}; the signature is {signature.text}")
            if any(other.arg == keyword.arg for other in node.keywords[:index]):
                raise self._refused(keyword, f"{keyword.arg} is given twice")
        return [*node.args, *(keyword.value for keyword in node.keywords)]


def _advice(node: ast.expr) -> str:
    """Return the reason why a type of node is rejected, and an alternative."""
    advice: dict[type[ast.AST], str] = {
        ast.Attribute: "attributes are not allowed: write sum(a), not a.sum()",
        ast.Subscript: "indexing is not supported",
        ast.BoolOp: "use logical_and(x, y) or logical_or(x, y)",
        ast.IfExp: "use where(condition, x, y)",
        ast.Compare: "compare two values, and combine comparisons with logical_and(x, y)",
        ast.List: "a list is allowed only as an argument of a function; pass data as inputs",
        ast.Tuple: "a tuple is allowed only as an argument of a function; pass data as inputs",
        ast.UnaryOp: "use logical_not(x)",
        ast.Starred: "write arguments one by one, without *",
    }
    return advice.get(type(node), f"{type(node).__name__} is not allowed; {_ALLOWED}")
