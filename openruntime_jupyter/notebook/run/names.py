"""Variables that a cell uses and sets: suggestions for `--in` and `--out`."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Mapping
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.core.inputtransformer2 import TransformerManager

SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class CellNames(ast.NodeVisitor):
    """The names of a cell, in the order of evaluation.

    `used` are names whose value the cell needs, `set` are names that it assigns at the top level, without variables of loops and
    `with`, and imports.
    """

    def __init__(self, source: str) -> None:
        self.used: dict[str, None] = {}
        self.set: dict[str, None] = {}
        self._bound: set[str] = set()
        self.visit(ast.parse(source))

    def visit_Name(self, node: ast.Name) -> None:
        """Read or assign a name."""
        if isinstance(node.ctx, ast.Load):
            self._read(node.id)
        elif isinstance(node.ctx, ast.Store):
            self._bound.add(node.id)
            self.set[node.id] = None

    def visit_Assign(self, node: ast.Assign) -> None:
        """Visit the value before the targets."""
        self._visit(node.value, *node.targets)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Visit the value before the target. Without a value nothing is assigned."""
        if node.value is not None:
            self._visit(node.value, node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Read the target, then the value, and assign the target."""
        if isinstance(node.target, ast.Name):
            self._read(node.target.id)
        self._visit(node.value, node.target)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        """Visit the iterable, then the body. Loop variables are not suggested as outputs."""
        self.visit(node.iter)
        self._bound |= _stored(node.target)
        self._visit(*node.body, *node.orelse)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        """Visit it like a `for` loop."""
        self.visit_For(node)

    def visit_withitem(self, node: ast.withitem) -> None:
        """Visit the context manager. Its variable, mostly an open file, is not suggested as an output."""
        self.visit(node.context_expr)
        if node.optional_vars is not None:
            self._bound |= _stored(node.optional_vars)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Bind the imported names."""
        self._bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Bind the imported names."""
        self.visit_Import(node)

    def generic_visit(self, node: ast.AST) -> None:
        """Visit a node. Of an inner scope only the names that it does not bind itself matter."""
        if not isinstance(node, SCOPES):
            super().generic_visit(node)
            return
        arguments = {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
        own = arguments | _stored(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self._bound.add(node.name)
        for each in ast.walk(node):
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load) and each.id not in own:
                self._read(each.id)

    def _read(self, name: str) -> None:
        if name not in self._bound:
            self.used[name] = None

    def _visit(self, *nodes: ast.AST) -> None:
        for node in nodes:
            self.visit(node)


def _stored(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}


def suggested(source: str, namespace: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the variables of `namespace` that the code uses, and the variables that it sets."""
    names = CellNames(TransformerManager().transform_cell(source))
    inputs = [name for name in names.used if name in namespace and not hasattr(builtins, name) and name != "get_ipython"]
    return inputs, [name for name in names.set if not name.startswith("_")]


def options(source: str) -> str:
    """Return the options for the code of a cell of this kernel: `--in size --out total`, or an empty text for code with a syntax error."""
    shell = get_ipython()
    try:
        inputs, outputs = suggested(source, {} if shell is None else shell.user_ns)
    except SyntaxError:
        return ""
    return " ".join([*_option("--in", inputs), *_option("--out", outputs)])


def _option(name: str, variables: Iterable[str]) -> list[str]:
    joined = ",".join(variables)
    return [f"{name} {joined}"] if joined else []
