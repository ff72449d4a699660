"""The option `--notify`: a browser notification when a cell or background task ends. A terminal rings its bell instead.

The script belongs to the output of one run and does nothing when a saved notebook is opened later. The output shows each step, so
that users know whether to expect a notification.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display

from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.notebook.display.html import Html, Styled, View, tag
from openruntime_jupyter.notebook.display.tasks import STATES, phrase, title
from openruntime_jupyter.schemas.tasks import Task

FRESH = 60
"""Maximum age of the output, in seconds. A page that runs the script later shows a saved notebook."""

UNABLE = "This page does not run scripts in outputs, so it cannot notify you when {} ends"

ASK = """
const place = document.getElementById(ID);
const say = (text) => { place.textContent = text; };
if (!place) return;
if (Math.abs(Date.now() / 1000 - NOW) > FRESH) { place.remove(); return; }
if (!("Notification" in window) || !window.isSecureContext) {
  say(`This page cannot notify: when ${WHAT} ends, its title shows it`);
} else if (Notification.permission === "granted") {
  say(`This page notifies you when ${WHAT} ends`);
} else if (Notification.permission === "denied") {
  say(`Notifications are blocked for this page: when ${WHAT} ends, its title shows it`);
} else {
  say(`When ${WHAT} ends, the page title shows it. `);
  const button = document.createElement("button");
  button.textContent = "Allow notifications";
  button.onclick = () => Notification.requestPermission().then((answer) => say(answer === "granted"
    ? `This page notifies you when ${WHAT} ends` : `Not allowed: when ${WHAT} ends, the page title shows it`));
  place.append(button);
}
"""

TELL = """
const place = document.getElementById(ID);
if (!place) return;
let done = Math.abs(Date.now() / 1000 - NOW) > FRESH;
place.textContent = "";
try {
  done = done || sessionStorage.getItem(ID) !== null; // a reloaded page runs this again
  sessionStorage.setItem(ID, "done");
} catch { /* without storage, a reloaded page notifies again */ }
if (done) return;
if (document.hidden || !document.hasFocus()) {
  let before = document.title;
  document.title = HEAD;
  // Jupyter also updates the title when the file is saved or changed. Its latest title is restored later.
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
    place.textContent = "Notified";
  } catch (problem) {
    place.textContent = `Not notified: ${problem.message}`;
  }
}
"""


class Notification:
    """Notification about one completion. Created at the start, so that the page can ask for permission; sent from any thread.

    `key` identifies the notification, and `what` describes what ends, such as "the cell".
    """

    def __init__(self, key: str, what: str = "the cell") -> None:
        self._id = f"ort-notify-{key}"
        self._shown: DisplayHandle | None = None
        self._asks: dict[str, Any] = {}
        self._terminal = getattr(get_ipython(), "kernel", None) is None
        if not self._terminal:
            self._asks = _Script(self._id, ASK, UNABLE.format(what), WHAT=what).bundle()
            self._shown = display(self._asks, raw=True, display_id=True)

    def restore(self) -> None:
        """Display it again after the output of its cell was cleared."""
        if self._shown is not None:
            self._shown.display(self._asks, raw=True)

    def send(self, head: str, body: str = "") -> None:
        """Send the notification."""
        if self._terminal:
            # No bell in logs.
            if sys.stderr.isatty():
                sys.stderr.write("\a")
                sys.stderr.flush()
        elif self._shown is not None:
            self._shown.update(_Script(self._id, TELL, "", HEAD=head, BODY=body).bundle(), raw=True)

    def send_for(self, task: Task) -> None:
        """Send a notification about the state of `task`."""
        self.send(f"{STATES[task.status][0]} {title(task)} {phrase(task)}", task.error.splitlines()[0] if task.error else "")


@contextmanager
def notify_at_exit(handle: TaskHandle, wanted: bool) -> Iterator[Notification | None]:
    """Send a notification when the block exits for any reason, if `wanted`. The block gets the notification."""
    if not wanted:
        yield None
        return
    notification = Notification(handle.id)
    try:
        yield notification
    finally:
        notification.send_for(handle.last_seen)


class _Script(View):
    """Line of text that a script replaces if the page runs scripts."""

    label = "Notification"

    def __init__(self, place: str, code: str, otherwise: str, **names: Any) -> None:
        self._place, self._otherwise = place, otherwise
        known = {"ID": place, "NOW": round(time.time()), "FRESH": FRESH, **names}
        # Escape `<` so that no text can close the script element.
        set_up = "".join(f"const {name} = {json.dumps(value).replace('<', chr(92) + 'u003c')};" for name, value in known.items())
        self._script = Html(f"<script>(() => {{{set_up}{code}}})();</script>")

    def content(self) -> Iterable[Styled]:
        """Return the text and the script."""
        html = tag("div", self._otherwise, class_="m", id=self._place, role="status")
        return [Styled(self._otherwise, Html(html + self._script))]
