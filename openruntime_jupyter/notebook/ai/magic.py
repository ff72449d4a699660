"""The magics `%openruntime ai` and `%openruntime fix`: submit a prompt, show the answer, and store or insert it.

Code in an answer is never run.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from IPython.core.error import UsageError
from IPython.display import display

from openruntime_jupyter.ai.number_check import unverified_numbers_of
from openruntime_jupyter.ai.workflows import SYSTEM_ANALYSIS, WORKFLOWS
from openruntime_jupyter.client.ai_response import CodeBlock, Reply
from openruntime_jupyter.client.handles import PromptHandle
from openruntime_jupyter.errors import InvalidRequest, NoModel, OpenRuntimeError
from openruntime_jupyter.notebook.ai.batch import ask_rows
from openruntime_jupyter.notebook.ai.context import describe, fill, user_variables
from openruntime_jupyter.notebook.ai.last_error import last_failure
from openruntime_jupyter.notebook.ai.live_answer import ShownReply
from openruntime_jupyter.notebook.ai.options import OPTIONS, AiArguments, parse_ai, wants_help
from openruntime_jupyter.notebook.ai.schema import displayed, schema_of
from openruntime_jupyter.notebook.ai.views import NoProvider, Note, Sent
from openruntime_jupyter.notebook.arguments import usages
from openruntime_jupyter.notebook.display.errors import Logged, one_line
from openruntime_jupyter.notebook.display.format import counted
from openruntime_jupyter.notebook.display.tables import Help
from openruntime_jupyter.notebook.run.cell import run
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.schemas.endpoints import GET_TASK

HELP = Help(
    "Prompts",
    [
        (
            "%%openruntime ai [workflow] [options]",
            "send the cell as a prompt and stream the answer; Ctrl-C cancels it, a second Ctrl-C stops waiting",
        ),
        ('%openruntime ai [workflow] "prompt" [options]', "the same on one line; `answer = %openruntime ai …` stores the answer"),
        ("%openruntime fix [options]", "explain and fix the last error; the code is put in the next cell and never run"),
    ],
    usages(OPTIONS),
    "{name} is replaced if a variable with this name exists; other braces are left as they are. "
    f"Workflows: {', '.join(WORKFLOWS)} (default: model_inference, or code_generation with --insert).",
)

PARAMETER = re.compile(r"\bparameters\.(\w+)(?=:)")
"""Runtime parameter name in an error message, replaced by the name of the option."""


def ai_cell(session: Session, line: str, cell: str) -> Any:
    """Run `%%openruntime ai` with the cell as the prompt."""
    if wants_help(line):
        return HELP
    arguments = parse_ai(line, cell=True)
    if not cell.strip():
        raise UsageError("the cell is empty: write the prompt below the magic")
    return ask(session, arguments, cell.strip("\n"))


def ai_line(session: Session, line: str) -> Any:
    """Run `%openruntime ai "…"`."""
    if wants_help(line):
        return HELP
    arguments = parse_ai(line, cell=False)
    return ask(session, arguments, arguments.prompt) if arguments.prompt else HELP


def ask(session: Session, arguments: AiArguments, prompt: str, context: str | None = None, failed: str = "") -> Any:
    """Submit the prompt and show the answer while it is generated. Return the answer, or the handle of a background task.

    `context` is added to the descriptions of the `--with` variables. `failed` is the source of the cell that the answer corrects.
    """
    context = "\n\n".join(part for part in (context, describe_variables(session, arguments)) if part)
    parameters = {**arguments.parameters, **({"context": context} if context else {})}
    schema = None if arguments.schema is None else schema_of(arguments.schema, session.namespace)
    client = session.client.with_options(**{"name": session.cell_name(), **arguments.options})
    variables = user_variables(session.namespace, session.shell.user_ns_hidden)
    if arguments.rows is not None:
        with readable_errors():
            return ask_rows(session, client, arguments, parameters, prompt, variables, schema)
    text = prompt if arguments.raw else fill(prompt, variables)

    def submit() -> PromptHandle:
        handle = client.ask(text, arguments.workflow, schema=schema, **parameters)
        if arguments.show_prompt:
            display(Sent.of(client.backend.call(GET_TASK, handle.id)))
        return handle

    with readable_errors():
        handle, task = run(session, arguments, submit)
    if task is None:
        return handle
    assert isinstance(handle, PromptHandle)
    return _deliver(session, arguments, handle.reply(), failed)


def describe_variables(session: Session, arguments: AiArguments) -> str:
    """Return the description of the `--with` variables. Raises `UsageError` for undefined variables."""
    missing = [name for name in arguments.described if name not in session.namespace]
    if missing:
        raise UsageError(f"--with: undefined variable {', '.join(map(repr, missing))}: run the cell that defines it first")
    return describe({name: session.namespace[name] for name in arguments.described})


def _deliver(session: Session, arguments: AiArguments, reply: Reply, failed: str) -> Any:
    if arguments.out is not None:
        session.namespace[arguments.out] = reply if arguments.schema is None else reply.value
    if arguments.insert:
        display(insert(session, reply, failed))
    if arguments.workflow == SYSTEM_ANALYSIS:
        _warn(session, reply)
    return ShownReply.shown(reply, session) if arguments.schema is None else displayed(reply.value, session)


def _warn(session: Session, reply: Reply) -> None:
    """List the numbers in an analysis that are not in the data given to the model."""
    with contextlib.suppress(OpenRuntimeError):  # the answer is complete even if its task record is gone
        if numbers := unverified_numbers_of(session.client.backend.call(GET_TASK, reply.task_id)):
            display(Note(f"Numbers that are not in the data given to the model: {', '.join(numbers)}. It computed or invented them."))


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Raise errors that name options instead of parameters, and explain how to set up a model if none is available."""
    try:
        yield
    except InvalidRequest as problem:
        raise one_line(problem, PARAMETER.sub(lambda found: option_of(found[1]), str(problem))) from None
    except NoModel as problem:
        raise one_line(problem, "see above", card=NoProvider(), logged=Logged(str(problem))) from None


def option_of(parameter: str) -> str:
    """Return the option that sets a parameter."""
    return "--json" if parameter == "response_format" else f"--{parameter.replace('_', '-')}"


FIX_PROMPT = (
    "The cell of a Jupyter notebook above raised the error above. Explain in one or two sentences what is wrong. Then give the whole "
    "corrected cell in one Python code block."
)


def fix(session: Session, line: str) -> Any:
    """Ask the model about the last error and put the corrected cell below."""
    arguments = parse_ai(line, cell=False)
    failed = last_failure.failed
    if failed is None:
        raise UsageError("no cell has failed since `%load_ext openruntime_jupyter`: rerun the failing cell, then `%openruntime fix`")
    if arguments.rows is not None or arguments.background or arguments.schema is not None:
        raise UsageError("fix does not support --map, --bg and --json")
    cell, traceback = (counted(len(text.splitlines()), "line") for text in (failed.source, failed.traceback))
    also = f", and a description of {', '.join(arguments.described)}" if arguments.described else ""
    display(Note(f"Sent: the failed cell ({cell}) and its traceback ({traceback}){also}. --show-prompt shows the exact text."))
    context = f"The cell:\n```python\n{failed.source.strip()}\n```\n\nThe error:\n```\n{failed.traceback}\n```"
    prompt = f"{FIX_PROMPT}\n{arguments.prompt}".strip()
    # raw: braces in a traceback or in source code are not placeholders.
    arguments = replace(arguments, workflow="code_generation", insert=True, raw=True)
    return ask(session, arguments, prompt, context, failed.source)


PYTHON = ("", "python", "py", "python3", "ipython", "pycon")
MAGICS = {"bash": "bash", "sh": "bash", "shell": "bash", "zsh": "bash", "html": "html", "javascript": "javascript", "js": "javascript"}
"""Cell magic for each language other than Python that a notebook cell can hold."""


def insert(session: Session, reply: Reply, failed: str = "") -> Note:
    """Put an answer's code into the next cell without running it, and return a note for the user.

    Code that is incomplete, not valid Python, or the same as the `failed` cell is not inserted.

    The front end inserts the code when the cell ends: JupyterLab, Notebook 7 and VS Code create a cell, and a terminal fills in its
    next prompt. Programs that run notebooks ignore it.
    """
    code = insertable(reply)
    if problem := _problem(reply, code, failed, session.shell.transform_cell):
        return Note(f"{problem}: nothing was inserted.")
    session.shell.set_next_input(code, replace=False)
    return Note(
        "The code was inserted into the next cell, not run. If no cell appeared, this front end does not support it. Get the code with",
        "print(_.code)",
    )


CUT = ("length", "max_tokens", "content_filter")
"""Finish reasons of an answer that a limit or a filter ended."""
OWN_MAGIC = re.compile(r"\s*%%openruntime\b(?! ai\b).*\n")


def _problem(reply: Reply, code: str, failed: str, transform: Callable[[str], str]) -> str:
    """Return why an answer's code is not inserted, or an empty string. `transform` turns IPython's syntax into Python."""
    if reply.finish_reason in CUT:
        return "The answer was cut off, so its code may be incomplete (--max-tokens allows a longer answer)"
    if not code:
        return "The answer contains no code that a cell can run"
    try:
        parsed = _parsed(code, transform)
    except SyntaxError as problem:
        return f"The code in the answer is not valid Python (line {problem.lineno}: {problem.msg})"
    with contextlib.suppress(SyntaxError):  # the failed cell may not be valid
        if failed and parsed == _parsed(failed, transform):
            return "The code in the answer is the same as the failed cell"
    return ""


def _parsed(code: str, transform: Callable[[str], str]) -> tuple[str, str]:
    """Return a cell's line of our magic and its syntax tree, which comments and spaces do not change. Raises SyntaxError."""
    magic = OWN_MAGIC.match(code)
    body = code[magic.end() :] if magic is not None else code
    try:
        tree = compile(transform(body), "<answer>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except ValueError as problem:  # a null byte
        raise SyntaxError(str(problem)) from None
    return magic[0].strip() if magic is not None else "", ast.dump(tree)


def insertable(reply: Reply) -> str:
    """Return the code for a cell: all Python blocks, else the first block whose language has a cell magic, else an empty string."""
    python = [block.source for block in reply.code_blocks if block.language in PYTHON and block.source.strip()]
    if python:
        return "\n\n".join(python)
    others = (_by_magic(block) for block in reply.code_blocks if block.language in MAGICS)
    return next(others, reply.text.strip() if not reply.code_blocks and _is_python(reply.text) else "")


def _by_magic(block: CodeBlock) -> str:
    return f"%%{MAGICS[block.language]}\n{block.source}"


def _is_python(text: str) -> bool:
    """Return whether a text without code blocks is code. Single words and sentences are not, even if they can be parsed."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return False
    return any(not isinstance(each, (ast.Expr, ast.AnnAssign)) or isinstance(getattr(each, "value", None), ast.Call) for each in body)
