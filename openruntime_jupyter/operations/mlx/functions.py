"""The `mlx.core` functions that operations may call, with their signatures.

They are listed in `functions.json`, so that the server does not import MLX. `tools/list-mlx-functions` regenerates it from the installed
MLX; a test fails when that is necessary.
"""

from __future__ import annotations

import ast
import difflib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PATH = Path(__file__).with_name("functions.json")

_UNCHECKED = """
    as_strided fast.cross_entropy gather_mm gather_qmm gather_qqmm put_along_axis segmented_mm slice slice_update take take_along_axis
"""
REJECTED = {
    **dict.fromkeys(_UNCHECKED.split(), "MLX does not check its indices: out-of-range ones read or write memory outside of the array"),
    **dict.fromkeys(("split", "unstack"), "one small call can create millions of arrays"),
}
"""Array functions that are not available, with the reasons."""


@dataclass(frozen=True)
class Parameter:
    """Parameter of a function: its types as named by MLX; `variadic` for a `*parameter`."""

    name: str
    types: frozenset[str]
    variadic: bool = False

    @property
    def takes_array(self) -> bool:
        """Return whether a list means an array."""
        return "array" in self.types

    @property
    def takes_arrays(self) -> bool:
        """Return whether a list means several arrays."""
        return "list[array]" in self.types

    @property
    def is_key(self) -> bool:
        """Return whether it takes a random key; an integer is converted to one."""
        return self.name == "key" and self.takes_array

    @property
    def is_seed(self) -> bool:
        """Return whether it takes a seed, which has 64 bits; other integers have 32."""
        return self.name == "seed"

    @property
    def takes_number(self) -> bool:
        """Return whether a number stays a number."""
        return bool(self.types & {"scalar", "int", "float", "bool"})

    @property
    def takes_dtype(self) -> bool:
        """Return whether a string is the name of a dtype."""
        return "Dtype" in self.types


@dataclass(frozen=True)
class Signature:
    """Signature of a function: positional parameters, and all parameters by name."""

    text: str
    positional: tuple[Parameter, ...]
    by_name: dict[str, Parameter]

    def at(self, index: int) -> Parameter | None:
        """Return the parameter for the argument at `index`; None if there are too many arguments."""
        if index < len(self.positional):
            return self.positional[index]
        last = self.positional[-1] if self.positional else None
        return last if last is not None and last.variadic else None


@cache
def functions() -> dict[str, str]:
    """Return the signatures of the allowed functions by dotted name below `mlx.core`."""
    signatures: dict[str, str] = json.loads(PATH.read_text(encoding="utf-8"))["functions"]
    return signatures


@cache
def signature(name: str) -> Signature:
    """Return the parsed signature of an allowed function."""
    return parse(functions()[name])


def rejection(name: str) -> str:
    """Return the error message for the unavailable function `name`, with suggestions."""
    if name in REJECTED:
        return f"{name} is not available: {REJECTED[name]}"
    near = difflib.get_close_matches(name, functions(), n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{name[:100]!r} is not one of the {len(functions())} available functions of mlx.core{hint}"


def parse(text: str) -> Signature:
    """Parse the text of a signature, which has no `stream` parameter."""
    definition = ast.parse(f"def {text}: ...").body[0]
    assert isinstance(definition, ast.FunctionDef)
    arguments = definition.args

    def parameter(node: ast.arg, variadic: bool = False) -> Parameter:
        types = ast.unparse(node.annotation) if node.annotation else ""
        return Parameter(node.arg, frozenset(part.strip() for part in types.split("|")), variadic)

    positional = [parameter(node) for node in (*arguments.posonlyargs, *arguments.args)]
    if arguments.vararg:
        star = arguments.vararg
        positional.append(parameter(star, True) if star.annotation else Parameter(star.arg, frozenset({"array"}), True))
    everything = positional + [parameter(node) for node in arguments.kwonlyargs]
    return Signature(text, tuple(positional), {each.name: each for each in everything if not each.variadic})
