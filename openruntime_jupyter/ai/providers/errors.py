"""Translation of exceptions of the openai package and of error responses into the package's errors.

The tables use class names, because `openai` and `httpx2` are imported lazily. Tests enumerate the exceptions of both, so that new
exceptions get an entry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from openruntime_jupyter.ai.keys import Redactor
from openruntime_jupyter.ai.profiles import Profile
from openruntime_jupyter.errors import ProviderBroken, ProviderBusy, ProviderError, ProviderRefused, ProviderUnreachable

LONGEST = 300
"""Maximum characters of a provider's own message."""

ABSENT = "can't be reached ({detail}): check that it runs, and base_url in the profile"
SLOW = "sent no data for more than {timeout:g} s, because it is overloaded or has stopped: try again, or raise the profile's timeout"
BROKE = "closed the connection ({detail}): try again, and check the provider's log if it happens again"
PROXY = "can't be reached through the proxy ({detail}): check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
FOREIGN = "violated the HTTP protocol ({detail}): check base_url in the profile"
NO_JSON = "sent invalid JSON ({detail}): check that base_url points to an OpenAI-compatible server"
NO_TEXT = "sent bytes that are not text ({detail}): check that base_url points to an OpenAI-compatible server"
SAID = "reported an error during the response: {detail}"
MISUSED = "could not be called ({detail}): this is a bug in openruntime, or an error in the profile's parameters"

TRANSPORT: dict[str, tuple[type[ProviderError], str]] = {
    "ConnectError": (ProviderUnreachable, ABSENT),
    "ConnectTimeout": (ProviderUnreachable, "did not accept the connection in time: check that it runs, and base_url in the profile"),
    "TimeoutException": (ProviderUnreachable, SLOW),
    "NetworkError": (ProviderUnreachable, BROKE),
    "RemoteProtocolError": (ProviderUnreachable, BROKE),
    "ProxyError": (ProviderUnreachable, PROXY),
    "ProtocolError": (ProviderBroken, FOREIGN),
    "DecodingError": (ProviderBroken, FOREIGN),
    "TooManyRedirects": (ProviderBroken, FOREIGN),
    "HTTPStatusError": (ProviderBroken, FOREIGN),
    "CookieConflict": (ProviderBroken, FOREIGN),
    "InvalidURL": (ProviderRefused, MISUSED),
    "UnsupportedProtocol": (ProviderRefused, MISUSED),
    "LocalProtocolError": (ProviderRefused, MISUSED),
    "HTTPError": (ProviderUnreachable, MISUSED),
    "SSEError": (ProviderBroken, FOREIGN),
    "StreamError": (ProviderBroken, MISUSED),
    "StreamClosed": (ProviderBroken, BROKE),
}
"""Exceptions of httpx2, which the openai package raises while parsing a body, or sets as causes of its exceptions.

An exception without an entry has that of its nearest base class.
"""

OPENAI: dict[str, tuple[type[ProviderError], str]] = {
    "APITimeoutError": (ProviderUnreachable, SLOW),
    "APIConnectionError": (ProviderUnreachable, ABSENT),
    "APIResponseValidationError": (ProviderBroken, NO_JSON),
    "APIError": (ProviderBroken, SAID),
    "OpenAIError": (ProviderRefused, MISUSED),
    "JSONDecodeError": (ProviderBroken, NO_JSON),
    "UnicodeDecodeError": (ProviderBroken, NO_TEXT),
}
"""Messages for exceptions of the openai package without a status, and for built-in exceptions that it raises."""

STATUSES: dict[int, tuple[type[ProviderError], str]] = {
    400: (ProviderRefused, "rejected the request: {detail}"),
    402: (ProviderBusy, "requires a payment: {detail}"),
    403: (ProviderRefused, "denied access: {detail}; request access to the model, or use another key"),
    404: (ProviderRefused, "has no such model or address: {detail}; check model and the end of base_url (often /v1)"),
    405: (ProviderRefused, "has no chat completions at this address: check the end of base_url (often /v1)"),
    408: (ProviderUnreachable, "timed out waiting for the request: {detail}; try again"),
    413: (ProviderRefused, "rejected the prompt as too long: {detail}; shorten it"),
    422: (ProviderRefused, "rejected the request: {detail}"),
}
KEY_REFUSED = "rejected the key of {reference}: {detail}; set a valid key there"
KEY_WANTED = "requires a key, but the profile has none: {detail}; set its api_key to env:NAME or keyring:SERVICE/USER"
BUSY = "is rate-limiting requests: {detail}; try again {when}, or send fewer requests at once"
MOVED = "redirects to another address ({detail}): if it is correct, set it as the profile's base_url"
FAILED = "failed with status {status}: {detail}; try again later"
REFUSED = "responded with status {status}: {detail}"

TAG = re.compile(r"<[^<>]*>")
PARAMETER = re.compile(r"[a-z_]{1,50}")


class ErrorTranslator:
    """Translator of a profile's exceptions into errors that name the profile, without secrets."""

    def __init__(self, profile: Profile, redactor: Redactor) -> None:
        self._profile = profile
        self._redactor = redactor

    def error(self, kind: type[ProviderError], message: str, retry_after: float | None = None) -> ProviderError:
        """Return an error that names the profile and the host."""
        error = kind(self._redactor.clean(f"The provider {self._profile.name!r} ({self._profile.host}) {message}"))
        error.retry_after = retry_after
        return error

    def translate(self, problem: Exception) -> ProviderError | None:
        """Return the error for an exception of openai, httpx2 or the JSON parser, or None for other exceptions."""
        names = [each.__name__ for each in type(problem).__mro__]
        if "APIStatusError" in names:
            return self._by_status(problem)
        if names[0] == "APIConnectionError":  # its cause tells more
            kind, message = _entry(problem.__cause__, TRANSPORT) or OPENAI["APIConnectionError"]
            problem = _root(problem)
        elif (found := _entry(problem, {**TRANSPORT, **OPENAI})) is not None:
            kind, message = found
        else:
            return None
        detail = error_text(getattr(problem, "body", None)) or one_line(str(problem)) or type(problem).__name__
        return self.error(kind, message.format(detail=detail, timeout=self._profile.timeout))

    def _by_status(self, problem: Any) -> ProviderError:
        status: int = problem.status_code
        detail = error_text(problem.body) or one_line(problem.response.reason_phrase) or "no reason given"
        reference = self._profile.api_key
        if status in STATUSES:
            kind, message = STATUSES[status]
            optional = isinstance(problem.param, str) and PARAMETER.fullmatch(problem.param) and problem.param not in ("messages", "model")
            advice = f"; change or omit {problem.param} in the prompt or in the profile's parameters" if optional else ""
            return self.error(kind, f"{message.format(detail=detail)}{advice}")
        if status == 401:
            return self.error(ProviderRefused, (KEY_REFUSED if reference else KEY_WANTED).format(detail=detail, reference=reference))
        if status == 429:
            seconds = _retry_after(problem.response.headers)
            when = "later" if seconds is None else f"in {seconds:g} s"
            return self.error(ProviderBusy, BUSY.format(detail=detail, when=when), seconds)
        if 300 <= status < 400:
            return self.error(
                ProviderRefused, MOVED.format(detail=one_line(problem.response.headers.get("location", "")) or "no address given")
            )
        kind, message = (ProviderBroken, FAILED) if status >= 500 else (ProviderRefused, REFUSED)
        return self.error(kind, message.format(detail=detail, status=status))


def error_text(body: object) -> str:
    """Return the message of an error body in one line. The body may be text, an object with a message, or a web page."""
    if isinstance(body, Mapping):
        place, problem = body.get("loc"), body.get("msg")
        if isinstance(place, (list, tuple)) and isinstance(problem, str):  # of FastAPI's servers
            return one_line(": ".join([".".join(str(part) for part in place if part != "body"), problem]).removeprefix(": "))
        return next((detail for name in ("error", "message", "detail", "msg") if (detail := error_text(body.get(name)))), "")
    if isinstance(body, (list, tuple)):
        return error_text(body[0]) if body else ""
    return one_line(body) if isinstance(body, str) else ""


def one_line(text: str) -> str:
    """Return `text` truncated, without tags, line breaks and a trailing full stop."""
    if "<html" in text[:1000].lower() or "<!doctype" in text[:1000].lower():
        title = re.search(r"<title[^>]*>(.*?)</title", text[:20_000], re.IGNORECASE | re.DOTALL)
        text = f"a web page, {' '.join(title[1].split())!r}" if title else "a web page"
    line = " ".join(TAG.sub(" ", text[:20_000]).split())
    return (line if len(line) <= LONGEST else line[: LONGEST - 1] + "…").rstrip(".")


def _entry(problem: BaseException | None, table: dict[str, tuple[type[ProviderError], str]]) -> tuple[type[ProviderError], str] | None:
    """Return the entry of the exception's class, or of its nearest base class with one."""
    return next((table[each.__name__] for each in type(problem).__mro__ if each.__name__ in table), None)


def _root(problem: Exception) -> Exception:
    seen = {id(problem)}
    while isinstance(inner := problem.__cause__ or problem.__context__, Exception) and id(inner) not in seen:
        seen.add(id(inner))
        problem = inner
    return problem


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None  # an HTTP date, or missing
    return seconds if 0 < seconds < 86_400 else None
