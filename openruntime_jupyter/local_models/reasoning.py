"""Reasoning that a model writes into its text between tags, such as `<think>`."""

from __future__ import annotations

import re
from collections.abc import Callable

TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<seed:think>": "</seed:think>",
    "<longcat_think>": "</longcat_think>",
    "<|think:start|>": "<|think:end|>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|channel>thought": "<channel|>",
    "<|channel|>analysis<|message|>": "<|end|><|start|>assistant<|channel|>final<|message|>",
}
"""Closing tag of each opening tag that models are trained to write."""
UNOPENED = re.compile(rf"(?<!`)(?:{'|'.join(map(re.escape, TAGS.values()))})[ \t]*(?:\r?\n|$)")
"""Closing tag at the end of a line. Its opening tag may be missing, because chat templates can contain it."""


class ReasoningSplitter:
    """Splitter of text in pieces into the reasoning before the response and the response.

    Only tags at the beginning count: later ones may be part of the response. With the tag `opened`, for example by the chat template,
    the text begins with reasoning.
    """

    def __init__(self, on_text: Callable[[str], None], on_reasoning: Callable[[str], None], opened: str | None = None) -> None:
        self._on_text = on_text
        self._on_reasoning = on_reasoning
        self._closing = None if opened is None else TAGS[opened]
        self._decided = False
        """True once the response has begun."""
        self._rest = ""
        self._reasoned = False

    def add(self, piece: str) -> None:
        """Process the next piece. Holds back what may be the start of a tag."""
        if self._decided:
            self._on_text(piece)
            return
        self._rest += piece
        while not self._decided and (self._open() if self._closing is None else self._close(self._closing)):
            pass

    def end(self) -> None:
        """Flush the remaining text."""
        rest, self._rest = self._rest, ""
        if self._closing is not None:
            self._on_reasoning(rest)
        elif rest and not (self._reasoned and rest.isspace()):
            self._on_text(rest)

    def _open(self) -> bool:
        """Return whether a tag opens the reasoning. Otherwise the response begins, unless more text is needed to decide."""
        text = self._rest.lstrip()
        opening = next((tag for tag in TAGS if text.startswith(tag)), None)
        if opening is not None:
            self._closing, self._rest = TAGS[opening], text.removeprefix(opening)
            return True
        if any(tag.startswith(text) for tag in TAGS):
            return False
        self._decided = True
        self._on_text(text if self._reasoned else self._rest)
        self._rest = ""
        return False

    def _close(self, closing: str) -> bool:
        """Return whether a tag closes the reasoning, and pass on the reasoning so far."""
        reasoning, tag, rest = self._rest.partition(closing)
        if tag:
            self._on_reasoning(reasoning)
            self._closing, self._rest, self._reasoned = None, rest, True
            return True
        held = next(size for size in range(min(len(closing) - 1, len(self._rest)), -1, -1) if self._rest.endswith(closing[:size]))
        self._on_reasoning(self._rest[: len(self._rest) - held])
        self._rest = self._rest[len(self._rest) - held :]
        return False


def split_unopened(text: str) -> tuple[str, str]:
    """Return the reasoning that ends with a closing tag without an opening one, or an empty string, and the response."""
    found = UNOPENED.search(text)
    if found is None or any(tag in text[: found.start()] for tag in TAGS):
        return "", text
    return text[: found.start()].strip(), text[found.end() :].lstrip()
