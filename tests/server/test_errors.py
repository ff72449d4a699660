from __future__ import annotations

import inspect
import json
import logging

import pytest
from tornado import web

from openruntime_jupyter import errors
from openruntime_jupyter.schemas.problems import STATUS
from openruntime_jupyter.server.http.errors import envelope, enveloped, problem_of

EVERY = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.OpenRuntimeError) and kind is not errors.OpenRuntimeError
]


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_class_has_status(kind: type[errors.OpenRuntimeError]) -> None:
    assert any(issubclass(kind, parent) for parent, _ in STATUS)


def test_status_table_has_no_unreachable_entry() -> None:
    kinds = [kind for kind, _ in STATUS]
    assert not [(kind, later) for place, kind in enumerate(kinds) for later in kinds[place + 1 :] if issubclass(later, kind)]


def test_error_with_two_parents_has_one_status() -> None:
    for kind in EVERY:
        fitting = [parent for parent, _ in STATUS if issubclass(kind, parent)]
        assert all(issubclass(fitting[0], parent) for parent in fitting), kind


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.MemoryRefused(10**12, 10**10), 422),
        (errors.NoBackend("install one"), 503),
        (web.HTTPError(405), 405),
        (web.MissingArgumentError("since"), 400),
    ],
)
def test_problem_has_status_and_message_of_error(error: Exception, status: int) -> None:
    problem = problem_of(error)
    assert problem.status == status
    assert isinstance(error, web.HTTPError) or problem.message == str(error)
    assert problem.message


def test_problem_details_name_field() -> None:
    assert problem_of(errors.InvalidRequest.of("priority", "too large")).details == [{"field": "priority", "problem": "too large"}]


def test_retry_after_is_in_whole_seconds() -> None:
    assert problem_of(errors.QueueFull("full", 0.2)).headers == {"Retry-After": "1"}
    assert problem_of(errors.Stopping("ends", 7.0)).headers == {"Retry-After": "7"}
    assert int(problem_of(errors.NoBackend("install one")).headers["Retry-After"]) >= 1


def test_unexpected_error_is_logged_with_id_and_hidden(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError("/home/secret/path")
    except KeyError as error:
        with caplog.at_level(logging.ERROR):
            problem = problem_of(error)
    assert problem.status == 500
    assert "secret" not in problem.message
    assert "KeyError" not in problem.message
    record = caplog.records[-1]
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError
    assert record.getMessage().split()[1].rstrip(":") in problem.message


def test_jupyter_message_is_extended_by_advice() -> None:
    problem = problem_of(web.HTTPError(403, "User is not authorized to write on resource: openruntime."))
    assert problem.message.startswith("User is not authorized to write on resource: openruntime. ")
    assert "token" in problem.message


def test_envelope_matches_reference() -> None:
    told = envelope(None, "no")
    assert (told["status"], told["data"], told["error"]) == ("error", None, "no")
    assert told["timestamp"].endswith("Z")
    assert json.loads(enveloped(b'{"a": 1}')) | {"timestamp": ""} == {"status": "success", "data": {"a": 1}, "error": None, "timestamp": ""}
