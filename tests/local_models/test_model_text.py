"""Text as models write it: reasoning between tags, characters in parts, and messages for templates without a system role."""

from __future__ import annotations

from typing import Any

import pytest

from openruntime_jupyter.local_models.characters import WholeCharacters
from openruntime_jupyter.local_models.reasoning import TAGS, ReasoningSplitter, split_unopened
from openruntime_jupyter.local_models.system_role import without_system_role


def split(text: str, size: int, opened: str | None = None) -> tuple[str, str]:
    """Return the reasoning and the response of a text that arrives in pieces of this size."""
    responded: list[str] = []
    reasoned: list[str] = []
    splitter = ReasoningSplitter(responded.append, reasoned.append, opened)
    for start in range(0, len(text), size):
        splitter.add(text[start : start + size])
    splitter.end()
    return "".join(reasoned), "".join(responded)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("opening", TAGS)
def test_reasoning_is_split_from_the_response(opening: str, size: int) -> None:
    assert split(f"\n{opening}a < b\n```x```{TAGS[opening]}\n\nHi <b>", size) == ("a < b\n```x```", "Hi <b>")


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    ("text", "reasoning", "response"),
    [
        ("<think></think>\n\nHi", "", "Hi"),
        ("<think>a</think>\n<think>b</think>\nHi", "ab", "Hi"),
        ("<think>a</think>", "a", ""),
        ("<think>a</th", "a</th", ""),
        ("<thin", "", "<thin"),
        ("  Hi", "", "  Hi"),
        ("Use <think> and </think>.\n", "", "Use <think> and </think>.\n"),
        ("<b>Hi</b>", "", "<b>Hi</b>"),
        ("", "", ""),
    ],
)
def test_only_tags_at_the_beginning_count(text: str, reasoning: str, response: str, size: int) -> None:
    assert split(text, size) == (reasoning, response)


def test_template_can_open_the_reasoning() -> None:
    assert split("Hm\n</think>\n\nHi", 2, "<think>") == ("Hm\n", "Hi")


@pytest.mark.parametrize(
    ("text", "reasoning", "response"),
    [
        ("Hm\n```python\nwrong\n```\n</think>\n\nHi", "Hm\n```python\nwrong\n```", "Hi"),
        ("Hm.</think>\nHi", "Hm.", "Hi"),
        ("End it with `</think>`\nalways", "", "End it with `</think>`\nalways"),
        ("Write <think>x\n</think>\nfirst", "", "Write <think>x\n</think>\nfirst"),
        ("</think> ends it", "", "</think> ends it"),
    ],
)
def test_reasoning_without_opening_tag(text: str, reasoning: str, response: str) -> None:
    assert split_unopened(text) == (reasoning, response)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    ("pieces", "whole", "rest"),
    [
        (["a\ud83d", "\ude00b"], "a😀b", ""),
        (["好", "\ufffd"], "好", "\ufffd"),
        (["a\ufffd", "\ufffdb"], "a\ufffd\ufffdb", ""),
        (["a\ude00b"], "a\ufffdb", ""),
        (["a\ud83d"], "a", "\ufffd"),
        (["👩", "\u200d", "🔬"], "👩\u200d🔬", ""),
        (["👩", "\u200d"], "👩", "\u200d"),
    ],
)
def test_characters_are_whole(pieces: list[str], whole: str, rest: str, cut: bool) -> None:
    characters = WholeCharacters()
    assert "".join(characters.add(piece) for piece in pieces) == whole
    assert characters.end(cut) == ("" if cut else rest)


def say(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("messages", "moved"),
    [
        ([say("system", "S"), say("user", "A")], [say("user", "S\n\nA")]),
        ([say("system", "S"), say("developer", "D"), say("user", "A")], [say("user", "S\n\nD\n\nA")]),
        ([say("user", "A"), say("user", "B"), say("assistant", "C")], [say("user", "A\n\nB"), say("assistant", "C")]),
        ([say("user", "A"), say("system", "S")], [say("user", "A\n\nS")]),
        ([say("assistant", None, tool_calls=[1]), say("tool", "1"), say("tool", "2")],) * 2,
        ([say("user", "A"), say("assistant", "B"), say("user", "C")],) * 2,
    ],
)
def test_instructions_move_into_the_next_turn_of_the_user(messages: list[dict[str, Any]], moved: list[dict[str, Any]]) -> None:
    assert without_system_role(messages) == moved
