"""Variables in prompts: their descriptions with size limits, and `{name}`, which is replaced if the variable exists."""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROWS = 5
"""Maximum number of table rows in a description."""
COLUMNS = 50
"""Maximum number of table columns in a description."""
CELL = 80
"""Maximum length of a table value, in characters."""
LONGEST = 2_000
"""Maximum length of the repr of other values, in characters."""


def describe(variables: Mapping[str, Any]) -> str:
    """Return the descriptions of `variables`, separated by blank lines."""
    return "\n\n".join(f"Variable `{name}`: {_described(value)}" for name, value in variables.items())


def _described(value: Any) -> str:
    if is_frame(value):
        return _frame(value)
    if is_frame(value, "Series"):
        return f"a pandas Series{f' called {value.name!r}' if value.name is not None else ''}, as a data frame: {_frame(value.to_frame())}"
    kind = _kind(value)
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and hasattr(value, "dtype"):
        return f"{kind} of shape {tuple(shape)} and dtype {value.dtype}"
    size = f" of {len(value):,}" if isinstance(value, (Sequence, Mapping, set, frozenset)) else ""
    return f"{kind}{size}\n{_short(value)}"


def is_frame(value: Any, kind: str = "DataFrame") -> bool:
    """Return whether a value is a data frame or, with `kind`, another type of pandas."""
    pandas = sys.modules.get("pandas")  # if the value is a data frame, pandas has been imported
    return pandas is not None and isinstance(value, getattr(pandas, kind))


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__name__}"


def _frame(frame: Any) -> str:
    rows, columns = frame.shape
    shown = frame.iloc[:, :COLUMNS]
    schema = [
        f"- {name!s}: {dtype}" + (f", {missing} missing" if (missing := int(shown.iloc[:, place].isna().sum())) else "")
        for place, (name, dtype) in enumerate(shown.dtypes.items())
    ]
    if columns > COLUMNS:
        schema.append(f"- and {columns - COLUMNS:,} more columns")
    head = [" | ".join(str(name) for name in shown.columns)]
    head += [" | ".join(_cell(value) for value in row) for row in shown.head(ROWS).itertuples(index=False, name=None)]
    first = f"First {min(ROWS, rows)} rows:\n" + "\n".join(head) if rows else "It has no rows."
    return f"a pandas DataFrame of {rows:,} rows and {columns:,} columns\nColumns:\n" + "\n".join(schema) + f"\n{first}"


def _cell(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= CELL else f"{text[:CELL]}…"


def _short(value: Any) -> str:
    bounded = reprlib.Repr()
    bounded.maxstring = bounded.maxother = LONGEST
    bounded.maxlist = bounded.maxtuple = bounded.maxset = bounded.maxdict = 20
    text = bounded.repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


NAME = re.compile(r"(?<!\{)\{([^\W\d]\w*)\}(?!\})")
"""A name in single braces. `{{name}}`, `{a.b}`, `{1}` and `{}` do not match."""
LONGEST_FILLED = 20_000
"""Maximum length of a value that is not a string, in characters. Longer values are truncated with a note."""


def fill(prompt: str, values: Mapping[str, Any]) -> str:
    """Return `prompt` with known names replaced by their values. Inserted text is not expanded again."""
    return NAME.sub(lambda found: render(values[found[1]]) if found[1] in values else found[0], prompt)


def render(value: Any) -> str:
    """Return the text of a value in a prompt."""
    if isinstance(value, str):
        return value
    text = str(value)
    return text if len(text) <= LONGEST_FILLED else f"{text[:LONGEST_FILLED]} … (truncated: {len(text):,} characters in total)"


def user_variables(namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's variables, without those that IPython defined and the user has not changed."""
    return {name: value for name, value in namespace.items() if name not in hidden or hidden[name] is not value}
