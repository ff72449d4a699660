"""Text with control characters."""

from __future__ import annotations

import pytest

from openruntime_jupyter.terminal import terminal_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1 %\r50 %\r100 %\ndone\r\n", "100 %\ndone\n"),
        ("a longer text\rshort", "shortger text"),
        ("a longer text\r\x1b[Kshort", "short"),
        ("abc\b\bX", "aX"),
        ("outer 0\n\rinner 9\x1b[A\router 1\n\rinner 5\x1b[A", "outer 1\ninner 5"),
        ("\x1b[32mgreen\x1b[0m text", "\x1b[32mgreen\x1b[0m text"),
        ("\x1b[32m1 %\x1b[0m\r\x1b[32m2 %\x1b[0m", "\x1b[32m2 %\x1b[0m"),
    ],
)
def test_text_is_as_in_a_terminal(text: str, shown: str) -> None:
    assert terminal_text(text) == shown


def test_colours_can_be_removed() -> None:
    assert terminal_text("\x1b[1;31mred\x1b[0m", colours=False) == "red"
