from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from openruntime_jupyter.ai.keys import MASK, KeyNotFound, RedactedStream, Redactor, look_up

KEY = "sk-0123/456+789abcdef"


@pytest.mark.parametrize("place", ["", KEY, "env:", "env:A B", "keyring:", "keyring:service", "keyring:/user", "file:/etc/key"])
def test_invalid_reference_is_rejected_without_showing_it(place: str) -> None:
    with pytest.raises(KeyNotFound, match="env:NAME") as raised:
        look_up(place, {})
    assert KEY not in str(raised.value)


def test_look_up_in_environment() -> None:
    assert look_up("env:THE_KEY", {"THE_KEY": f" {KEY}\n"}) == KEY


@pytest.mark.parametrize("wrong", ["", "  ", "two words", "two\nlines", "schlüssel-0123"])
def test_invalid_key_is_rejected_without_showing_it(wrong: str) -> None:
    with pytest.raises(KeyNotFound, match=r"THE_KEY.*: set it in the environment") as raised:
        look_up("env:THE_KEY", {"THE_KEY": wrong})
    assert not wrong.strip() or wrong not in str(raised.value)


def test_look_up_in_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
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


def failing(service: str, user: str) -> str:
    raise RuntimeError(KEY)


@pytest.mark.parametrize(
    ("module", "problem"),
    [(SimpleNamespace(get_password=failing), r"does not respond \(RuntimeError\): unlock it"), (None, "pip install keyring")],
)
def test_unavailable_keyring_is_reported(monkeypatch: pytest.MonkeyPatch, module: Any, problem: str) -> None:
    monkeypatch.setitem(sys.modules, "keyring", module)
    with pytest.raises(KeyNotFound, match=problem) as raised:
        look_up("keyring:openai/me", {})
    assert raised.value.__suppress_context__


def test_redactor_removes_all_forms_of_all_secrets() -> None:
    redactor = Redactor([KEY, KEY + "-longer", "EMPTY"])
    assert redactor.clean(f"a {KEY} b {KEY}-longer c sk-0123%2F456%2B789abcdef EMPTY") == f"a {MASK} b {MASK} c {MASK} EMPTY"


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_redacted_stream_removes_split_secrets(size: int) -> None:
    text = f"sk-sk-0123 {KEY}{KEY} sk-0123/456 and {KEY[:-1]}"
    told: list[str] = []
    stream = RedactedStream(Redactor([KEY]), told.append)
    for start in range(0, len(text), size):
        stream.add(text[start : start + size])
    stream.end()
    assert "".join(told) == text.replace(KEY, MASK)
    assert "" not in told


def test_redacted_stream_without_secrets_passes_text_at_once() -> None:
    told: list[str] = []
    RedactedStream(Redactor([]), told.append).add("Hello")
    assert told == ["Hello"]
