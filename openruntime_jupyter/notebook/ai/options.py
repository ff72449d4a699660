"""Options of `%%openruntime ai` and their parser."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args

from IPython.core.error import UsageError

from openruntime_jupyter.ai.workflows import WORKFLOWS
from openruntime_jupyter.notebook.arguments import (
    FLAGS,
    TASK_OPTIONS,
    Option,
    OptionParser,
    TaskArguments,
    identifier,
    names,
    number,
    seconds,
    task_arguments,
    tokens,
    unknown_option,
    unquoted,
    whole,
)
from openruntime_jupyter.schemas.system import Timeframe

PARAMETERS: dict[str, Option] = {
    "--profile": Option("profile", "remote provider to use; `local` selects a local model"),
    "--model": Option("model", "model to use"),
    "--agent": Option("agent", "role whose instructions the model gets"),
    "--conversation": Option("conversation", "continue the conversation with this name, or start it"),
    "--temperature": Option("number", "0 to 2; 0 always picks the most likely token", number),
    "--top-p": Option("number", "above 0, up to 1", number),
    "--max-tokens": Option("number", "maximum number of tokens in the answer", whole),
    "--stop": Option("text", "text at which the answer stops", many="repeated"),
    "--seed": Option("number", "random seed, for repeatable answers if the model supports it", whole),
    "--system": Option("text", "custom instructions that replace the agent's"),
    "--language": Option("text", "programming language"),
    "--style": Option("text", "code style, such as functional"),
    "--timeframe": Option("choice", "time range of the runtime's metrics", choices=get_args(Timeframe)),
    "--target": Option("choice", "what to optimize", choices=("code", "settings")),
    "--keep-alive": Option("time", "time that a local model stays in memory when idle: 90 or 90s, 5m, 1h30m", seconds),
}
"""Options that are workflow parameters. The runtime validates which workflow accepts which."""

OPTIONS: dict[str, Option] = {
    "--with": Option("variables", "describe these variables to the model: type, shape, columns, first rows", str, many="words"),
    "--out": Option("variable", "store the answer in this variable: text, code, usage, model", identifier),
    "--json": Option(
        "schema", "answer with JSON of this schema: a pydantic model, a dict, or a JSON file; the result is an object", unquoted
    ),
    "--map": Option("variable", "one prompt for each row of this list or data frame; needs --out", identifier),
    "--insert": Option("", "insert the answer's code into the next cell"),
    "--raw": Option("", "send the text unchanged, without replacing {name}"),
    "--show-prompt": Option("", "show the exact text sent to the model"),
    **PARAMETERS,
    **TASK_OPTIONS,
    "--timeout": replace(TASK_OPTIONS["--timeout"], description="maximum run time: 90 or 90s, 5m, 1h30m; default 5m"),
    **FLAGS,
}
"""Options by name, in the order of the help."""


@dataclass(frozen=True)
class AiArguments(TaskArguments):
    """Parsed line. Values that were not given are None, False or empty."""

    workflow: str = "model_inference"
    parameters: dict[str, Any] = field(default_factory=dict)
    """For `Client.ask`."""
    described: tuple[str, ...] = ()
    """Variables to describe to the model."""
    out: str | None = None
    schema: str | None = None
    """Variable or file of the `--json` schema."""
    rows: str | None = None
    """Name of the `--map` variable."""
    insert: bool = False
    raw: bool = False
    show_prompt: bool = False
    prompt: str = ""
    """Prompt of a line magic."""


@cache
def _parser(cell: bool) -> OptionParser:
    # In a line, the words after the first variable belong to the prompt.
    options = OPTIONS if cell else {**OPTIONS, "--with": replace(OPTIONS["--with"], many="repeated")}
    return OptionParser(options, "%openruntime ai")


def wants_help(line: str) -> bool:
    """Return whether a line only asks for help."""
    return line.strip() in ("--help", "-h")


def parse_ai(line: str, cell: bool) -> AiArguments:
    """Parse the line after `ai`. With `cell`, the line has only options; a line magic also has the prompt. Raises `UsageError`."""
    parsed, rest = _parser(cell).parse_known_args(_words(line, cell))
    wrong = next((word for word in rest if word.startswith("--")), None)
    if wrong is not None:
        raise UsageError(unknown_option(wrong, OPTIONS, "" if cell else "Quote the prompt if it contains this text"))
    workflow = rest.pop(0) if rest and rest[0] in WORKFLOWS else None
    if cell and rest:
        raise UsageError(_unknown_workflow(rest[0]))
    given = vars(parsed)
    arguments = AiArguments(
        **task_arguments(given),
        workflow=workflow or ("code_generation" if parsed.insert else "model_inference"),
        parameters=_parameters(given),
        described=names(given["with"]),
        out=parsed.out,
        schema=parsed.json,
        rows=parsed.map,
        insert=parsed.insert,
        raw=parsed.raw,
        show_prompt=parsed.show_prompt,
        prompt=" ".join(map(unquoted, rest)),
    )
    _reject_conflicts(arguments)
    return arguments


def _words(line: str, cell: bool) -> list[str]:
    try:
        return tokens(line, comment=cell)  # in a prompt, `#` does not begin a comment
    except UsageError:
        if cell:
            raise
        return line.split()  # a prompt may contain an unclosed quote or bracket


def _parameters(given: dict[str, Any]) -> dict[str, Any]:
    names = [name.removeprefix("--").replace("-", "_") for name in PARAMETERS]
    parameters = {name: given[name] for name in names if given[name] not in (None, [])}
    if len(parameters.get("stop", [])) == 1:
        parameters["stop"] = parameters["stop"][0]
    return parameters


def _reject_conflicts(given: AiArguments) -> None:
    if given.schema is not None and given.insert:
        raise UsageError("--insert cannot be combined with --json, whose answer has no code")
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


def _unknown_workflow(word: str) -> str:
    near = get_close_matches(word, WORKFLOWS, 1, 0.4)
    advice = f"Did you mean {near[0]}? Other workflows:" if near else "The workflows are"
    others = ", ".join(name for name in WORKFLOWS if name not in near)
    return f"unknown workflow {word!r}. {advice} {others}. The prompt belongs below the magic's line"
