"""The reference's examples, word for word."""

from __future__ import annotations

import re
from pathlib import Path

PYTHON, BASH, JAVASCRIPT = re.findall(
    r"^```\w+\n(.*?)^```", (Path(__file__).parent / "reference_examples.md").read_text(), re.MULTILINE | re.DOTALL
)


def at(url: str, example: str) -> str:
    """Return an example for the server at `url` instead of the default one."""
    return example.replace("localhost:8000", url.partition("://")[2])
