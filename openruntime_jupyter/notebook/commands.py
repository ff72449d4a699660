"""The words of `%openruntime`: each a function from the session and the line's arguments to something that shows itself."""

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
"""How long `status` and `devices` wait for a runtime that has just been started to know its devices."""


def run_line(session: Session, line: str) -> Any:
    """Do what a line of `%openruntime` says; raises `UsageError` for what it does not understand."""
    first, _, rest_of_line = line.strip().partition(" ")
    if first in line_words.PROMPTS:
        return line_words.PROMPTS[first](session, rest_of_line)
    arguments = parse_line(line)
    if arguments.help or arguments.words in ((), ("help",)):
        if arguments.pairs or arguments.options:
            raise UsageError(
                "say first what to do, such as `%openruntime matrix_multiply size=1000`; `%openruntime` alone shows what there is."
            )
        return Help()
    word, *rest = arguments.words
    if word in COMMANDS:
        return COMMANDS[word].run(session, arguments, rest)
    known = {entry.name: entry for entry in session.client.operations()}
    if word not in known:
        near = get_close_matches(word, [*COMMANDS, *line_words.PROMPTS, *known], 3, 0.5)
        advice = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join([*COMMANDS, *line_words.PROMPTS, *known])}."
        raise UsageError(f"{word!r} is neither a command nor an operation. {advice}")
    if rest:
        raise UsageError(f"{rest[0]!r} is not understood: parameters of {word} are written as name=value.")
    return run_operation(session, arguments, word)


@dataclass(frozen=True)
class Want:
    """One thing that must stand behind a word: what it is, and what can be offered for it."""

    says: str
    offers: Callable[[CompletionSources], Iterable[str]] = lambda _: ()


@dataclass(frozen=True)
class Command:
    """One word, and what may stand behind it."""

    does: Callable[..., Any]
    wants: tuple[Want, ...] = ()
    takes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Which `name=value`, with the values that there are; none are listed where any will do."""
    bare: tuple[str, ...] = ()
    """Those whose value may stand there without its name."""
    lists: tuple[str, ...] = ()
    """Those that take several values, with commas between them."""
    options: bool = False
    """Whether it takes the options of a task."""
    watches: bool = False
    """Whether it waits for a task, whose end it can give notice of."""

    def run(self, session: Session, arguments: Arguments, rest: list[str]) -> Any:
        """Check what stands behind the word, and do it; raises `UsageError` for what does not belong there."""
        word = arguments.words[0]
        if not self.options and (arguments.options or arguments.background or arguments.variable):
            raise UsageError(f"{word} takes no options: they belong to operations and cells.")
        if arguments.notify and not self.watches:
            raise UsageError(f"{word} waits for nothing that --notify could tell the end of.")
        wrong = [name for name in arguments.pairs if name not in self.takes]
        if wrong:
            taken = ", ".join(f"{name}=…" for name in self.takes) or "nothing of that kind"
            raise UsageError(f"{word} does not know {wrong[0]!r}: it takes {taken}.")
        wanted, more = rest[: len(self.wants)], rest[len(self.wants) :]
        if len(wanted) < len(self.wants) or len(more) > len(self.bare):
            raise UsageError(f"{word} wants {' and '.join(want.says for want in self.wants) or 'nothing more'} behind it.")
        for text in more:
            arguments.pairs.setdefault(self._meant(text, arguments.pairs), text)
        for name, value in arguments.pairs.items():
            self._check(name, value)
        return self.does(session, arguments, *wanted)

    def _meant(self, text: str, given: Mapping[str, Any]) -> str:
        """Which of those that stand without a name `text` is: the first whose values have it."""
        free = [name for name in self.bare if name not in given]
        fitting = (name for name in free if self._parts(name, text)[0] in self.takes[name])
        return next(fitting, free[0] if free else self.bare[-1])

    def _parts(self, name: str, value: Any) -> list[str]:
        return [part.strip() for part in str(value).split(",")] if name in self.lists else [str(value)]

    def _check(self, name: str, value: Any) -> None:
        known = self.takes[name]
        unknown = [part for part in self._parts(name, value) if known and part not in known]
        if unknown:
            near = get_close_matches(unknown[0], known, 1)
            advice = f"did you mean {near[0]}? There are" if near else "there are"
            raise UsageError(f"there is no {name} {unknown[0]!r}; {advice} {', '.join(known)}.")


def _status(session: Session, _arguments: Arguments) -> Status:
    return Status(session.client.where, _started(session), session.client.devices())


def _started(session: Session) -> Health:
    """The runtime's health, once it has started and knows its devices."""
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
        raise UsageError("limit is a number from 1 to 1000.")
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
        raise UsageError(f"{level!r} is no priority: 1 to 10, and 10 is the most urgent.")
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
        raise UsageError(f"{handle.id} is still {task.status}: `%openruntime wait {word}` waits for it.")
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
        raise UsageError(f"{handle.id} is still {handle.last_seen.status}: `%openruntime wait {word}` waits for it.")
    return run_again(session, arguments, handle)


def _task(*states: TaskState) -> Want:
    return Want("the id of one task, or the variable with its handle", lambda offers: offers.tasks(*states))


RETRY = Command(_retry, wants=(_task(),), options=True, watches=True)
TIMEFRAMES = get_args(Timeframe)
SESSION = Want("the name or id of a session", lambda offers: offers.sessions())
CONVERSATION = Want("the name of a conversation", lambda offers: offers.conversations())
PLACE = Want(
    "the URL of a runtime, or `embedded` for one inside this kernel, or `auto` for the one that this kernel belongs to,",
    lambda _: ("embedded", "auto"),
)

COMMANDS: dict[str, Command] = {
    "status": Command(_status),
    "devices": Command(_devices),
    "workers": Command(_workers),
    "sessions": Command(_sessions),
    "restart": Command(_restart, wants=(SESSION,)),
    "free": Command(_free, wants=(SESSION,)),
    "connect": Command(_connect, wants=(PLACE,)),
    "tasks": Command(
        _tasks,
        takes={"limit": (), "state": tuple(str(state) for state in TaskState), "operation": (), "owner": ()},
        bare=("state",),
        lists=("state",),
    ),
    "operations": Command(_operations),
    "wait": Command(_wait, wants=(_task(*LIVE),), watches=True),
    "output": Command(_output, wants=(_task(),)),
    "result": Command(_result, wants=(_task(TaskState.COMPLETED, TaskState.FAILED),)),
    "retry": RETRY,
    "again": RETRY,
    "models": Command(_models),
    "unload": Command(_unload, wants=(Want("the name of a model that is in memory", lambda offers: offers.resident()),)),
    "agents": Command(lambda session, _: line_words.agents(session)),
    "config": Command(lambda session, _: line_words.config(session)),
    "pull": Command(
        lambda session, given: line_words.pull(session, given.pairs.get("model")), takes={"model": known_models()}, bare=("model",)
    ),
    "conversations": Command(lambda session, _: line_words.conversations(session)),
    "conversation": Command(lambda session, _, name: line_words.conversation(session, str(literal(name))), wants=(CONVERSATION,)),
    "forget": Command(lambda session, _, name: line_words.forget(session, str(literal(name))), wants=(CONVERSATION,)),
    "insights": Command(
        _insights,
        takes={"metric": get_args(MetricType), "timeframe": TIMEFRAMES, "wording": get_args(WordingChoice)},
        bare=("metric", "timeframe"),
    ),
    "dashboard": Command(_dashboard, takes={"timeframe": TIMEFRAMES}, bare=("timeframe",)),
    "doctor": Command(_doctor),
    "priority": Command(
        _priority,
        wants=(_task(TaskState.PENDING), Want("a number from 1 to 10", lambda _: map(str, range(10, 0, -1)))),
    ),
    "cancel": Command(_cancel, wants=(_task(*LIVE),)),
}
"""Whoever adds a word adds it here; completion and the list of an unknown word's neighbours come with it."""
