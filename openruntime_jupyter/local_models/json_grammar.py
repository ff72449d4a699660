"""Grammars of llguidance for texts that fit a JSON schema. Both engines use them, so that they support the same schemas."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from openruntime_jupyter.errors import EngineError, InvalidRequest
from openruntime_jupyter.local_models.language_model import INSTALL
from openruntime_jupyter.local_models.reasoning import TAGS

ON_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Spaces as Python writes them. With any spaces, small models may write spaces without an end."""

NO_ARGUMENTS = {"type": "object", "additionalProperties": False}
"""JSON schema of the arguments of a function without a schema."""


def grammar_of(schema: dict[str, Any], template: str) -> str:
    """Return the grammar of texts that fit a schema. Where the chat template has tags of reasoning, reasoning may precede the text.

    Raises `InvalidRequest` that names the fault of the schema, or the part of it that is not supported.
    """
    return _validated([f"text: {_json(schema)}"], template, "parameters.response_format")


def grammar_of_calls(tools: Sequence[dict[str, Any]], start: str, end: str, template: str) -> str:
    """Return the grammar of one or more calls of `tools`, each a JSON object with `name` and `arguments` between two markers.

    Parameters
    ----------
    start, end : markers in the syntax of the grammar: a quoted text, or a special token
    template : source of the chat template; with tags of reasoning, reasoning may precede the calls
    """
    rules = ['text: call ("\\n" call)*']
    for number, tool in enumerate(tools):
        function = tool["function"]
        rules.append(f"arguments_{number}: {_json(function.get('parameters') or NO_ARGUMENTS)}")
        opening = json.dumps(f'{{"name": {json.dumps(function["name"])}, "arguments": ')
        rules.append(f'call_{number}: {start} "\\n" {opening} arguments_{number} "}}\\n" {end}')
    rules.append(f"call: {' | '.join(f'call_{number}' for number in range(len(tools)))}")
    return _validated(rules, template, "parameters.tools")


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': ON_ONE_LINE})}"


def _validated(rules: list[str], template: str, field: str) -> str:
    """Return the grammar of the rule `text` after optional reasoning; raise `InvalidRequest` for `field`."""
    llguidance = import_llguidance()
    closing = next((TAGS[tag] for tag in TAGS if tag in template), None)
    if closing is None:
        rules = ["start: text", *rules]
    else:
        rules = ["start: (reasoning /\\s*/)? text", f"reasoning[suffix={json.dumps(closing)}]: /(.|\\n)*/", *rules]
    grammar: str = llguidance.LLMatcher.grammar_from_lark("\n".join(rules))
    if problem := llguidance.LLMatcher.validate_grammar(grammar):
        # The message continues with the grammar in numbered lines.
        reason = " ".join(problem.partition("failed to compile JSON schema: ")[2].partition("\n   1 | ")[0].split())
        raise InvalidRequest.of(field, f"the JSON schema can't be used: {reason or problem}")
    return grammar


def import_llguidance() -> ModuleType:
    """Import and return the package. Raise `EngineError` with the install command."""
    try:
        import llguidance
    except ImportError as problem:
        message = f"JSON schemas need llguidance, which can't be imported ({problem}). Install it with: {sys.executable} {INSTALL}"
        raise EngineError(message) from problem
    package: ModuleType = llguidance
    return package
