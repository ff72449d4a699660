from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from openruntime_jupyter.ai.keys import MASK, KeyNotFound, Redactor, look_up

KEY = "sk-0123/456+789abcdef"


@pytest.mark.parametrize("place", ["", KEY, "env:", "env:A B", "keyring:", "keyring:service", "keyring:/user", "file:/etc/key"])
def test_what_is_no_place_is_refused_without_showing_it(place: str) -> None:
    with pytest.raises(KeyNotFound, match="env:NAME") as raised:
        look_up(place, {})
    assert KEY not in str(raised.value)


def test_a_key_is_found_in_the_environment() -> None:
    assert look_up("env:THE_KEY", {"THE_KEY": f" {KEY}\n"}) == KEY


@pytest.mark.parametrize("wrong", ["", "  ", "two words", "two\nlines", "schlüssel-0123"])
def test_what_is_no_key_is_refused_without_showing_it(wrong: str) -> None:
    with pytest.raises(KeyNotFound, match=r"THE_KEY.*: set it in the environment") as raised:
        look_up("env:THE_KEY", {"THE_KEY": wrong})
    assert not wrong.strip() or wrong not in str(raised.value)


def ring(monkeypatch: pytest.MonkeyPatch, get_password: Any) -> None:
    monkeypatch.setitem(sys.modules, "keyring", SimpleNamespace(get_password=get_password))


def test_a_key_is_found_in_the_keyring_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    import keyring
    from keyring.backend import KeyringBackend

    class InMemory(KeyringBackend):
        priority = 1

        def get_password(self, service: str, username: str) -> str | None:
            return KEY if (service, username) == ("openai", "me/at work") else None

        def set_password(self, service: str, username: str, password: str) -> None:
            raise NotImplementedError

    before = keyring.get_keyring()
    keyring.set_keyring(InMemory())
    try:
        assert look_up("keyring:openai/me/at work", {}) == KEY
        with pytest.raises(KeyNotFound, match="no key in the keyring's entry you of openai: store it with `keyring set openai you`"):
            look_up("keyring:openai/you", {})
    finally:
        keyring.set_keyring(before)


def test_a_keyring_that_does_not_answer_is_told_without_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(service: str, user: str) -> str:
        raise RuntimeError(KEY)

    ring(monkeypatch, fails)
    with pytest.raises(KeyNotFound, match="does not respond \\(RuntimeError\\): unlock it") as raised:
        look_up("keyring:openai/me", {})
    assert raised.value.__suppress_context__


def test_a_missing_package_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: ModuleType | None = None
    monkeypatch.setitem(sys.modules, "keyring", nothing)
    with pytest.raises(KeyNotFound, match="pip install keyring"):
        look_up("keyring:openai/me", {})


def test_a_text_is_cleaned_of_every_secret_in_every_form() -> None:
    redactor = Redactor([KEY, KEY + "-longer", "EMPTY"])
    assert redactor.clean(f"a {KEY} b {KEY}-longer c sk-0123%2F456%2B789abcdef EMPTY") == f"a {MASK} b {MASK} c {MASK} EMPTY"


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_a_secret_that_comes_in_pieces_is_cleaned_and_nothing_else_is_lost(size: int) -> None:
    text = f"sk-sk-0123 {KEY}{KEY} sk-0123/456 and {KEY[:-1]}"
    told: list[str] = []
    stream = Redactor([KEY]).stream(told.append)
    for start in range(0, len(text), size):
        stream.add(text[start : start + size])
    stream.end()
    assert "".join(told) == text.replace(KEY, MASK)
    assert "" not in told


def test_nothing_waits_where_nothing_is_secret() -> None:
    told: list[str] = []
    Redactor([]).stream(told.append).add("Hello")
    assert told == ["Hello"]
