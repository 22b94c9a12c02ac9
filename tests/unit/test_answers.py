"""The envelope of every answer, and how failures become one."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from pushd.api import answers
from pushd.delivery.submission import Submission
from pushd.errors import ErrorCode, RequestError
from pushd.http.messages import Response

# CONTRACT section 3: every code, with its HTTP status.
STATUSES = {
    "INVALID_JSON": 400,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "INVALID_REQUEST": 400,
    "CONTENT_EMPTY": 400,
    "CONTENT_TOO_LONG": 400,
    "INVALID_TARGET": 400,
    "MISSING_USER_IDS": 400,
    "TOO_MANY_USER_IDS": 400,
    "BODY_TOO_LARGE": 413,
    "UNAUTHORIZED": 401,
    "TOKEN_EXPIRED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "CONFLICT": 409,
    "METHOD_NOT_ALLOWED": 405,
    "RATE_LIMITED": 429,
    "QUEUE_FULL": 503,
    "DRAINING": 503,
    "STORE_UNAVAILABLE": 503,
    "INTERNAL": 500,
}


def body(response: Response) -> Any:
    return orjson.loads(response.body)


def test_success() -> None:
    response = answers.success({"n": 1, "text": "你", "list": [None]})
    assert (response.status, response.content_type, response.headers) == (200, "application/json", ())
    assert body(response) == {"code": 200, "message": "OK", "data": {"n": 1, "text": "你", "list": [None]}}
    assert body(answers.success({7: []}))["data"] == {"7": []}


def test_every_code_of_the_contract_has_its_status() -> None:
    assert {code.value: code.status for code in ErrorCode} == STATUSES


@pytest.mark.parametrize("code", list(ErrorCode))
def test_failure(code: ErrorCode) -> None:
    response = answers.failure(RequestError(code, "what is wrong", details={"field": "f"}))
    assert response.status == STATUSES[code]
    assert body(response) == {
        "code": STATUSES[code],
        "message": "what is wrong",
        "error": code.value,
        "data": {"field": "f"},
    }


def test_headers_of_failures() -> None:
    assert answers.failure(RequestError(ErrorCode.NOT_FOUND, "x")).headers == ()
    limited = answers.failure(RequestError(ErrorCode.RATE_LIMITED, "x", retry_after_s=60))
    assert limited.headers == (("Retry-After", "60"),)
    for code in (ErrorCode.UNAUTHORIZED, ErrorCode.TOKEN_EXPIRED):
        assert answers.failure(RequestError(code, "x")).headers == (("WWW-Authenticate", "Bearer"),)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_status_in_the_body(code: ErrorCode) -> None:
    response = answers.failure(RequestError(code, "x"), status_in_body=True)
    assert response.status == 200
    is_credentials = code in (ErrorCode.UNAUTHORIZED, ErrorCode.TOKEN_EXPIRED)
    assert body(response)["code"] == (20002 if is_credentials else 20001)
    assert body(response)["error"] == code.value
    assert body(response)["data"] == {}


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "INVALID_REQUEST"),
        (408, "INVALID_REQUEST"),
        (413, "BODY_TOO_LARGE"),
        (415, "UNSUPPORTED_MEDIA_TYPE"),
        (429, "RATE_LIMITED"),
        (431, "INVALID_REQUEST"),
        (500, "INTERNAL"),
        (503, "QUEUE_FULL"),
    ],
)
def test_refusals_before_any_handler(status: int, error: str) -> None:
    response = answers.of_status(status, "why")
    assert response.status == body(response)["code"] == status
    assert body(response)["error"] == error
    assert dict(response.headers).get("Retry-After") == ("5" if status in (429, 503) else None)


def decoding(text: bytes) -> RequestError:
    with pytest.raises((msgspec.DecodeError, RecursionError, UnicodeDecodeError)) as caught:
        msgspec.json.decode(text, type=Submission)
    return answers.invalid(caught.value)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b'{"content":5}', "content"),
        (b'{"user_ids":[1,{}]}', "user_ids[1]"),
        (b'{"priority":9}', "priority"),
        (b'{"expires_in_s":-1}', "expires_in_s"),
        (b"[]", ""),
        (b"5", ""),
    ],
)
def test_wrong_types_name_the_field(text: bytes, field: str) -> None:
    error = decoding(text)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert error.text.startswith(f"{field or 'body'}: Expected")
    assert error.details == ({"field": field} if field else None)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"content":"\xff"}',
        b'{"content":"\\ud800"}',
        b'{"content":"x"}x',
        b"nul",
        b'{"data":' + b"[" * 10**5,
    ],
)
def test_what_is_no_json(text: bytes) -> None:
    error = decoding(text)
    assert error.code is ErrorCode.INVALID_JSON
    assert "\n" not in error.text
    assert "Traceback" not in error.text


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, ErrorCode.CONTENT_EMPTY),
        ({"content": None}, ErrorCode.CONTENT_EMPTY),
        ({"content": ""}, ErrorCode.CONTENT_EMPTY),
        ({"content": " \n\u3000"}, ErrorCode.CONTENT_EMPTY),
        ({"content": 5}, ErrorCode.INVALID_REQUEST),
        ({"content": "x", "target": "everybody"}, ErrorCode.INVALID_TARGET),
        ({"content": "x", "target": ""}, ErrorCode.INVALID_TARGET),
        ({"content": "x", "target": 5}, ErrorCode.INVALID_REQUEST),
    ],
)
def test_fields_of_a_publish_that_have_codes_of_their_own(fields: dict[str, Any], code: ErrorCode) -> None:
    error = decoding(msgspec.json.encode(fields))
    assert error.code is code
    assert error.details == {"field": list(fields)[-1] if fields else "content"}
