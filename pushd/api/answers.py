"""The shape of every JSON answer (CONTRACT section 3): the envelope, errors, how failures become them; and how many
long ones are made at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import orjson

from pushd.errors import ErrorCode, RequestError
from pushd.http.long_answers import FairSemaphore, Long
from pushd.http.messages import Response

Input = TypeVar("Input")
Output = TypeVar("Output")
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


@dataclass(frozen=True)
class AnswerTurns:
    """How many long answers are made at a time, by their kind; each asker makes one."""

    mailboxes: FairSemaphore = field(default_factory=lambda: FairSemaphore(2))
    lists: FairSemaphore = field(default_factory=lambda: FairSemaphore(2))
    bulk: FairSemaphore = field(default_factory=lambda: FairSemaphore(1))  # about many users


class Envelope(msgspec.Struct):
    """What a 200 looks like."""

    data: Any
    code: int = 200
    message: str = "OK"


_encode = msgspec.json.Encoder().encode


def success(data: Any) -> Response:
    """`data` in the envelope of a 200."""
    return data.response() if type(data) is Long else Response(200, _encode(Envelope(data)))


def decoded(decode: Callable[[Input], Output], data: Input) -> Output:
    """`data` as its decoder understands it. Raises RequestError."""
    try:
        return decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid(error) from None


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


def invalid(error: Exception) -> RequestError:
    """The input is not JSON, or of the wrong form: the text names the field."""
    if isinstance(error, msgspec.ValidationError):
        reason, _, path = str(error).partition(" - at ")
        field = path.strip("`").removeprefix("$").removeprefix(".")
        text = f"{field or 'body'}: {reason}"
        missing = _MISSING_FIELD.search(reason)
        if missing is not None:
            field = f"{field}.{missing[1]}".removeprefix(".")
            text = f"{field}: required"
        code = _code_of_field(field, reason)
        return RequestError(code, text, details={"field": field} if field else None)
    if isinstance(error, RecursionError):
        return RequestError(ErrorCode.INVALID_JSON, "the body is nested too deeply")
    return RequestError(ErrorCode.INVALID_JSON, f"the body is not valid JSON: {error}")


def _code_of_field(field: str, reason: str) -> ErrorCode:
    """Two fields of a publish have codes of their own."""
    if field == "content" and any(sign in reason for sign in ("matching regex", "missing required", "got `null`")):
        return ErrorCode.CONTENT_EMPTY
    if field == "target" and "enum value" in reason:
        return ErrorCode.INVALID_TARGET
    return ErrorCode.INVALID_REQUEST


def without_empty(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    """The same fields, without those of these names that are empty."""
    for name in names:
        if not fields[name]:
            del fields[name]
    return fields


def unknown_notice() -> RequestError:
    """No record of that id."""
    return RequestError(ErrorCode.NOT_FOUND, "message_id: no such notice", details={"field": "message_id"})
