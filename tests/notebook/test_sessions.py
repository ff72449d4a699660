"""`--session` and the session commands, in real kernels with an embedded runtime and with a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notebook.conftest import Kernel, error_of
from tests.support import wait_until

FREE_ALL = (
    "for each in __import__('openruntime_jupyter').connect().sessions(): __import__('openruntime_jupyter').connect().free_session(each.id)"
)


@pytest.fixture(autouse=True)
def no_session_is_left(kernel: Kernel) -> Iterator[None]:
    """Free all sessions before each test, since the kernel is shared."""
    yield
    assert kernel.run(FREE_ALL).status == "ok"


def test_cells_of_a_session_share_variables(kernel: Kernel) -> None:
    assert kernel.run("%%openruntime --session train\nx = [1]").line.startswith("✓ completed")
    cell = kernel.run("%%openruntime --session train --out y\nx.append(2)\ny = x")
    assert cell.status == "ok", cell.error
    assert "session train" in cell.line
    assert kernel.value("y") == "[1, 2]"
    alone = kernel.run("%%openruntime\nx")
    assert "NameError" in alone.error["evalue"]


def test_operations_take_no_session(kernel: Kernel) -> None:
    cell = kernel.run("%openruntime matrix_multiply size=8 --session train")
    assert "session: matrix_multiply uses no variables of a session: only python and call do" in error_of(cell)
    assert "No open sessions" in kernel.run("%openruntime sessions").value


def test_sessions_are_shown_as_a_table(kernel: Kernel) -> None:
    assert kernel.run("%openruntime sessions").value == "No open sessions: `%%openruntime --session NAME` starts one"
    kernel.run("%%openruntime --session shown\nx = 1")
    cell = kernel.run("found = %openruntime sessions\nfound")
    caption, head, row = cell.value.splitlines()
    assert caption.startswith("1 session, most recently used first")
    assert head.split()[:2] == ["session", "state"]
    assert "ends" in head.split()
    assert "owner" not in head
    assert row.split()[:2] == ["shown", "idle"]
    assert "shown" in cell.shown("text/html")[0]
    assert kernel.value("found[0].name, found[0].tasks") == "('shown', 1)"
    workers = kernel.run("%openruntime workers").value
    assert "session" in workers.splitlines()[1].split()
    assert any("shown" in line.split() for line in workers.splitlines())
    tasks = kernel.run("%openruntime tasks limit=1").value
    assert "shown" in tasks.splitlines()[2].split()


def test_restart_empties_and_free_ends_a_session(kernel: Kernel) -> None:
    kernel.run("%%openruntime --session emptied\nx = 1")
    assert "emptied" in kernel.run("%openruntime restart emptied").value
    assert "NameError" in kernel.run("%%openruntime --session emptied\nx").error["evalue"]
    assert "No open sessions" in kernel.run("%openruntime free emptied").value
    for word in ("restart", "free"):
        assert "This notebook has no session 'emptied'" in error_of(kernel.run(f"%openruntime {word} emptied"))
        assert f"{word} takes the name or id of a session" in kernel.run(f"%openruntime {word}").stream("stderr")


def test_dead_session_says_what_to_do(kernel: Kernel) -> None:
    cell = kernel.run("%%openruntime --session dead\nimport os\nos.kill(os.getpid(), 9)")
    card = cell.shown()[-1]
    assert "The variables of the session dead are lost" in card
    assert "%openruntime restart dead" in card
    assert "retries" not in card
    table = wait_until(lambda: _ended(kernel), 20, "its end")
    assert "! The session dead has ended: The worker was killed by signal 9" in table
    refused = error_of(kernel.run("%%openruntime --session dead\n1"))
    assert "`%openruntime restart dead` starts an empty session of this name" in refused
    kernel.run("%openruntime restart dead")
    assert kernel.run("%%openruntime --session dead\n1").status == "ok"


def test_tab_offers_sessions(kernel: Kernel) -> None:
    kernel.run("%%openruntime --session train_of_the_test\nx = 1")
    name = "train_of_the_test"
    assert kernel.complete("%%openruntime --session tr|\n1") == [f"%%openruntime --session {name}"]
    for word in ("restart", "free"):
        assert kernel.complete(f"%openruntime {word} tr|") == [f"%openruntime {word} {name}"]
    assert kernel.complete("%%openruntime --ses|\n1") == ["%%openruntime --session"]


def _ended(kernel: Kernel) -> str | None:
    shown = kernel.run("%openruntime sessions").value
    return shown if "has ended" in shown else None
