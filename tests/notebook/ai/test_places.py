"""Prompts without a model, in a terminal and on another machine; and downloading a model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openruntime_jupyter.errors import PullFailed, Unavailable
from openruntime_jupyter.local_models.pull import KNOWN
from openruntime_jupyter.notebook.ai.magic import with_readable_errors
from openruntime_jupyter.notebook.ai.pull import pull_model
from tests.ai.provider_server import ProviderServer
from tests.default_model import models_dir
from tests.notebook.ai.test_ai import said, said_or
from tests.notebook.conftest import Cell, running_kernel
from tests.notebook.test_magics import told
from tests.support import TOKEN, Home, running_server, wait_until


def test_missing_model_shows_setup_card(tmp_path: Path) -> None:
    with running_kernel(Home(tmp_path), {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": os.fspath(tmp_path)}) as kernel:
        cell = kernel.run("%%openruntime ai --out answer\nhello")
        assert cell.error["ename"] == "Unavailable"
        assert len(told(cell).splitlines()) == 1
        card = cell.shown()[0]
        assert "%openruntime pull" in card
        assert "OPENAI_API_KEY" in card
        assert "no model: `%openruntime pull`" in kernel.run("%openruntime config").value
        assert "no cell has failed" in kernel.run("%openruntime fix").stream("stderr")
        refused = kernel.run("%openruntime pull")
        assert refused.error["ename"] == "PullFailed"
        assert "pip could not" in told(refused)
        assert "SmolLM2" in kernel.run("%openruntime pull another").stream("stderr")


def test_stopping_runtime_is_not_reported_as_missing_model() -> None:
    def ask() -> None:
        raise Unavailable("The server is stopping: ask again once it runs")

    with pytest.raises(Unavailable, match="is stopping"):
        with_readable_errors(ask)


def test_pull_accepts_existing_model(tmp_path: Path) -> None:
    home, file = Home(tmp_path), KNOWN[0].file
    (home.data_dir / "models").mkdir(parents=True)
    (home.data_dir / "models" / file).symlink_to(models_dir() / file)
    with running_kernel(home) as kernel:
        cell = kernel.run("%openruntime pull")
        assert cell.status == "ok", cell.error
        assert "already exists" in cell.shown()[0]
        assert "is ready for prompts" in cell.value
        assert "(local model)" in kernel.run("%openruntime config").value


def test_pull_rejects_remote_runtime() -> None:
    session: Any = SimpleNamespace(client=SimpleNamespace(backend=SimpleNamespace(local=False), where="https://far.example"))
    with pytest.raises(PullFailed, match=r"https://far\.example is on another machine: run `jupyter openruntime pull`"):
        pull_model(session)


def test_second_ctrl_c_stops_watching_cancelling_prompt(tmp_path: Path, provider: ProviderServer) -> None:
    home, pressed = Home(tmp_path), 0
    environment = {"OPENRUNTIME_AI_BASE_URL": provider.url, "OPENRUNTIME_AI_MODEL": "any"}
    with running_server(home, environment=environment) as server:
        of_server = {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": TOKEN, "OPENRUNTIME_SERVER_PID": str(os.getpid())}
        with running_kernel(home, of_server) as kernel:

            def press(cell: Cell) -> bool:
                nonlocal pressed
                if pressed == 0 and "You said: " in said_or(cell):
                    # Suspend the server, so that the cancellation takes long.
                    os.kill(server.pid, signal.SIGSTOP)
                    kernel.interrupt()
                    pressed = 1
                elif pressed == 1 and "cancelling" in said(cell):
                    kernel.interrupt()
                    pressed = 2
                return pressed == 2

            try:
                cell = kernel.run("%%openruntime ai --as held\nhold it", press)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert cell.error["ename"] == "KeyboardInterrupt"
            assert "no longer watched: use %openruntime wait ai_task_" in told(cell)
            assert "being cancelled, no longer watched" in said(cell)
            assert said(cell).rstrip().endswith("You said:"), "the partial answer is kept"
            wait_until(lambda: kernel.value("str(held.status)") == "'cancelled'", 30, "the cancel goes on")


def test_terminal_prints_answer_and_statistics(tmp_path: Path, provider: ProviderServer) -> None:
    code = """
ip = get_ipython()
ip.run_line_magic('load_ext', 'openruntime_jupyter')
reply = ip.run_cell_magic('openruntime', 'ai', 'a slow hello')
print(reply.text == 'You said: a slow hello')
"""
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--quick", "--no-banner", "--colors=nocolor", "-c", code],
        env=Home(tmp_path).environment({"OPENRUNTIME_AI_BASE_URL": provider.url, "OPENRUNTIME_AI_MODEL": "any"}),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "You said: a slow hello\nTrue\n"
    assert done.stderr.count("completed in") == 1
