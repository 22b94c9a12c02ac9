"""Requests, what is wrong with them, and answers as bytes."""

from __future__ import annotations

import base64
import http.client
import io
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.http.messages import Head, Refusal, Request, Response, date_line, encode, find_upgrade_fault

UPGRADE = {"host": "a", "connection": "keep-alive, Upgrade", "upgrade": "WebSocket"}


def head(method: str = "GET", target: bytes = b"/", version: str = "1.1", **headers: str) -> Head:
    named = {"host": "example.org"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return Head(method, version, target, named, int(named.get("content-length", 0)), "transfer-encoding" in named)


def status_of(verdict: Request | Refusal) -> int:
    return verdict.status if isinstance(verdict, Refusal) else 200


def test_a_request_splits_its_target() -> None:
    request = Request(target=b"/a%20b/%E5%B7%B2?x=1&y=%2F&x=2&empty=&plus=a+b")
    assert request.path == "/a%20b/%E5%B7%B2"
    assert request.query == {"x": "1", "y": "/", "empty": "", "plus": "a b"}
    assert request.target == b"/a%20b/%E5%B7%B2?x=1&y=%2F&x=2&empty=&plus=a+b"


@pytest.mark.parametrize("query", ["a", "a=", "=a", "a&&b=c", "a=1&a=2", "a=b=c", "&", "\xe9=\xe8", "a;b=c"])
def test_a_query_without_escapes_is_read_alike(query: str) -> None:
    found = Request(target=b"/?" + query.encode("latin-1")).query
    assert found == dict(reversed(parse_qsl(query, keep_blank_values=True)))


def test_a_request_without_a_query_has_none() -> None:
    assert Request(target=b"/x").query == {}


@pytest.mark.parametrize("target", [b"/%ff", b"/\xff", b"/%c3%28", b"/%", b"/%4", b"/%zz", b"/a%2"])
def test_a_path_is_utf8_and_well_formed(target: bytes) -> None:
    with pytest.raises(ValueError):
        Request(target=target)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/%73ystem/%4E%6F%2d%2E%5f%7E%30%39", "/system/No-._~09"),
        (b"/%2F%2f%5C%3a%40%3B%2B%20%00%25%7f%7B", "/%2F%2f%5C%3a%40%3B%2B%20%00%25%7f%7B"),
        (b"/%2573", "/%2573"),
        (b"/%41%5B%60%61%7a%7b%2c%2F%3A", "/A%5B%60az%7b%2c%2F%3A"),
        ("/é".encode(), "/é"),
        (b"/a;b=c//./x/../%2e%2E", "/a;b=c//./x/../.."),
    ],
)
def test_a_path_is_normalised_not_decoded(target: bytes, path: str) -> None:
    assert Request(target=target + b"?%73=%2F").path == path


@given(st.integers(0, 255))
def test_what_is_unreserved_is_not_escaped(sign: int) -> None:
    escape = b"%%%02x" % sign
    if sign < 128:
        is_unreserved = chr(sign).isalnum() or chr(sign) in "-._~"
        assert Request(target=b"/" + escape).path == "/" + (chr(sign) if is_unreserved else escape.decode())


@given(st.dictionaries(st.text("abcxyz", min_size=1), st.text()))
def test_a_query_comes_back(fields: dict[str, str]) -> None:
    from urllib.parse import urlencode

    assert Request(target=b"/?" + urlencode(fields).encode()).query == fields


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({}, 200),
        ({"version": "1.0"}, 200),
        ({"version": "2.0"}, 400),
        ({"version": "0.9"}, 400),
        ({"host": ""}, 400),
        ({"host": "a b"}, 400),
        ({"host": "evil/..", "version": "1.0"}, 400),
        ({"host": "[::1]:8801"}, 200),
        ({"host": "localhost:8801"}, 200),
        ({"method": "CONNECT", "target": b"a:1"}, 400),
        ({"target": b"*"}, 400),
        ({"target": b"*", "method": "OPTIONS"}, 200),
        ({"target": b"ftp://a/"}, 400),
        ({"target": b"http:///x"}, 400),
        ({"target": b"http://user@a/"}, 400),
        ({"target": b"/a#b"}, 400),
        ({"target": b"/%ff"}, 400),
        ({"transfer_encoding": "chunked"}, 200),
        ({"transfer_encoding": "gzip, chunked"}, 501),
        ({"transfer_encoding": "chunked", "version": "1.0"}, 400),
        ({"content_length": "100"}, 200),
        ({"content_length": "101"}, 413),
        ({"expect": "100-continue", "content_length": "1"}, 200),
        ({"expect": "tea"}, 417),
        ({"expect": "tea", "version": "1.0"}, 200),
        ({**UPGRADE, "content_length": "1"}, 400),
        ({**UPGRADE, "transfer_encoding": "chunked"}, 400),
    ],
)
def test_heads_are_judged(arguments: dict[str, Any], status: int) -> None:
    assert status_of(head(**arguments).judge(max_body_bytes=100)) == status


def test_http_1_1_needs_a_host() -> None:
    assert status_of(Head("GET", "1.1", b"/", {}, 0, False).judge(1)) == 400
    for peer, expected in (("127.0.0.1", 200), ("127.9.9.9", 200), ("::1", 200), ("10.0.0.1", 400), ("", 400)):
        for path in (b"/healthz", b"/readyz", b"/metrics"):
            assert status_of(Head("GET", "1.1", path, {}, 0, False).judge(1, peer)) == expected
        for path in (b"/", b"/ws", b"/healthz?x", b"/healthz/", b"http://a/healthz"):
            assert status_of(Head("GET", "1.1", path, {}, 0, False).judge(1, peer)) == 400
    assert status_of(Head("GET", "1.0", b"/", {}, 0, False).judge(1)) == 200


def test_a_target_with_an_authority_overrides_host() -> None:
    request = head(target=b"http://other:1?q=1", host="named").judge(1)
    assert isinstance(request, Request)
    assert (request.headers["host"], request.path, request.query) == ("other:1", "/", {"q": "1"})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (UPGRADE, True),
        ({**UPGRADE, "upgrade": "h2c, websocket"}, True),
        ({**UPGRADE, "connection": "upgrade"}, True),
        ({**UPGRADE, "connection": "keep-alive"}, False),
        ({**UPGRADE, "upgrade": "h2c"}, False),
        ({**UPGRADE, "method": "POST"}, False),
        ({**UPGRADE, "version": "1.0"}, False),
    ],
)
def test_upgrades_are_recognised(arguments: dict[str, Any], expected: bool) -> None:
    request = head(**arguments).judge(1)
    assert isinstance(request, Request)
    assert request.is_upgrade is expected


KEY = base64.b64encode(bytes(16)).decode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-websocket-version": "13", "sec-websocket-key": KEY}, 0),
        ({"sec-websocket-version": "8", "sec-websocket-key": KEY}, 426),
        ({"sec-websocket-key": KEY}, 426),
        ({"sec-websocket-version": "13"}, 400),
        ({"sec-websocket-version": "13", "sec-websocket-key": "short"}, 400),
        ({"sec-websocket-version": "13", "sec-websocket-key": "ä" * 24}, 400),
    ],
)
def test_handshakes_are_checked(headers: dict[str, str], status: int) -> None:
    refusal = find_upgrade_fault(Request(headers=headers))
    assert (refusal.status if refusal else 0) == status
    if status == 426:
        assert refusal is not None
        assert ("Sec-WebSocket-Version", "13") in refusal.headers


class _Wire(io.BytesIO):
    def makefile(self, _mode: str) -> _Wire:
        return self


def read(answer: bytes, method: str = "GET") -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(_Wire(answer), method=method)  # type: ignore[arg-type]
    response.begin()
    return response


@given(st.sampled_from([200, 404, 503, 599]), st.binary(), st.booleans())
def test_an_answer_is_read_back_by_another_library(status: int, body: bytes, keep_alive: bool) -> None:
    response = read(encode(Response(status, body, headers=(("X-A", "b"),)), keep_alive=keep_alive, head_only=False))
    assert (response.status, response.getheader("x-a"), response.will_close) == (status, "b", not keep_alive)
    assert response.getheader("connection") == ("keep-alive" if keep_alive else "close")
    assert response.getheader("content-type") == "application/json"
    assert response.getheader("x-content-type-options") == "nosniff"
    assert response.getheader("cache-control") == "no-store"
    assert response.read() == body


def test_head_gets_the_length_and_no_body() -> None:
    answer = encode(Response(200, b"12345"), keep_alive=True, head_only=True)
    assert answer.endswith(b"Content-Length: 5\r\n\r\n")


@pytest.mark.parametrize("status", [200, 204, 503])
def test_an_answer_has_the_date_it_is_given(status: int) -> None:
    date = date_line(784_111_777)
    assert date == b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"  # RFC 9110 section 5.6.7
    answer = encode(Response(status, b"" if status == 204 else b"x"), keep_alive=True, head_only=False, date=date)
    assert read(answer).headers.get_all("date") == ["Sun, 06 Nov 1994 08:49:37 GMT"]


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_content_have_no_length(status: int) -> None:
    answer = encode(Response(status), keep_alive=True, head_only=False)
    assert b"Content-Length" not in answer
    assert answer.endswith(b"\r\n\r\n")


def test_a_named_header_replaces_a_default() -> None:
    answer = encode(Response(200, headers=(("cache-control", "max-age=60"),)), keep_alive=True, head_only=False)
    assert read(answer).headers.get_all("cache-control") == ["max-age=60"]


@pytest.mark.parametrize("header", [("X", "a\r\nSet-Cookie: b"), ("X\n", "a"), ("X", "a\rb")])
def test_a_header_cannot_break_the_message(header: tuple[str, str]) -> None:
    with pytest.raises(ValueError):
        encode(Response(200, headers=(header,)), keep_alive=True, head_only=False)
