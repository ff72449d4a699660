"""Characters of generated text that arrive in parts, or of which only a part was generated."""

from __future__ import annotations

import re

PART = re.compile("[\ud800-\udbff\ufffd\u200d]+$")
"""Parts of a character at the end of a text: half of a surrogate pair, replaced bytes, or an emoji's joiner without the next part."""


class WholeCharacters:
    """Text in pieces whose characters are whole: pairs of surrogates are joined, and part of a character at a cut end is removed."""

    def __init__(self) -> None:
        self._rest = ""

    def add(self, piece: str) -> str:
        """Return the text so far that has not been returned, without a possible part of a character at its end."""
        text = self._rest + piece
        part = PART.search(text)
        end = len(text) if part is None else part.start()
        self._rest = text[end:]
        return joined(text[:end])

    def end(self, cut: bool) -> str:
        """Return the rest of the text: nothing if the text was cut, for example at `max_tokens`."""
        rest, self._rest = self._rest, ""
        return "" if cut else joined(rest)


class Trimmed:
    """Text in pieces without the spaces at its beginning and its end, which are held back until more text follows."""

    def __init__(self) -> None:
        self._held = ""
        self._begun = False

    def add(self, piece: str) -> str:
        """Return the text so far that has not been returned, without spaces at its end."""
        text = self._held + piece if self._begun else piece.lstrip()
        shown = text.rstrip()
        self._held = text[len(shown) :]
        self._begun = self._begun or bool(shown)
        return shown


def joined(text: str) -> str:
    """Return `text` with surrogate pairs joined and lone surrogates replaced, because they can't be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
