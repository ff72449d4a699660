"""Subcommands of `%openruntime`. Each is a function from the session and the parsed line to a displayable value."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, get_args

from IPython.core.error import UsageError
from IPython.display import publish_display_data

from openruntime_jupyter.client.handles import PromptHandle
from openruntime_jupyter.notebook.ai import line_words
from openruntime_jupyter.notebook.ai.pull import known_models
from openruntime_jupyter.notebook.ai.sanitize import sanitize
from openruntime_jupyter.notebook.arguments import Arguments, literal, parse_line
from openruntime_jupyter.notebook.completion_sources import LIVE, CompletionSources
from openruntime_jupyter.notebook.display.cards import InsightsCard, ModelTable
from openruntime_jupyter.notebook.display.help import Help
from openruntime_jupyter.notebook.display.tables import DeviceTable, OperationTable, SessionTable, Status, WorkerTable
from openruntime_jupyter.notebook.display.tasks import TaskCard, TaskTable
from openruntime_jupyter.notebook.doctor import Report, examine
from openruntime_jupyter.notebook.run.cell import completed, run_again, run_operation, shown, watch
from openruntime_jupyter.notebook.run.output import Replay
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.schemas.insights import MetricType, WordingChoice
from openruntime_jupyter.schemas.system import Health, Timeframe
from openruntime_jupyter.schemas.tasks import TaskState

START_SECONDS = 10.0
"""Time that `status` and `devices` wait for a new runtime to detect its devices."""


def run_line(session: Session, line: str) -> Any:
    """Run a line of `%openruntime`. Raises `UsageError` for an invalid line."""
    first, _, rest_of_line = line.strip().partition(" ")
    if first in line_words.PROMPTS:
        return line_words.PROMPTS[first](session, rest_of_line)
    arguments = parse_line(line)
    if arguments.help or arguments.words in ((), ("help",)):
        if arguments.pairs or arguments.options:
            raise UsageError(
                "a command or operation is missing, such as `%openruntime matrix_multiply size=1000`; see `%openruntime` for help"
            )
        return Help()
    word, *rest = arguments.words
    if word in COMMANDS:
        return COMMANDS[word].run(session, arguments, rest)
    known = {entry.name: entry for entry in session.client.operations()}
    if word not in known:
        near = get_close_matches(word, [*COMMANDS, *line_words.PROMPTS, *known], 3, 0.5)
        advice = f"Did you mean {' or '.join(near)}?" if near else f"Use one of {', '.join([*COMMANDS, *line_words.PROMPTS, *known])}"
        raise UsageError(f"{word!r} is neither a command nor an operation. {advice}")
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}: write parameters of {word} as name=value")
    return run_operation(session, arguments, word)


@dataclass(frozen=True)
class Operand:
    """Required positional argument of a subcommand: its description and its completions."""

    description: str
    complete: Callable[[CompletionSources], Iterable[str]] = lambda _: ()


@dataclass(frozen=True)
class Command:
    """One subcommand and its arguments."""

    function: Callable[..., Any]
    operands: tuple[Operand, ...] = ()
    keywords: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Keyword arguments (`name=value`) with their allowed values. An empty tuple allows any value."""
    unnamed: tuple[str, ...] = ()
    """Keyword arguments that may be given without their name."""
    multiple: tuple[str, ...] = ()
    """Keyword arguments that accept several comma-separated values."""
    options: bool = False
    """True if the subcommand accepts task options."""
    follows: bool = False
    """True if the subcommand waits for a task, and so accepts `--notify`."""

    def run(self, session: Session, arguments: Arguments, rest: list[str]) -> Any:
        """Validate the arguments and run the subcommand. Raises `UsageError` for invalid arguments."""
        word = arguments.words[0]
        if not self.options and (arguments.options or arguments.background or arguments.variable):
            raise UsageError(f"{word} takes no options: only operations and cells do")
        if arguments.notify and not self.follows:
            raise UsageError(f"{word} does not wait for a task, so it does not support --notify")
        wrong = [name for name in arguments.pairs if name not in self.keywords]
        if wrong:
            taken = ", ".join(f"{name}=…" for name in self.keywords) or "no named arguments"
            raise UsageError(f"{word} has no argument {wrong[0]!r}: it takes {taken}")
        wanted, more = rest[: len(self.operands)], rest[len(self.operands) :]
        if len(wanted) < len(self.operands) or len(more) > len(self.unnamed):
            raise UsageError(f"{word} takes {' and '.join(operand.description for operand in self.operands) or 'no further arguments'}")
        for text in more:
            arguments.pairs.setdefault(self._name_of(text, arguments.pairs), text)
        for name, value in arguments.pairs.items():
            self._check(name, value)
        return self.function(session, arguments, *wanted)

    def _name_of(self, text: str, given: Mapping[str, Any]) -> str:
        """Return the name of an unnamed value: the first argument that allows it."""
        free = [name for name in self.unnamed if name not in given]
        fitting = (name for name in free if self._parts(name, text)[0] in self.keywords[name])
        return next(fitting, free[0] if free else self.unnamed[-1])

    def _parts(self, name: str, value: Any) -> list[str]:
        return [part.strip() for part in str(value).split(",")] if name in self.multiple else [str(value)]

    def _check(self, name: str, value: Any) -> None:
        known = self.keywords[name]
        unknown = [part for part in self._parts(name, value) if known and part not in known]
        if unknown:
            near = get_close_matches(unknown[0], known, 1)
            advice = f"did you mean {near[0]}? The values are" if near else "the values are"
            raise UsageError(f"unknown {name} {unknown[0]!r}; {advice} {', '.join(known)}")


def _status(session: Session, _arguments: Arguments) -> Status:
    return Status(session.client.where, _started(session), session.client.devices())


def _started(session: Session) -> Health:
    """Return the runtime's health once it has started and detected its devices."""
    deadline = time.monotonic() + START_SECONDS
    while (health := session.client.health()).status == "starting" and time.monotonic() < deadline:
        time.sleep(0.05)
    return health


def _connect(session: Session, arguments: Arguments, word: str) -> Status:
    session.use(None if word == "auto" else word)
    return _status(session, arguments)


def _tasks(session: Session, arguments: Arguments) -> TaskTable:
    wanted: Mapping[str, Any] = {"limit": 20, **arguments.pairs}
    states = [part.strip() for part in str(wanted["state"]).split(",")] if "state" in wanted else None
    if not isinstance(wanted["limit"], int) or not 1 <= wanted["limit"] <= 1000:
        raise UsageError("limit must be a whole number from 1 to 1000")
    page = session.client.tasks(limit=wanted["limit"], states=states, operation=wanted.get("operation"), owner=wanted.get("owner"))
    return TaskTable(page, session.devices(), {name: str(value) for name, value in arguments.pairs.items() if name != "limit"})


def _devices(session: Session, _arguments: Arguments) -> DeviceTable:
    _started(session)
    return DeviceTable(session.client.devices())


def _workers(session: Session, _arguments: Arguments) -> WorkerTable:
    return WorkerTable(session.client.workers(), session.devices())


def _sessions(session: Session, _arguments: Arguments) -> SessionTable:
    return SessionTable(session.client.sessions())


def _restart(session: Session, _arguments: Arguments, word: str) -> SessionTable:
    session.client.restart_session(str(literal(word)))
    return SessionTable(session.client.sessions())


def _free(session: Session, _arguments: Arguments, word: str) -> SessionTable:
    session.client.free_session(str(literal(word)))
    return SessionTable(session.client.sessions())


def _priority(session: Session, _arguments: Arguments, word: str, level: str) -> TaskCard:
    if not level.isdecimal() or not 1 <= int(level) <= 10:
        raise UsageError(f"{level!r} is not a valid priority: use 1 to 10, where 10 is the most urgent")
    return TaskCard(session.handle(word).set_priority(int(level)), session.devices())


def _models(session: Session, _arguments: Arguments) -> ModelTable:
    return ModelTable(session.client.models())


def _unload(session: Session, _arguments: Arguments, word: str) -> ModelTable:
    session.client.unload(str(literal(word)))
    return ModelTable(session.client.models())


def _insights(session: Session, arguments: Arguments) -> InsightsCard:
    wanted = {"metric": "performance", "timeframe": "1h", "wording": "none", **arguments.pairs}
    return InsightsCard(session.client.insights(wanted["metric"], wanted["timeframe"], wanted["wording"]))


def _doctor(session: Session, _arguments: Arguments) -> Report:
    return examine(lambda: session.client)


def _dashboard(session: Session, arguments: Arguments) -> Any:
    from openruntime_jupyter.notebook.dashboard.widget import Dashboard

    return Dashboard(session.client, arguments.pairs.get("timeframe", "5m"))


def _operations(session: Session, _arguments: Arguments) -> OperationTable:
    return OperationTable(session.client.operations())


def _cancel(session: Session, _arguments: Arguments, word: str) -> TaskCard:
    return TaskCard(session.handle(word).cancel(), session.devices())


def _result(session: Session, arguments: Arguments, word: str) -> Any:
    handle = session.handle(word)
    task = handle.task
    if not task.status.terminal:
        raise UsageError(f"{handle.id} is still {task.status}: use `%openruntime wait {word}` to wait for it")
    completed(session, task, arguments.verbose, watched=False)
    return shown(task, handle.result())


def _output(session: Session, _arguments: Arguments, word: str) -> None:
    handle = session.handle(word)
    output = handle.output
    if isinstance(handle, PromptHandle):
        publish_display_data({"text/markdown": sanitize(output.stdout), "text/plain": output.stdout})
    else:
        Replay().show(output.items)


def _wait(session: Session, arguments: Arguments, word: str) -> None:
    watch(session, arguments, session.handle(word))


def _retry(session: Session, arguments: Arguments, word: str) -> Any:
    handle = session.handle(word)
    if not handle.status.terminal:
        raise UsageError(f"{handle.id} is still {handle.last_seen.status}: use `%openruntime wait {word}` to wait for it")
    return run_again(session, arguments, handle)


def _task(*states: TaskState) -> Operand:
    return Operand("the id of one task or a variable with its handle", lambda sources: sources.tasks(*states))


RETRY = Command(_retry, operands=(_task(),), options=True, follows=True)
TIMEFRAMES = get_args(Timeframe)
SESSION = Operand("the name or id of a session", lambda sources: sources.sessions())
CONVERSATION = Operand("the name of a conversation", lambda sources: sources.conversations())
PLACE = Operand(
    "the URL of a runtime, or `embedded` (a runtime inside this kernel), or `auto` (the default runtime of this kernel)",
    lambda _: ("embedded", "auto"),
)

COMMANDS: dict[str, Command] = {
    "status": Command(_status),
    "devices": Command(_devices),
    "workers": Command(_workers),
    "sessions": Command(_sessions),
    "restart": Command(_restart, operands=(SESSION,)),
    "free": Command(_free, operands=(SESSION,)),
    "connect": Command(_connect, operands=(PLACE,)),
    "tasks": Command(
        _tasks,
        keywords={"limit": (), "state": tuple(str(state) for state in TaskState), "operation": (), "owner": ()},
        unnamed=("state",),
        multiple=("state",),
    ),
    "operations": Command(_operations),
    "wait": Command(_wait, operands=(_task(*LIVE),), follows=True),
    "output": Command(_output, operands=(_task(),)),
    "result": Command(_result, operands=(_task(TaskState.COMPLETED, TaskState.FAILED),)),
    "retry": RETRY,
    "again": RETRY,
    "models": Command(_models),
    "unload": Command(_unload, operands=(Operand("the name of a loaded model", lambda sources: sources.resident()),)),
    "agents": Command(lambda session, _: line_words.agents(session)),
    "config": Command(lambda session, _: line_words.config(session)),
    "pull": Command(
        lambda session, given: line_words.pull(session, given.pairs.get("model")), keywords={"model": known_models()}, unnamed=("model",)
    ),
    "conversations": Command(lambda session, _: line_words.conversations(session)),
    "conversation": Command(lambda session, _, name: line_words.conversation(session, str(literal(name))), operands=(CONVERSATION,)),
    "forget": Command(lambda session, _, name: line_words.forget(session, str(literal(name))), operands=(CONVERSATION,)),
    "insights": Command(
        _insights,
        keywords={"metric": get_args(MetricType), "timeframe": TIMEFRAMES, "wording": get_args(WordingChoice)},
        unnamed=("metric", "timeframe"),
    ),
    "dashboard": Command(_dashboard, keywords={"timeframe": TIMEFRAMES}, unnamed=("timeframe",)),
    "doctor": Command(_doctor),
    "priority": Command(
        _priority,
        operands=(_task(TaskState.PENDING), Operand("a number from 1 to 10", lambda _: map(str, range(10, 0, -1)))),
    ),
    "cancel": Command(_cancel, operands=(_task(*LIVE),)),
}
"""Subcommands by name, also used for completion and for suggestions on typing errors."""
