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


def test_the_references_agents_are_there_as_the_reference_prints_them() -> None:
    developer, analyst = Agents().all().agents[1::-1]
    assert (developer.role, developer.name, developer.capabilities) == (
        "DEVELOPER",
        "Code Assistant",
        ["code_generation", "refactoring", "debugging"],
    )
    assert developer.description == "Assists with code generation and refactoring"
    assert (analyst.role, analyst.name, analyst.capabilities) == (
        "ANALYST",
        "System Analyst",
        ["performance_analysis", "optimization", "reporting"],
    )
    assert analyst.description == "Analyzes system performance and provides insights"


def test_there_are_four_agents_and_each_has_instructions_and_says_what_it_can() -> None:
    agents = Agents()
    found = agents.all()
    assert {agent.role for agent in found.agents} == {"DEVELOPER", "ANALYST", "OPTIMIZER", "RESEARCHER"}
    assert not found.problems
    for agent in found.agents:
        assert agent.capabilities
        assert agent.source == "built-in"
        assert len(agents.find(agent.role).instructions) > 100


def test_a_folder_overrides_an_agent_and_adds_another(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, mine=GOOD.format(role="developer", name="Mine"), poet=GOOD.format(role="POET", name="Poet"))
    agents = Agents(folder)
    assert agents.find("Developer").instructions == "Be Mine."
    assert agents.find("POET").info.source == "configured"
    assert len(agents.all().agents) == 5


def test_a_changed_file_counts_without_a_restart_and_a_removed_one_no_more(tmp_path: Path) -> None:
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
        ("", "does not start with ---"),
        ("Be good.", "does not start with ---"),
        ("---\nrole: X\nname: X\nBe good.", "--- that ends the front matter is missing"),
        ("---\nrole: X\nname: X\n", "--- that ends the front matter is missing"),
        ("---\nname: X\n---\nBe good.", "`role: ...` is missing"),
        ("---\nrole: X\n---\nBe good.", "`name: ...` is missing"),
        ("---\nrole: X\nrole: Y\nname: X\n---\nBe good.", "duplicate key `role`"),
        ("---\nrole: X\nname: X\ncolour: red\n---\nBe good.", "invalid line 'colour: red'"),
        ("---\nrole: two words\nname: X\n---\nBe good.", "invalid role 'two words'"),
        ("---\nrole: X\nname: X\n---\n \n", "has no instructions"),
    ],
)
def test_a_bad_file_is_told_with_what_to_do_and_the_others_work(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidAgent) as raised:
        parse(text)
    assert told in str(raised.value)
    agents = Agents(folder_of(tmp_path, bad=text, good=GOOD.format(role="POET", name="Poet")))
    found = agents.all()
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"{tmp_path / 'bad.md'}: ")
    assert told in found.problems[0]
    assert {"POET", "DEVELOPER"} <= {agent.role for agent in found.agents}


def test_a_file_that_is_no_text_or_too_large_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "binary.md").write_bytes(b"---\nrole: \xff\n")
    (tmp_path / "large.md").write_text(GOOD.format(role="L", name="L") + "x" * LARGEST_FILE)
    (tmp_path / "folder.md").mkdir()
    problems = Agents(tmp_path).all().problems
    assert [problem.partition(": ")[2][:20] for problem in problems] == [
        "not UTF-8 text: save",
        "can't be read (Is a ",
        "has 100,074 bytes, b",
    ]


def test_an_override_that_is_bad_leaves_ours_as_it_is(tmp_path: Path) -> None:
    agents = Agents(folder_of(tmp_path, developer="---\nrole: DEVELOPER\n---\nx"))
    assert agents.find("DEVELOPER").info.source == "built-in"
    assert len(agents.all().problems) == 1


def test_of_two_files_with_one_role_the_first_counts_and_the_second_is_told(tmp_path: Path) -> None:
    agents = Agents(folder_of(tmp_path, a=GOOD.format(role="POET", name="A"), b=GOOD.format(role="poet", name="B")))
    assert agents.find("POET").info.name == "A"
    assert "a.md already has the role POET" in agents.all().problems[0]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    found = Agents(tmp_path / "none").all()
    assert len(found.agents) == 4
    assert "can't be read (No such file or directory)" in found.problems[0]
