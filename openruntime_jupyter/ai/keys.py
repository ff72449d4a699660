"""Where keys are found, and how they are kept out of everything that is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote

PLACE = re.compile(r"env:(?P<variable>[A-Za-z_][A-Za-z0-9_]*)|keyring:(?P<service>[^/\s][^/]*)/(?P<user>.*\S)")
HOW = "write where it is, `env:NAME` for an environment variable or `keyring:SERVICE/USER` for the keyring, and never the key itself"

SHORTEST = 8
"""Characters of what is taken for a secret. Local servers take any key, and `EMPTY` or `ollama` may stand in an answer."""
MASK = "[key]"


class KeyNotFound(LookupError):
    """Nothing usable is there; the message says what to do and never has the key."""


def is_place(text: str) -> bool:
    """Whether it says where a key is."""
    return PLACE.fullmatch(text) is not None


def variable(place: str) -> str | None:
    """The environment variable that a place names, if it is one."""
    found = PLACE.fullmatch(place)
    return found["variable"] if found else None


def look_up(place: str, environ: Mapping[str, str]) -> str:
    """The key at that place; raises `KeyNotFound`. A keyring may take long, or ask the user: call this in a thread."""
    found = PLACE.fullmatch(place)
    if found is None:
        raise KeyNotFound(f"that is no place of a key: {HOW}")
    if found["variable"]:
        where, key = f"the environment variable {found['variable']}", environ.get(found["variable"])
        advice = "set it where Jupyter is started"
    else:
        where, key = f"the keyring's entry {found['user']} of {found['service']}", _from_keyring(found["service"], found["user"])
        advice = f"store it by `keyring set {found['service']} {found['user']}`"
    key = (key or "").strip()
    if not key:
        raise KeyNotFound(f"there is no key in {where}: {advice}")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise KeyNotFound(f"what is in {where} is no key (it has spaces, line breaks or letters that no key has): {advice}")
    return key


def _from_keyring(service: str, user: str) -> str | None:
    try:
        import keyring
    except ImportError:
        raise KeyNotFound("the package keyring is missing: `pip install keyring`, or use an environment variable") from None
    try:
        return keyring.get_password(service, user)
    except Exception as problem:  # every backend has errors of its own
        raise KeyNotFound(f"the keyring does not answer ({type(problem).__name__}): unlock it, or use an environment variable") from None


class Redactor:
    """Takes secrets out of what is told. Whoever writes text piece by piece uses `stream`."""

    def __init__(self, secrets: Iterable[str]) -> None:
        long = {secret for secret in secrets if len(secret) >= SHORTEST}
        # What was echoed may have been quoted on the way. The longest first: one may be a part of another.
        self._forms = sorted({form for secret in long for form in (secret, quote(secret, safe=""))}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._forms))) if self._forms else None

    def clean(self, text: str) -> str:
        """`text` without any secret."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def stream(self, tell: Callable[[str], None]) -> RedactedStream:
        """Tells `tell` the pieces that it is given, without secrets that lie across them."""
        return RedactedStream(self, tell)

    def held_back(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a secret."""
        most = min(len(text), len(self._forms[0]) - 1) if self._forms else 0
        return next((size for size in range(most, 0, -1) if any(form.startswith(text[-size:]) for form in self._forms)), 0)


class RedactedStream:
    """Text that comes in pieces: what may be the beginning of a secret waits for the next piece."""

    def __init__(self, redactor: Redactor, tell: Callable[[str], None]) -> None:
        self._redactor = redactor
        self._tell = tell
        self._rest = ""

    def add(self, piece: str) -> None:
        """One more piece."""
        text = self._redactor.clean(self._rest + piece)
        held = self._redactor.held_back(text)
        self._rest = text[len(text) - held :]
        if held < len(text):
            self._tell(text[: len(text) - held])

    def end(self) -> None:
        """No more will come."""
        if self._rest:
            self._tell(self._rest)
            self._rest = ""
