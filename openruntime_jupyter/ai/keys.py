"""Lookup of API keys, and their redaction from all output."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote

REFERENCE = re.compile(r"env:(?P<variable>[A-Za-z_][A-Za-z0-9_]*)|keyring:(?P<service>[^/\s][^/]*)/(?P<user>.*\S)")
HOW = "use a reference, `env:NAME` for an environment variable or `keyring:SERVICE/USER` for the keyring, never the key itself"

SHORTEST = 8
"""Minimum length of a secret. Local servers accept any key, and values such as `EMPTY` or `ollama` may occur in responses."""
MASK = "[key]"


class KeyNotFound(LookupError):
    """Missing or invalid key. The message has advice and never contains the key."""


def is_reference(text: str) -> bool:
    """Return whether `text` is a reference to a key."""
    return REFERENCE.fullmatch(text) is not None


def variable(reference: str) -> str | None:
    """Return the environment variable of a reference, or None for a keyring entry."""
    found = REFERENCE.fullmatch(reference)
    return found["variable"] if found else None


def look_up(reference: str, environ: Mapping[str, str]) -> str:
    """Return the key of a reference. Raises `KeyNotFound`. A keyring may be slow or prompt the user, so call this in a thread."""
    found = REFERENCE.fullmatch(reference)
    if found is None:
        raise KeyNotFound(f"invalid key reference: {HOW}")
    if found["variable"]:
        where, key = f"the environment variable {found['variable']}", environ.get(found["variable"])
        advice = "set it in the environment that starts Jupyter"
    else:
        where, key = f"the keyring's entry {found['user']} of {found['service']}", _from_keyring(found["service"], found["user"])
        advice = f"store it with `keyring set {found['service']} {found['user']}`"
    key = (key or "").strip()
    if not key:
        raise KeyNotFound(f"no key in {where}: {advice}")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise KeyNotFound(f"invalid key in {where} (spaces, line breaks or non-ASCII characters): {advice}")
    return key


def _from_keyring(service: str, user: str) -> str | None:
    try:
        import keyring
    except ImportError:
        raise KeyNotFound("the package keyring is missing: `pip install keyring`, or use an environment variable") from None
    try:
        return keyring.get_password(service, user)
    except Exception as problem:  # backends raise their own exception types
        raise KeyNotFound(f"the keyring does not respond ({type(problem).__name__}): unlock it, or use an environment variable") from None


class Redactor:
    """Redactor of secrets in text. Use `RedactedStream` for text in pieces."""

    def __init__(self, secrets: Iterable[str]) -> None:
        long = {secret for secret in secrets if len(secret) >= SHORTEST}
        # Echoed secrets may be URL-quoted. Longest first, because one secret may contain another.
        self._forms = sorted({form for secret in long for form in (secret, quote(secret, safe=""))}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._forms))) if self._forms else None

    def clean(self, text: str) -> str:
        """Return `text` without secrets."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def held_back(self, text: str) -> int:
        """Return the number of characters at the end of `text` that may be the start of a secret."""
        most = min(len(text), len(self._forms[0]) - 1) if self._forms else 0
        return next((size for size in range(most, 0, -1) if any(form.startswith(text[-size:]) for form in self._forms)), 0)


class RedactedStream:
    """Redaction of text in pieces, which are passed to `emit`. Holds back a possible start of a secret until the next piece."""

    def __init__(self, redactor: Redactor, emit: Callable[[str], None]) -> None:
        self._redactor = redactor
        self._emit = emit
        self._rest = ""

    def add(self, piece: str) -> None:
        """Redact the next piece."""
        text = self._redactor.clean(self._rest + piece)
        held = self._redactor.held_back(text)
        self._rest = text[len(text) - held :]
        if held < len(text):
            self._emit(text[: len(text) - held])

    def end(self) -> None:
        """Flush the remaining text."""
        if self._rest:
            self._emit(self._rest)
            self._rest = ""
