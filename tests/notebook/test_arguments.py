"""Parsing of a magic's line: valid lines, and errors for invalid ones."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from IPython.core.error import UsageError

from openruntime_jupyter.notebook.ai.options import parse_ai
from openruntime_jupyter.notebook.arguments import literal, parse_cell, parse_line, seconds, size, tokens


def test_parse_cell_line() -> None:
    found = parse_cell(
        "--in a,b --out c, d --priority 8 --device gpu --timeout 1.5 --retries 2 --memory-limit 2GB --name 'my task' --bg --as job"
    )
    assert (found.inputs, found.outputs) == (("a", "b"), ("c", "d"))
    assert found.options == {
        "priority": 8,
        "device": "gpu",
        "timeout": 1.5,
        "retries": 2,
        "memory_limit": 2_000_000_000,
        "name": "my task",
    }
    assert (found.background, found.variable) == (True, "job")


def test_missing_options_are_left_to_the_runtime() -> None:
    found = parse_cell("")
    assert (found.options, found.inputs, found.outputs, found.background, found.variable) == ({}, (), (), False, None)


def test_duplicate_names_count_once() -> None:
    assert parse_cell("--in a,a --in a b").inputs == ("a", "b")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--in 3x", "3x"),
        ("--out class", "class"),
        ("--as not-a-name", "not-a-name"),
        ("--in", "--in"),
        ("--priority 11", "use 1 to 10"),
        ("--timeout 1h30", "5m or 1h30m"),
        ("--retries many", "--retries: 'many'"),
        ("--memory-limit lots", "2GB"),
        ("--memory-limit 2 GB", "needs quotes around it"),
        ("--prioritty 3", "--priority"),
        ("stray", "stray"),
        ("--name 'open", "never closed"),
    ],
)
def test_invalid_cell_line_is_rejected_with_reason(line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cell(line)
    assert said in str(caught.value)


def test_parameters_are_python_literals_or_text() -> None:
    found = parse_line(
        'compute expression="sum(a @ b)" inputs={"a": [1, 2], "b": {"random": [2]}} n=3 x=-1.5 on=True device=gpu path=/tmp/x empty='
    )
    assert found.words == ("compute",)
    assert found.pairs == {
        "expression": "sum(a @ b)",
        "inputs": {"a": [1, 2], "b": {"random": [2]}},
        "n": 3,
        "x": -1.5,
        "on": True,
        "device": "gpu",
        "path": "/tmp/x",
        "empty": "",
    }


def test_options_may_follow_an_operation() -> None:
    found = parse_line("matrix_multiply size=10 --bg --priority 9")
    assert (found.words, found.pairs, found.options, found.background) == (("matrix_multiply",), {"size": 10}, {"priority": 9}, True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("poetry", "code_generation"),
        ("code_generatoin", "Did you mean code_generation"),
        ("--temprature 1", "Did you mean --temperature"),
        ("--temperature hot", "temperature"),
        ("--out 3x", "3x"),
        ("--map rows", "--out"),
        ("--bg --out a", "--as"),
    ],
)
def test_invalid_prompt_line_is_rejected_with_reason(line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_ai(line, cell=True)
    assert said in str(caught.value)


@pytest.mark.parametrize(("line", "said"), [("x n=1 n=2", "twice"), ("x --in a", "--in"), ("x n=[1", "never closed")])
def test_line_magic_rejects_unknown_arguments(line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_line(line)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a  b", ["a", "b"]),
        ("a='b c' d", ["a='b c'", "d"]),
        ("it's fine", ["it's", "fine"]),
        (r"a='it\'s one' b", [r"a='it\'s one'", "b"]),
        ("a=[1, (2, 3)] b", ["a=[1, (2, 3)]", "b"]),
        ('a={"x": "} ]"} b', ['a={"x": "} ]"}', "b"]),
        ("{1+1}", ["{1+1}"]),
    ],
)
def test_spaces_in_quotes_and_brackets_do_not_split(line: str, expected: list[str]) -> None:
    assert tokens(line) == expected


def test_comments_are_ignored_except_in_prompts() -> None:
    assert parse_line("retry task_1 --priority 7  # don't (wait").words == ("retry", "task_1")
    assert parse_line("# what there is") == parse_line("")
    assert parse_line("compute expression='a # b' name#1 x=[1,#2]").pairs == {"expression": "a # b", "x": "[1,#2]"}
    assert parse_cell("--in a,b # both").inputs == ("a", "b")
    assert parse_ai("--seed 1 # so that it repeats", cell=True).parameters == {"seed": 1}
    assert parse_ai("what does # mean", cell=False).prompt == "what does # mean"


AWKWARD = st.text("a'\"\\ ,=#{}[]()\n\t\u00e9", max_size=8)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | AWKWARD,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(AWKWARD, inner, max_size=3),
        max_leaves=8,
    )
)
def test_literals_round_trip(value: Any) -> None:
    assert parse_line(f"op first={value!r} second=2").pairs == {"first": value, "second": 2}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(["--in", "--as", "a,b", "x=1"]) | AWKWARD).map(" ".join))
def test_any_line_is_parsed_or_rejected(line: str) -> None:
    for parse in (parse_cell, parse_line):
        with suppress(UsageError):
            parse(line)


@pytest.mark.parametrize(("text", "expected"), [("2.5 gb", 2_500_000_000), ("1000000", 1_000_000), ("'1 KiB'", 1024)])
def test_sizes_with_units(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2.5", 2.5), ("5min", 300.0), ("'1h 30m'", 5400.0), ("1h30m5s", 5405.0)],
)
def test_times_with_units(text: str, expected: float) -> None:
    assert seconds(text) == expected


def test_unparsable_literal_is_text() -> None:
    assert literal("(" * 10_000) == "(" * 10_000
