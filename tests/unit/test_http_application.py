"""Whatever the application raises, the connection gets an answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.http.application import GuardedApplication
from pushd.http.messages import Refusal, Request, Response
from pushd.later import Later
from tests.unit.http_support import Application, Transport

UPGRADE = Request(headers={"sec-websocket-version": "13", "sec-websocket-key": "A" * 22 + "=="}, is_upgrade=True)


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def guarded(application: Application) -> GuardedApplication:
    return GuardedApplication(application)


def test_what_it_says_is_passed_on(guarded: GuardedApplication) -> None:
    assert guarded.handle(Request(target=b"/a")) == Response(200, b"/a")
    assert guarded.judge_head(Request()) is True
    assert guarded.admit(UPGRADE) == "admitted"
    assert guarded.too_late(Request()) == Response(503, b"too late")
    assert guarded.share(None, Response(200)).headers == (("X-Shared", "yes"),)
    assert guarded.answer_within_s == 60.0


def test_headers_of_a_refusal_replace_those_of_the_answer(
    guarded: GuardedApplication, application: Application
) -> None:
    named = (("Retry-After", "5"), ("X", "y"))
    application.failure = lambda status, text: Response(status, headers=named)  # type: ignore[method-assign]
    assert guarded.fail(Refusal(503, "no", (("retry-after", "1"),))).headers == (("X", "y"), ("retry-after", "1"))


@pytest.mark.parametrize("name", ["handle", "judge_head", "admit", "too_late"])
def test_an_exception_is_a_500_without_details(
    guarded: GuardedApplication, application: Application, name: str
) -> None:
    setattr(application, name, _fail)
    with capture_logs() as logs:
        answer = getattr(guarded, name)(UPGRADE)
    assert answer == Response(500, b"internal error")
    assert [(line["event"], line["method"], line["path"]) for line in logs] == [("request failed", "GET", "/")]


def _fail(*_: Any) -> Any:
    raise RuntimeError("secret")


def test_one_that_cannot_even_say_that_it_failed(guarded: GuardedApplication, application: Application) -> None:
    application.error = RuntimeError("secret")
    with capture_logs() as logs:
        assert guarded.handle(Request()) == Response(500)
        assert guarded.share(None, Response(200, b"x")) == Response(200, b"x")
    assert [line["event"] for line in logs] == [
        "request failed",
        "failure answer failed",
        "an answer could not be shared",
    ]


@pytest.mark.parametrize(("headers", "status"), [({"sec-websocket-version": "8"}, 426), ({}, 426)])
def test_an_upgrade_that_is_malformed_is_not_asked_about(
    guarded: GuardedApplication, application: Application, headers: dict[str, str], status: int
) -> None:
    application.admit = _fail  # type: ignore[method-assign]
    answer = guarded.admit(Request(headers=headers, is_upgrade=True))
    assert (answer.status, dict(answer.headers)["Sec-WebSocket-Version"]) == (status, "13")


async def test_an_answer_that_is_decided(guarded: GuardedApplication) -> None:
    decided: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    decided.set_result(Response(204))
    assert guarded.result(Request(), Later(decided)) == Response(204)
    cancelled: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    with capture_logs():
        assert guarded.result(Request(), Later(cancelled)).status == 500


def test_a_hand_off_that_fails_aborts_the_connection(guarded: GuardedApplication, application: Application) -> None:
    transport = Transport()
    assert guarded.attach(transport, UPGRADE, "admitted", b"")
    assert not transport.is_aborted
    application.error = RuntimeError("secret")
    with capture_logs() as logs:
        assert not guarded.attach(transport, UPGRADE, "admitted", b"")
    assert transport.is_aborted
    assert [line["event"] for line in logs] == ["hand-off failed"]
