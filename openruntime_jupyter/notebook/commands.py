"""The words of `%openruntime`: each a function from the session and the line's arguments to something that shows itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from IPython.core.error import UsageError

from openruntime_jupyter.ai_models_insights import MetricType, WordingChoice
from openruntime_jupyter.models import TaskState, Timeframe
from openruntime_jupyter.notebook.arguments import Arguments, literal
from openruntime_jupyter.notebook.doctor import Report, examine
from openruntime_jupyter.notebook.help import Help
from openruntime_jupyter.notebook.inventory import DeviceTable, OperationTable, Status, WorkerTable
from openruntime_jupyter.notebook.knowing import InsightsCard, ModelTable
from openruntime_jupyter.notebook.replay import Replay
from openruntime_jupyter.notebook.running import completed, run_operation, shown, watch
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.notebook.views import TaskCard, TaskTable

START_SECONDS = 10.0
"""How long `status` waits for a runtime that has just been started to know its devices."""

TASK = "the id of one task, or the variable with its handle"
PLACE = "the URL of a runtime, or `embedded` for one inside this kernel, or `auto` for the one that this kernel belongs to,"


def run_line(session: Session, arguments: Arguments) -> Any:
    """Do what a line of `%openruntime` says; raises `UsageError` for what it does not understand."""
    if arguments.help or not arguments.words:
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
        near = get_close_matches(word, [*COMMANDS, *known], 3, 0.5)
        advice = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join([*COMMANDS, *known])}."
        raise UsageError(f"{word!r} is neither a command nor an operation. {advice}")
    if rest:
        raise UsageError(f"{rest[0]!r} is not understood: parameters of {word} are written as name=value.")
    return run_operation(session, arguments, word)


@dataclass(frozen=True)
class Command:
    """One word: what it does, what it wants behind it (one thing each), and which `name=value` it takes."""

    does: Callable[..., Any]
    wants: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()

    def run(self, session: Session, arguments: Arguments, rest: list[str]) -> Any:
        """Check what stands behind the word, and do it; raises `UsageError` for what does not belong there."""
        word = arguments.words[0]
        if arguments.options or arguments.background or arguments.variable:
            raise UsageError(f"{word} takes no options: they belong to operations and cells.")
        wrong = [name for name in arguments.pairs if name not in self.takes]
        if wrong:
            taken = ", ".join(f"{name}=…" for name in self.takes) or "nothing of that kind"
            raise UsageError(f"{word} does not know {wrong[0]!r}: it takes {taken}.")
        if len(rest) != len(self.wants):
            raise UsageError(f"{word} wants {' and '.join(self.wants) or 'nothing more'} behind it.")
        return self.does(session, arguments, *rest)


def _status(session: Session, _arguments: Arguments) -> Status:
    client = session.client
    deadline = time.monotonic() + START_SECONDS
    while (health := client.health()).status == "starting" and time.monotonic() < deadline:
        time.sleep(0.05)
    return Status(client.where, health, client.devices())


def _connect(session: Session, arguments: Arguments, word: str) -> Status:
    session.use(None if word == "auto" else word)
    return _status(session, arguments)


def _tasks(session: Session, arguments: Arguments) -> TaskTable:
    wanted: Mapping[str, Any] = {"limit": 20, **arguments.pairs}
    states = [part.strip() for part in str(wanted["state"]).split(",")] if "state" in wanted else None
    unknown = [state for state in states or () if state not in [known.value for known in TaskState]]
    if unknown:
        raise UsageError(f"there is no state {unknown[0]!r}; there are {', '.join(known.value for known in TaskState)}.")
    if not isinstance(wanted["limit"], int) or not 1 <= wanted["limit"] <= 1000:
        raise UsageError("limit is a number from 1 to 1000.")
    page = session.client.tasks(limit=wanted["limit"], states=states, operation=wanted.get("operation"), owner=wanted.get("owner"))
    return TaskTable(page, session.devices())


def _devices(session: Session, _arguments: Arguments) -> DeviceTable:
    return DeviceTable(session.client.devices())


def _workers(session: Session, _arguments: Arguments) -> WorkerTable:
    return WorkerTable(session.client.workers(), session.devices())


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
    for name, known in (("metric", get_args(MetricType)), ("timeframe", get_args(Timeframe)), ("wording", get_args(WordingChoice))):
        if wanted[name] not in known:
            raise UsageError(f"there is no {name} {wanted[name]!r}; there are {', '.join(known)}.")
    return InsightsCard(session.client.insights(wanted["metric"], wanted["timeframe"], wanted["wording"]))


def _doctor(session: Session, _arguments: Arguments) -> Report:
    return examine(lambda: session.client)


def _dashboard(session: Session, arguments: Arguments) -> Any:
    from openruntime_jupyter.notebook.dashboard.widget import Dashboard

    timeframe = arguments.pairs.get("timeframe", "5m")
    if timeframe not in get_args(Timeframe):
        raise UsageError(f"there is no timeframe {timeframe!r}; there are {', '.join(get_args(Timeframe))}.")
    return Dashboard(session.client, timeframe)


def _operations(session: Session, _arguments: Arguments) -> OperationTable:
    return OperationTable(session.client.operations())


def _cancel(session: Session, _arguments: Arguments, word: str) -> TaskCard:
    return TaskCard(session.handle(word).cancel(), session.devices())


def _result(session: Session, _arguments: Arguments, word: str) -> Any:
    handle = session.handle(word)
    task = handle.task
    if not task.status.terminal:
        raise UsageError(f"{handle.id} is still {task.status}: `%openruntime wait {word}` waits for it.")
    completed(task, watched=False)
    return shown(task, handle.result())


def _output(session: Session, _arguments: Arguments, word: str) -> None:
    output = session.handle(word).output
    Replay().show(output.items)


def _wait(session: Session, _arguments: Arguments, word: str) -> None:
    watch(session, session.handle(word))


COMMANDS: dict[str, Command] = {
    "status": Command(_status),
    "devices": Command(_devices),
    "workers": Command(_workers),
    "connect": Command(_connect, wants=(PLACE,)),
    "tasks": Command(_tasks, takes=("limit", "state", "operation", "owner")),
    "operations": Command(_operations),
    "wait": Command(_wait, wants=(TASK,)),
    "output": Command(_output, wants=(TASK,)),
    "result": Command(_result, wants=(TASK,)),
    "models": Command(_models),
    "unload": Command(_unload, wants=("the name of a model that is in memory",)),
    "insights": Command(_insights, takes=("metric", "timeframe", "wording")),
    "dashboard": Command(_dashboard, takes=("timeframe",)),
    "doctor": Command(_doctor),
    "priority": Command(_priority, wants=(TASK, "a number from 1 to 10")),
    "cancel": Command(_cancel, wants=(TASK,)),
}
