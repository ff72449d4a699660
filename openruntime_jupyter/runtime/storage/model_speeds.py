"""Speeds of language models, as measured in the newest prompts of the history."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

MOST_PROMPTS = 200
"""Maximum number of prompts that are read."""


class Speed(NamedTuple):
    """Speed of a model in tokens per second; None if it was not measured."""

    writing: float
    reading: float | None


_OUTPUT = "json_extract(CASE WHEN json_valid(document) THEN document ELSE '{}' END, '$.result.output')"
_QUERY = f"""
SELECT json_extract(output, '$.model_used'), json_extract(output, '$.tokens_per_second'), json_extract(output, '$.prompt_tokens_per_second')
FROM (SELECT {_OUTPUT} AS output FROM tasks WHERE operation = 'generate' AND state = 'completed' ORDER BY submitted DESC LIMIT ?)
"""  # noqa: S608 - constants


def speeds(connection: sqlite3.Connection) -> dict[str, Speed]:
    """Return the speed of each local model in its newest prompt for which it was measured, by the name of the model."""
    found: dict[str, Speed] = {}
    for model, writing, reading in connection.execute(_QUERY, (MOST_PROMPTS,)):
        if isinstance(model, str) and isinstance(writing, float):
            found.setdefault(model, Speed(writing, reading if isinstance(reading, float) else None))
    return found
