"""Variable substitution in prompts: `{name}` is replaced if the variable exists. Inserted text is not expanded again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NAME = re.compile(r"(?<!\{)\{([^\W\d]\w*)\}(?!\})")
"""A name in single braces. `{{name}}`, `{a.b}`, `{1}` and `{}` do not match."""
LONGEST = 20_000
"""Maximum length of a value that is not a string, in characters. Longer values are truncated with a note."""


def fill(prompt: str, values: Mapping[str, Any]) -> str:
    """Return `prompt` with known names replaced by their values."""
    return NAME.sub(lambda found: render(values[found[1]]) if found[1] in values else found[0], prompt)


def render(value: Any) -> str:
    """Return the text of a value in a prompt."""
    if isinstance(value, str):
        return value
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … (truncated: {len(text):,} characters in total)"


def user_variables(namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's variables, without those that IPython defined and the user has not changed."""
    return {name: value for name, value in namespace.items() if name not in hidden or hidden[name] is not value}
