"""Agents: roles with instructions, one Markdown file each.

Built-in agents are in `instructions/`. A configured folder overrides them and adds more. A file starts with front matter, lines of
`key: value` between two lines of `---`, followed by the instructions.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.schemas.ai import AgentInfo, AgentList

log = logging.getLogger(__name__)

BUILT_IN = Path(__file__).parent / "instructions"
DELIMITER = "---"
KEYS = ("role", "name", "description", "capabilities")
LARGEST_FILE = 100_000
"""Maximum bytes of a file, because every prompt includes the instructions."""
MOST_FILES = 200

Source = Literal["built-in", "configured"]

_ROLE = re.compile(r"[A-Z][A-Z0-9_-]{0,49}")


@dataclass(frozen=True, slots=True)
class Agent:
    """Role with the instructions for its model."""

    info: AgentInfo
    instructions: str


class InvalidAgent(ValueError):
    """Problem of an agent file, with advice."""


class Agents:
    """Current agents. Changed files are read again without a restart.

    Invalid files are skipped, logged once per change, and reported in `problems`. A built-in agent with an invalid override stays
    unchanged.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def all(self) -> AgentList:
        """Return all agents, built-in ones first, and the problems of files in the folder."""
        found, problems = self._collect()
        return AgentList(agents=[agent.info for agent in found.values()], problems=problems)

    def find(self, role: str) -> Agent:
        """Return an agent by its case-insensitive role. Raises `InvalidRequest`, which lists the available roles."""
        found, problems = self._collect()
        agent = found.get(role.upper())
        if agent is None:
            message = f"unknown agent {role!r}; available: {', '.join(found)}"
            raise InvalidRequest.of("parameters.agent", "; ".join([message, *problems]))
        return agent

    def _collect(self) -> tuple[dict[str, Agent], list[str]]:
        found = {agent.info.role: agent for path in sorted(BUILT_IN.glob("*.md")) if isinstance(agent := _agent(path, "built-in"), Agent)}
        files, problems = self._configured()
        paths: dict[str, Path] = {}
        for path in files:
            agent = _agent(path, "configured")
            if isinstance(agent, InvalidAgent):
                problems.append(f"{_text(path)}: {agent}")
            elif agent.info.role in paths:
                problems.append(
                    f"{_text(path)}: {_text(paths[agent.info.role].name)} already has the role {agent.info.role}: choose another role"
                )
            else:
                paths[agent.info.role] = path
                found[agent.info.role] = agent
        return found, problems

    def _configured(self) -> tuple[list[Path], list[str]]:
        """Return the files of the folder, and its problems."""
        if self._folder is None:
            return [], []
        try:
            files = sorted(path for path in self._folder.iterdir() if path.suffix == ".md")
        except OSError as problem:
            return [], [f"{self._folder} can't be read ({problem.strerror}): make it a folder of .md files, or remove agents_dir"]
        if len(files) <= MOST_FILES:
            return files, []
        return files[:MOST_FILES], [f"{self._folder} has {len(files)} files, but only the first {MOST_FILES} are read: remove some"]


def _text(path: Path | str) -> str:
    """Return a path as text that JSON can encode: names of files may be any bytes."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def _agent(path: Path, source: Source) -> Agent | InvalidAgent:
    try:
        state = path.stat()
    except OSError as problem:
        return InvalidAgent(f"can't be read ({problem.strerror}): fix or remove the file")
    if not stat.S_ISREG(state.st_mode):  # the reader of a pipe may wait forever
        return InvalidAgent("not a regular file: remove it")
    return _read(path, (state.st_mtime_ns, state.st_size), source)


@lru_cache(maxsize=2 * MOST_FILES)
def _read(path: Path, version: tuple[int, int], source: Source) -> Agent | InvalidAgent:
    """Return the agent of a file. Each version of a file is read, and its problem logged, once."""
    _, size = version
    try:
        if size > LARGEST_FILE:
            raise InvalidAgent(f"has {size:,} bytes, but the maximum is {LARGEST_FILE:,}: shorten it")
        return parse(path.read_text(encoding="utf-8"), source)
    except InvalidAgent as problem:
        invalid = problem
    except UnicodeDecodeError:
        invalid = InvalidAgent("not UTF-8 text: save it as UTF-8")
    except OSError as problem:
        invalid = InvalidAgent(f"can't be read ({problem.strerror}): fix or remove the file")
    log.warning("Skipped the agent file %s: %s", ascii(str(path)), invalid)
    return invalid


def parse(text: str, source: Source = "configured") -> Agent:
    """Return the agent of a file's text. Raises `InvalidAgent`."""
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != DELIMITER:
        raise InvalidAgent(f"does not start with {DELIMITER}: start it with lines of `key: value` between two lines of {DELIMITER}")
    end = next((number for number, line in enumerate(lines[1:], 1) if line.strip() == DELIMITER), None)
    if end is None:
        raise InvalidAgent(f"the {DELIMITER} that ends the front matter is missing: put it before the instructions")
    values = _values(lines[1:end])
    role = values["role"].upper()
    if _ROLE.fullmatch(role) is None:
        raise InvalidAgent(f"invalid role {values['role']!r}: use at most 50 letters, digits, _ and -, starting with a letter")
    instructions = "\n".join(lines[end + 1 :]).strip()
    if not instructions:
        raise InvalidAgent("has no instructions: add them below the front matter")
    capabilities = [word for part in values.get("capabilities", "").strip("[]").split(",") if (word := part.strip())]
    description = values.get("description", values["name"])
    info = AgentInfo(role=role, name=values["name"], description=description, capabilities=capabilities, source=source)
    return Agent(info, instructions)


def _values(lines: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        key = key.strip().lower()
        if not line.strip() or key.startswith("#"):
            continue
        if not colon or key not in KEYS:
            raise InvalidAgent(f"invalid line {line.strip()[:80]!r}: use {', '.join(f'`{known}: ...`' for known in KEYS)}")
        if key in values:
            raise InvalidAgent(f"duplicate key `{key}`: remove one")
        values[key] = value.strip().strip("\"'")
    missing = [key for key in ("role", "name") if not values.get(key)]
    if missing:
        raise InvalidAgent(f"`{missing[0]}: ...` is missing: add it to the front matter")
    return values
