"""The magic `%openruntime fix`, which asks a model to explain and fix the last error. The suggested code is never run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from IPython.core.error import UsageError
from IPython.display import display

from openruntime_jupyter.notebook.ai.cards import Note
from openruntime_jupyter.notebook.ai.last_error import last_failure
from openruntime_jupyter.notebook.ai.magic import ask
from openruntime_jupyter.notebook.ai.options import parse_ai
from openruntime_jupyter.notebook.session import Session

PROMPT = (
    "The cell of a Jupyter notebook above raised the error above. Explain in one or two sentences what is wrong. Then give the whole "
    "corrected cell in one Python code block."
)


def fix(session: Session, line: str) -> Any:
    """Ask the model about the last error and put the corrected cell below."""
    arguments = parse_ai(line, cell=False)
    failed = last_failure.failed
    if failed is None:
        raise UsageError("no cell has failed since `%load_ext openruntime_jupyter`: rerun the failing cell, then `%openruntime fix`")
    if arguments.rows is not None or arguments.background:
        raise UsageError("fix does not support --map and --bg")
    lines, traced = len(failed.source.splitlines()), len(failed.traceback.splitlines())
    also = f", and a description of {', '.join(arguments.described)}" if arguments.described else ""
    display(Note(f"Sent: the failed cell ({lines} lines) and its traceback ({traced} lines){also}. --show-prompt shows the exact text."))
    context = f"The cell:\n```python\n{failed.source.strip()}\n```\n\nThe error:\n```\n{failed.traceback}\n```"
    prompt = f"{PROMPT}\n{arguments.prompt}".strip()
    # raw: braces in a traceback or in source code are not placeholders.
    arguments = replace(arguments, workflow="code_generation", insert=True, raw=True)
    return ask(session, arguments, prompt, context)
