"""Which `mlx.core` functions the operations may call, and what each parameter takes.

The list is the file `functions.json` beside this one, because the server offers it without importing MLX.
`python -m openruntime_jupyter.operations.mlx.functions` writes it anew from the installed MLX; a test tells when that is due.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("functions.json")
MODULES = ("", "linalg", "fft", "random", "fast")

REFUSED = {
    **dict.fromkeys(
        [
            "as_strided",
            "fast.cross_entropy",
            "gather_mm",
            "gather_qmm",
            "gather_qqmm",
            "put_along_axis",
            "segmented_mm",
            "slice",
            "slice_update",
            "take",
            "take_along_axis",
        ],
        "MLX does not check its indices: one that is out of range reads or writes memory that is not the array's",
    ),
    **dict.fromkeys(("split", "unstack"), "one small call can ask for millions of arrays"),
}
"""Functions on arrays that are left out all the same, and why."""

_ARRAYS = re.compile(r"array|(?:tuple|list)\[array(?:, (?:array|\.\.\.))*\]")
_PLAIN = re.compile(
    r"array|scalar|int|float|bool|str|None|Dtype|list\[array\]|Literal\[[^]]*\]"
    r"|(?:Sequence|list|tuple)\[int(?:, (?:int|\.\.\.))*\]|(?:list|tuple)\[(?:Sequence\[int\]|tuple\[int, int\])(?:, Sequence\[int\])?\]"
)
"""What a parameter may take. A function with a parameter of any other kind (a file, a callable, a device, bytes) is left out."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function: the types it takes, in MLX's words, and whether it is a `*parameter`."""

    name: str
    types: frozenset[str]
    variadic: bool = False

    @property
    def takes_array(self) -> bool:
        """Whether a list given for it means an array."""
        return "array" in self.types

    @property
    def takes_arrays(self) -> bool:
        """Whether a list given for it means several arrays."""
        return "list[array]" in self.types

    @property
    def is_key(self) -> bool:
        """Whether it takes a key of random numbers, for which a whole number will do."""
        return self.name == "key" and self.takes_array

    @property
    def is_seed(self) -> bool:
        """Whether it takes a seed, which has 64 bits where other whole numbers have 32."""
        return self.name == "seed"

    @property
    def takes_number(self) -> bool:
        """Whether a number given for it stays a number."""
        return bool(self.types & {"scalar", "int", "float", "bool"})

    @property
    def takes_dtype(self) -> bool:
        """Whether a string given for it is the name of a dtype."""
        return "Dtype" in self.types


@dataclass(frozen=True)
class Signature:
    """How a function is called: what may stand by position, and every parameter by name."""

    text: str
    positional: tuple[Parameter, ...]
    by_name: dict[str, Parameter]

    def at(self, index: int) -> Parameter | None:
        """The parameter that the argument at `index` is for; None where there are too many arguments."""
        if index < len(self.positional):
            return self.positional[index]
        last = self.positional[-1] if self.positional else None
        return last if last is not None and last.variadic else None


@cache
def functions() -> dict[str, str]:
    """The allowed functions: dotted name below `mlx.core` to signature."""
    found: dict[str, str] = json.loads(PATH.read_text(encoding="utf-8"))["functions"]
    return found


@cache
def signature(name: str) -> Signature:
    """The signature of an allowed function, read from its text."""
    return _parse(functions()[name])


def why_not(name: str) -> str:
    """What is wrong with asking for the function `name`, and what to ask for instead."""
    if name in REFUSED:
        return f"{name} is not offered: {REFUSED[name]}"
    near = difflib.get_close_matches(name, functions(), n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{name[:100]!r} is none of the {len(functions())} functions of mlx.core that are offered{hint}"


def _parse(text: str) -> Signature:
    """A signature's text as a `Signature`; the `stream` parameter is ours to set and is left out."""
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


def _text(overload: tuple[Any, ...]) -> str:
    """A nanobind signature without module names, without the stream, its defaults filled in."""
    text, _, *rest = overload
    defaults = rest[0] if rest and rest[0] else ()
    for index, value in reversed(list(enumerate(defaults))):
        text = text.replace(f"\\{index}", repr(value))
    text = text.removeprefix("def ").replace("mlx.core.", "").replace("collections.abc.", "")
    text = re.sub(r",?\s*stream: [^=]*= \w+", "", text)
    text = re.sub(r"\s+", " ", re.sub(r",\s*\*\s*\)", ")", text))
    return text.replace(" :", ":")


def _fits(text: str) -> bool:
    """Whether a function of that signature takes plain values and arrays, and gives arrays and nothing else."""
    _, arrow, returns = text.rpartition(" -> ")
    if not arrow or not all(_ARRAYS.fullmatch(part.strip()) for part in returns.split("|")):
        return False
    try:
        parsed = _parse(text)
    except SyntaxError:  # types that Python cannot read are none of the plain ones
        return False
    taken = [kind for parameter in (*parsed.positional, *parsed.by_name.values()) for kind in parameter.types]
    return bool(taken) and all(map(_PLAIN.fullmatch, taken))


def derive() -> dict[str, str]:
    """The allowed functions of the installed MLX. It imports MLX: for the script below and for tests."""
    import mlx.core as mx

    found: dict[str, str] = {}
    for module in MODULES:
        owner = getattr(mx, module) if module else mx
        for name, value in sorted(vars(owner).items()):
            dotted = f"{module}.{name}" if module else name
            if name.startswith("_") or dotted in REFUSED or not hasattr(value, "__nb_signature__"):
                continue
            overloads = [_text(overload) for overload in value.__nb_signature__]
            if all(map(_fits, overloads)):
                found[dotted] = max(overloads, key=len)
    return found


def main() -> None:
    """Write `functions.json` from the installed MLX."""
    found = derive()
    made_with = f"mlx {version('mlx')}"
    PATH.write_text(json.dumps({"made_with": made_with, "functions": found}, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{PATH}: {len(found)} functions of {made_with}\n")


if __name__ == "__main__":
    main()
