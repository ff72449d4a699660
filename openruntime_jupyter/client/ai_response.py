"""What a model answered, as a program takes it: the text, the code in it, and the figures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<marks>`{3,}|~{3,})(?P<info>[^`\n]*)$")


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block of an answer; `language` is empty where it names none."""

    language: str
    source: str


@dataclass(frozen=True)
class Usage:
    """The figures of an answer; None where whoever answered gives none."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens_used: int | None = None
    """Of prompt and answer together."""
    tokens_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    time_to_first_token_s: float | None = None
    load_time_s: float | None = None
    """Seconds that loading a local model took."""


@dataclass(frozen=True)
class Reply:
    """An answer. `str()` of it is its text, and a notebook shows it as Markdown."""

    text: str
    model: str | None
    """The model, as whoever answered calls it."""
    provider: str
    """`local`, or the name of the profile."""
    finish_reason: str | None
    """Such as `stop`, or `length` where it was cut at `max_tokens`."""
    usage: Usage
    task_id: str

    @classmethod
    def of(cls, task_id: str, output: dict[str, Any]) -> Reply:
        """From what an AI task returned."""
        usage = Usage(**{name: output.get(name) for name in Usage.__dataclass_fields__})
        return cls(output["text"], output.get("model_used"), output.get("provider", ""), output.get("finish_reason"), usage, task_id)

    @cached_property
    def code_blocks(self) -> tuple[CodeBlock, ...]:
        """The fenced blocks of the text, in order."""
        return tuple(code_blocks(self.text))

    @property
    def code(self) -> str:
        """The source of all its blocks, one after the other; empty where there is none."""
        return "\n\n".join(block.source for block in self.code_blocks)

    def __str__(self) -> str:
        return self.text


def code_blocks(text: str) -> Iterator[CodeBlock]:
    """The fenced blocks of a Markdown text; one that is never closed goes to the end."""
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.splitlines():
        mark = FENCE.match(line)
        if opened is None:
            opened = mark
        elif mark is not None and closes(mark, opened):
            yield _block(opened, lines)
            opened, lines = None, []
        else:
            lines.append(line)
    if opened is not None and lines:
        yield _block(opened, lines)


def closes(mark: re.Match[str], opened: re.Match[str]) -> bool:
    """Whether a fence ends the block that another one began."""
    return mark["marks"].startswith(opened["marks"]) and not mark["info"].strip()


def _block(opened: re.Match[str], lines: list[str]) -> CodeBlock:
    # A block in a list is indented as its fence is.
    indent = opened["indent"]
    source = "\n".join(line.removeprefix(indent) for line in lines)
    return CodeBlock((opened["info"].split() or [""])[0].strip("{}.").lower(), source.strip("\n"))
