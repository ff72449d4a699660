"""Error cards: message, location and advice, with a collapsed traceback."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from openruntime_jupyter.notebook.display import errors
from openruntime_jupyter.notebook.display.errors import ErrorCard, frames, one_line
from openruntime_jupyter.schemas.tasks import Task, TaskState
from tests.notebook.conftest import Cell, Kernel, error_of

DIVIDE = "def divide(n):\n    return n / 0\n\ndivide(1)"
DEEP = """Traceback (most recent call last):
  File "In [7]", line 3, in <module>
    first()
  File "/home/me/mine.py", line 8, in first
    np.linalg.inv(x)
    ~~~~~~~~~~~~~^^^
  File "/usr/lib/python3.11/site-packages/numpy/linalg.py", line 80, in inv
    return wrap(a)
  File "/usr/lib/python3.11/site-packages/numpy/linalg.py", line 90, in wrap
    raise LinAlgError("Singular matrix")
numpy.linalg.LinAlgError: Singular matrix
"""


def bare(cell: Cell) -> str:
    """Return the traceback without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", error_of(cell))


def card(cell: Cell, mime: str = "text/plain") -> str:
    """Return the card between the task's output and the error."""
    return str(cell.outputs[-2]["data"][mime])


def ended(status: TaskState, **failure: Any) -> Task:
    now = "2026-01-01T00:00:00.000000Z"
    known = {"task_id": "task_1", "operation": "python", "timestamp": now, "submitted_at": now, "error": failure["message"]}
    return Task.model_validate({**known, "status": status, "failure": failure})


def test_error_card_shows_only_user_frames(kernel: Kernel) -> None:
    cell = kernel.run(f"%%openruntime --name broken\n{DIVIDE}")
    assert cell.status == "error"
    assert cell.error["ename"] == "TaskFailed"
    assert "in divide" in cell.error["evalue"], "readable for code that catches it"
    assert [output["kind"] for output in cell.outputs] == ["display_data", "display_data", "error"], "the line, the card and the error"
    assert cell.line.startswith("✕ failed after ")
    assert "division by zero" in card(cell)
    assert "division by zero" not in error_of(cell), "said once"
    assert "TaskFailed" in error_of(cell)
    assert "(task_" in error_of(cell)
    assert len(error_of(cell).splitlines()) == 1
    where = f"In [{cell.error['execution_count']}]"
    for place in (f"{where}, line 5", f"{where}, line 3, in divide"):
        assert place in card(cell), "line numbers match the cell"
        assert place in card(cell, "text/html")
    assert "return n / 0" in card(cell), "the source line is shown"
    assert "%openruntime fix" in card(cell)
    assert "%openruntime retry" not in card(cell), "the same code raises again"
    assert "<details><summary>Traceback in the worker" in card(cell, "text/html")
    assert "openruntime_jupyter" not in card(cell), "no internal frames"


def test_verbose_shows_full_traceback(server_kernel: Kernel) -> None:
    for line in ("%%openruntime --verbose --as broken\n" + DIVIDE, "%openruntime result broken --verbose"):
        cell = server_kernel.run(line)
        assert cell.status == "error"
        assert "Traceback (most recent call last)" in error_of(cell)
        assert "    return n / 0" in error_of(cell)
        assert cell.outputs[-1]["kind"] == "error"
        assert not [output for output in cell.outputs if "<details>" in output.get("data", {}).get("text/html", "")]


def test_syntax_error_shows_its_line(server_kernel: Kernel) -> None:
    cell = server_kernel.run("%%openruntime\nfine = 1\nfor broken")
    assert cell.status == "error"
    assert "SyntaxError" in card(cell)
    assert "line 3" in card(cell)
    assert "for broken" in card(cell)


def test_dead_worker_card_shows_last_output_unless_displayed(kernel: Kernel) -> None:
    cell = kernel.run("%%openruntime\nimport os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)")
    assert cell.error["ename"] == "WorkerDied"
    assert "signal 9" in card(cell)
    assert "%openruntime retry task_" in card(cell)
    assert cell.stream() == "last words\n"
    assert len(error_of(cell).splitlines()) == 1
    assert "last words" not in card(cell)
    assert "no other task is affected" in card(cell)
    assert "last words" in card(kernel.run("%openruntime result _openruntime"))


def test_error_advice_matches_the_exception(server_kernel: Kernel) -> None:
    server_kernel.run("weights = [1]")
    assert "pass it with --in weights" in card(server_kernel.run("%%openruntime\nprint(weights)"))
    assert "import or define nothing_of_that_kind" in card(server_kernel.run("%%openruntime\nprint(nothing_of_that_kind)"))
    assert "%pip install no_such_package" in card(server_kernel.run("%%openruntime\nimport no_such_package.inside"))
    assert "--out" in card(server_kernel.run("%%openruntime --out missing\nhere = 1"))
    assert "Increase --timeout" in card(server_kernel.run("%%openruntime --timeout 0.2\nimport time; time.sleep(30)"))


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("input()", "keyboard"),
        ("import getpass; getpass.getpass()", "keyboard"),
        ("breakpoint()", "keyboard"),
        ("exit()", "exit()"),
    ],
)
def test_missing_keyboard_and_exit_are_explained(server_kernel: Kernel, code: str, why: str) -> None:
    cell = server_kernel.run(f"%%openruntime\nx = 1\n{code}\n")
    assert f"In [{cell.error['execution_count']}], line 3" in card(cell)
    assert why in card(cell).replace(f"        {code}\n", "")
    assert "%openruntime fix" not in card(cell)
    for text in (card(cell, "text/html"), cell.error["evalue"]):
        assert "openruntime_jupyter" not in text, "no internal frames"


def test_unpicklable_output_shows_no_internal_frames(server_kernel: Kernel) -> None:
    cell = server_kernel.run("%%openruntime --out squares\nsquares = (n * n for n in range(3))")
    assert "squares" in card(cell)
    for text in (card(cell, "text/html"), cell.error["evalue"]):
        assert ".py" not in text
    assert card(cell, "text/html").count("can&#x27;t be sent back") == 1, "a traceback without frames repeats the message"
    assert cell.error["evalue"].count("can't be sent back") == 1


def test_caught_error_shows_no_card(server_kernel: Kernel) -> None:
    attempt = "try:\n    get_ipython().run_cell_magic('openruntime', '', '1 / 0')"
    cell = server_kernel.run(f"{attempt}\nexcept Exception as problem:\n    print(type(problem).__name__)")
    assert cell.status == "ok"
    assert cell.stream() == "TaskFailed\n"
    assert len(cell.shown()) == 1, "the status line"


def test_frames_keep_user_code_only() -> None:
    assert [(frame.where, frame.source) for frame in frames(DEEP)] == [
        ("In [7], line 3", "first()"),
        ("/home/me/mine.py, line 8, in first", "np.linalg.inv(x)"),
    ]
    assert frames("") == []


def test_deep_recursion_makes_short_card() -> None:
    line = '  File "In [1]", line 2, in again\n    return again()\n'
    assert len(frames("Traceback (most recent call last):\n" + 900 * line)) == 4


@pytest.mark.parametrize(
    ("status", "failure", "said"),
    [
        (TaskState.CANCELLED, {"kind": "cancelled", "message": "Cancelled by an interrupt."}, "■ Cancelled by an interrupt."),
        (TaskState.FAILED, {"kind": "raised", "message": "MemoryError: no", "type": "MemoryError"}, "Reduce the amount"),
        (TaskState.INTERRUPTED, {"kind": "interrupted", "message": "The runtime was stopped."}, "%openruntime retry task_1"),
    ],
)
def test_every_failure_has_a_card(status: TaskState, failure: dict[str, Any], said: str) -> None:
    assert said in ErrorCard(ended(status, **failure), {}).text()


@pytest.mark.parametrize(("colors", "shown"), [("nocolor", "ValueError: no"), ("linux", "\x1b[1mValueError\x1b[0m: no")])
def test_terminal_without_colours_gets_no_escapes(monkeypatch: pytest.MonkeyPatch, colors: str, shown: str) -> None:
    monkeypatch.setattr(errors, "get_ipython", lambda: SimpleNamespace(colors=colors))
    assert one_line(ValueError("no"))._render_traceback_() == [shown]  # type: ignore[attr-defined]


def test_client_error_shows_only_user_frames(server_kernel: Kernel) -> None:
    cell = server_kernel.run(
        "from openruntime_jupyter import connect\nclient = connect()\ndef mine():\n    return client.run('compute', inptus={})\nmine()"
    )
    assert cell.error["ename"] == "InvalidRequest"
    assert "return client.run" in bare(cell)
    assert "did you mean inputs?" in bare(cell)
    assert "client.py" not in bare(cell)
    lost = server_kernel.run("connect('http://127.0.0.1:1')")
    assert lost.error["ename"] == "NotConnected"
    assert "httpx" not in bare(lost), "no error of the HTTP library"


@pytest.mark.parametrize("call", ["client.call(divide, 1)", "client.map(divide, [1])", "client.submit_call(divide, 1).result()"])
def test_error_of_call_says_its_message_once(server_kernel: Kernel, call: str) -> None:
    function = "def divide(n):\n    return n / 0\n"
    cell = server_kernel.run(f"from openruntime_jupyter import connect\nclient = connect()\n{function}{call}")
    assert bare(cell).count("division by zero") == 1
    assert f"Cell In[{cell.error['execution_count']}], line 4, in divide\n    return n / 0" in bare(cell)
    assert "openruntime_jupyter/" not in bare(cell), "no internal frames"


def test_client_error_keeps_exception_context(server_kernel: Kernel) -> None:
    cell = server_kernel.run("try:\n    1 / 0\nexcept ZeroDivisionError:\n    client.run('nothing')")
    assert cell.error["ename"] == "UnknownOperation"
    assert "During handling" in bare(cell)
    assert "ZeroDivisionError: division by zero" in bare(cell)
