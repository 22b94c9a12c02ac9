"""What the server asks of its application, and how it asks: whatever the application raises becomes an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar

import structlog
from msgspec.structs import replace

from pushd.http.messages import Refusal, Request, Response, find_upgrade_fault
from pushd.later import Later

BROKEN = Refusal(500, "internal error")

UpgradeT = TypeVar("UpgradeT")

_log = structlog.get_logger("pushd.front")


class Application(Protocol[UpgradeT]):
    """What answers requests. An exception is logged and becomes a 500 without details."""

    answer_within_s: float  # after which a `Later` answer is not waited for any more

    def judge_head(self, request: Request) -> Response | bool:
        """Decide about a request whose body has yet to come: the refusal, or whether anybody will read the body.

        What is refused here, `handle` would refuse whatever the body is. A body that nobody reads is not kept.
        """

    def handle(self, request: Request) -> Response | Later[Response] | Awaitable[Response]:
        """Answer any request that is no WebSocket upgrade. Work that was begun goes on when the peer leaves."""

    def too_late(self) -> Response:
        """The answer instead of a `Later` one whose time is over."""

    def failure(self, status: int, text: str) -> Response:
        """The answer to what the server refuses by itself; `text` is written for people and holds no secret."""

    def share(self, request: Request | None, response: Response) -> Response:
        """Any answer as it leaves, to a request with an Origin, or to one of which too little was read to know."""

    def admit(self, request: Request) -> Response | UpgradeT | Awaitable[Response | UpgradeT]:
        """Decide on a well-formed WebSocket upgrade; a Response refuses it.

        What takes time is cancelled when the peer leaves or `limits.handshake_timeout_s` is over. Reserve nothing: an
        upgrade is dropped without a word when the peer has left by the time it is allowed.
        """

    def attach(self, transport: asyncio.Transport, request: Request, upgrade: UpgradeT, tail: bytes) -> None:
        """Take the connection over: reading is paused, `tail` came behind the head. Must not raise."""


class GuardedApplication:
    """Asks an application and never raises: its exceptions are logged and become a 500 without details."""

    def __init__(self, application: Application[Any]) -> None:
        self._application = application

    @property
    def answer_within_s(self) -> float:
        """For how long a `Later` answer is waited for."""
        return self._application.answer_within_s

    def judge_head(self, request: Request) -> Response | bool:
        """The refusal of a request whose body has yet to come, or whether anybody will read the body."""
        try:
            return self._application.judge_head(request)
        except Exception:
            return self.crashed(request)

    def handle(self, request: Request) -> Response | Later[Response] | Awaitable[Response]:
        """The answer to a request that is no upgrade, or what it can be awaited by."""
        try:
            return self._application.handle(request)
        except Exception:
            return self.crashed(request)

    def result(self, request: Request, answer: Later[Response]) -> Response:
        """An answer that has been decided."""
        try:
            return answer.result()
        except (Exception, asyncio.CancelledError):
            return self.crashed(request)

    def too_late(self, request: Request) -> Response:
        """The answer instead of a `Later` one whose time is over."""
        try:
            return self._application.too_late()
        except Exception:
            return self.crashed(request)

    def admit(self, request: Request) -> Any:
        """The refusal of an upgrade as a Response, what it is allowed with, or an awaitable of either."""
        fault = find_upgrade_fault(request)
        if fault is not None:
            return self.fail(fault)
        try:
            return self._application.admit(request)
        except Exception:
            return self.crashed(request)

    def attach(self, transport: asyncio.Transport, request: Request, upgrade: object, tail: bytes) -> bool:
        """Have the connection taken over; if that fails, it is aborted. Whether it was."""
        try:
            self._application.attach(transport, request, upgrade, tail)
        except Exception:
            _log.exception("hand-off failed")
            transport.abort()
            return False
        return True

    def fail(self, refusal: Refusal) -> Response:
        """The application's answer to a refusal, or a bare one if it cannot say."""
        try:
            answer = self._application.failure(refusal.status, refusal.text)
        except Exception:
            _log.exception("failure answer failed", status=refusal.status)
            answer = Response(refusal.status)
        said = {name.lower() for name, _ in refusal.headers}
        others = (header for header in answer.headers if header[0].lower() not in said)
        return replace(answer, headers=(*others, *refusal.headers)) if refusal.headers else answer

    def crashed(self, request: Request) -> Response:
        """The answer to a request on which the application failed: called where its exception is handled."""
        _log.exception("request failed", method=request.method, path=request.path)
        return self.fail(BROKEN)

    def share(self, request: Request | None, response: Response) -> Response:
        """The answer as the application lets it leave, or as it is if it cannot say."""
        try:
            return self._application.share(request, response)
        except Exception:
            _log.exception("an answer could not be shared", status=response.status)
            return response
