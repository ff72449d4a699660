"""Agents: roles with instructions, one Markdown file each. Ours lie in `instructions/`; a configured folder overrides and adds.

A file begins with its front matter, lines of `key: value` between two lines of `---`; what follows are the instructions.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.schemas.ai import AgentInfo, AgentList

log = logging.getLogger(__name__)

OURS = Path(__file__).parent / "instructions"
MARK = "---"
KEYS = ("role", "name", "description", "capabilities")
LARGEST_FILE = 100_000
"""Bytes: instructions travel with every prompt."""
MOST_FILES = 200

_ROLE = re.compile(r"[A-Z][A-Z0-9_-]{0,49}")


@dataclass(frozen=True, slots=True)
class Agent:
    """A role and what its model is told."""

    info: AgentInfo
    instructions: str


class BadAgent(ValueError):
    """What is wrong with a file, and what to do about it."""


class Agents:
    """Those that there are now: files are read again when they change, so that no restart is needed.

    A file that can't be used is left out, logged once for each change, and told by `problems`; the others work. One of ours whose
    override is bad stays as it is.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[tuple[int, int], Agent | BadAgent]] = {}

    def all(self) -> AgentList:
        """Every agent, ours first, and what is wrong with files of the folder."""
        found, problems = self._found()
        return AgentList(agents=[agent.info for agent in found.values()], problems=problems)

    def find(self, role: str) -> Agent:
        """The agent of that role, in capitals or not; raises `InvalidRequest`, which names the roles that there are."""
        found, problems = self._found()
        agent = found.get(role.upper())
        if agent is None:
            told = f"there is no agent {role!r}; there are {', '.join(found)}"
            raise InvalidRequest.of("parameters.agent", "; ".join([told, *problems]))
        return agent

    def _found(self) -> tuple[dict[str, Agent], list[str]]:
        found = {agent.info.role: agent for agent in map(self._ours, sorted(OURS.glob("*.md")))}
        problems: list[str] = []
        configured: dict[str, Path] = {}
        for path, agent in self._configured(problems):
            if isinstance(agent, BadAgent):
                problems.append(f"{path}: {agent}")
            elif agent.info.role in configured:
                problems.append(f"{path}: {configured[agent.info.role].name} has the role {agent.info.role} already: give it another one")
            else:
                configured[agent.info.role] = path
                found[agent.info.role] = agent
        return found, problems

    def _ours(self, path: Path) -> Agent:
        agent = self._agent(path, "built-in")
        assert isinstance(agent, Agent), agent
        return agent

    def _configured(self, problems: list[str]) -> Iterator[tuple[Path, Agent | BadAgent]]:
        if self._folder is None:
            return
        try:
            files = sorted(path for path in self._folder.iterdir() if path.suffix == ".md")
        except OSError as problem:
            problems.append(f"{self._folder} can't be read ({problem.strerror}): make it a folder of .md files, or leave agents_dir away")
            return
        if len(files) > MOST_FILES:
            problems.append(f"{self._folder} has {len(files)} files, and the first {MOST_FILES} are read: take some out")
        yield from ((path, self._agent(path, "configured")) for path in files[:MOST_FILES])

    def _agent(self, path: Path, source: Literal["built-in", "configured"]) -> Agent | BadAgent:
        try:
            state = path.stat()
        except OSError as problem:
            return BadAgent(f"it can't be read ({problem.strerror}): mend that, or take it away")
        version = (state.st_mtime_ns, state.st_size)
        known = self._read.get(path)
        if known is not None and known[0] == version:
            return known[1]
        agent = _read(path, state.st_size, source)
        self._read[path] = version, agent
        if isinstance(agent, BadAgent):
            log.warning("The agent of %s is left out: %s", path, agent)
        return agent


def _read(path: Path, size: int, source: Literal["built-in", "configured"]) -> Agent | BadAgent:
    if size > LARGEST_FILE:
        return BadAgent(f"it has {size:,} bytes, and the most is {LARGEST_FILE:,}: make it shorter")
    try:
        return parse(path.read_text(encoding="utf-8"), source)
    except BadAgent as problem:
        return problem
    except UnicodeDecodeError:
        return BadAgent("it is no UTF-8 text: save it as that")
    except OSError as problem:
        return BadAgent(f"it can't be read ({problem.strerror}): mend that, or take it away")


def parse(text: str, source: Literal["built-in", "configured"] = "configured") -> Agent:
    """The agent of a file's text; raises `BadAgent`."""
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != MARK:
        raise BadAgent(f"it does not begin with {MARK}: begin it with lines of `key: value` between two lines of {MARK}")
    end = next((number for number, line in enumerate(lines[1:], 1) if line.strip() == MARK), None)
    if end is None:
        raise BadAgent(f"the {MARK} that ends its first part is missing: put it before the instructions")
    values = _values(lines[1:end])
    role = values["role"].upper()
    if _ROLE.fullmatch(role) is None:
        raise BadAgent(f"the role {values['role']!r} is not of up to 50 letters, digits, _ and -, a letter first: name it so")
    instructions = "\n".join(lines[end + 1 :]).strip()
    if not instructions:
        raise BadAgent("it has no instructions: write them below its first part")
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
            raise BadAgent(f"the line {line.strip()[:80]!r} is none of {', '.join(f'`{known}: ...`' for known in KEYS)}: change it")
        if key in values:
            raise BadAgent(f"`{key}` is there twice: leave one")
        values[key] = value.strip().strip("\"'")
    missing = [key for key in ("role", "name") if not values.get(key)]
    if missing:
        raise BadAgent(f"`{missing[0]}: ...` is missing: add it to its first part")
    return values
