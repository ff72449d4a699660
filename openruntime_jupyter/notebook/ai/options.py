"""Options of `%%openruntime ai` and their parser."""

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
"""Options that are workflow parameters. The runtime validates which workflow accepts which."""

TASK_OPTIONS = ("priority", "device", "timeout", "retries", "name")
"""Task options, named as in `Client.with_options`."""


@dataclass(frozen=True)
class Option:
    """One option. `kind` is the kind of its value, used for completion; an empty string marks a flag."""

    kind: str
    description: str
    read: Callable[[str], Any] = unquoted
    choices: tuple[str, ...] = ()


OPTIONS: dict[str, Option] = {
    "--profile": Option("profile", "remote provider to use; `local` selects a local model"),
    "--model": Option("model", "model to use"),
    "--agent": Option("agent", "role whose instructions the model gets"),
    "--conversation": Option("conversation", "continue the conversation with this name, or start it"),
    "--with": Option("variables", "describe these variables to the model: type, shape, columns, first rows", str),
    "--out": Option("variable", "store the answer in this variable: text, code, usage, model", identifier),
    "--map": Option("variable", "one prompt for each row of this list or data frame; needs --out", identifier),
    "--insert": Option("", "insert the answer's code into the next cell"),
    "--raw": Option("", "send the text unchanged, without replacing {name}"),
    "--show-prompt": Option("", "show the exact text sent to the model"),
    "--bg": Option("", "run in the background; the cell's value is the task's handle"),
    "--notify": Option("", "notify on completion: a browser notification if allowed, else the page title"),
    "--verbose": Option("", "show the full traceback of an error instead of a card"),
    "--as": Option("variable", "also store the handle in this variable", identifier),
    "--temperature": Option("number", "0 to 2; 0 always picks the most likely token", float),
    "--top-p": Option("number", "above 0, up to 1", float),
    "--max-tokens": Option("number", "maximum number of tokens in the answer", int),
    "--stop": Option("text", "text at which the answer stops"),
    "--seed": Option("number", "random seed, for repeatable answers if the model supports it", int),
    "--system": Option("text", "custom instructions that replace the agent's"),
    "--language": Option("text", "programming language"),
    "--style": Option("text", "code style, such as functional"),
    "--timeframe": Option("choice", "time range of the runtime's metrics", choices=get_args(Timeframe)),
    "--target": Option("choice", "what to optimize", choices=("code", "settings")),
    "--keep-alive": Option("number", "seconds that a local model stays in memory when idle", float),
    "--timeout": Option("number", "maximum run time in seconds; default 300", float),
    "--priority": Option("number", "1 to 10, default 5; 10 is the most urgent", int),
    "--device": Option("device", "auto, gpu, cpu, or the id of a device"),
    "--retries": Option("number", "retries if the worker process dies", int),
    "--name": Option("text", "task name"),
}
"""Options by name, in the order of the help."""


@dataclass(frozen=True)
class AiArguments:
    """Parsed line. Values that were not given are None, False or empty."""

    workflow: str
    parameters: dict[str, Any] = field(default_factory=dict)
    """For `Client.ask`."""
    options: dict[str, Any] = field(default_factory=dict)
    """For `Client.with_options`."""
    described: tuple[str, ...] = ()
    """Variables to describe to the model."""
    out: str | None = None
    rows: str | None = None
    """Name of the `--map` variable."""
    insert: bool = False
    raw: bool = False
    show_prompt: bool = False
    background: bool = False
    notify: bool = False
    """Notify on completion."""
    verbose: bool = False
    """Show the full traceback of an error."""
    variable: str | None = None
    """Variable for the handle, in addition to `_openruntime`."""
    prompt: str = ""
    """Prompt of a line magic."""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See `%openruntime ai` for the options")


def wants_help(line: str) -> bool:
    """Return whether a line only asks for help."""
    return line.strip() in ("--help", "-h")


def parse_ai(line: str, cell: bool) -> AiArguments:
    """Parse the line after `ai`. With `cell`, the line has only options; a line magic also has the prompt. Raises `UsageError`."""
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
    parsed, rest = parser.parse_known_args(_words(line, cell))
    wrong = next((word for word in rest if word.startswith("--")), None)
    if wrong is not None:
        raise UsageError(_unexpected(wrong, cell))
    workflow = rest.pop(0) if rest and rest[0] in WORKFLOWS else None
    if cell and rest:
        raise UsageError(_no_workflow(rest[0]))
    return _checked(vars(parsed), workflow, " ".join(map(unquoted, rest)))


def _words(line: str, cell: bool) -> list[str]:
    try:
        return tokens(line, comment=cell)  # in a prompt, `#` does not begin a comment
    except UsageError:
        if cell:
            raise
        return line.split()  # a prompt may contain an unclosed quote or bracket


def _checked(parsed: dict[str, Any], workflow: str | None, prompt: str) -> AiArguments:
    parameters = {name: parsed[name] for name in PARAMETERS if parsed[name] not in (None, [])}
    if len(parameters.get("stop", [])) == 1:
        parameters["stop"] = parameters["stop"][0]
    arguments = AiArguments(
        workflow=workflow or ("code_generation" if parsed["insert"] else "model_inference"),
        parameters=parameters,
        options={name: parsed[name] for name in TASK_OPTIONS if parsed[name] is not None},
        described=names(parsed["with"]),
        out=parsed["out"],
        rows=parsed["map"],
        insert=parsed["insert"],
        raw=parsed["raw"],
        show_prompt=parsed["show_prompt"],
        background=parsed["bg"],
        notify=parsed["notify"],
        verbose=parsed["verbose"],
        variable=parsed["as"],
        prompt=prompt,
    )
    _reject_conflicts(arguments)
    return arguments


def _reject_conflicts(given: AiArguments) -> None:
    if given.rows is not None:
        if given.out is None:
            raise UsageError("--map requires --out NAME, which stores the answers and skips rows already answered")
        others = {"--conversation": "conversation" in given.parameters, "--insert": given.insert, "--raw": given.raw}
        for name, wrong in others.items():
            if wrong:
                raise UsageError(f"{name} cannot be combined with --map, which sends a separate prompt for each row")
    elif given.background:
        for name, wrong in (("--out", given.out is not None), ("--insert", given.insert)):
            if wrong:
                raise UsageError(f"{name} cannot be combined with --bg: use --as NAME and get the answer from the handle's result()")


def _unexpected(word: str, cell: bool) -> str:
    near = get_close_matches(word, OPTIONS, 1)
    advice = f"Did you mean {near[0]}?" if near else f"The options are {', '.join(OPTIONS)}"
    return f"unknown option {word!r}. {advice}" + ("" if cell else f"{'' if near else '.'} Quote the prompt if it contains this text")


def _no_workflow(word: str) -> str:
    near = get_close_matches(word, WORKFLOWS, 1, 0.4)
    advice = f"Did you mean {near[0]}? Other workflows:" if near else "The workflows are"
    others = ", ".join(name for name in WORKFLOWS if name not in near)
    return f"unknown workflow {word!r}. {advice} {others}. The prompt belongs below the magic's line"
