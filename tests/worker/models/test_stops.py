from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from openruntime_jupyter.local_models.language_model import StopFilter

LETTERS = some.text("ab\n", max_size=30)


@given(LETTERS, some.lists(some.text("ab\n", min_size=1, max_size=4), max_size=3), some.lists(some.integers(0, 5), min_size=1, max_size=40))
def test_text_ends_at_first_stop_for_any_cuts(text: str, stops: list[str], cuts: list[int]) -> None:
    stream, passed, place, cut = StopFilter(stops), "", 0, 0
    while place < len(text) or cut < len(cuts):
        size = cuts[cut] if cut < len(cuts) else 1
        passed += stream.feed(text[place : place + size])
        place, cut = place + size, cut + 1
    passed += stream.flush()
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert passed == text[: min(found)[1] if found else len(text)]
    assert stream.found == bool(found)


@given(LETTERS)
def test_without_stop_strings_nothing_is_held_back(text: str) -> None:
    stream = StopFilter()
    assert [stream.feed(letter) for letter in text] == list(text)


def test_only_possible_stop_prefixes_are_held_back() -> None:
    stream = StopFilter(["\nuser:"])
    assert stream.feed("yes\nuse") == "yes"
    assert stream.feed("ful") == "\nuseful"
    assert not stream.found
