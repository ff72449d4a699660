"""`%openruntime fix`: the last error of this kernel, explained and mended by a model. What it answers is offered, never run."""

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
    "The cell of a Jupyter notebook above raised the error above. Say in one or two sentences what is wrong. Then give the whole cell, "
    "mended, in one Python code block."
)


def fix(session: Session, line: str) -> Any:
    """Ask about the last error, and offer the mended cell."""
    arguments = parse_ai(line, cell=False)
    failed = last_failure.failed
    if failed is None:
        raise UsageError("no cell has failed since `%load_ext openruntime_jupyter`: run the one that fails again, then `%openruntime fix`.")
    if arguments.rows is not None or arguments.background:
        raise UsageError("fix takes neither --map nor --bg.")
    lines, traced = len(failed.source.splitlines()), len(failed.traceback.splitlines())
    also = f", and what --with describes of {', '.join(arguments.described)}" if arguments.described else ""
    display(Note(f"Sent: the failed cell ({lines} lines) and its traceback ({traced} lines){also}. --show-prompt shows it word for word."))
    context = f"The cell:\n```python\n{failed.source.strip()}\n```\n\nThe error:\n```\n{failed.traceback}\n```"
    wanted = f"{PROMPT}\n{arguments.prompt}".strip()
    # Nothing in a traceback or in a cell's source is a name to be filled in.
    given = replace(arguments, workflow="code_generation", insert=True, raw=True)
    return ask(session, given, wanted, context)
