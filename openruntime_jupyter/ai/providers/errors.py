"""The edge between the openai package and this one: what it raises, and what a provider answers, as errors of ours.

The tables go by names, since `openai` and `httpx2` are imported late. Tests enumerate the exceptions of both, so that a new one must
be decided on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from openruntime_jupyter.ai.keys import Redactor
from openruntime_jupyter.ai.profiles import Profile
from openruntime_jupyter.errors import ProviderBroken, ProviderBusy, ProviderError, ProviderRefused, ProviderUnreachable

LONGEST = 300
"""Characters of what a provider says itself."""

ABSENT = "can't be reached ({said}): check that it runs, and base_url in the profile"
SLOW = "was silent for more than {timeout:g} s: it is overloaded or gone; try again, or give the profile a longer timeout"
BROKE = "broke the connection off ({said}): try again, and look into the provider's own log if it stays so"
PROXY = "can't be reached through the proxy ({said}): check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
FOREIGN = "does not speak HTTP as it should ({said}): check base_url in the profile"
NO_JSON = "sent what is no JSON ({said}): check that base_url leads to an OpenAI-compatible server"
NO_TEXT = "sent bytes that are no text ({said}): check that base_url leads to an OpenAI-compatible server"
SAID = "reported an error while it answered: {said}"
MISUSED = "could not be asked ({said}): this is a fault in openruntime, or in the profile's parameters"

TRANSPORT: dict[str, tuple[type[ProviderError], str]] = {
    "ConnectError": (ProviderUnreachable, ABSENT),
    "ConnectTimeout": (ProviderUnreachable, "does not accept connections in time: check that it runs, and base_url in the profile"),
    "ReadTimeout": (ProviderUnreachable, SLOW),
    "WriteTimeout": (ProviderUnreachable, SLOW),
    "PoolTimeout": (ProviderUnreachable, SLOW),
    "TimeoutException": (ProviderUnreachable, SLOW),
    "ReadError": (ProviderUnreachable, BROKE),
    "WriteError": (ProviderUnreachable, BROKE),
    "CloseError": (ProviderUnreachable, BROKE),
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
    "TransportError": (ProviderUnreachable, MISUSED),
    "RequestError": (ProviderUnreachable, MISUSED),
    "HTTPError": (ProviderUnreachable, MISUSED),
    "SSEError": (ProviderBroken, FOREIGN),
    "StreamError": (ProviderBroken, MISUSED),
    "StreamConsumed": (ProviderBroken, MISUSED),
    "StreamClosed": (ProviderBroken, BROKE),
    "ResponseNotRead": (ProviderBroken, MISUSED),
    "RequestNotRead": (ProviderBroken, MISUSED),
}
"""httpx2's, which the openai package lets through while a body is read, and has as causes of its own."""

OPENAI: dict[str, tuple[type[ProviderError], str]] = {
    "APITimeoutError": (ProviderUnreachable, SLOW),
    "APIConnectionError": (ProviderUnreachable, ABSENT),
    "APIResponseValidationError": (ProviderBroken, NO_JSON),
    "APIError": (ProviderBroken, SAID),
    "OpenAIError": (ProviderRefused, MISUSED),
    "JSONDecodeError": (ProviderBroken, NO_JSON),
    "UnicodeDecodeError": (ProviderBroken, NO_TEXT),
}
"""What is said for each exception of the openai package that is no status, and for those of Python that it lets through."""

STATUSES: dict[int, tuple[type[ProviderError], str]] = {
    400: (ProviderRefused, "did not take the request: {said}"),
    402: (ProviderBusy, "wants to be paid first: {said}"),
    403: (ProviderRefused, "does not permit this: {said}; ask for access to the model, or use another key"),
    404: (ProviderRefused, "does not know this model or address: {said}; check model, and that base_url ends as it should (often in /v1)"),
    405: (ProviderRefused, "has no chat completions there: check that base_url ends as it should (often in /v1)"),
    408: (ProviderUnreachable, "gave up waiting for the request: {said}; try again"),
    413: (ProviderRefused, "finds the prompt too long: {said}; make it shorter"),
    422: (ProviderRefused, "did not take the request: {said}"),
}
KEY_REFUSED = "did not take the key of {place}: {said}; put a valid one there"
KEY_WANTED = "wants a key, and the profile names none: {said}; set its api_key to env:NAME or keyring:SERVICE/USER"
BUSY = "takes no more requests now: {said}; try again {when}, or ask for less at once"
MOVED = "sends to another address ({said}): if that is right, make it the profile's base_url"
FAILED = "failed by itself with status {status}: {said}; try again later"
REFUSED = "answered with status {status}: {said}"

TAG = re.compile(r"<[^<>]*>")


class Edge:
    """Turns what goes wrong with one profile into errors that name it, without its secrets."""

    def __init__(self, profile: Profile, redactor: Redactor) -> None:
        self._profile = profile
        self._redactor = redactor

    def error(self, kind: type[ProviderError], message: str, retry_after: float | None = None) -> ProviderError:
        """An error of ours that names the profile and the host."""
        error = kind(self._redactor.clean(f"The profile {self._profile.name!r} ({self._profile.host}) {message}."))
        error.retry_after = retry_after
        return error

    def translate(self, problem: Exception) -> ProviderError | None:
        """An exception of the openai package, of httpx2 or of reading JSON as one of ours; None where it is none of those."""
        names = [kind.__name__ for kind in type(problem).__mro__]
        if "APIStatusError" in names:
            return self._by_status(problem)
        if names[0] == "APIConnectionError":
            return self._by_cause(problem)
        found = next((OPENAI.get(name) or TRANSPORT.get(name) for name in names if name in OPENAI or name in TRANSPORT), None)
        if found is None:
            return None
        kind, message = found
        said = told(getattr(problem, "body", None)) or one_line(str(problem)) or names[0]
        return self.error(kind, message.format(said=said, timeout=self._profile.timeout))

    def _by_cause(self, problem: Exception) -> ProviderError:
        cause = problem.__cause__
        kind, message = next(
            (TRANSPORT[name] for name in (each.__name__ for each in type(cause).__mro__) if name in TRANSPORT), OPENAI["APIConnectionError"]
        )
        deepest = _root(problem)
        said = one_line(str(deepest)) or type(deepest).__name__
        return self.error(kind, message.format(said=said, timeout=self._profile.timeout))

    def _by_status(self, problem: Any) -> ProviderError:
        status: int = problem.status_code
        said = told(problem.body) or one_line(problem.response.reason_phrase) or "it does not say why"
        place = self._profile.api_key
        if status in STATUSES:
            kind, message = STATUSES[status]
            return self.error(kind, message.format(said=said))
        if status == 401:
            return self.error(ProviderRefused, (KEY_REFUSED if place else KEY_WANTED).format(said=said, place=place))
        if status == 429:
            seconds = _retry_after(problem.response.headers)
            when = "later" if seconds is None else f"in {seconds:g} s"
            return self.error(ProviderBusy, BUSY.format(said=said, when=when), seconds)
        if 300 <= status < 400:
            return self.error(
                ProviderRefused, MOVED.format(said=one_line(problem.response.headers.get("location", "")) or "which, it does not say")
            )
        kind, message = (ProviderBroken, FAILED) if status >= 500 else (ProviderRefused, REFUSED)
        return self.error(kind, message.format(said=said, status=status))


def told(body: object) -> str:
    """What an error's body says, in one line: it may be a text, an object with a message in it, or a web page."""
    if isinstance(body, Mapping):
        return next((said for name in ("error", "message", "detail", "msg") if (said := told(body.get(name)))), "")
    if isinstance(body, (list, tuple)):
        return told(body[0]) if body else ""
    return one_line(body) if isinstance(body, str) else ""


def one_line(text: str) -> str:
    """`text` without tags and line breaks, cut, and without a full stop."""
    if "<html" in text[:1000].lower() or "<!doctype" in text[:1000].lower():
        title = re.search(r"<title[^>]*>(.*?)</title", text[:20_000], re.IGNORECASE | re.DOTALL)
        text = f"a web page, {' '.join(title[1].split())!r}" if title else "a web page"
    line = " ".join(TAG.sub(" ", text[:20_000]).split())
    return (line if len(line) <= LONGEST else line[: LONGEST - 1] + "…").rstrip(".")


def _root(problem: BaseException) -> BaseException:
    seen = {id(problem)}
    while (inner := problem.__cause__ or problem.__context__) is not None and id(inner) not in seen:
        seen.add(id(inner))
        problem = inner
    return problem


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None  # a date, or none
    return seconds if 0 < seconds < 86_400 else None
