"""Grammars of llguidance for texts that fit a JSON schema. Both engines use them, so that they support the same schemas."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

from openruntime_jupyter.errors import EngineError, InvalidRequest
from openruntime_jupyter.local_models.reasoning import TAGS

ON_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Spaces as Python writes them. With any spaces, small models may write spaces without an end."""


def grammar_of(schema: dict[str, Any], template: str) -> str:
    """Return the grammar of texts that fit a schema. Where the chat template has tags of reasoning, reasoning may precede the text.

    Raises `InvalidRequest` that names the fault of the schema, or the part of it that is not supported.
    """
    llguidance = import_llguidance()
    closing = next((TAGS[tag] for tag in TAGS if tag in template), None)
    rules = [f"json: %json {json.dumps({**schema, 'x-guidance': ON_ONE_LINE})}"]
    if closing is None:
        rules.append("start: json")
    else:
        rules += ["start: (reasoning /\\s*/)? json", f"reasoning[suffix={json.dumps(closing)}]: /(.|\\n)*/"]
    grammar: str = llguidance.LLMatcher.grammar_from_lark("\n".join(rules))
    if problem := llguidance.LLMatcher.validate_grammar(grammar):
        # The text continues with the grammar in numbered lines.
        reason = " ".join(problem.partition("failed to compile JSON schema: ")[2].partition("\n   1 | ")[0].split())
        raise InvalidRequest.of("parameters.response_format", f"the JSON schema can't be used: {reason or problem}")
    return grammar


def import_llguidance() -> ModuleType:
    """Import and return the package. Raise `EngineError` with the install command."""
    from openruntime_jupyter.local_models.language_model import INSTALL

    try:
        import llguidance
    except ImportError as problem:
        message = f"JSON schemas need llguidance, which can't be imported ({problem}). Install it with: {sys.executable} {INSTALL}"
        raise EngineError(message) from problem
    package: ModuleType = llguidance
    return package
