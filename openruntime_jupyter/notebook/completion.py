"""What Tab offers behind `%openruntime` and `%%openruntime`: words, options, parameters with their values, tasks, models, variables."""

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
"""Options that take names up to the next option."""


@dataclass(frozen=True)
class Typed:
    """A magic's line up to the cursor: the words before, the beginning of the one that is typed, and the code of its cell."""

    before: tuple[str, ...]
    current: str
    code: str | None = None
    """None for a line magic."""


@dataclass
class Found:
    """What could stand there, of which kind, and how much of the line it replaces."""

    fragment: str
    texts: list[str] = field(default_factory=list)
    kind: str = ""

    def offer(self, texts: Iterable[str], kind: str) -> Found:
        """Keep those of `texts` that begin as the fragment does."""
        self.texts += [text for text in texts if text.startswith(self.fragment)]
        self.kind = self.kind or kind
        return self


Words = Callable[[CompletionSources, Typed], Found]

FIRST_WORDS: dict[str, Words] = {}
"""Who completes a cell whose first word is this one, such as `ai`: whoever adds such a word registers here."""


def matches(context: Any, session: Callable[[], Session]) -> dict[str, Any]:
    """IPython's question (a `CompletionContext`) and its answer (a `SimpleMatcherResult`)."""
    from IPython.core.completer import SimpleCompletion

    typed = typed_in(context.full_text, context.cursor_line, context.cursor_position)
    if typed is None:
        return {"completions": []}
    found = complete(session().offers, typed)
    completions = [SimpleCompletion(text=text, type=found.kind) for text in dict.fromkeys(found.texts)]
    return {"completions": completions, "matched_fragment": found.fragment, "suppress": True, "ordered": True}


def typed_in(text: str, line_number: int, column: int) -> Typed | None:
    """The magic in whose line the cursor stands; None where it stands in no line of ours, or within quotes or brackets."""
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
    return Typed(tuple(words), current, "\n".join(lines[line_number + 1 :]) if cell else None)


def complete(offers: CompletionSources, typed: Typed) -> Found:
    """What could stand where the cursor is."""
    if typed.before and typed.before[0] in FIRST_WORDS:
        return FIRST_WORDS[typed.before[0]](offers, typed)
    if typed.code is not None:
        return _cell(offers, typed)
    if not typed.before:
        return Found(typed.current).offer([*COMMANDS, *FIRST_WORDS, *offers.operations()], "magic")
    word = typed.before[0]
    return _command(offers, typed) if word in COMMANDS else _operation(offers, typed)


def _cell(offers: CompletionSources, typed: Typed) -> Found:
    if (found := option_value(offers, typed)) is not None:
        return found
    if not typed.before and not typed.current.startswith("-"):
        return options(typed, SEVERAL).offer(FIRST_WORDS, "magic")
    return options(typed, SEVERAL)


def options(typed: Typed, more: Sequence[str] = ()) -> Found:
    """Options that were not given yet: those of every task, and `more`."""
    known = [*more, *(f"--{name.replace('_', '-')}" for name in OPTIONS), *FLAGS]
    return Found(typed.current).offer([name for name in known if name not in typed.before], "option")


def option_value(offers: CompletionSources, typed: Typed) -> Found | None:
    """What could be the value of the option before the cursor; None where that is not a value's place."""
    if typed.current.startswith("-") or not (option := _open_option(typed.before)):
        return None
    if option in SEVERAL:
        return _names(offers, typed, option)
    values: dict[str, Callable[[], Iterable[str]]] = {
        "--device": lambda: ("auto", "gpu", "cpu", *offers.devices()),
        "--priority": lambda: map(str, range(10, 0, -1)),
        "--session": offers.sessions,
    }
    return Found(typed.current).offer(values[option]() if option in values else (), "value")


def _open_option(before: Sequence[str]) -> str | None:
    """The option that still takes a value where these words end."""
    option = None
    for word in before:
        if word.startswith("--"):
            option = word if word not in ALONE else None
        elif option not in SEVERAL:
            option = None
    return option


def _names(offers: CompletionSources, typed: Typed, option: str) -> Found:
    """Variables, one after the other: what goes in is there, what comes out is set by the cell."""
    given, comma, fragment = typed.current.rpartition(",")
    start = max(place for place, word in enumerate(typed.before) if word == option)
    taken = {name for word in (*typed.before[start + 1 :], given) for name in word.split(",")}
    names = offers.variables() if option == "--in" else [*assigned(typed.code or ""), *offers.variables()]
    return Found(fragment if comma else typed.current).offer([name for name in names if name not in taken], "variable")


def _command(offers: CompletionSources, typed: Typed) -> Found:
    command, place = COMMANDS[typed.before[0]], 0
    if command.options and (typed.current.startswith("-") or _open_option(typed.before)):
        return option_value(offers, typed) or options(typed)
    if typed.current.startswith("-"):
        return Found(typed.current).offer([*(["--notify"] if command.watches else []), "--verbose"], "option")
    name, equals, value = typed.current.partition("=")
    if equals:
        return Found(value).offer(command.takes.get(name, ()), "value")
    place = sum("=" not in word for word in typed.before[1:])
    found = Found(typed.current)
    if place < len(command.wants):
        found.offer(command.wants[place].offers(offers), "value")
    if place < len(command.bare):
        found.offer(command.takes[command.bare[place]], "value")
    given = {word.partition("=")[0] for word in typed.before}
    return found.offer([f"{name}=" for name in command.takes if name not in given], "parameter")


def _operation(offers: CompletionSources, typed: Typed) -> Found:
    if typed.current.startswith("-") or _open_option(typed.before):
        return option_value(offers, typed) or options(typed)
    fields = offers.parameters(typed.before[0])
    name, equals, value = typed.current.partition("=")
    if equals:
        return Found(value).offer(_values(fields.get(name, {})), "value")
    given = {word.partition("=")[0] for word in typed.before}
    return Found(typed.current).offer([f"{name}=" for name in fields if name not in given], "parameter")


def _values(schema: dict[str, Any]) -> list[str]:
    """The values that a parameter may have, where they can be listed, else the one that it has by default."""
    kinds = [schema, *schema.get("anyOf", ())]
    found = [str(value) for kind in kinds for value in kind.get("enum", [kind["const"]] if "const" in kind else ())]
    if any(kind.get("type") == "boolean" for kind in kinds):
        found += ["True", "False"]
    default = schema.get("default")
    if not found and default is not None:
        # Texts with spaces, lists and tables in the form in which they are read again.
        found.append(default if isinstance(default, str) and re.fullmatch(r"[\w./:-]+", default) else repr(default))
    return found
