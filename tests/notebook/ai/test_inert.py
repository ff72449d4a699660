"""What a model's Markdown may not do to the page, and that code stays code."""

from __future__ import annotations

import pytest

from openruntime_jupyter.notebook.ai.sanitize import JOINER, inert

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
def test_what_is_harmless_stays_as_it_is(text: str) -> None:
    assert inert(text) == text


@pytest.mark.parametrize(
    "before",
    [
        "",
        "- a list\n  ```\n",
        "1. ```\n",
        "> ```\n",
        "   ```\n",
        "\t```\n",
        "```\ncode\n```\n",
        "```\ncode\n   ````\n",
        "~~~\n```\n~~~\n",
        "- a\n\n      ```\n",
        "`an open span\nends` and `",
        "`` ` ",
    ],
)
def test_no_tag_outside_a_block_reaches_the_page(before: str) -> None:
    told = inert(before + BAD)
    assert "<img" not in told
    assert "img src=x" in told, "but it can be read"


@pytest.mark.parametrize("before", ["$$\n```\n$$\n", "$\n```\n$", "\\[\n```\n\\]\n", "\\begin{x}\n```\n\\end{x}\n"])
def test_what_may_swallow_a_fence_makes_no_block_of_what_follows(before: str) -> None:
    assert "<img" not in inert(before + BAD)


def test_code_that_is_not_certain_to_be_code_looks_the_same_and_is_no_tag() -> None:
    assert inert("it costs 5 $\n```html\n<p>\n<a href='x'>\n```") == f"it costs 5 $\n```html\n<p>\n<{JOINER}a href='x'>\n```"
    assert inert("`<script>` and `<b>`") == f"`<{JOINER}script>` and `<b>`"


@pytest.mark.parametrize(
    "link",
    [
        "[x](javascript:alert(1))",
        "[x](JavaScript:alert(1))",
        "[x]( java&#115;cript:alert(1))",
        "[x](<javascript:alert(1)>)",
        "[x](java\\script:alert(1))",
        "[x](data:text/html,boo)",
    ],
)
def test_no_link_is_a_script(link: str) -> None:
    assert "](" not in inert(link).replace("] (", "](")


def test_no_picture_is_fetched_and_no_address_is_hidden_elsewhere() -> None:
    assert inert("![a](https://example.org/?secret)") == "!\\[a](https://example.org/?secret)"
    assert inert('[a]: b "\n```\n"\n').startswith("\\[")
    assert inert("[a\n\\]b]: c").startswith("\\[")
    assert inert("see [x]\n\n[x]: javascript:f()") == "see [x]\n\n\\[x]: javascript:f()"
