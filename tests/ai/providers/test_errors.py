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
from openruntime_jupyter.ai.providers.errors import OPENAI, ErrorTranslator, error_text
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

EDGE = ErrorTranslator(profiles_from({"p": {"base_url": "http://127.0.0.1:9/v1"}}, {})["p"], Redactor([]))


def exceptions(*modules: Any) -> dict[str, type[Exception]]:
    return {
        name: kind
        for module in modules
        for name, kind in tuple(vars(module).items())  # accessing a class may import more
        if inspect.isclass(kind) and issubclass(kind, Exception) and not issubclass(kind, Warning) and not name.startswith("_")
    }


BY_STATUS = {name for name, kind in exceptions(openai).items() if issubclass(kind, openai.APIStatusError)}
"""Exceptions that are translated by the response status."""


def test_all_exceptions_of_openai_are_listed() -> None:
    found = {name for name, kind in exceptions(openai, _exceptions).items() if kind.__module__.startswith("openai")}
    assert found == {*BY_STATUS, *NOT_OURS, *OPENAI} - {"JSONDecodeError", "UnicodeDecodeError"}


def made(kind: type[Exception]) -> Exception:
    """Return an exception without its constructor, whose parameters differ by class."""
    error = kind.__new__(kind, "said")
    request = httpx2.Request("POST", "http://127.0.0.1:9/v1/chat/completions")
    response = httpx2.Response(418, request=request)
    error.__dict__.update(status_code=418, body={"message": "teapot"}, message="said", response=response)
    return error


@pytest.mark.parametrize("name", sorted({*BY_STATUS, *OPENAI, *exceptions(httpx2)} - {"JSONDecodeError", "UnicodeDecodeError"}))
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
        ({"detail": [{"loc": ["body", "x", 0], "msg": "a"}, {"msg": "b"}]}, "x.0: a"),
        ({"detail": [{"loc": ["body"], "msg": "a"}]}, "a"),
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
