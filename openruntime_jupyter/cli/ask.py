"""The commands `jupyter openruntime status`, `tasks` and `cancel`, which query a running server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import BaseModel
from pydantic_core import to_json

from openruntime_jupyter.client.notebook_file import notebook_named
from openruntime_jupyter.errors import NotAllowed, NotConnected, OpenRuntimeError, gigabytes
from openruntime_jupyter.notebook.display.format import file_name, shortened
from openruntime_jupyter.notebook.display.html import text_table
from openruntime_jupyter.schemas.tasks import Task, TaskState

if TYPE_CHECKING:
    from openruntime_jupyter.client.client import Client

NOT_FOUND = (
    "No OpenRuntime server of this user found: start one (`jupyter openruntime`, or JupyterLab with OpenRuntime installed), or give "
    "(--url=http://127.0.0.1:8888/ --token=SECRET)"
)
STATES = tuple(str(state) for state in TaskState)


def ask(arguments: Sequence[str]) -> int:
    """Run `status`, `tasks` or `cancel` and return the exit code: 1 after an error, which is printed to stderr."""
    options = parser().parse_args(arguments)
    try:
        client = _connect(options.url, options.token)
        try:
            answer: Callable[[Client, argparse.Namespace], str] = options.answer
            print(answer(client, options), flush=True)
        finally:
            client.close()
    except OpenRuntimeError as problem:
        hint = " (pass --token=SECRET)" if isinstance(problem, NotAllowed) else ""
        print(f"jupyter openruntime: {problem}{hint}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser for the three commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--url",
        help="server URL (default: this terminal's server, else your stand-alone server, else your newest Jupyter Server)",
    )
    common.add_argument("--token", metavar="SECRET", help="server token, if it cannot be detected")
    common.add_argument("--json", action="store_true", help="print JSON")
    made = argparse.ArgumentParser("jupyter openruntime")
    commands = made.add_subparsers(required=True)
    command = _command(commands, common, "status", "show server health, devices and metrics")
    command.set_defaults(answer=_status)
    command = _command(commands, common, "tasks", "list the newest tasks")
    command.add_argument("--limit", type=int, default=20, metavar="N", help="maximum number of tasks (default: %(default)s)")
    command.add_argument(
        "states", nargs="*", type=_state, metavar="STATE", help=f"only tasks in this state: {', '.join(STATES[:-1])} or {STATES[-1]}"
    )
    command.add_argument("--state", action="append", type=_state, default=[], metavar="STATE", help="same as STATE; repeatable")
    command.add_argument("--name", metavar="TEXT", help="only tasks whose name contains this text; case is ignored")
    command.add_argument("--search", metavar="TEXT", help="only tasks whose name, code or parameters contain this text; case is ignored")
    command.add_argument("--notebook", metavar="FILE", help="only tasks of this notebook")
    command.set_defaults(answer=_tasks)
    command = _command(commands, common, "cancel", "cancel a pending or running task")
    command.add_argument("id", help="task id, as shown by `tasks`, or a unique beginning of it")
    command.set_defaults(answer=_cancel)
    return made


def _command(commands: Any, common: argparse.ArgumentParser, name: str, about: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(name, parents=[common], help=about, description=f"{about[0].upper()}{about[1:]}")
    return made


def _state(text: str) -> str:
    if text not in STATES:
        near = get_close_matches(text, STATES, 1)
        raise argparse.ArgumentTypeError(
            f"unknown state {text!r}; " + (f"did you mean {near[0]}?" if near else f"use one of {', '.join(STATES)}")
        )
    return text


def _connect(url: str | None, token: str | None) -> Client:
    from openruntime_jupyter.client.discovery import EMBEDDED, connect, of_user

    if url is None:
        # A JupyterLab terminal inherits its server's address.
        around = os.environ.get("OPENRUNTIME_SERVER_PID", "")
        if around.isdecimal() and psutil.pid_exists(int(around)):
            url, token = os.environ.get("OPENRUNTIME_URL"), token or os.environ.get("OPENRUNTIME_TOKEN")
    if url is None and token is not None:
        raise NotConnected("--token requires --url")
    client = connect(url, token)
    if client.where != EMBEDDED:
        return client
    if (found := of_user()) is None:
        raise NotConnected(NOT_FOUND)
    return found


def _json(value: BaseModel | dict[str, object]) -> str:
    return to_json(value, indent=2, inf_nan_mode="null").decode()


def _status(client: Client, options: argparse.Namespace) -> str:
    health, devices, metrics = client.health(), client.devices(), client.metrics()
    if options.json:
        return _json({"where": client.where, "health": health, "devices": devices, "metrics": metrics})
    tasks = f"{metrics.active_tasks} running, {metrics.pending_tasks} waiting"
    use = f"memory {_percent(metrics.memory_usage)}, CPU {_percent(metrics.cpu_utilization)}"
    if any(device.type == "gpu" for device in devices):
        use += f", GPU {_percent(metrics.gpu_utilization)}"
    lines = [f"OpenRuntime {health.version} at {client.where}: {health.status}", f"up {metrics.uptime}, {tasks}, {use}"]
    lines += [f"problem: {problem}" for problem in health.problems]
    for device in devices:
        memory = f"{gigabytes(device.memory_available)} of {gigabytes(device.memory_total)} free"
        lines.append(f"{device.id}  {device.type}  {device.name}  {device.running} of {device.slots} slots in use  {memory}")
        if device.advice:
            lines.append(f"  {device.advice}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} %"


def _tasks(client: Client, options: argparse.Namespace) -> str:
    states = [*options.states, *options.state]
    notebook = None if options.notebook is None else notebook_named(options.notebook)
    page = client.tasks(limit=options.limit, states=states or None, notebook=notebook, name=options.name, search=options.search)
    if options.json:
        return _json(page)
    if not page.tasks:
        filters = [f"in state {' or '.join(states)}"] if states else []
        filters += [f"with {options.name!r} in the name"] if options.name is not None else []
        filters += [f"with {options.search!r} in the name, code or parameters"] if options.search is not None else []
        filters += [f"of the notebook {notebook}"] if notebook is not None else []
        return " ".join(["No tasks", *filters])
    lines = [text_table(("ID", "STATE", "PRIORITY", "OPERATION", "SECONDS", "NOTEBOOK", ""), [_row(task) for task in page.tasks])]
    left = page.total_count - len(page.tasks)
    return "\n".join(lines + ([f"and {left:,} older"] if left > 0 else []))


def _row(task: Task) -> tuple[str, ...]:
    seconds = "" if task.execution_time is None else f"{task.execution_time:.2f}"
    about = shortened(_about(task).partition("\n")[0], 80)
    return task.task_id, str(task.status), str(task.priority), task.operation, seconds, file_name(task.notebook), about


def _about(task: Task) -> str:
    """Return the name, and the error, the reason for waiting, or the progress message, depending on the state."""
    step = task.progress.message if task.progress is not None else None
    return ": ".join(part for part in (task.name, task.error if task.status.terminal else task.waiting_for or step) if part)


def _cancel(client: Client, options: argparse.Namespace) -> str:
    task = client.task(options.id).cancel()
    if options.json:
        return _json(task)
    if task.status != TaskState.CANCELLED:
        return f"{task.task_id} is already {task.status}: nothing to cancel"
    how = f" ({task.cancel_stage})" if task.cancel_stage else ""
    return f"{task.task_id} is {task.status}{how}"
