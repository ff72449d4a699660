from __future__ import annotations

import os
from pathlib import Path

import pytest

from openruntime_jupyter.ai.agents import LARGEST_FILE, Agents, InvalidAgent, parse
from openruntime_jupyter.errors import InvalidRequest

GOOD = "---\nrole: {role}\nname: {name}\ndescription: Does it\ncapabilities: one, two\n---\nBe {name}.\n"


def folder_of(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    return tmp_path


def test_built_in_agents_have_instructions_and_capabilities() -> None:
    agents = Agents()
    found = agents.all()
    assert {agent.role for agent in found.agents} == {"DEVELOPER", "ANALYST", "OPTIMIZER", "RESEARCHER"}
    assert not found.problems
    for agent in found.agents:
        assert agent.capabilities
        assert agent.source == "built-in"
        assert len(agents.find(agent.role).instructions) > 100


def test_folder_overrides_and_adds_agents(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, mine=GOOD.format(role="developer", name="Mine"), poet=GOOD.format(role="POET", name="Poet"))
    agents = Agents(folder)
    assert agents.find("Developer").instructions == "Be Mine."
    assert agents.find("POET").info.source == "configured"
    assert len(agents.all().agents) == 5


def test_changed_and_removed_files_apply_without_restart(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, mine=GOOD.format(role="POET", name="First"))
    agents = Agents(folder)
    assert agents.find("poet").info.name == "First"
    (folder / "mine.md").write_text(GOOD.format(role="POET", name="Second"))
    os.utime(folder / "mine.md", ns=(1, 1))
    assert agents.find("poet").info.name == "Second"
    (folder / "mine.md").unlink()
    with pytest.raises(InvalidRequest, match=r"unknown agent 'poet'; available: .*DEVELOPER"):
        agents.find("poet")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Be good.", "does not start with ---"),
        ("---\nrole: X\nname: X\nBe good.", "--- that ends the front matter is missing"),
        ("---\nname: X\n---\nBe good.", "`role: ...` is missing"),
        ("---\nrole: X\n---\nBe good.", "`name: ...` is missing"),
        ("---\nrole: X\nrole: Y\nname: X\n---\nBe good.", "duplicate key `role`"),
        ("---\nrole: X\nname: X\ncolour: red\n---\nBe good.", "invalid line 'colour: red'"),
        ("---\nrole: two words\nname: X\n---\nBe good.", "invalid role 'two words'"),
        ("---\nrole: X\nname: X\n---\n \n", "has no instructions"),
    ],
)
def test_invalid_file_is_reported_and_other_agents_work(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidAgent) as raised:
        parse(text)
    assert told in str(raised.value)
    agents = Agents(folder_of(tmp_path, bad=text, good=GOOD.format(role="POET", name="Poet")))
    found = agents.all()
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"{tmp_path / 'bad.md'}: ")
    assert told in found.problems[0]
    assert {"POET", "DEVELOPER"} <= {agent.role for agent in found.agents}


def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "binary.md").write_bytes(b"---\nrole: \xff\n")
    (tmp_path / "large.md").write_text(GOOD.format(role="L", name="L") + "x" * LARGEST_FILE)
    (tmp_path / "folder.md").mkdir()
    problems = Agents(tmp_path).all().problems
    assert [problem.partition(": ")[2][:20] for problem in problems] == [
        "not UTF-8 text: save",
        "not a regular file: ",
        "has 100,074 bytes, b",
    ]


def test_invalid_override_and_duplicate_role_are_skipped(tmp_path: Path) -> None:
    files = {"a": GOOD.format(role="POET", name="A"), "b": GOOD.format(role="poet", name="B")}
    agents = Agents(folder_of(tmp_path, developer="---\nrole: DEVELOPER\n---\nx", **files))
    assert agents.find("DEVELOPER").info.source == "built-in"
    assert agents.find("POET").info.name == "A"
    duplicate, override = agents.all().problems
    assert "a.md already has the role POET" in duplicate
    assert "developer.md" in override


def test_missing_folder_is_reported(tmp_path: Path) -> None:
    found = Agents(tmp_path / "none").all()
    assert len(found.agents) == 4
    assert "can't be read (No such file or directory)" in found.problems[0]
