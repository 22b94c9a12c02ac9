"""Which requests are begun behind one that is pending, and how many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pushd.config.schema import LimitsConfig
from pushd.http.messages import Request, Response
from pushd.http.parser import RequestParser
from pushd.http.pipeline import BEGUN_MOST, Begun, begin_alike
from pushd.http.reading import HELD_BYTES, Reading
from pushd.http.shared import Shared
from pushd.later import Later
from tests.unit.http_support import Application, Transport


def post(path: str = "/pipeline", body: bytes = b"ab", extra: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: unit\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Hesitant(Application):
    """Answers what `answers` says, one after the other, and then later."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Any] = []
        self.asked: list[bytes] = []

    def handle(self, request: Request) -> Any:
        self.asked.append(request.body)
        return self.answers.pop(0) if self.answers else later()


class Pipeline:
    """A connection whose first request is pending."""

    def __init__(self, shared: Shared, data: bytes) -> None:
        self.shared = shared
        self.parser = RequestParser(max_body_bytes=1_000_000)
        self.reading = Reading(shared, Transport(), self.parser, self)
        self.behind: deque[Begun] = deque()
        self.parser.feed(data)
        first = self.parser.next()
        assert first is not None
        self.reading.worked_bytes = len(first.body)
        self.first = first, later()

    def give_way(self) -> None:
        raise AssertionError

    def begin(self, data: bytes = b"") -> int:
        """How many are begun behind it after these bytes as well."""
        if data:
            self.parser.feed(data)
        begin_alike(self.shared, self.parser, self.reading, self.first, self.behind)
        return len(self.behind)


def later() -> Later[Response]:
    decided: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    return Later(decided).then(lambda _: Response(200))


@pytest.fixture
def application() -> Hesitant:
    return Hesitant()


@pytest.fixture
async def shared(application: Hesitant, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shared]:
    shared = Shared(application, LimitsConfig())
    monkeypatch.setattr(shared.turns, "has_share_left", lambda: True)
    yield shared
    await shared.end_tasks()
    shared.first_reads.close()


async def test_what_asks_for_the_same_is_begun(shared: Shared, application: Hesitant) -> None:
    pipeline = Pipeline(shared, post() + post(body=b"cd") + post(body=b"ef"))
    assert pipeline.begin() == 2
    assert application.asked == [b"cd", b"ef"]
    assert pipeline.reading.worked_bytes == 6
    assert pipeline.begin(post(body=b"gh")) == 3


@pytest.mark.parametrize(
    "rest",
    [
        post("/other") + post(),
        post().replace(b"POST", b"PUT") + post(),
        post(extra="X-Never-Seen: 1\r\n") + post(),
        post(extra="Connection: close\r\n") + post(),
        post()[:-1],
        b"junk",
    ],
)
async def test_what_is_not_the_same_or_not_whole_waits(shared: Shared, rest: bytes) -> None:
    Pipeline(shared, post("/other")), Pipeline(shared, post().replace(b"POST", b"PUT"))  # known heads
    pipeline = Pipeline(shared, post())
    assert pipeline.begin(post() + rest) == 1
    assert pipeline.parser.tail == rest


async def test_no_more_than_so_many_are_in_work(shared: Shared) -> None:
    pipeline = Pipeline(shared, post())
    assert pipeline.begin(post() * 100) == BEGUN_MOST - 1
    assert pipeline.begin() == BEGUN_MOST - 1


async def test_no_more_than_so_many_bytes_are_in_work(shared: Shared) -> None:
    half = bytes(HELD_BYTES // 2)
    pipeline = Pipeline(shared, post(body=half))
    assert pipeline.begin(post(body=half) * 9) == 1


async def test_none_is_begun_when_the_time_is_over(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(shared, post() * 2)
    monkeypatch.setattr(shared.turns, "has_share_left", lambda: False)
    assert pipeline.begin() == 0


async def test_none_is_begun_behind_an_answer_that_is_there(shared: Shared, application: Hesitant) -> None:
    decided = later()
    decided.decided.set_result(None)
    for answer in (Response(429), decided):
        application.answers = [later(), answer]
        pipeline = Pipeline(shared, post() * 6)
        assert pipeline.begin() == pipeline.begin() == 2
    pipeline = Pipeline(shared, post() * 2)
    pipeline.first[1].decided.set_result(None)
    assert pipeline.begin() == 0


async def test_a_failure_is_an_answer(shared: Shared, application: Hesitant) -> None:
    pipeline = Pipeline(shared, post() * 3)
    application.error = RuntimeError("secret")
    application.handle = lambda request: application._say("")  # type: ignore[method-assign]
    assert pipeline.begin() == 1
    answer = pipeline.behind[0][1]
    assert isinstance(answer, Response)
    assert answer.status == 500


async def test_one_that_takes_a_task_keeps_its_place(shared: Shared, application: Hesitant) -> None:
    async def respond() -> Response:
        return Response(202)

    application.answers = [respond()]
    pipeline = Pipeline(shared, post() * 3)
    assert pipeline.begin() == 2
    answer = pipeline.behind[0][1]
    assert isinstance(answer, Later)
    assert (await answer).status == 202


async def test_one_for_whose_body_there_is_no_room_is_refused(shared: Shared) -> None:
    shared.bodies.held_bytes = 10 * shared.limits.max_bodies_bytes
    pipeline = Pipeline(shared, post() * 3)
    assert pipeline.begin() == 1
    answer = pipeline.behind[0][1]
    assert isinstance(answer, Response)
    assert answer.status == 503
