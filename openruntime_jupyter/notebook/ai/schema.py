"""The option `--json` of prompts: a schema in a variable or a file, and the object that is the cell's result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError

from openruntime_jupyter.client.object_schema import ObjectSchema
from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.notebook.session import Session


def schema_of(name: str, namespace: Mapping[str, Any]) -> Any:
    """Return the schema in the variable or else the JSON file of this name. Raises `UsageError` for other values."""
    if name in namespace:
        schema = namespace[name]
        try:
            ObjectSchema(schema)
        except InvalidRequest as problem:
            raise UsageError(f"--json: {name}: {problem}") from None
        return schema
    path = Path(name).expanduser()
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        advice = "define a pydantic model or a dict with a JSON schema first"
        raise UsageError(f"--json: {name!r} is neither a variable nor a file: {advice}") from None
    except (OSError, ValueError) as problem:
        raise UsageError(f"--json: {name} can't be read as JSON ({problem})") from None
    if not isinstance(schema, dict):
        raise UsageError(f"--json: {name} has no JSON schema: it must be an object")
    return schema


def displayed(value: Any, session: Session) -> Any:
    """Return `value`, which the running cell has displayed already and therefore does not display again as its result."""
    shell = session.shell
    assert shell.display_formatter is not None
    hidden = shell.display_formatter.ipython_display_formatter.singleton_printers
    hidden[id(value)] = lambda _value: True

    def forget(*_: Any) -> None:
        # The closure keeps the value, so that no other object gets its id until then.
        hidden.pop(id(value), None)
        shell.events.unregister("post_run_cell", forget)

    shell.events.register("post_run_cell", forget)
    return value
