"""Every exception of openai and httpx2 is translated; new exceptions of a release fail a test here."""

from __future__ import annotations

import inspect
import json
from typing import Any

import httpx2
import openai
import pytest
from openai import _exceptions

from openruntime_jupyter.ai.keys import Redactor
from openruntime_jupyter.ai.profiles import profiles_from
from openruntime_jupyter.ai.providers.errors import OPENAI, TRANSPORT, ErrorTranslator, error_text
from openruntime_jupyter.errors import ProviderError

NOT_OURS = {
    "InvalidWebhookSignatureError": "no webhooks",
    "SubjectTokenProviderError": "no workload identity",
    "LengthFinishReasonError": "no parsed answers",
    "ContentFilterFinishReasonError": "no parsed answers",
    "WebSocketConnectionClosedError": "no WebSockets",
    "WebSocketQueueFullError": "no WebSockets",
}
"""Exceptions of parts of the openai package that are not used here, each with why it can't come."""

BY_STATUS = frozenset(
    {
        "APIStatusError",
        "AuthenticationError",
        "BadRequestError",
        "ConflictError",
        "InternalServerError",
        "NotFoundError",
        "OAuthError",
        "PermissionDeniedError",
        "RateLimitError",
        "UnprocessableEntityError",
    }
)
"""Exceptions that are translated by the response status."""

EDGE = ErrorTranslator(profiles_from({"p": {"base_url": "http://127.0.0.1:9/v1"}}, {})["p"], Redactor([]))


def exceptions(*places: Any) -> dict[str, type[Exception]]:
    found = {
        name: kind
        for place in places
        for name, kind in tuple(vars(place).items())  # accessing a class may import more
        if inspect.isclass(kind) and issubclass(kind, Exception) and not issubclass(kind, Warning) and not name.startswith("_")
    }
    assert found
    return found


def test_all_exceptions_of_openai_are_listed() -> None:
    found = {name for name, kind in exceptions(openai, _exceptions).items() if kind.__module__.startswith("openai")}
    assert found == {*BY_STATUS, *NOT_OURS, *OPENAI} - {"JSONDecodeError", "UnicodeDecodeError"}


def test_all_exceptions_of_httpx2_are_listed() -> None:
    assert set(exceptions(httpx2)) - {"HTTPXDeprecationWarning"} == set(TRANSPORT)


def made(kind: type[Exception]) -> Exception:
    request = httpx2.Request("POST", "http://127.0.0.1:9/v1/chat/completions")
    if issubclass(kind, openai.OAuthError):
        return kind(response=httpx2.Response(401, request=request), body=None)
    if issubclass(kind, openai.APIStatusError):
        return kind("said", response=httpx2.Response(418, request=request), body={"message": "teapot"})
    if issubclass(kind, openai.APIResponseValidationError):
        return kind(httpx2.Response(200, request=request), None)
    if issubclass(kind, openai.APITimeoutError):
        return kind(request)
    if issubclass(kind, openai.APIConnectionError):
        return kind(request=request)
    if issubclass(kind, openai.APIError):
        return kind("said", request, body="said")
    if issubclass(kind, httpx2.HTTPStatusError):
        return kind("said", request=request, response=httpx2.Response(418, request=request))
    if kind in (httpx2.StreamConsumed, httpx2.StreamClosed, httpx2.ResponseNotRead, httpx2.RequestNotRead):
        return kind()
    return kind("said")


@pytest.mark.parametrize("name", sorted({*BY_STATUS, *OPENAI, *TRANSPORT} - {"JSONDecodeError", "UnicodeDecodeError"}))
def test_translated_error_names_the_profile(name: str) -> None:
    error = EDGE.translate(made({**exceptions(httpx2), **exceptions(openai)}[name]))
    assert isinstance(error, ProviderError)
    assert str(error).startswith("The provider 'p' (127.0.0.1:9) ")
    assert "{" not in str(error)


@pytest.mark.parametrize("text", ["", "{"])
def test_invalid_json_is_translated(text: str) -> None:
    with pytest.raises(json.JSONDecodeError) as raised:
        json.loads(text)
    assert "invalid JSON" in str(EDGE.translate(raised.value))


def test_unknown_exception_is_not_translated() -> None:
    assert EDGE.translate(ZeroDivisionError("by nought")) is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "a"}}, "a"),
        ("a\n b.", "a b"),
        ({"message": "a"}, "a"),
        ({"detail": [{"loc": ["x"], "msg": "a"}, {"msg": "b"}]}, "a"),
        ([{"error": {"message": "a"}}], "a"),
        ({"error": {}}, ""),
        ({"error": None, "message": 5}, ""),
        (5, ""),
        ("<html><head><title> Bad\nGateway </title>", "a web page, 'Bad Gateway'"),
        ("<!doctype html><p>x", "a web page"),
        ("x" * 1000, "x" * 299 + "…"),
    ],
)
def test_error_text_of_body(body: object, said: str) -> None:
    assert error_text(body) == said
