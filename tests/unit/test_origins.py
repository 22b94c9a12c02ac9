"""Web origins, and what browsers are told."""

from __future__ import annotations

import pytest

from pushd.auth import origins
from pushd.auth.origins import Origin


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://a.example", Origin("https", "a.example", 443)),
        ("HTTP://A.example:80", Origin("http", "a.example", 80)),
        ("http://a:8801", Origin("http", "a", 8801)),
        ("http://[::1]:1", Origin("http", "[::1]", 1)),
        ("http://[0:0::1]", Origin("http", "[::1]", 80)),
        ("capacitor://localhost", Origin("capacitor", "localhost", None)),
    ],
)
def test_what_is_an_origin(text: str, expected: Origin) -> None:
    assert origins.parsed(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "null", "file://", "a.example", "https://", "https://a/", "https://a?b", "https://a#b", "https://u@a", "://a",
     "https://[::1", "https://::1", "https://[zz]", "https://[1.2.3.4]", "https://a:b", "https://a b",
     "https://a:123456"],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    assert origins.parsed(text) is None


def test_a_preflight_is_allowed_what_it_asks_for() -> None:
    asked = {
        "access-control-request-method": "PUT",
        "access-control-request-headers": "x-request-id,content-type, X-Other ,x-request-id,bad name,,\xe9",
    }
    headers = dict(origins.preflight_headers(asked))
    assert headers["Access-Control-Allow-Methods"] == "GET, POST, DELETE, PUT"
    assert headers["Access-Control-Allow-Headers"] == (
        "Authorization, Content-Type, Idempotency-Key, X-API-Key, x-request-id, X-Other"
    )
    assert "Access-Control-Allow-Private-Network" not in headers
    private = dict(origins.preflight_headers({"access-control-request-private-network": "true"}))
    assert private["Access-Control-Allow-Private-Network"] == "true"
    assert private["Access-Control-Allow-Methods"] == "GET, POST, DELETE"
