"""`--notify`: the page tells that a cell has ended, by what its browser allows; a terminal rings its bell.

The script belongs to the output of one run: in a file that is opened later it does nothing. Each step that it takes is said in the
output, so that nobody waits for a notice that can't come.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display

from openruntime_jupyter.client.handle import TaskHandle
from openruntime_jupyter.models import Task
from openruntime_jupyter.notebook.display import View, block, tag
from openruntime_jupyter.notebook.states import WORDS, phrase, title

FRESH = 60
"""Seconds after which a page that shows this output was opened later."""

UNABLE = "This page does not run scripts of outputs: it can't tell you when the cell ends."

ASK = """
const place = document.getElementById(ID);
const say = (text) => { place.textContent = text; };
if (!place) return;
if (Math.abs(Date.now() / 1000 - NOW) > FRESH) { place.remove(); return; }
if (!("Notification" in window) || !window.isSecureContext) {
  say("This page may not notify: when the cell ends, its title says so.");
} else if (Notification.permission === "granted") {
  say("This page notifies you when the cell ends.");
} else if (Notification.permission === "denied") {
  say("This browser was told not to let this page notify: when the cell ends, its title says so.");
} else {
  say("When the cell ends, this page's title says so. ");
  const button = document.createElement("button");
  button.textContent = "Allow notifications";
  button.onclick = () => Notification.requestPermission().then((answer) => say(answer === "granted"
    ? "This page notifies you when the cell ends." : "Not allowed: when the cell ends, this page's title says so."));
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
    """The notice of one cell: made when the cell starts, so that its page can ask for leave, and told when it ends."""

    def __init__(self, task: Task) -> None:
        self._id = f"ort-notify-{task.task_id}"
        self._shown: DisplayHandle | None = None
        self._terminal = getattr(get_ipython(), "kernel", None) is None
        if not self._terminal:
            self._shown = display(_Script(self._id, ASK, UNABLE).bundle(), raw=True, display_id=True)

    def tell(self, task: Task) -> None:
        """The task has ended, or is no longer watched."""
        head = f"{WORDS[task.status][0]} {title(task)} {phrase(task)}"
        if self._terminal:
            # Whoever reads a log of this needs no bell.
            if sys.stderr.isatty():
                sys.stderr.write("\a")
                sys.stderr.flush()
        elif self._shown is not None:
            said = _Script(self._id, TELL, "", HEAD=head, BODY=(task.error or "").splitlines()[0] if task.error else "")
            self._shown.update(said.bundle(), raw=True)


@contextmanager
def noticed(handle: TaskHandle, wanted: bool) -> Iterator[None]:
    """If it is `wanted`, the page tells when this block is left, however that comes about."""
    if not wanted:
        yield
        return
    notice = Notice(handle.last_seen)
    try:
        yield
    finally:
        notice.tell(handle.last_seen)


class _Script(View):
    """One line of text, which a script replaces where scripts run."""

    def __init__(self, place: str, code: str, otherwise: str, **names: Any) -> None:
        self._place, self._otherwise = place, otherwise
        known = {"ID": place, "NOW": round(time.time()), "FRESH": FRESH, **names}
        # As a literal no text can end the element that the script stands in.
        set_up = "".join(f"const {name} = {json.dumps(value).replace('<', chr(92) + 'u003c')};" for name, value in known.items())
        self._code = f"(() => {{{set_up}{code}}})();"

    def html(self) -> str:
        """See `View.html`."""
        line = tag("div", self._otherwise, class_="m", id=self._place, role="status")
        return block("Notice of the cell's end", line) + f"<script>{self._code}</script>"

    def text(self) -> str:
        """See `View.text`."""
        return self._otherwise
