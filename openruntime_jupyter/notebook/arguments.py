"""Parser for the line of a magic: options, names, and `key=value` pairs of Python literals."""

from __future__ import annotations

import ast
import keyword
import re
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any, NoReturn

from IPython.core.error import UsageError

LAST = "_openruntime"
"""Variable for the handle of the newest task submitted by a magic."""

OPTIONS = ("priority", "device", "timeout", "retries", "name", "memory_limit", "session")
"""Task options, named as in `Client.with_options`."""

ALONE = ("--bg", "--notify", "--verbose")
"""Options without a value."""

FLAGS = ("--as", *ALONE)
"""Options of the magics themselves, in addition to the task options."""

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
CLOSING = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True)
class Arguments:
    """Parsed line of a magic. `words` and `pairs` are the positional arguments, in order."""

    options: dict[str, Any] = field(default_factory=dict)
    """Given task options, for `Client.with_options`."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    background: bool = False
    """Return the handle immediately instead of waiting."""
    variable: str | None = None
    """Variable for the handle, in addition to `_openruntime`."""
    notify: bool = False
    """Notify on completion."""
    verbose: bool = False
    """Show the full traceback of an error."""
    words: tuple[str, ...] = ()
    pairs: dict[str, Any] = field(default_factory=dict)
    help: bool = False


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See `%openruntime` for help")


def _parser() -> _Parser:
    parser = _Parser(prog="openruntime", add_help=False, allow_abbrev=False)
    parser.add_argument("--priority", type=int)
    parser.add_argument("--device")
    parser.add_argument("--timeout", type=float)
    parser.add_argument("--retries", type=int)
    parser.add_argument("--name", type=unquoted)
    parser.add_argument("--memory-limit", type=size)
    parser.add_argument("--session", type=unquoted)
    parser.add_argument("--bg", action="store_true")
    parser.add_argument("--as", dest="variable", type=identifier)
    parser.add_argument("--notify", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--help", "-h", action="store_true")
    return parser


@cache
def _cell_parser() -> _Parser:
    parser = _parser()
    parser.add_argument("--in", dest="inputs", nargs="+", action="extend", default=[])
    parser.add_argument("--out", dest="outputs", nargs="+", action="extend", default=[])
    return parser


def parse_cell(line: str) -> Arguments:
    """Parse the line of `%%openruntime`. Raises `UsageError`."""
    parsed, rest = _cell_parser().parse_known_args(tokens(line, comment=True))
    if rest:
        raise UsageError(_unexpected(rest[0], "in", "out"))
    return _arguments(vars(parsed), inputs=names(parsed.inputs), outputs=names(parsed.outputs))


def parse_line(line: str) -> Arguments:
    """Parse the line of `%openruntime`. Raises `UsageError`."""
    parsed, rest = _parser().parse_known_args(tokens(line, comment=True))
    words: list[str] = []
    pairs: dict[str, Any] = {}
    for token in rest:
        if token.startswith("--"):
            raise UsageError(_unexpected(token))
        key, equals, value = token.partition("=")
        if not (equals and key.isidentifier()):
            words.append(token)
        elif key in pairs:
            raise UsageError(f"{key!r} is given twice")
        else:
            pairs[key] = literal(value)
    return _arguments(vars(parsed), words=tuple(words), pairs=pairs)


def _arguments(parsed: dict[str, Any], **rest: Any) -> Arguments:
    options = {name: parsed[name] for name in OPTIONS if parsed[name] is not None}
    flags = {name: parsed[name] for name in ("variable", "notify", "verbose", "help")}
    return Arguments(options=options, background=parsed["bg"], **flags, **rest)


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


def _unexpected(token: str, *more: str) -> str:
    known = [*(f"--{name.replace('_', '-')}" for name in (*more, *OPTIONS)), *FLAGS]
    near = get_close_matches(token, known, 1)
    if near:
        advice = f"Did you mean {near[0]}?"
    elif token.startswith("-"):
        advice = f"The options are {', '.join(known)}"
    else:
        advice = f"A value with a space needs quotes around it; the options are {', '.join(known)}"
    return f"unknown argument {token!r}. {advice}"
