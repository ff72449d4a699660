"""`--notify`: the page tells that a cell, or a task in the background, has ended, by what its browser allows; a terminal rings its bell.

The script belongs to the output of one run: in a file that is opened later it does nothing. Each step that it takes is said in the
output, so that nobody waits for a notice that can't come.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display

from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.client.transport.watch import CONNECTED, Watch
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.notebook.display.html import View, block, tag
from openruntime_jupyter.notebook.display.states import WORDS, phrase, title
from openruntime_jupyter.schemas.tasks import Task, TaskState

FRESH = 60
"""Seconds after which a page that shows this output was opened later."""

UNABLE = "This page does not run scripts of outputs: it can't tell you when {} ends."

ASK = """
const place = document.getElementById(ID);
const say = (text) => { place.textContent = text; };
if (!place) return;
if (Math.abs(Date.now() / 1000 - NOW) > FRESH) { place.remove(); return; }
if (!("Notification" in window) || !window.isSecureContext) {
  say(`This page may not notify: when ${WHAT} ends, its title says so.`);
} else if (Notification.permission === "granted") {
  say(`This page notifies you when ${WHAT} ends.`);
} else if (Notification.permission === "denied") {
  say(`This browser was told not to let this page notify: when ${WHAT} ends, its title says so.`);
} else {
  say(`When ${WHAT} ends, this page's title says so. `);
  const button = document.createElement("button");
  button.textContent = "Allow notifications";
  button.onclick = () => Notification.requestPermission().then((answer) => say(answer === "granted"
    ? `This page notifies you when ${WHAT} ends.` : `Not allowed: when ${WHAT} ends, this page's title says so.`));
  place.append(button);
}
"""

TELL = """
const place = document.getElementById(ID);
if (!place) return;
let told = Math.abs(Date.now() / 1000 - NOW) > FRESH;
place.textContent = "";
try {
  told = told || sessionStorage.getItem(ID) !== null; // a page that is loaded again runs this again
  sessionStorage.setItem(ID, "told");
} catch { /* a page without storage tells once more */ }
if (told) return;
if (document.hidden || !document.hasFocus()) {
  let before = document.title;
  document.title = HEAD;
  // Jupyter writes the title too, whenever the file is saved or changed: what it says then is what comes back.
  const keeper = new MutationObserver(() => {
    if (document.title === HEAD) return;
    before = document.title;
    document.title = HEAD;
  });
  keeper.observe(document.head, { childList: true, subtree: true, characterData: true });
  const back = () => {
    keeper.disconnect();
    document.title = before;
    window.removeEventListener("focus", back);
    document.removeEventListener("visibilitychange", back);
  };
  window.addEventListener("focus", back);
  document.addEventListener("visibilitychange", back);
}
if ("Notification" in window && window.isSecureContext && Notification.permission === "granted") {
  try {
    const notice = new Notification(HEAD, { body: BODY, tag: ID });
    notice.onclick = () => { window.focus(); notice.close(); };
    place.textContent = "Notified.";
  } catch (problem) {
    place.textContent = `Not notified: ${problem.message}`;
  }
}
"""


class Notice:
    """The notice of one end: made at the start, so that the page can ask for leave, and told at the end, from any thread.

    `key` tells it apart from all others; `what` is what ends, in words.
    """

    def __init__(self, key: str, what: str = "the cell") -> None:
        self._id = f"ort-notify-{key}"
        self._shown: DisplayHandle | None = None
        self._terminal = getattr(get_ipython(), "kernel", None) is None
        if not self._terminal:
            script = _Script(self._id, ASK, UNABLE.format(what), WHAT=what)
            self._shown = display(script.bundle(), raw=True, display_id=True)

    def tell(self, head: str, body: str = "") -> None:
        """It has ended, or is no longer watched."""
        if self._terminal:
            # Whoever reads a log of this needs no bell.
            if sys.stderr.isatty():
                sys.stderr.write("\a")
                sys.stderr.flush()
        elif self._shown is not None:
            self._shown.update(_Script(self._id, TELL, "", HEAD=head, BODY=body).bundle(), raw=True)

    def tell_of(self, task: Task) -> None:
        """The task has ended, or is no longer watched."""
        self.tell(f"{WORDS[task.status][0]} {title(task)} {phrase(task)}", task.error.splitlines()[0] if task.error else "")


@contextmanager
def noticed(handle: TaskHandle, wanted: bool) -> Iterator[None]:
    """If it is `wanted`, the page tells when this block is left, however that comes about."""
    if not wanted:
        yield
        return
    notice = Notice(handle.id)
    try:
        yield
    finally:
        notice.tell_of(handle.last_seen)


class BackgroundNotice:
    """Tells of the end of a task that no cell waits for, as long as this kernel lives."""

    def __init__(self, backend: Backend, handle: TaskHandle) -> None:
        self._handle = handle
        self._notice = Notice(handle.id, "the task")
        self._lock = threading.Lock()
        self._told = False
        self._watch: Watch | None = None
        watch = backend.watch(("task_update",), self._heard)
        with self._lock:
            self._watch = watch
            told = self._told
        if told:
            watch.close()

    def _heard(self, message: dict[str, Any]) -> None:
        data = message.get("data") or {}
        ended = data.get("task_id") == self._handle.id and TaskState(data["status"]).terminal
        # It may have ended before this was heard, or while nothing was.
        if not ended and message["type"] != CONNECTED:
            return
        with suppress(OpenRuntimeError):  # a runtime that is gone again: its return is heard of
            task = self._handle.task
            if task.status.terminal:
                self._end(task)

    def _end(self, task: Task) -> None:
        with self._lock:
            if self._told:
                return
            self._told, watch = True, self._watch
        self._notice.tell_of(task)
        if watch is not None:
            watch.close()


class _Script(View):
    """One line of text, which a script replaces where scripts run."""

    def __init__(self, place: str, code: str, otherwise: str, **names: Any) -> None:
        self._place, self._otherwise = place, otherwise
        known = {"ID": place, "NOW": round(time.time()), "FRESH": FRESH, **names}
        # As a literal no text can end the element that the script stands in.
        set_up = "".join(f"const {name} = {json.dumps(value).replace('<', chr(92) + 'u003c')};" for name, value in known.items())
        self._code = f"(() => {{{set_up}{code}}})();"

    def html(self) -> str:
        """Return the view as HTML."""
        line = tag("div", self._otherwise, class_="m", id=self._place, role="status")
        return block("Notice of the end", line) + f"<script>{self._code}</script>"

    def text(self) -> str:
        """Return the view as plain text."""
        return self._otherwise
