"""Variables in prompts: `{name}` is replaced where such a variable is there, and what is put in is never looked at again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NAME = re.compile(r"(?<!\{)\{([^\W\d]\w*)\}(?!\})")
"""A name in single braces: `{{name}}`, `{a.b}`, `{1}` and `{}` stay what they are."""
LONGEST = 20_000
"""Characters of a value that is no text itself; more is cut, and the cut is said."""


def fill(prompt: str, values: Mapping[str, Any]) -> str:
    """`prompt` with the values of those names that there are."""
    return NAME.sub(lambda found: told(values[found[1]]) if found[1] in values else found[0], prompt)


def told(value: Any) -> str:
    """A value as a prompt holds it."""
    if isinstance(value, str):
        return value
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … (cut: {len(text):,} characters in all)"


def own(namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> dict[str, Any]:
    """The user's variables: what IPython itself put there is none of them, until it is set to something else."""
    return {name: value for name, value in namespace.items() if name not in hidden or hidden[name] is not value}
