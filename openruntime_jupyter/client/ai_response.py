"""Response of a model as the client returns it: text, code blocks and token usage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from openruntime_jupyter.schemas.ai import Answer, TokenLogprob, ToolCall

FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<marks>`{3,}|~{3,})(?P<info>[^`\n]*)$")


@dataclass(frozen=True)
class CodeBlock:
    """Fenced code block of a response. `language` is empty if the fence names none."""

    language: str
    source: str


@dataclass(frozen=True)
class Usage:
    """Token counts and timings of a response. Values that the provider does not report are None."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens_used: int | None = None
    """Prompt and completion tokens together."""
    cached_tokens: int | None = None
    """Tokens of the prompt that were taken from the key-value cache."""
    tokens_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    time_to_first_token_s: float | None = None
    load_time_s: float | None = None
    """Seconds spent on loading a local model."""


@dataclass(frozen=True)
class ToolRun:
    """Call of a Python function by a model."""

    name: str
    """Name of the function."""
    arguments: Any
    """Arguments by name, or their text if it is not JSON."""
    result: str
    """Value of the function as text or JSON, as the model got it; for a failed call the error."""
    failed: bool = False


@dataclass(frozen=True)
class Reply:
    """Response of a model. `str()` returns its text; notebooks render it as Markdown."""

    text: str
    model: str | None
    """The model's name as the provider reports it."""
    provider: str
    """`local`, or the name of the profile."""
    finish_reason: str | None
    """For example `stop`, or `length` if the text was cut at `max_tokens`."""
    usage: Usage
    task_id: str
    reasoning: str | None = None
    """Reasoning before the text, which is not part of it."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of tools that no function has run."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Log-probabilities of the tokens, if requested."""
    calls: tuple[ToolRun, ...] = ()
    """Calls of Python functions before the response, in order."""
    value: Any = None
    """Object of the prompt's `schema`."""

    @classmethod
    def of(cls, task_id: str, output: dict[str, Any]) -> Reply:
        """Return the reply for the output of an AI task."""
        known = {name: value for name in Answer.model_fields if (value := output.get(name)) is not None}
        answer = Answer.model_validate({"provider": "", **known})
        return cls(
            answer.text,
            answer.model_used,
            answer.provider,
            answer.finish_reason,
            Usage(**{name: getattr(answer, name) for name in Usage.__dataclass_fields__}),
            task_id,
            answer.reasoning,
            tuple(answer.tool_calls or ()),
            tuple(answer.logprobs or ()),
        )

    @cached_property
    def code_blocks(self) -> tuple[CodeBlock, ...]:
        """Return the fenced blocks of the text, in order."""
        return tuple(code_blocks(self.text))

    @property
    def code(self) -> str:
        """Return the source of all blocks, separated by blank lines, or an empty string."""
        return "\n\n".join(block.source for block in self.code_blocks)

    def __str__(self) -> str:
        return self.text


def code_blocks(text: str) -> Iterator[CodeBlock]:
    """Yield the fenced blocks of a Markdown text. An unclosed block extends to the end."""
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
    """Return whether the fence `mark` closes the block that `opened` began."""
    return mark["marks"].startswith(opened["marks"]) and not mark["info"].strip()


def _block(opened: re.Match[str], lines: list[str]) -> CodeBlock:
    # Blocks in lists are indented like their fence.
    indent = opened["indent"]
    source = "\n".join(line.removeprefix(indent) for line in lines)
    return CodeBlock((opened["info"].split() or [""])[0].strip("{}.").lower(), source.strip("\n"))
