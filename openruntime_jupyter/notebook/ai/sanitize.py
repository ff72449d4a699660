"""A model's Markdown made inert: a front end trusts what a cell shows, and would run the HTML in it.

A model may be talked into anything by the text that it is given, so no tag of an answer may reach the page as one, no picture may be
fetched (its address can carry what the model knows), and no link may be a script. What is code is shown as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape

OPENING = re.compile(r"(?P<marks>`{3,}|~{3,})[^`\n]*$")
"""A fence at the line's beginning: one that is indented may belong to a list, and end sooner than it seems."""
SPAN = re.compile(r"(?<!`)(?P<marks>`+)(?!`)(?P<code>[^\n]*?[^`\n])(?P=marks)(?!`)")
TAG = re.compile(r"<(?=[A-Za-z/!?])")
BARE_TAG = re.compile(r"</?(?P<name>[A-Za-z][\w.-]*)\s*/?>")
RISKY = frozenset(
    {
        *("script", "style", "iframe", "object", "embed", "frame", "frameset", "base", "meta", "link", "svg", "math", "xmp", "plaintext"),
        *("textarea", "title", "noscript", "noembed", "noframes", "template", "form", "body", "html", "head"),
    }
)
"""Elements that do something though they have no attributes."""
LINK = re.compile(r"\](?P<gap>\s*)\((?P<target>\s*<?[^)\s>]*)")
DEFINITION = re.compile(r"^(?P<indent>[ >]*)\[(?=(?:\\.|[^\]\\])*\]:)", re.MULTILINE | re.DOTALL)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
HARMLESS = ("http:", "https:", "mailto:")
EATS_LINES = re.compile(r"\$|\\[(\[]|\\begin")
"""What a front end takes for mathematics, which may swallow a fence."""
JOINER = "\u2060"
"""Invisible, and no letter: a `<` before it begins no tag."""


def inert(markdown: str) -> str:
    """`markdown` with nothing in it that a page would run, fetch or follow as a script."""
    parts = list(_parts(markdown))
    certain = not any(EATS_LINES.search(text) for text, is_code in parts if not is_code)
    return "".join((text if certain else _disarmed(text)) if is_code else _text(text) for text, is_code in parts)


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """The text, and the contents of fenced blocks, one after the other: (text, whether it is code)."""
    marks, held = "", ""
    for line in markdown.splitlines(keepends=True):
        bare = line.rstrip("\r\n")
        opening = None if marks else OPENING.match(bare)
        closing = marks and re.fullmatch(f" {{0,3}}{re.escape(marks)}{re.escape(marks[0])}*[ \t]*", bare)
        if opening:
            yield held + line, False
            marks, held = opening["marks"], ""
        elif closing:
            yield held, True
            marks, held = "", line
        else:
            held += line
    yield held, bool(marks)


def _text(text: str) -> str:
    """What is not in a block: code between backticks may reach over lines, so that nothing in it is taken for certain."""
    done, last = [], 0
    for span in SPAN.finditer(text):
        done += [_prose(text[last : span.start()]), _disarmed(span[0])]
        last = span.end()
    return DEFINITION.sub(r"\g<indent>\\[", "".join([*done, _prose(text[last:])]))


def _prose(text: str) -> str:
    return LINK.sub(_link, TAG.sub("&lt;", text).replace("![", "!\\["))


def _link(found: re.Match[str]) -> str:
    target = re.sub(r"[\s\\<\x00-\x1f]", "", unescape(found["target"]))
    scheme = SCHEME.match(target)
    if scheme is None or scheme[0].lower() in HARMLESS:
        return found[0]
    return f"]{found['gap']}\\({found['target']}"


def _disarmed(code: str) -> str:
    """Code in which a tag that could do something is none any more, and looks the same."""

    def tag(found: re.Match[str]) -> str:
        bare = BARE_TAG.match(code, found.start())
        return "<" if bare and bare["name"].lower() not in RISKY else f"<{JOINER}"

    return TAG.sub(tag, code)
