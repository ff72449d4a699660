"""From a cell's text to a model's answer: fill in, ask, watch, and bring home what was asked for."""

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
from openruntime_jupyter.notebook.ai.template import fill, own
from openruntime_jupyter.notebook.display.errors import short
from openruntime_jupyter.notebook.run.cell import run
from openruntime_jupyter.notebook.session import Session

Answer = TypeVar("Answer")

PARAMETER = re.compile(r"\bparameters\.(\w+)(?=:)")
"""How the runtime calls what stands on a line as an option."""


def ai_cell(session: Session, line: str, cell: str) -> Any:
    """`%%openruntime ai`: the cell is the prompt."""
    if wants_help(line):
        return AiHelp()
    arguments = parse_ai(line, cell=True)
    if not cell.strip():
        raise UsageError("the cell is empty: write the prompt below the magic.")
    return ask(session, arguments, cell.strip("\n"))


def ai_line(session: Session, line: str) -> Any:
    """`%openruntime ai "…"`."""
    if wants_help(line):
        return AiHelp()
    arguments = parse_ai(line, cell=False)
    return ask(session, arguments, arguments.prompt) if arguments.prompt else AiHelp()


def ask(session: Session, arguments: AiArguments, prompt: str, context: str | None = None) -> Any:
    """Ask, and show the answer while it is written; returns it, or the handle of what runs in the background.

    `context` is told beside what the arguments describe.
    """
    told = "\n\n".join(part for part in (context, described(session, arguments)) if part)
    parameters = {**arguments.parameters, **({"context": told} if told else {})}
    client = session.client.with_options(**{"name": session.cell_name(), **arguments.options})
    variables = own(session.namespace, session.shell.user_ns_hidden)
    if arguments.rows is not None:
        return reachable(lambda: ask_rows(session, client, arguments, parameters, prompt, variables))
    text = prompt if arguments.raw else fill(prompt, variables)

    def submit() -> PromptHandle:
        handle = client.ask(text, arguments.workflow, **parameters)
        if arguments.show_prompt:
            display(Sent.of(client.backend.get(handle.id)))
        return handle

    handle, task = reachable(lambda: run(session, arguments, submit, arguments.notify))
    return handle if task is None else _taken(session, arguments, handle.result())


def described(session: Session, arguments: AiArguments) -> str:
    """What the model is told of variables; raises `UsageError` for those that there are not."""
    missing = [name for name in arguments.described if name not in session.namespace]
    if missing:
        raise UsageError(f"--with: nothing is called {' or '.join(missing)} here: run the cell that sets it first.")
    return describe({name: session.namespace[name] for name in arguments.described})


def _taken(session: Session, arguments: AiArguments, reply: Reply) -> Reply:
    if arguments.out is not None:
        session.namespace[arguments.out] = reply
    if arguments.insert:
        display(insert(session.shell, reply))
    if arguments.workflow == SYSTEM_ANALYSIS:
        _warn(session, reply)
    return ShownReply.shown(reply, session)


def _warn(session: Session, reply: Reply) -> None:
    """Name the figures of an analysis that its model was not told."""
    with contextlib.suppress(OpenRuntimeError):  # the answer is there, whatever became of its record
        if made := untold_of(session.client.backend.get(reply.task_id)):
            display(Note(f"Figures here that the runtime did not give the model: {', '.join(made)}. It computed them, or made them up."))


def reachable(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns; what was wrong is told by its option, and where nobody answers prompts the error says both ways out."""
    try:
        return ask()
    except InvalidRequest as problem:
        raise short(problem, PARAMETER.sub(lambda found: f"--{found[1].replace('_', '-')}", str(problem))) from None
    except Unavailable as problem:
        if str(problem) == NOTHING:  # over HTTP a full queue is the same type
            raise short(problem, "No model answers prompts here yet: the card above has the ways out.", card=NoProvider()) from None
        raise
