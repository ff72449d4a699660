from __future__ import annotations

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openruntime_jupyter.errors import InvalidRequest, MalformedRequest
from openruntime_jupyter.schemas.queries import DeleteQuery, EventsQuery, OutputQuery, TasksQuery, WaitQuery
from openruntime_jupyter.schemas.tasks import TaskChange, TaskRequest, TaskState
from openruntime_jupyter.server.http.requests import (
    Preference,
    preferred,
    read_json,
    read_key,
    read_preference,
    read_query,
)

JSON, ENVELOPE, TEXT, OPEN = OFFERS = (
    "application/json",
    "application/vnd.openruntime.envelope+json",
    "text/plain",
    "application/openmetrics-text",
)


def test_body_is_validated_with_defaults() -> None:
    request = read_json(TaskRequest, b'{"operation": "compute", "parameters": {"a": 1}}', "application/json; charset=utf-8")
    assert (request.operation, request.parameters, request.priority, request.wait) == ("compute", {"a": 1}, 5, True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{} {}",
        b'{"priority": NaN}',
        b'{"priority": -Infinity}',
        b'{"priority": 1e999}',
        b'{"priority": [0.5, {"deep": 1' + b"0" * 400 + b".5}]}",
        b'{"priority": ' + b"1" * 5000 + b"}",
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b"[" * 100_000,
        b"[" * 1000 + b"]" * 1000,
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
    ],
)
def test_invalid_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_json(TaskChange, body, JSON)


def test_large_float_is_accepted() -> None:
    request = read_json(TaskRequest, b'{"operation": "x", "parameters": {"a": 1e308, "b": 1E-999, "c": ' + b"7" * 400 + b"}}", JSON)
    assert request.parameters == {"a": 1e308, "b": 0.0, "c": int("7" * 400)}


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "multipart/form-data"]
)
def test_content_type_must_be_json(content_type: str | None) -> None:
    with pytest.raises(MalformedRequest, match="Content-Type: application/json"):
        read_json(TaskChange, b'{"priority": 3}', content_type)


def test_compressed_body_is_rejected() -> None:
    with pytest.raises(MalformedRequest, match="gzip"):
        read_json(TaskChange, b'{"priority": 3}', JSON, "gzip")


@pytest.mark.parametrize(
    "body", [b"null", b"[]", b'"text"', b"3", b"{}", b'{"priority": 3, "more": 1}', b'{"priority": "3"}', b'{"priority": true}']
)
def test_wrong_json_shape_names_field(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_json(TaskChange, body, JSON)
    assert caught.value.details
    assert all(detail["field"] and detail["problem"] for detail in caught.value.details)


def test_last_value_of_repeated_key_counts() -> None:
    assert read_json(TaskChange, b'{"priority": 2, "priority": 9}', JSON).priority == 9


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_is_accepted_or_rejected_cleanly(value: object) -> None:
    body = json.dumps(value).encode()
    for model in (TaskRequest, TaskChange):
        with contextlib.suppress(InvalidRequest, MalformedRequest):
            read_json(model, body, JSON)


@given(st.binary(max_size=200))
def test_any_bytes_are_rejected_cleanly(body: bytes) -> None:
    with pytest.raises((InvalidRequest, MalformedRequest)):
        read_json(TaskRequest, body, JSON)


def test_unknown_query_parameters_are_ignored() -> None:
    query = read_query(TasksQuery, {"limit": ["3"], "state": ["pending,running", "failed"], "1699999999": [""], "token": ["x"]})
    assert query.limit == 3
    assert query.state == [TaskState.PENDING, TaskState.RUNNING, TaskState.FAILED]


def test_last_value_of_repeated_parameter_counts() -> None:
    assert read_query(TasksQuery, {"limit": ["3", "7"]}).limit == 7


def test_empty_state_selects_all_states() -> None:
    assert read_query(TasksQuery, {"state": []}).state is None


@pytest.mark.parametrize(
    ("model", "given_"),
    [
        (TasksQuery, {"limit": ["0"]}),
        (TasksQuery, {"limit": ["many"]}),
        (TasksQuery, {"offset": ["1" * 30]}),
        (TasksQuery, {"state": ["asleep"]}),
        (TasksQuery, {"state": [""]}),
        (TasksQuery, {"before": ["x" * 201]}),
        (WaitQuery, {"wait": ["nan"]}),
        (WaitQuery, {"wait": ["61"]}),
        (OutputQuery, {"since": ["1.5"]}),
        (DeleteQuery, {"purge": ["maybe"]}),
        (EventsQuery, {"since": ["x"]}),
    ],
)
def test_invalid_query_parameter_is_named(model: type, given_: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_query(model, given_)
    assert caught.value.details[0]["field"].split(".")[0] in given_


@pytest.mark.parametrize(
    ("headers", "preference"),
    [
        ([], Preference()),
        (["respond-async"], Preference(respond_async=True)),
        (["Respond-Async, Wait=5"], Preference(respond_async=True, wait=5.0)),
        (['wait = "2.5"'], Preference(wait=2.5)),
        (["wait=0"], Preference(wait=0.0)),
        (["wait=5; foo=bar, return=minimal"], Preference(wait=5.0)),
        (["return=minimal", "wait=5"], Preference(wait=5.0)),
        (["wait=5", "wait=9"], Preference(wait=5.0)),
        (["wait=100000"], Preference(wait=60.0)),
        (["wait=-1"], Preference()),
        (["wait=nan"], Preference()),
        (["wait=" + "9" * 5000], Preference()),
        ([",,;=,"], Preference()),
        (["no-respond-async"], Preference()),
        (["x" * 100_000], Preference()),
    ],
)
def test_prefer_header_follows_rfc_7240(headers: list[str], preference: Preference) -> None:
    assert read_preference(headers) == preference


def test_preference_applied_has_preference() -> None:
    assert read_preference(["wait=100"]).applied == "wait=60"
    assert read_preference(["respond-async"]).applied == "respond-async"
    assert read_preference(["respond-async, wait=1.5"]).applied == "wait=1.5"
    assert read_preference(["handling=strict"]).applied is None


@given(st.text(max_size=300))
def test_any_prefer_header_is_accepted(header: str) -> None:
    wait = read_preference([header]).wait
    assert wait is None or (0 <= wait <= 60 and math.isfinite(wait))


def test_idempotency_key_length_is_limited() -> None:
    assert read_key(None) is None
    assert read_key("a" * 255) == "a" * 255
    for wrong in ("", "a" * 256, "tab\t", "é"):
        with pytest.raises(InvalidRequest):
            read_key(wrong)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("TEXT/PLAIN ; Version=0.0.4", TEXT),
        ("text/*", TEXT),
        ("text/plain;q=0.1, */*;q=0.5", JSON),
        ("text/plain, application/json", JSON),
        ("application/json;q=0.9, text/plain", TEXT),
        ("text/plain;q=0, */*", JSON),
        ("*/*, application/json;q=0, application/vnd.openruntime.envelope+json;q=0", TEXT),
        (ENVELOPE, ENVELOPE),
        ("application/openmetrics-text;version=1.0.0;q=0.2,text/plain;q=0.9", TEXT),
        # A browser.
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", JSON),
        # Prometheus 3.
        (
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,"
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
            ),
            OPEN,
        ),
        # Invalid headers are ignored.
        ("image/png", JSON),
        ("text/plain;q=2", JSON),
        ("text", JSON),
        (";;;,,,=", JSON),
    ],
)
def test_range_with_highest_quality_wins(header: str | None, expected: str) -> None:
    assert preferred(header, OFFERS) == expected


@given(st.text(st.sampled_from("textplainjson/*;=q0.15, "), max_size=200))
def test_any_accept_header_is_valid(header: str) -> None:
    assert preferred(header, OFFERS) in OFFERS
