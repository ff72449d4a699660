"""Tab completion for `%openruntime` and `%%openruntime`, made from the tables of commands and options.

The candidates are names known to the kernel and its runtime. Nothing here raises, starts a runtime or blocks for long, since completion
must respond quickly.
"""

from __future__ import annotations

import ast
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from IPython.core.completer import SimpleCompletion
from IPython.core.error import UsageError

from openruntime_jupyter.ai.workflows import WORKFLOWS
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.notebook.ai.options import OPTIONS as AI_OPTIONS
from openruntime_jupyter.notebook.arguments import CELL_OPTIONS, LINE_OPTIONS, SET, Option, tokens
from openruntime_jupyter.notebook.commands import COMMANDS
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.schemas.ai import LOCAL
from openruntime_jupyter.schemas.system import OperationInfo
from openruntime_jupyter.schemas.tasks import TaskState

PATIENCE = 1.0
"""Maximum wait for the runtime, in seconds. Later results are available at the next Tab."""
KEPT = 30.0
"""Lifetime of cached operations and devices, in seconds."""
CHANGING = 2.0
"""Lifetime of cached sessions, conversations and models, in seconds."""
NEWEST = 30
"""Maximum number of offered tasks."""
MOST_FILES = 100
"""Maximum number of offered files."""

LINE = re.compile(r"^\s*(?:[\w\s,.\[\]]+=\s*)?%openruntime\s+(?P<rest>.*)$", re.DOTALL)
CELL = re.compile(r"^\s*%%openruntime\s+(?P<rest>.*)$", re.DOTALL)

Answer = TypeVar("Answer")


class CompletionSources:
    """Cached names from the kernel and its runtime, by kind of option or operand."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._cache: dict[str, tuple[float, Any]] = {}
        self._sources: dict[str, Callable[[], Iterable[str]]] = {
            "agent": lambda: [agent.role for agent in self._ask("agents", lambda client: client.agents().agents)],
            "conversation": lambda: self._names("conversations", lambda client: client.conversations()),
            "device": lambda: (
                "auto",
                "gpu",
                "cpu",
                *(device.id for device in self._ask("devices", lambda client: client.devices(), KEPT)),
                *self._names("hosts", lambda client: client.hosts()),
            ),
            "finished task": lambda: self._tasks(TaskState.COMPLETED, TaskState.FAILED),
            "live task": lambda: self._tasks(TaskState.PENDING, TaskState.RUNNING),
            "loaded model": lambda: [model.name for model in self._ask("models", lambda client: client.models().models) if model.resident],
            "model": lambda: self._names("models", lambda client: client.models().models),
            "outputs": self._variables,
            "pending task": lambda: self._tasks(TaskState.PENDING),
            "priority": lambda: map(str, range(10, 0, -1)),
            "profile": lambda: (LOCAL, *self._names("profiles", lambda client: client.models().profiles)),
            "runtime": lambda: ("embedded", "auto"),
            "schema": self._schemas,
            "session": lambda: self._names("sessions", lambda client: client.sessions()),
            "task": self._tasks,
            "variable": self._variables,
            "variables": self._variables,
        }

    def of(self, kind: str) -> Iterable[str]:
        """Return the names of a kind, such as `device`. Kinds without known names, such as `number`, have none."""
        source = self._sources.get(kind)
        return () if source is None else source()

    def operations(self) -> dict[str, OperationInfo]:
        """Return the operations by name."""
        found: list[OperationInfo] = self._ask("operations", lambda client: client.operations(), KEPT)
        return {entry.name: entry for entry in found or self._own_operations()}

    def parameters(self, operation: str) -> dict[str, Any]:
        """Return the schemas of an operation's parameters by name."""
        known = self.operations().get(operation)
        return {} if known is None else known.parameters_schema.get("properties", {})

    def _variables(self) -> list[str]:
        """Return the user's variables, without modules."""
        hidden = self._session.shell.user_ns_hidden
        return sorted(
            name
            for name, value in self._session.namespace.items()
            if not name.startswith("_") and name not in hidden and not isinstance(value, ModuleType)
        )

    def _schemas(self) -> list[str]:
        """Return the variables that may hold a schema, then the JSON files in the current folder."""
        variables = [name for name in self._variables() if isinstance(self._session.namespace.get(name), (dict, type))]
        files = sorted(path.name for path in islice(Path.cwd().glob("*.json"), MOST_FILES) if not re.search(r"\s", path.name))
        return [*variables, *files]

    def _tasks(self, *states: TaskState) -> list[str]:
        """Return the variables that hold a handle, then the ids of the newest tasks in `states` (default: all states)."""
        wanted = [str(state) for state in states] or None
        handles = [name for name, value in self._session.namespace.items() if isinstance(value, TaskHandle)]
        newest = self._ask(f"tasks {wanted}", lambda client: client.tasks(NEWEST, states=wanted).tasks, kept=0.0)
        return [*handles, *(task.task_id for task in newest)]

    def _own_operations(self) -> list[OperationInfo]:
        """Return the operations of an embedded runtime, without starting it."""
        from openruntime_jupyter.operations.registry import describe_operations

        return self._cached("own operations", describe_operations, KEPT)

    def _names(self, what: str, query: Callable[[Client], list[Any]]) -> list[str]:
        found: list[Any] = self._ask(what, query)
        return [each.name for each in found]

    def _ask(self, what: str, query: Callable[[Client], list[Answer]], kept: float = CHANGING) -> list[Answer]:
        def ask() -> list[Answer]:
            client = self._session.client
            return [] if getattr(client.backend, "started", True) is False else query(client)

        return self._cached(what, ask, kept)

    def _cached(self, what: str, find: Callable[[], list[Answer]], kept: float) -> list[Answer]:
        found = self._cache.get(what)
        if found is None or not found[1] or time.monotonic() - found[0] > kept:

            def refresh() -> None:
                with suppress(Exception):  # an unreachable runtime or a package that cannot be imported has no candidates
                    self._cache[what] = time.monotonic(), find()

            thread = threading.Thread(target=refresh, name="openruntime-completion", daemon=True)
            thread.start()
            thread.join(PATIENCE)
        cached: list[Answer] = self._cache.get(what, (0.0, []))[1]
        return cached


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


def matches(context: Any, sources: CompletionSources) -> dict[str, Any]:
    """Return IPython's `SimpleMatcherResult` for a `CompletionContext`."""
    typed = typed_in(context.full_text, context.cursor_line, context.cursor_position)
    if typed is None:
        return {"completions": []}
    found = complete(sources, typed)
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
    word = typed.before[0] if typed.before else None
    if word == "ai" or (word is not None and typed.code is None and word in COMMANDS and COMMANDS[word].free_text):
        found = _options(sources, typed, AI_OPTIONS)
        return found.offer(WORKFLOWS, "workflow") if typed.before == ("ai",) and not typed.current.startswith("-") else found
    if typed.code is not None:
        found = _options(sources, typed, CELL_OPTIONS)
        return found.offer(["ai"], "magic") if word is None and not typed.current.startswith("-") else found
    if word is None:
        return Candidates(typed.current).offer([*COMMANDS, *sources.operations()], "magic")
    return _command(sources, typed) if word in COMMANDS else _operation(sources, typed)


def _options(sources: CompletionSources, typed: PartialLine, options: Mapping[str, Option]) -> Candidates:
    """Return the candidates for the value of the option before the cursor, or else the unused options."""
    name = _open_option(typed, options)
    if name is None:
        return Candidates(typed.current).offer([name for name in options if name not in typed.before], "option")
    option = options[name]
    if option.kind not in ("variables", "outputs"):
        return Candidates(typed.current).offer(option.choices or sources.of(option.kind), "value")
    given, _, fragment = typed.current.rpartition(",")
    start = max(place for place, word in enumerate(typed.before) if word == name)
    taken = {name for word in (*typed.before[start + 1 :], given) for name in word.split(",")}
    assigned = assigned_names(typed.code or "") if option.kind == "outputs" else []
    return Candidates(fragment).offer([name for name in (*assigned, *sources.of(option.kind)) if name not in taken], "variable")


def _open_option(typed: PartialLine, options: Mapping[str, Option]) -> str | None:
    """Return the option whose value is being typed, or None."""
    if typed.current.startswith("-"):
        return None
    opened: str | None = None
    for word in typed.before:
        if word in options:
            opened = word if options[word].kind else None
        elif opened is not None and options[opened].many != "words":
            opened = None
    return opened


def _command(sources: CompletionSources, typed: PartialLine) -> Candidates:
    command = COMMANDS[typed.before[0]]
    if command.options and (typed.current.startswith("-") or _open_option(typed, LINE_OPTIONS)):
        return _options(sources, typed, LINE_OPTIONS)
    if typed.current.startswith("-"):
        own = [*(["--notify"] if command.follows else []), *([SET] if command.sets else [])]
        return Candidates(typed.current).offer([*own, "--verbose"], "option")
    name, equals, value = typed.current.partition("=")
    if equals:
        return Candidates(value).offer(command.keywords.get(name, ()), "value")
    place = sum("=" not in word for word in typed.before[1:])
    found = Candidates(typed.current)
    if place < len(command.operands):
        found.offer(sources.of(command.operands[place].kind), "value")
    if place < len(command.unnamed):
        found.offer(command.keywords[command.unnamed[place]], "value")
    given = {word.partition("=")[0] for word in typed.before}
    return found.offer([f"{name}=" for name in command.keywords if name not in given], "parameter")


def _operation(sources: CompletionSources, typed: PartialLine) -> Candidates:
    if typed.current.startswith("-") or _open_option(typed, LINE_OPTIONS):
        return _options(sources, typed, LINE_OPTIONS)
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


def assigned_names(code: str) -> list[str]:
    """Return the names that a cell assigns at top level. Code with syntax errors is searched line by line."""
    try:
        return list(dict.fromkeys(_stored(ast.parse(code))))
    except SyntaxError:
        return list(dict.fromkeys(re.findall(r"^([^\W\d]\w*)\s*=(?!=)", code, re.MULTILINE)))


def _stored(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child.name
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        elif not isinstance(child, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            yield from _stored(child)
