from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from openruntime_jupyter import start_environment
from openruntime_jupyter.client.code import execution_environment as module
from openruntime_jupyter.client.code.execution_environment import changed_variables, world
from openruntime_jupyter.environment import SECRETS
from openruntime_jupyter.operations.base import World
from openruntime_jupyter.start_environment import at_start

TELL = "import json; from openruntime_jupyter.client.code.execution_environment import world; print(json.dumps(world()))"


@pytest.fixture
def fresh_start() -> Iterator[None]:
    """Reread the process's start environment before and after the test."""
    at_start.cache_clear()
    module._started.cache_clear()
    module._latest = None
    yield
    at_start.cache_clear()
    module._started.cache_clear()
    module._latest = None


def told_by(program: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_world_has_no_relative_path_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.syspath_prepend("lib")
    path = world()["path"]
    assert str(tmp_path) in path
    assert str(tmp_path / "lib") in path
    assert all(Path(entry).is_absolute() for entry in path)


def test_world_of_removed_folder_has_no_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert world()["directory"] is None


def test_world_is_valid_parameter() -> None:
    assert World.model_validate(world()).environment == changed_variables()


def test_nothing_changed_in_new_process() -> None:
    assert told_by(TELL)["environment"] == {}


def test_variables_set_and_removed_since_start_travel() -> None:
    change = "import os; os.environ['NEW'] = 'é'; os.environ['PATH'] += ':/new'; del os.environ['HOME']; "
    changed = told_by(change + TELL)["environment"]
    assert changed == {"NEW": "é", "PATH": os.environ["PATH"] + ":/new", "HOME": None}


def test_variable_set_before_first_import_travels() -> None:
    assert told_by("import os; os.environ['EARLY'] = '1'; " + TELL)["environment"] == {"EARLY": "1"}


def test_later_changes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATER", "1")
    assert changed_variables()["LATER"] == "1"
    changed_variables().clear()
    assert changed_variables()["LATER"] == "1", "a caller can't spoil what the next one gets"
    monkeypatch.setenv("LATER", "2")
    assert changed_variables()["LATER"] == "2"
    monkeypatch.delenv("LATER")
    assert "LATER" not in changed_variables()


@pytest.mark.parametrize(
    "name",
    [*SECRETS, "ACME_API_KEY", "ACME_API_TOKEN", "OPENRUNTIME_X", "JPY_X", "JUPYTER_X", "TMPDIR", "PYTHONSAFEPATH", "GLIBC_TUNABLES"],
)
def test_secrets_and_reserved_variables_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "not for tasks")
    assert name not in changed_variables()


def test_removed_secret_is_not_named(monkeypatch: pytest.MonkeyPatch, fresh_start: None) -> None:
    monkeypatch.setattr(psutil.Process, "environ", lambda self: {**os.environ, "ACME_API_KEY": "x", "PLAIN": "x"})
    assert changed_variables() == {"PLAIN": None}


def test_value_that_is_not_utf8_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINARY", "\udc80")
    assert "BINARY" not in changed_variables()


@pytest.mark.parametrize("told", [{}, {"title": "a kernel"}])
def test_overwritten_start_environment_is_not_believed(told: dict[str, str], monkeypatch: pytest.MonkeyPatch, fresh_start: None) -> None:
    monkeypatch.setattr(psutil.Process, "environ", lambda self: told)
    monkeypatch.setattr(start_environment, "AT_IMPORT", dict(os.environ))
    monkeypatch.setenv("SINCE", "1")
    assert changed_variables() == {"SINCE": "1"}


def test_unreadable_start_environment_is_that_of_import(monkeypatch: pytest.MonkeyPatch, fresh_start: None) -> None:
    def refuse(self: psutil.Process) -> dict[str, str]:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "environ", refuse)
    monkeypatch.setattr(start_environment, "AT_IMPORT", dict(os.environ))
    monkeypatch.setenv("SINCE", "1")
    assert changed_variables() == {"SINCE": "1"}


def test_variables_that_ipykernel_sets_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    monkeypatch.setenv("GIT_PAGER", "less")
    changed = changed_variables()
    assert "CLICOLOR_FORCE" not in changed
    assert changed["GIT_PAGER"] == "less"


def test_new_kernel_has_changed_nothing(tmp_path: Path) -> None:
    from jupyter_client.manager import run_kernel

    told: list[str] = []

    def keep(message: dict[str, Any]) -> None:
        told.append(message["content"].get("text", ""))

    code = "import os; from openruntime_jupyter.client.code.execution_environment import changed_variables; print(changed_variables())"
    with run_kernel(cwd=os.fspath(tmp_path)) as client:
        kernel: Any = client
        kernel.execute_interactive(code, output_hook=keep, timeout=60)
        kernel.execute_interactive("%env MINE=1\n" + code.rsplit("; ", maxsplit=1)[-1], output_hook=keep, timeout=60)
    printed = "".join(told).splitlines()
    assert [printed[0], printed[-1]] == ["{}", "{'MINE': '1'}"]


def test_one_process_has_one_kernel_id() -> None:
    assert world()["kernel"] == world()["kernel"] != told_by(TELL)["kernel"]


def test_forked_child_has_another_kernel_id() -> None:
    fork = "import os; from openruntime_jupyter.client.code.execution_environment import world; mine = world()['kernel']\n"
    fork += "child = os.fork()\nif child == 0: os._exit(world()['kernel'] == mine)\n"
    assert told_by(fork + "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))") == 0
