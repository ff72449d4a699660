"""What `%openruntime` alone says."""

from __future__ import annotations

from openruntime_jupyter.notebook.display.html import View, block, prose, table, tag, text_table

TITLE = "OpenRuntime: MLX work in worker processes, one queue for all notebooks"
CELL = "%%openruntime [--in a,b] [--out c,d] [options]"
ROWS: tuple[tuple[str, str], ...] = (
    ("%openruntime status", "where the runtime is, its devices, and what is wrong"),
    ("%openruntime connect URL", "use that runtime from now on; `embedded`: one inside this kernel, `auto`: the usual one"),
    ("%openruntime devices", "what MLX computes on, with memory, load and queue"),
    ("%openruntime workers", "the worker processes, and what each has done"),
    ("%openruntime sessions", "workers that keep their variables; `restart NAME` empties one, `free NAME` ends it"),
    ("%openruntime tasks [failed] [limit=20]", "the newest tasks, of every notebook"),
    ("%openruntime models", "what answers prompts, and what of it is in memory"),
    ("%openruntime unload MODEL", "free a model's memory"),
    ("%openruntime insights [errors] [24h]", "what the recorded history tells, with advice"),
    ("%openruntime dashboard [1h]", "all of it, live: devices, charts, tasks, models"),
    ("%openruntime doctor", "look at every part, from this kernel to a worker and back"),
    ("%openruntime operations", "the kinds of work there are, with their parameters"),
    ("%openruntime OPERATION name=value …", "do one of them; values are Python literals, the result is a dict"),
    ("%openruntime wait TASK", "watch a task that runs elsewhere or in the background; Ctrl-C leaves it alone"),
    ("%openruntime output TASK", "show again what a task printed and displayed"),
    ("%openruntime result TASK", "what a task returned, or its error"),
    ("%openruntime retry TASK [options]", "do a task's work once more, as a new task"),
    ("%openruntime priority TASK N", "move a waiting task: 1 to 10, and 10 is the most urgent"),
    ("%openruntime cancel TASK", "stop a task, however stubborn"),
    ("%openruntime config", "who answers prompts: profiles, models of this machine, never a key"),
    ("%openruntime pull", "fetch a small model that answers prompts without an account"),
    ("%openruntime agents", "the roles that a model can be given"),
    ("%openruntime conversations", "what was said; `conversation NAME` shows one, `forget NAME` erases it"),
    ("%openruntime fix [options]", "have the last error explained and mended; nothing is run"),
    ('%openruntime ai "prompt" [options]', "ask a model; `%openruntime ai` alone shows the options"),
    ("%%openruntime ai [workflow] [options]", "ask a model with the cell's text: the answer streams in, Ctrl-C cancels it"),
    (CELL, "run the cell in a worker: Ctrl-C cancels it, a second Ctrl-C leaves it alone"),
)
OPTIONS: tuple[tuple[str, str], ...] = (
    ("--in a,b", "variables that the cell gets (copies)"),
    ("--out c,d", "variables that come back"),
    ("--priority N", "1 to 10, default 5; 10 is the most urgent"),
    ("--device D", "auto, gpu, cpu, or the id of a device"),
    ("--timeout S", "stop it after so many seconds of running"),
    ("--retries N", "run it again so often if its worker dies"),
    ("--memory-limit SIZE", "stop it when its worker grows past it: 2GB, 500MB"),
    ("--session NAME", "run in a worker that keeps its variables and modules for the next task of that name"),
    ("--name NAME", "what to call it"),
    ("--verbose", "show an error's whole traceback at once, and not a card"),
    ("--notify", "tell when it ends: a notification where the browser allows it, else the page's title"),
    ("--bg", "do not wait: the cell's value is the task's handle"),
    ("--as NAME", "also keep the handle in this variable (the newest is always in _openruntime)"),
)
TASK = (
    "TASK is an id (task_…) or a variable that holds a handle. Options also go behind an operation; --in and --out are for cells. "
    "Tab completes all of it."
)


class Help(View):
    """The manual, on half a page."""

    def html(self) -> str:
        """Return the view as HTML."""
        commands = table(TITLE, ("write", "to"), _coded(ROWS), wide=(1,))
        options = table("Options", ("option", "to"), _coded(OPTIONS), wide=(1,))
        return block("OpenRuntime help", commands, options, tag("div", TASK, class_="m"), kind="ort-c")

    def text(self) -> str:
        """Return the view as plain text."""
        return "\n\n".join([text_table(("write", "to"), ROWS), text_table(("option", "to"), OPTIONS), TASK])


def _coded(rows: tuple[tuple[str, str], ...]) -> list[list[object]]:
    return [[tag("code", code), prose(meaning)] for code, meaning in rows]
