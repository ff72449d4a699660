"""Sanitizing of a model's Markdown, which must keep code unchanged."""

from __future__ import annotations

import pytest

from openruntime_jupyter.notebook.ai.sanitize import JOINER, sanitize

BAD = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    "text",
    [
        "a plain answer with *stars*, a < b, 3<4 and `x < y`",
        "Code:\n\n```html\n<img src='x' onerror='f()'>\n<script>f()</script>\n```\n\ndone",
        "~~~~cpp\nvector<int> v;\n~~~\n<b onclick=f()>\n~~~~",
        "a `List<String>` and `</T>`",
        "[a link](https://example.org/x), [another](../a.md) and [mail](mailto:me@example.org)",
        "- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |",
        "an open block\n```python\nif a <b:",
    ],
)
def test_harmless_markdown_is_unchanged(text: str) -> None:
    assert sanitize(text) == text


@pytest.mark.parametrize(
    "before",
    [
        "",
        "- a list\n  ```\n",
        "> ```\n",
        "\t```\n",
        "```\ncode\n   ````\n",
        "~~~\n```\n~~~\n",
        "`an open span\nends` and `",
        "`` ` ",
    ],
)
def test_tags_outside_code_blocks_are_escaped(before: str) -> None:
    told = sanitize(before + BAD)
    assert "<img" not in told
    assert "img src=x" in told, "the text is still readable"


@pytest.mark.parametrize("before", ["$$\n```\n$$\n", "$\n```\n$", "\\[\n```\n\\]\n", "\\begin{x}\n```\n\\end{x}\n"])
def test_mathematics_that_hides_a_fence_is_handled(before: str) -> None:
    assert "<img" not in sanitize(before + BAD)


def test_ambiguous_code_is_neutralized_but_looks_the_same() -> None:
    assert sanitize("it costs 5 $\n```html\n<p>\n<a href='x'>\n```") == f"it costs 5 $\n```html\n<p>\n<{JOINER}a href='x'>\n```"
    assert sanitize("`<script>` and `<b>`") == f"`<{JOINER}script>` and `<b>`"


@pytest.mark.parametrize(
    "link",
    [
        "[x](JavaScript:alert(1))",
        "[x]( java&#115;cript:alert(1))",
        "[x](<javascript:alert(1)>)",
        "[x](java\\script:alert(1))",
        "[x](data:text/html,boo)",
    ],
)
def test_script_links_are_disabled(link: str) -> None:
    assert "](" not in sanitize(link).replace("] (", "](")


def test_images_and_link_definitions_are_disabled() -> None:
    assert sanitize("![a](https://example.org/?secret)") == "!\\[a](https://example.org/?secret)"
    assert sanitize('[a]: b "\n```\n"\n').startswith("\\[")
    assert sanitize("[a\n\\]b]: c").startswith("\\[")
    assert sanitize("see [x]\n\n[x]: javascript:f()") == "see [x]\n\n\\[x]: javascript:f()"
