"""The one exception tree, the error codes of the HTTP and WebSocket answers, and the close codes.

    PushdError
    ├── ConfigError        the configuration cannot be used: exit status 2
    ├── StartError         something failed at run time before serving: exit status 1
    ├── RequestError       a request is refused: error code, HTTP status, text for people
    ├── ProtocolError      a connection must be closed: close code and reason
    └── StoreError         a store refused or did not answer
        └── StoreUnavailable   ... and may again later
            └── StoreLost          ... because nobody answered

The text of an exception is for the operator's log; a client gets codes and the texts written for it.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from http import HTTPStatus
from typing import Any


class ErrorCode(StrEnum):
    """What `error` says in an answer or an `error` frame."""

    INVALID_JSON = "INVALID_JSON"
    UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"
    INVALID_REQUEST = "INVALID_REQUEST"
    CONTENT_EMPTY = "CONTENT_EMPTY"
    CONTENT_TOO_LONG = "CONTENT_TOO_LONG"
    INVALID_TARGET = "INVALID_TARGET"
    MISSING_USER_IDS = "MISSING_USER_IDS"
    TOO_MANY_USER_IDS = "TOO_MANY_USER_IDS"
    BODY_TOO_LARGE = "BODY_TOO_LARGE"
    UNAUTHORIZED = "UNAUTHORIZED"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105 - an error code
    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    RATE_LIMITED = "RATE_LIMITED"
    QUEUE_FULL = "QUEUE_FULL"
    DRAINING = "DRAINING"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    INTERNAL = "INTERNAL"

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return _STATUS.get(self, HTTPStatus.BAD_REQUEST)


_STATUS: dict[ErrorCode, int] = {
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: 415,
    ErrorCode.BODY_TOO_LARGE: 413,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.TOKEN_EXPIRED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.CONFLICT: 409,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.QUEUE_FULL: 503,
    ErrorCode.DRAINING: 503,
    ErrorCode.STORE_UNAVAILABLE: 503,
    ErrorCode.INTERNAL: 500,
}


class CloseCode(IntEnum):
    """Why a connection was closed (RFC 6455 section 7.4 and our own range), and whether to come back."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_TEXT = 1007
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    NO_PONG = 4001
    SLOW_CONSUMER = 4008
    TOO_MANY_FRAMES = 4029
    TOKEN_INVALID = 4401
    REVOKED = 4403
    REPLACED = 4409

    @property
    def advice(self) -> str:
        """Whether and when the client should reconnect."""
        return _ADVICE[self]


_ADVICE: dict[CloseCode, str] = {
    CloseCode.NORMAL: "as the application likes",
    CloseCode.PROTOCOL_ERROR: "after fixing the client",
    CloseCode.UNSUPPORTED_DATA: "after fixing the client",
    CloseCode.INVALID_TEXT: "after fixing the client",
    CloseCode.MESSAGE_TOO_BIG: "after fixing the client",
    CloseCode.INTERNAL_ERROR: "yes, with backoff",
    CloseCode.SERVICE_RESTART: "yes, with jitter",
    CloseCode.NO_PONG: "yes",
    CloseCode.SLOW_CONSUMER: "yes; missed frames are in the mailbox",
    CloseCode.TOO_MANY_FRAMES: "yes, after 60 s",
    CloseCode.TOKEN_INVALID: "with a new token",
    CloseCode.REVOKED: "no",
    CloseCode.REPLACED: "no",
}


class PushdError(Exception):
    """Root of everything pushd raises on purpose."""


class ConfigError(PushdError):
    """The configuration cannot be used. The text names the file, the key, what was found and expected."""


class StartError(PushdError):
    """The daemon cannot serve: a port is taken, a directory is not writable. One line, for the operator."""


class RequestError(PushdError):
    """A request is refused. `text`, `details` and `retry_after_s` reach the client."""

    def __init__(
        self,
        code: ErrorCode,
        text: str,
        *,
        details: dict[str, Any] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
        self.details = details
        self.retry_after_s = retry_after_s


class ProtocolError(PushdError):
    """A connection broke the protocol and must be closed with `code`; `reason` reaches the client."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(f"{int(code)} {reason}")
        self.code = code
        self.reason = reason


class StoreError(PushdError):
    """A store refused an operation. The driver's exception is kept as the cause."""

    def __init__(self, store: str, text: str) -> None:
        super().__init__(f"{store}: {text}")
        self.store = store


class StoreUnavailable(StoreError):
    """A store cannot be used now and may be usable later: full disk, lost connection, timeout."""


class StoreLost(StoreUnavailable):
    """A store did not answer in time or cannot be reached: what else is asked of it now will fail as well."""
