"""Sanitizer for a model's Markdown. Front ends trust cell output and would run HTML in it.

Prompt injection can make a model emit anything. Therefore HTML tags are escaped, images are not loaded (their URL can leak data from
the prompt), and script links are disabled. Code is displayed unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape, unescape

OPENING = re.compile(r"(?P<marks>`{3,}|~{3,})[^`\n]*$")
"""A fence at the beginning of a line. Indented fences are not matched, since they may belong to a list and end earlier."""
SPAN = re.compile(r"(?<!`)(?P<marks>`+)(?!`)(?P<code>[^\n]*?[^`\n])(?P=marks)(?!`)")
TAG = re.compile(r"<(?=[A-Za-z/!?])")
BARE_TAG = re.compile(r"</?(?P<name>[A-Za-z][\w.-]*)\s*/?>")
RISKY = frozenset(
    {
        *("script", "style", "iframe", "object", "embed", "frame", "frameset", "base", "meta", "link", "svg", "math", "xmp", "plaintext"),
        *("textarea", "title", "noscript", "noembed", "noframes", "template", "form", "body", "html", "head"),
    }
)
"""Elements that have an effect even without attributes."""
LINK = re.compile(r"\](?P<gap>\s*)\((?P<target>\s*<?[^)\s>]*)")
DEFINITION = re.compile(r"^(?P<indent>[ >]*)\[(?=(?:\\.|[^\]\\])*\]:)", re.MULTILINE | re.DOTALL)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
HARMLESS = ("http:", "https:", "mailto:")
EATS_LINES = re.compile(r"\$|\\[(\[]|\\begin")
"""Delimiters of mathematics, which may hide a code fence from the front end."""
JOINER = "\u2060"
"""Word joiner, an invisible character: `<` followed by it does not begin a tag."""


def sanitize(markdown: str) -> str:
    """Return `markdown` without active HTML, images and script links."""
    parts = list(_parts(markdown))
    certain = not any(EATS_LINES.search(text) for text, is_code in parts if not is_code)
    return "".join((text if certain else _neutralized(text)) if is_code else _text(text) for text, is_code in parts)


def folded(summary: str, text: str) -> str:
    """Return a line of Markdown that shows `text` unchanged when the reader opens it.

    It has no line breaks and no delimiters of mathematics, so that nothing in the text ends the line.
    """
    shown = escape(text.strip(), quote=False).replace("$", "&#36;").replace("\\", "&#92;").replace("\r", "").replace("\n", "<br>")
    return f"<details><summary>{escape(summary)}</summary>{shown}</details>"


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """Yield text and contents of fenced blocks in order, as (text, is_code)."""
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
    """Return sanitized text outside fenced blocks. Inline code may span lines, so its tags are neutralized too."""
    done, last = [], 0
    for span in SPAN.finditer(text):
        done += [_prose(text[last : span.start()]), _neutralized(span[0])]
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


def _neutralized(code: str) -> str:
    """Return code that looks the same but in which active tags are disabled."""

    def tag(found: re.Match[str]) -> str:
        bare = BARE_TAG.match(code, found.start())
        return "<" if bare and bare["name"].lower() not in RISKY else f"<{JOINER}"

    return TAG.sub(tag, code)
