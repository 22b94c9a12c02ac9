"""The shape of every JSON answer (CONTRACT section 3): the envelope, errors, and how failures become them."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import orjson

from pushd.edge.http1 import Response
from pushd.errors import ErrorCode, RequestError

STATUS_IN_BODY_ERROR = 20001
STATUS_IN_BODY_CREDENTIALS = 20002
_CREDENTIALS = frozenset({ErrorCode.UNAUTHORIZED, ErrorCode.TOKEN_EXPIRED})

_MISSING_FIELD = re.compile(r"missing required field `(\w+)`")  # msgspec's words

_CODE_OF_STATUS = {
    401: ErrorCode.UNAUTHORIZED,
    403: ErrorCode.FORBIDDEN,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.BODY_TOO_LARGE,
    415: ErrorCode.UNSUPPORTED_MEDIA_TYPE,
    429: ErrorCode.RATE_LIMITED,
    500: ErrorCode.INTERNAL,
    503: ErrorCode.QUEUE_FULL,
}


def success(data: Any) -> Response:
    """`data` in the envelope of a 200."""
    return Response(200, orjson.dumps({"code": 200, "message": "OK", "data": data}, option=orjson.OPT_NON_STR_KEYS))


def failure(error: RequestError, *, status_in_body: bool = False, status: int | None = None) -> Response:
    """The answer to a refused request; `status` where HTTP knows a finer one than the code."""
    http_status = status or error.code.status
    code = http_status
    if status_in_body:
        code = STATUS_IN_BODY_CREDENTIALS if error.code in _CREDENTIALS else STATUS_IN_BODY_ERROR
    body = orjson.dumps({"code": code, "message": error.text, "error": error.code.value, "data": error.details or {}})
    return Response(200 if status_in_body else http_status, body, headers=_headers(error))


def of_status(status: int, text: str, *, status_in_body: bool = False) -> Response:
    """The answer to a request that never reached a handler."""
    code = _CODE_OF_STATUS.get(status, ErrorCode.INVALID_REQUEST)
    retry_after_s = 5 if status in (429, 503) else None
    error = RequestError(code, text, retry_after_s=retry_after_s)
    return failure(error, status=status, status_in_body=status_in_body)


def _headers(error: RequestError) -> tuple[tuple[str, str], ...]:
    headers: list[tuple[str, str]] = []
    if error.retry_after_s is not None:
        headers.append(("Retry-After", str(error.retry_after_s)))
    if error.code in _CREDENTIALS:
        headers.append(("WWW-Authenticate", "Bearer"))
    return tuple(headers)


def invalid_json(error: Exception) -> RequestError:
    """The body is not JSON, or JSON of the wrong form: the text names the field."""
    if isinstance(error, msgspec.ValidationError):
        reason, _, path = str(error).partition(" - at ")
        field = path.strip("`").removeprefix("$").removeprefix(".")
        text = f"{field or 'body'}: {reason}"
        missing = _MISSING_FIELD.search(reason)
        if missing is not None:
            field = f"{field}.{missing[1]}".removeprefix(".")
            text = f"{field}: required"
        return RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": field} if field else None)
    if isinstance(error, RecursionError):
        return RequestError(ErrorCode.INVALID_JSON, "the body is nested too deeply")
    return RequestError(ErrorCode.INVALID_JSON, f"the body is not valid JSON: {error}")
