from __future__ import annotations

import inspect
import json
import logging

import pytest
from tornado import web

from openruntime_jupyter import errors
from openruntime_jupyter.schemas.problems import CLASSES, CODES, HTTP_CODES, STATUS, error_of
from openruntime_jupyter.server.http.errors import Problem, envelope, enveloped, problem_of

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
        (errors.MemoryRefused.because(10**12, 10**10), 422),
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


@pytest.mark.parametrize("code", CLASSES)
def test_code_of_error_restores_its_class(code: str) -> None:
    kind = CLASSES[code]
    problem = problem_of(kind("do this"))
    assert problem.code == code
    restored = error_of(problem.status, problem.code, problem.message, [], 3.0)
    assert (type(restored), str(restored), restored.retry_after) == (kind, "do this", 3.0)


def test_code_of_subclass_is_that_of_base_class() -> None:
    class TooNew(errors.StorageUnavailable):
        """Error of a part of the server."""

    assert problem_of(TooNew("upgrade it")).code == "storage_unavailable"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 415, 418, 426])
def test_http_error_has_known_code(status: int) -> None:
    assert problem_of(web.HTTPError(status)).code == HTTP_CODES.get(status, "malformed_request")
    assert problem_of(web.HTTPError(status)).code in CODES


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "engine_on_fire", errors.Unavailable),
        (422, None, errors.InvalidRequest),
        (409, "", errors.TaskConflict),
        (404, "route_not_found", errors.NotConnected),
        (500, "internal_error", errors.OpenRuntimeError),
    ],
)
def test_unknown_code_falls_back_to_status(status: int, code: str | None, kind: type[errors.OpenRuntimeError]) -> None:
    assert type(error_of(status, code, "no")) is kind


def test_problem_details_name_field() -> None:
    assert problem_of(errors.InvalidRequest.of("priority", "too large")).details == [{"field": "priority", "problem": "too large"}]


def test_retry_after_is_in_whole_seconds() -> None:
    assert problem_of(errors.QueueFull("full", 0.2)).headers == {"Retry-After": "1"}
    assert problem_of(errors.Stopping("ends", 7.0)).headers == {"Retry-After": "7"}
    assert problem_of(errors.NoBackend("install one")).headers == {}
    assert problem_of(errors.NoModel("install one")).headers == {}
    assert problem_of(errors.IdempotencyKeyInUse("repeat it")).headers == {"Retry-After": "1"}


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
    told = envelope(Problem(503, "queue_full", "no"))
    assert (told["status"], told["data"], told["error"]) == ("error", {"code": "queue_full", "details": []}, "no")
    assert told["timestamp"].endswith("Z")
    assert json.loads(enveloped(b'{"a": 1}')) | {"timestamp": ""} == {"status": "success", "data": {"a": 1}, "error": None, "timestamp": ""}
