"""Tab completion for `%openruntime` and `%%openruntime`: subcommands, options, parameters and their values, tasks, models, variables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from openruntime_jupyter.notebook.arguments import ALONE, FLAGS, OPTIONS, tokens
from openruntime_jupyter.notebook.commands import COMMANDS
from openruntime_jupyter.notebook.completion_sources import CompletionSources, assigned

if TYPE_CHECKING:
    from openruntime_jupyter.notebook.session import Session

LINE = re.compile(r"^\s*(?:[\w\s,.\[\]]+=\s*)?%openruntime\s+(?P<rest>.*)$", re.DOTALL)
CELL = re.compile(r"^\s*%%openruntime\s+(?P<rest>.*)$", re.DOTALL)
SEVERAL = ("--in", "--out")
"""Options that take one or more names."""


@dataclass(frozen=True)
class PartialLine:
    """A magic's line up to the cursor: completed words, the word being typed, and the code of the cell."""

    before: tuple[str, ...]
    current: str
    code: str | None = None
    """None for a line magic."""


@dataclass
class Candidates:
    """Candidates for completion, their kind, and the fragment that they replace."""

    fragment: str
    texts: list[str] = field(default_factory=list)
    kind: str = ""

    def offer(self, texts: Iterable[str], kind: str) -> Candidates:
        """Add the texts that begin with the fragment."""
        self.texts += [text for text in texts if text.startswith(self.fragment)]
        self.kind = self.kind or kind
        return self


Words = Callable[[CompletionSources, PartialLine], Candidates]

FIRST_WORDS: dict[str, Words] = {}
"""Completer for each first word with free text, such as `ai`. Modules that add such a word register here."""


def matches(context: Any, session: Callable[[], Session]) -> dict[str, Any]:
    """Return IPython's `SimpleMatcherResult` for a `CompletionContext`."""
    from IPython.core.completer import SimpleCompletion

    typed = typed_in(context.full_text, context.cursor_line, context.cursor_position)
    if typed is None:
        return {"completions": []}
    found = complete(session().sources, typed)
    completions = [SimpleCompletion(text=text, type=found.kind) for text in dict.fromkeys(found.texts)]
    return {"completions": completions, "matched_fragment": found.fragment, "suppress": True, "ordered": True}


def typed_in(text: str, line_number: int, column: int) -> PartialLine | None:
    """Return the magic line at the cursor, or None if the cursor is not in such a line or is inside quotes or brackets."""
    lines = text.split("\n")
    before = lines[line_number][:column]
    cell = CELL.match(before) if not "".join(lines[:line_number]).strip() else None
    found = cell or LINE.match(before)
    if found is None:
        return None
    rest = found["rest"]
    try:
        words = tokens(rest)
    except UsageError:
        return None
    current = words.pop() if words and not rest[-1].isspace() else ""
    return PartialLine(tuple(words), current, "\n".join(lines[line_number + 1 :]) if cell else None)


def complete(sources: CompletionSources, typed: PartialLine) -> Candidates:
    """Return the candidates at the cursor."""
    if typed.before and typed.before[0] in FIRST_WORDS:
        return FIRST_WORDS[typed.before[0]](sources, typed)
    if typed.code is not None:
        return _cell(sources, typed)
    if not typed.before:
        return Candidates(typed.current).offer([*COMMANDS, *FIRST_WORDS, *sources.operations()], "magic")
    word = typed.before[0]
    return _command(sources, typed) if word in COMMANDS else _operation(sources, typed)


def _cell(sources: CompletionSources, typed: PartialLine) -> Candidates:
    if (found := option_value(sources, typed)) is not None:
        return found
    if not typed.before and not typed.current.startswith("-"):
        return options(typed, SEVERAL).offer(FIRST_WORDS, "magic")
    return options(typed, SEVERAL)


def options(typed: PartialLine, more: Sequence[str] = ()) -> Candidates:
    """Return the unused options: task options and `more`."""
    known = [*more, *(f"--{name.replace('_', '-')}" for name in OPTIONS), *FLAGS]
    return Candidates(typed.current).offer([name for name in known if name not in typed.before], "option")


def option_value(sources: CompletionSources, typed: PartialLine) -> Candidates | None:
    """Return the candidates for the value of the option before the cursor, or None if no value is expected."""
    if typed.current.startswith("-") or not (option := _open_option(typed.before)):
        return None
    if option in SEVERAL:
        return _names(sources, typed, option)
    values: dict[str, Callable[[], Iterable[str]]] = {
        "--device": lambda: ("auto", "gpu", "cpu", *sources.devices()),
        "--priority": lambda: map(str, range(10, 0, -1)),
        "--session": sources.sessions,
    }
    return Candidates(typed.current).offer(values[option]() if option in values else (), "value")


def _open_option(before: Sequence[str]) -> str | None:
    """Return the last option if it still takes a value."""
    option = None
    for word in before:
        if word.startswith("--"):
            option = word if word not in ALONE else None
        elif option not in SEVERAL:
            option = None
    return option


def _names(sources: CompletionSources, typed: PartialLine, option: str) -> Candidates:
    """Return the candidates for a list of variables. `--out` also offers the variables that the cell assigns."""
    given, comma, fragment = typed.current.rpartition(",")
    start = max(place for place, word in enumerate(typed.before) if word == option)
    taken = {name for word in (*typed.before[start + 1 :], given) for name in word.split(",")}
    names = sources.variables() if option == "--in" else [*assigned(typed.code or ""), *sources.variables()]
    return Candidates(fragment if comma else typed.current).offer([name for name in names if name not in taken], "variable")


def _command(sources: CompletionSources, typed: PartialLine) -> Candidates:
    command, place = COMMANDS[typed.before[0]], 0
    if command.options and (typed.current.startswith("-") or _open_option(typed.before)):
        return option_value(sources, typed) or options(typed)
    if typed.current.startswith("-"):
        return Candidates(typed.current).offer([*(["--notify"] if command.follows else []), "--verbose"], "option")
    name, equals, value = typed.current.partition("=")
    if equals:
        return Candidates(value).offer(command.keywords.get(name, ()), "value")
    place = sum("=" not in word for word in typed.before[1:])
    found = Candidates(typed.current)
    if place < len(command.operands):
        found.offer(command.operands[place].complete(sources), "value")
    if place < len(command.unnamed):
        found.offer(command.keywords[command.unnamed[place]], "value")
    given = {word.partition("=")[0] for word in typed.before}
    return found.offer([f"{name}=" for name in command.keywords if name not in given], "parameter")


def _operation(sources: CompletionSources, typed: PartialLine) -> Candidates:
    if typed.current.startswith("-") or _open_option(typed.before):
        return option_value(sources, typed) or options(typed)
    fields = sources.parameters(typed.before[0])
    name, equals, value = typed.current.partition("=")
    if equals:
        return Candidates(value).offer(_values(fields.get(name, {})), "value")
    given = {word.partition("=")[0] for word in typed.before}
    return Candidates(typed.current).offer([f"{name}=" for name in fields if name not in given], "parameter")


def _values(schema: dict[str, Any]) -> list[str]:
    """Return the values of an enumeration or boolean, else the default value."""
    kinds = [schema, *schema.get("anyOf", ())]
    found = [str(value) for kind in kinds for value in kind.get("enum", [kind["const"]] if "const" in kind else ())]
    if any(kind.get("type") == "boolean" for kind in kinds):
        found += ["True", "False"]
    default = schema.get("default")
    if not found and default is not None:
        # Strings with spaces, lists and dicts are quoted so that they can be parsed again.
        found.append(default if isinstance(default, str) and re.fullmatch(r"[\w./:-]+", default) else repr(default))
    return found
