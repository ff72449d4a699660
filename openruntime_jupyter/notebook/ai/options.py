"""What stands on the line of `%%openruntime ai`, and what an option's value can be."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NoReturn, get_args

from IPython.core.error import UsageError

from openruntime_jupyter.ai.workflows import WORKFLOWS
from openruntime_jupyter.notebook.arguments import identifier, names, tokens, unquoted
from openruntime_jupyter.schemas.system import Timeframe

PARAMETERS = (
    *("profile", "model", "agent", "conversation", "system", "temperature", "top_p", "max_tokens", "stop", "seed", "keep_alive"),
    *("language", "style", "timeframe", "target"),
)
"""Options that are parameters of workflows; the runtime says which workflow has which."""

TASK_OPTIONS = ("priority", "device", "timeout", "retries", "name")
"""Options of the task, as `Client.with_options` calls them."""


@dataclass(frozen=True)
class Option:
    """One option. `kind` says what its value is, for whoever completes it; empty: it takes none."""

    kind: str
    does: str
    read: Callable[[str], Any] = unquoted
    choices: tuple[str, ...] = ()


OPTIONS: dict[str, Option] = {
    "--profile": Option("profile", "the remote provider to ask; `local`: a model of this machine"),
    "--model": Option("model", "the model to ask"),
    "--agent": Option("agent", "the role whose instructions the model gets"),
    "--conversation": Option("conversation", "go on with what was said under this name, or begin it"),
    "--with": Option("variables", "tell the model of these variables: type, shape, columns, first rows", str),
    "--out": Option("variable", "keep the answer in this variable: text, code, usage, model", identifier),
    "--map": Option("variable", "one prompt for each row of this list or data frame; needs --out", identifier),
    "--insert": Option("", "put the answer's code into the next cell"),
    "--raw": Option("", "send the text as it is: no {name} is replaced"),
    "--show-prompt": Option("", "show what the model is given, word for word"),
    "--bg": Option("", "do not wait: the cell's value is the task's handle"),
    "--notify": Option("", "tell when it ends: a notification where the browser allows it, else the page's title"),
    "--verbose": Option("", "show an error's whole traceback at once, and not a card"),
    "--as": Option("variable", "also keep the handle in this variable", identifier),
    "--temperature": Option("number", "0 to 2; 0 takes the likeliest word each time", float),
    "--top-p": Option("number", "above 0, up to 1", float),
    "--max-tokens": Option("number", "tokens that the answer may have", int),
    "--stop": Option("text", "a text before which the answer ends"),
    "--seed": Option("number", "the same seed gives the same answer, as far as the model allows that", int),
    "--system": Option("text", "instructions of your own, in place of the agent's"),
    "--language": Option("text", "the programming language"),
    "--style": Option("text", "how code is to be written, such as functional"),
    "--timeframe": Option("choice", "how far back the runtime's figures go", choices=get_args(Timeframe)),
    "--target": Option("choice", "what to optimize", choices=("code", "settings")),
    "--keep-alive": Option("number", "seconds that a model of this machine stays in memory", float),
    "--timeout": Option("number", "stop it after so many seconds of running; default 300", float),
    "--priority": Option("number", "1 to 10, default 5; 10 is the most urgent", int),
    "--device": Option("device", "auto, gpu, cpu, or the id of a device"),
    "--retries": Option("number", "run it again so often if its worker dies", int),
    "--name": Option("text", "what to call it"),
}
"""In the order in which help tells of them."""


@dataclass(frozen=True)
class AiArguments:
    """A line, understood. What was not given is None, False or empty."""

    workflow: str
    parameters: dict[str, Any] = field(default_factory=dict)
    """For `Client.ask`."""
    options: dict[str, Any] = field(default_factory=dict)
    """For `Client.with_options`."""
    described: tuple[str, ...] = ()
    """Variables that the model is told of."""
    out: str | None = None
    rows: str | None = None
    """The variable whose rows are asked about."""
    insert: bool = False
    raw: bool = False
    show_prompt: bool = False
    background: bool = False
    notify: bool = False
    """Whether the page is to tell of the end."""
    verbose: bool = False
    """Whether an error shows the whole traceback at once."""
    variable: str | None = None
    """Where the handle is to be kept, beside `_openruntime`."""
    prompt: str = ""
    """Of a line magic."""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. `%openruntime ai` alone shows the options.")


def wants_help(line: str) -> bool:
    """Whether a line asks for the options alone."""
    return line.strip() in ("--help", "-h")


def parse_ai(line: str, cell: bool) -> AiArguments:
    """What stands behind `ai`: on a cell's line options alone, on a line magic's the prompt too. Raises `UsageError`."""
    parser = _Parser(prog="ai", add_help=False, allow_abbrev=False)
    for name, option in OPTIONS.items():
        if not option.kind:
            parser.add_argument(name, action="store_true")
        elif name == "--with" and cell:
            parser.add_argument(name, nargs="+", action="extend", default=[], type=option.read)
        elif name in ("--with", "--stop"):
            parser.add_argument(name, action="append", default=[], type=option.read)
        else:
            parser.add_argument(name, type=option.read, choices=option.choices or None)
    found, rest = parser.parse_known_args(_words(line, cell))
    wrong = next((word for word in rest if word.startswith("--")), None)
    if wrong is not None:
        raise UsageError(_unexpected(wrong, cell))
    workflow = rest.pop(0) if rest and rest[0] in WORKFLOWS else None
    if cell and rest:
        raise UsageError(_no_workflow(rest[0]))
    return _checked(vars(found), workflow, " ".join(map(unquoted, rest)))


def _words(line: str, cell: bool) -> list[str]:
    try:
        return tokens(line, comment=cell)  # in a prompt `#` is a word like others
    except UsageError:
        if cell:
            raise
        return line.split()  # a prompt may hold a quote or bracket that never closes


def _checked(found: dict[str, Any], workflow: str | None, prompt: str) -> AiArguments:
    parameters = {name: found[name] for name in PARAMETERS if found[name] not in (None, [])}
    if len(parameters.get("stop", [])) == 1:
        parameters["stop"] = parameters["stop"][0]
    arguments = AiArguments(
        # Who wants code in the next cell wants code.
        workflow=workflow or ("code_generation" if found["insert"] else "model_inference"),
        parameters=parameters,
        options={name: found[name] for name in TASK_OPTIONS if found[name] is not None},
        described=names(found["with"]),
        out=found["out"],
        rows=found["map"],
        insert=found["insert"],
        raw=found["raw"],
        show_prompt=found["show_prompt"],
        background=found["bg"],
        notify=found["notify"],
        verbose=found["verbose"],
        variable=found["as"],
        prompt=prompt,
    )
    _refuse_contradictions(arguments)
    return arguments


def _refuse_contradictions(given: AiArguments) -> None:
    if given.rows is not None:
        if given.out is None:
            raise UsageError("--map needs --out NAME: there the answers are kept, and what is there is not asked again.")
        others = {"--conversation": "conversation" in given.parameters, "--insert": given.insert, "--raw": given.raw}
        for name, wrong in others.items():
            if wrong:
                raise UsageError(f"{name} does not go with --map: each row is a prompt of its own.")
    elif given.background:
        for name, wrong in (("--out", given.out is not None), ("--insert", given.insert)):
            if wrong:
                raise UsageError(f"{name} does not go with --bg: keep the handle by --as NAME; its result() is the answer.")


def _unexpected(word: str, cell: bool) -> str:
    near = get_close_matches(word, OPTIONS, 1)
    advice = f"Did you mean {near[0]}?" if near else f"The options are {', '.join(OPTIONS)}."
    return f"{word!r} is not understood here. {advice}" + ("" if cell else " A prompt that holds it needs quotes around it.")


def _no_workflow(word: str) -> str:
    near = get_close_matches(word, WORKFLOWS, 1, 0.4)
    advice = f"Did you mean {near[0]}? The others are" if near else "There are"
    others = ", ".join(name for name in WORKFLOWS if name not in near)
    return f"{word!r} is no workflow. {advice} {others}. The prompt stands below the magic's line."
