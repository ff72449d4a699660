from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openruntime_jupyter.server.http.requests import preferred

JSON, ENVELOPE, TEXT, OPEN = OFFERS = (
    "application/json",
    "application/vnd.openruntime.envelope+json",
    "text/plain",
    "application/openmetrics-text",
)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/json", JSON),
        ("text/plain", TEXT),
        ("TEXT/PLAIN ; Version=0.0.4", TEXT),
        ("text/*", TEXT),
        ("text/plain;q=0.5, */*;q=0.1", TEXT),
        ("text/plain;q=0.1, */*;q=0.5", JSON),
        ("text/plain, application/json", JSON),
        ("application/json;q=0.9, text/plain", TEXT),
        ("text/plain;q=0, */*", JSON),
        ("*/*, application/json;q=0, application/vnd.openruntime.envelope+json;q=0", TEXT),
        (OPEN, OPEN),
        (ENVELOPE, ENVELOPE),
        ("application/openmetrics-text;version=1.0.0;q=0.2,text/plain;q=0.9", TEXT),
        # A browser.
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", JSON),
        # Prometheus 2 and 3.
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;q=0.3,*/*;q=0.2",
            OPEN,
        ),
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
        ("text/plain;q=high", JSON),
        ("text", JSON),
        (";;;,,,=", JSON),
    ],
)
def test_range_with_highest_quality_wins(header: str | None, expected: str) -> None:
    assert preferred(header, OFFERS) == expected


@given(st.text(st.sampled_from("textplainjson/*;=q0.15, "), max_size=200))
def test_any_accept_header_is_valid(header: str) -> None:
    assert preferred(header, OFFERS) in OFFERS
