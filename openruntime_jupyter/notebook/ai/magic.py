"""The magic `%openruntime ai`: fill in variables, submit the prompt, show the answer, and store the result."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any, TypeVar

from IPython.core.error import UsageError
from IPython.display import display

from openruntime_jupyter.ai.model_selection import NOTHING
from openruntime_jupyter.ai.number_check import untold_of
from openruntime_jupyter.ai.workflows import SYSTEM_ANALYSIS
from openruntime_jupyter.client.ai_response import Reply
from openruntime_jupyter.client.handles import PromptHandle
from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError, Unavailable
from openruntime_jupyter.notebook.ai.cards import AiHelp, NoProvider, Note, Sent
from openruntime_jupyter.notebook.ai.context import describe
from openruntime_jupyter.notebook.ai.insert import insert
from openruntime_jupyter.notebook.ai.live_answer import ShownReply
from openruntime_jupyter.notebook.ai.map import ask_rows
from openruntime_jupyter.notebook.ai.options import AiArguments, parse_ai, wants_help
from openruntime_jupyter.notebook.ai.template import fill, user_variables
from openruntime_jupyter.notebook.display.errors import one_line
from openruntime_jupyter.notebook.run.cell import run
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.schemas.endpoints import GET_TASK

Answer = TypeVar("Answer")

PARAMETER = re.compile(r"\bparameters\.(\w+)(?=:)")
"""Runtime parameter name in an error message, replaced by the name of the option."""


def ai_cell(session: Session, line: str, cell: str) -> Any:
    """Run `%%openruntime ai` with the cell as the prompt."""
    if wants_help(line):
        return AiHelp()
    arguments = parse_ai(line, cell=True)
    if not cell.strip():
        raise UsageError("the cell is empty: write the prompt below the magic")
    return ask(session, arguments, cell.strip("\n"))


def ai_line(session: Session, line: str) -> Any:
    """Run `%openruntime ai "…"`."""
    if wants_help(line):
        return AiHelp()
    arguments = parse_ai(line, cell=False)
    return ask(session, arguments, arguments.prompt) if arguments.prompt else AiHelp()


def ask(session: Session, arguments: AiArguments, prompt: str, context: str | None = None) -> Any:
    """Submit the prompt and show the answer while it is generated. Return the answer, or the handle of a background task.

    `context` is added to the descriptions of the `--with` variables.
    """
    context = "\n\n".join(part for part in (context, describe_variables(session, arguments)) if part)
    parameters = {**arguments.parameters, **({"context": context} if context else {})}
    client = session.client.with_options(**{"name": session.cell_name(), **arguments.options})
    variables = user_variables(session.namespace, session.shell.user_ns_hidden)
    if arguments.rows is not None:
        return with_readable_errors(lambda: ask_rows(session, client, arguments, parameters, prompt, variables))
    text = prompt if arguments.raw else fill(prompt, variables)

    def submit() -> PromptHandle:
        handle = client.ask(text, arguments.workflow, **parameters)
        if arguments.show_prompt:
            display(Sent.of(client.backend.call(GET_TASK, handle.id)))
        return handle

    handle, task = with_readable_errors(lambda: run(session, arguments, submit, arguments.notify))
    return handle if task is None else _deliver(session, arguments, handle.result())


def describe_variables(session: Session, arguments: AiArguments) -> str:
    """Return the description of the `--with` variables. Raises `UsageError` for undefined variables."""
    missing = [name for name in arguments.described if name not in session.namespace]
    if missing:
        raise UsageError(f"--with: undefined variable {', '.join(map(repr, missing))}: run the cell that defines it first")
    return describe({name: session.namespace[name] for name in arguments.described})


def _deliver(session: Session, arguments: AiArguments, reply: Reply) -> Reply:
    if arguments.out is not None:
        session.namespace[arguments.out] = reply
    if arguments.insert:
        display(insert(session.shell, reply))
    if arguments.workflow == SYSTEM_ANALYSIS:
        _warn(session, reply)
    return ShownReply.shown(reply, session)


def _warn(session: Session, reply: Reply) -> None:
    """List the numbers in an analysis that are not in the data given to the model."""
    with contextlib.suppress(OpenRuntimeError):  # the answer is complete even if its task record is gone
        if numbers := untold_of(session.client.backend.call(GET_TASK, reply.task_id)):
            display(Note(f"Numbers that are not in the data given to the model: {', '.join(numbers)}. It computed or invented them."))


def with_readable_errors(ask: Callable[[], Answer]) -> Answer:
    """Return `ask()`. Errors name options instead of parameters, and explain how to set up a model if none is available."""
    try:
        return ask()
    except InvalidRequest as problem:
        raise one_line(problem, PARAMETER.sub(lambda found: f"--{found[1].replace('_', '-')}", str(problem))) from None
    except Unavailable as problem:
        if str(problem) == NOTHING:  # over HTTP a full queue is the same type
            raise one_line(problem, "No model is available for prompts: the card above explains the setup", card=NoProvider()) from None
        raise
