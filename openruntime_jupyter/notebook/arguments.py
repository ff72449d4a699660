"""Options of the magics, and the parser for their lines: options, names, and `key=value` pairs of Python literals."""

from __future__ import annotations

import ast
import keyword
import re
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, NoReturn

from IPython.core.error import UsageError

LAST = "_openruntime"
"""Variable for the handle of the newest task submitted by a magic."""

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
CLOSING = {")": "(", "]": "[", "}": "{"}


def tokens(line: str, comment: bool = False) -> list[str]:
    """Split `line` at spaces outside quotes and brackets. Raises `UsageError` for an unclosed quote or bracket.

    With `comment`, a word that begins with `#` starts a comment, as in Python.
    """
    words, current, quote, open_brackets = [], "", "", ""
    escaped = False
    for character in line:
        if quote:
            closes = character == quote and not escaped
            escaped = character == "\\" and not escaped
            quote = "" if closes else quote
        elif character in "\"'" and (open_brackets or not current or current[-1] in "=,"):
            quote = character
        elif character in "([{":
            open_brackets += character
        elif open_brackets and CLOSING.get(character) == open_brackets[-1]:
            open_brackets = open_brackets[:-1]
        elif character.isspace() and not open_brackets:
            if current:
                words.append(current)
            current = ""
            continue
        elif comment and character == "#" and not (current or open_brackets):
            break
        current += character
    if quote or open_brackets:
        raise UsageError(f"{quote or open_brackets[-1]} is never closed in {line.strip()!r}")
    return [*words, current] if current else words


def literal(text: str) -> Any:
    """Return the value of a Python literal, or `text` itself if it is not a literal."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def unquoted(text: str) -> str:
    """Return `text` without surrounding quotes."""
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" else text


def identifier(text: str) -> str:
    """Return `text` if it is a valid variable name. Raises `UsageError` otherwise."""
    if not text.isidentifier() or keyword.iskeyword(text):
        raise UsageError(f"{text!r} is not a valid variable name")
    return text


def names(given: Iterable[str]) -> tuple[str, ...]:
    """Return the unique names in parts that may contain commas. Raises `UsageError` for invalid variable names."""
    every = [name for part in given for name in part.split(",") if name]
    return tuple(dict.fromkeys(identifier(name) for name in every))


def size(text: str) -> int:
    """Return the number of bytes in `"500MB"`, `"2.5 GB"`, `"1GiB"` or a plain number. Raises `UsageError` otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", unquoted(text).lower())
    if match is None or match[2] not in UNITS:
        raise UsageError(f"{text!r} is not a valid size: use for example 2GB, 500MB or 1GiB")
    return int(float(match[1]) * UNITS[match[2]])


TIME = re.compile(r"(?=.)(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?")


def seconds(text: str) -> float:
    """Return the seconds in `"90"`, `"90s"`, `"5m"` or `"1h30m"`. Raises `UsageError` otherwise."""
    plain = unquoted(text).lower().replace(" ", "")
    match = TIME.fullmatch(f"{plain}s" if plain[-1:].isdigit() and plain.replace(".", "", 1).isdigit() else plain)
    if match is None:
        raise UsageError(f"{text!r} is not a valid time: use for example 90, 90s, 5m or 1h30m")
    return sum(float(part) * factor for part, factor in zip(match.groups(), (3600, 60, 1), strict=True) if part)


def priority(text: str) -> int:
    """Return the priority in `text`. Raises `UsageError` if it is not a number from 1 to 10."""
    if not text.isdecimal() or not 1 <= int(text) <= 10:
        raise UsageError(f"{text!r} is not a valid priority: use 1 to 10, where 10 is the most urgent")
    return int(text)


def whole(text: str) -> int:
    """Return the whole number in `text`. Raises `UsageError` for another text."""
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    """Return the number in `text`. Raises `UsageError` for another text."""
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a number") from None


@dataclass(frozen=True)
class Option:
    """One option, from which the parser, the help and the completion are made."""

    kind: str
    """Kind of its value, which help shows and completion uses. An empty string marks a flag."""
    description: str
    read: Callable[[str], Any] = unquoted
    choices: tuple[str, ...] = ()
    many: Literal["", "words", "repeated"] = ""
    """How several values are given: as several words, or by repeating the option."""


FLAGS: dict[str, Option] = {
    "--bg": Option("", "run in the background; the cell's value is the task's handle"),
    "--as": Option("variable", "also store the handle in this variable (_openruntime always has the newest)", identifier),
    "--notify": Option("", "notify on completion: a browser notification if allowed, else the page title"),
    "--verbose": Option("", "show the full traceback of an error instead of a card"),
}
"""Options of the magics themselves."""

TASK_OPTIONS: dict[str, Option] = {
    "--priority": Option("priority", "1 to 10, default 5; 10 is the most urgent", priority),
    "--device": Option("device", "auto, gpu, cpu, the id of a device or the name of a host"),
    "--timeout": Option("time", "maximum run time: 90 or 90s, 5m, 1h30m", seconds),
    "--retries": Option("number", "retries if the worker process dies", whole),
    "--name": Option("text", "task name"),
}
"""Options of any task, named as in `Client.with_options`."""

LINE_OPTIONS: dict[str, Option] = {
    **TASK_OPTIONS,
    "--memory-limit": Option("size", "stop the task if its worker exceeds this size, such as 2GB or 500MB", size),
    "--session": Option("session", "run in this session, whose worker keeps its variables and modules for the next task"),
    **FLAGS,
}
"""Options of operations."""

SET = "--set"
"""Flag of the subcommand `result`."""

CELL_OPTIONS: dict[str, Option] = {
    "--in": Option("variables", "input variables, copied to the worker", str, many="words"),
    "--out": Option("outputs", "output variables, copied back", str, many="words"),
    **LINE_OPTIONS,
}
"""Options of cells."""


def usages(options: Mapping[str, Option]) -> list[tuple[str, str]]:
    """Return the usage and the description of each option."""
    values = {name: "|".join(option.choices) or option.kind.upper() for name, option in options.items()}
    return [(f"{name} {values[name]}".rstrip(), option.description) for name, option in options.items()]


@dataclass(frozen=True)
class TaskArguments:
    """Arguments of any line that runs a task."""

    options: dict[str, Any] = field(default_factory=dict)
    """Given task options, for `Client.with_options`."""
    background: bool = False
    """Return the handle immediately instead of waiting."""
    variable: str | None = None
    """Variable for the handle, in addition to `_openruntime`."""
    notify: bool = False
    """Notify on completion."""
    verbose: bool = False
    """Show the full traceback of an error."""


@dataclass(frozen=True)
class Arguments(TaskArguments):
    """Parsed line of a magic. `words` and `pairs` are the positional arguments, in order."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    pairs: dict[str, Any] = field(default_factory=dict)
    help: bool = False
    set: bool = False
    """Assign the outputs of an ended task to variables."""


class OptionParser(ArgumentParser):
    """Parser of options. Raises `UsageError` for invalid values, with `see` as the command that shows the options."""

    def __init__(self, options: Mapping[str, Option], see: str) -> None:
        super().__init__(prog="openruntime", add_help=False, allow_abbrev=False)
        self._see = see
        for name, option in options.items():
            read = _reader(name, option)
            if not option.kind:
                self.add_argument(name, action="store_true")
            elif option.many == "words":
                self.add_argument(name, nargs="+", action="extend", default=[], type=read)
            elif option.many == "repeated":
                self.add_argument(name, action="append", default=[], type=read)
            else:
                self.add_argument(name, type=read)

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`."""
        message = message.removeprefix("argument ").replace("expected at least one argument", "a value is missing")
        raise UsageError(f"{message.replace('expected one argument', 'a value is missing')}. See `{self._see}` for the options")


def _reader(name: str, option: Option) -> Callable[[str], Any]:
    """Return a function that reads a value of `option`. It raises `UsageError` with the name of the option."""

    def read(text: str) -> Any:
        try:
            value = option.read(text)
        except UsageError as problem:
            raise UsageError(f"{name}: {problem}") from None
        if option.choices and value not in option.choices:
            raise UsageError(f"{name}: {text!r} is unknown: use {', '.join(option.choices)}")
        return value

    return read


@cache
def _parser(cell: bool) -> OptionParser:
    parser = OptionParser(CELL_OPTIONS if cell else LINE_OPTIONS, "%openruntime")
    parser.add_argument("--help", "-h", action="store_true")
    if not cell:
        parser.add_argument(SET, action="store_true")
    return parser


def parse_cell(line: str) -> Arguments:
    """Parse the line of `%%openruntime`. Raises `UsageError`."""
    parsed, rest = _parser(cell=True).parse_known_args(tokens(line, comment=True))
    if rest:
        raise UsageError(
            unknown_option(rest[0], CELL_OPTIONS, "" if rest[0].startswith("-") else "A value with a space needs quotes around it")
        )
    given = vars(parsed)
    return Arguments(**task_arguments(given), inputs=names(given["in"]), outputs=names(given["out"]), help=parsed.help)


def parse_line(line: str) -> Arguments:
    """Parse the line of `%openruntime`. Raises `UsageError`."""
    parsed, rest = _parser(cell=False).parse_known_args(tokens(line, comment=True))
    words: list[str] = []
    pairs: dict[str, Any] = {}
    for token in rest:
        if token.startswith("--"):
            raise UsageError(unknown_option(token, LINE_OPTIONS))
        key, equals, value = token.partition("=")
        if not (equals and key.isidentifier()):
            words.append(token)
        elif key in pairs:
            raise UsageError(f"{key!r} is given twice")
        else:
            pairs[key] = literal(value)
    return Arguments(**task_arguments(vars(parsed)), words=tuple(words), pairs=pairs, help=parsed.help, set=parsed.set)


def task_arguments(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `TaskArguments`."""
    names = [name.removeprefix("--").replace("-", "_") for name in LINE_OPTIONS if name not in FLAGS]
    return {
        "options": {name: parsed[name] for name in names if parsed.get(name) is not None},
        "background": parsed["bg"],
        "variable": parsed["as"],
        "notify": parsed["notify"],
        "verbose": parsed["verbose"],
    }


def unknown_option(word: str, known: Iterable[str], hint: str = "") -> str:
    """Return the message for an unknown option, with a suggestion and a `hint`."""
    near = get_close_matches(word, known, 1)
    advice = f"Did you mean {near[0]}?" if near else f"The options are {', '.join(known)}{'.' if hint else ''}"
    return f"unknown {'option' if word.startswith('-') else 'argument'} {word!r}. {advice} {hint}".rstrip()
