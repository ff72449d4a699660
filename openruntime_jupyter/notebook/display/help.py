"""Help of `%openruntime`."""

from __future__ import annotations

from openruntime_jupyter.notebook.display.html import View, block, prose, table, tag, text_table

TITLE = "OpenRuntime: MLX work in worker processes, one queue for all notebooks"
CELL = "%%openruntime [--in a,b] [--out c,d] [options]"
ROWS: tuple[tuple[str, str], ...] = (
    ("%openruntime status", "show the runtime's address, devices and problems"),
    ("%openruntime connect URL", "switch to another runtime; `embedded` runs inside this kernel, `auto` is the default"),
    ("%openruntime devices", "list the MLX devices with memory, load and queue"),
    ("%openruntime workers", "list the worker processes and their statistics"),
    ("%openruntime sessions", "list sessions (workers that keep variables); `restart NAME` clears one, `free NAME` ends it"),
    ("%openruntime tasks [failed] [limit=20]", "list the newest tasks of all notebooks"),
    ("%openruntime models", "list the models and which are loaded"),
    ("%openruntime unload MODEL", "unload a model from memory"),
    ("%openruntime insights [errors] [24h]", "show findings from the recorded history, with advice"),
    ("%openruntime dashboard [1h]", "show a live dashboard: devices, charts, tasks, models"),
    ("%openruntime doctor", "check every component, from this kernel to a worker and back"),
    ("%openruntime operations", "list the operations and their parameters"),
    ("%openruntime OPERATION name=value …", "run an operation; values are Python literals, the result is a dict"),
    ("%openruntime wait TASK", "follow a task started elsewhere or in the background; Ctrl-C stops following"),
    ("%openruntime output TASK", "show a task's output again"),
    ("%openruntime result TASK", "show a task's result or error"),
    ("%openruntime retry TASK [options]", "run a task again, as a new task"),
    ("%openruntime priority TASK N", "change a waiting task's priority: 1 to 10, where 10 is the most urgent"),
    ("%openruntime cancel TASK", "cancel a task; its worker is killed if necessary"),
    ("%openruntime config", "show the configuration of prompts: profiles and local models, without keys"),
    ("%openruntime pull", "download a small local model; no account is needed"),
    ("%openruntime agents", "list the agents (roles for a model)"),
    ("%openruntime conversations", "list the conversations; `conversation NAME` shows one, `forget NAME` deletes it"),
    ("%openruntime fix [options]", "ask a model to explain and fix the last error; nothing is run"),
    ('%openruntime ai "prompt" [options]', "ask a model; `%openruntime ai` without a prompt shows the options"),
    ("%%openruntime ai [workflow] [options]", "ask a model with the cell as the prompt, and stream the answer; Ctrl-C cancels it"),
    (CELL, "run the cell in a worker; Ctrl-C cancels it, a second Ctrl-C stops waiting"),
)
OPTIONS: tuple[tuple[str, str], ...] = (
    ("--in a,b", "input variables, copied to the worker"),
    ("--out c,d", "output variables, copied back"),
    ("--priority N", "1 to 10, default 5; 10 is the most urgent"),
    ("--device D", "auto, gpu, cpu, or the id of a device"),
    ("--timeout S", "maximum run time in seconds"),
    ("--retries N", "retries if the worker process dies"),
    ("--memory-limit SIZE", "stop the task if its worker exceeds this size, such as 2GB or 500MB"),
    ("--session NAME", "run in the session NAME, whose worker keeps its variables and modules for the next task"),
    ("--name NAME", "task name"),
    ("--verbose", "show the full traceback of an error instead of a card"),
    ("--notify", "notify on completion: a browser notification if allowed, else the page title"),
    ("--bg", "run in the background; the cell's value is the task's handle"),
    ("--as NAME", "also store the handle in this variable (_openruntime always has the newest)"),
)
TASK = (
    "TASK is an id (task_…) or a variable with a handle. Operations accept the same options, except --in and --out, which are for cells. "
    "Press Tab for completion."
)


class Help(View):
    """Table of all commands and options."""

    def html(self) -> str:
        """Return the view as HTML."""
        commands = table(TITLE, ("command", "description"), _coded(ROWS), wide=(1,))
        options = table("Options", ("option", "description"), _coded(OPTIONS), wide=(1,))
        return block("OpenRuntime help", commands, options, tag("div", TASK, class_="m"), kind="ort-c")

    def text(self) -> str:
        """Return the view as plain text."""
        return "\n\n".join([text_table(("command", "description"), ROWS), text_table(("option", "description"), OPTIONS), TASK])


def _coded(rows: tuple[tuple[str, str], ...]) -> list[list[object]]:
    return [[tag("code", code), prose(meaning)] for code, meaning in rows]
