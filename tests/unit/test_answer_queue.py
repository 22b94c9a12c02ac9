"""Answers leave together and in order; which one is the last is known before it is written."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from pushd.config.schema import LimitsConfig
from pushd.http.answer_queue import ANSWERS_BYTES, JOINED_BYTES, PIECES_AT_ONCE, AnswerQueue
from pushd.http.messages import Request, Response
from pushd.http.shared import Shared
from tests.unit.http_support import Application, Transport


@pytest.fixture
async def shared() -> AsyncIterator[Shared]:
    shared = Shared(Application(), LimitsConfig(), wall_s=lambda: 784_111_777.9)
    yield shared
    shared.first_reads.close()


@pytest.fixture
async def queue(shared: Shared) -> AnswerQueue:
    return AnswerQueue(shared)


async def test_answers_are_one_write(queue: AnswerQueue) -> None:
    transport = Transport()
    for text in (b"one", b"two"):
        queue.say(Request(), None, Response(200, text))
    assert queue.held_bytes
    queue.flush(transport)
    (written,) = transport.written
    assert written.index(b"one") < written.index(b"two")
    assert written.count(b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n") == 2
    assert queue.held_bytes == 0


async def test_a_long_body_is_written_as_it_is(queue: AnswerQueue) -> None:
    transport, body = Transport(), bytes(JOINED_BYTES + 1)
    queue.say(Request(), None, Response(200, body))
    queue.flush(transport)
    assert transport.written[1:] == [body]


@pytest.mark.parametrize(
    ("request_", "is_last"),
    [(Request(), False), (Request(keep_alive=False), True), (Request(is_upgrade=True), True), (None, True)],
)
async def test_which_answer_is_the_last(queue: AnswerQueue, request_: Request | None, is_last: bool) -> None:
    queue.say(request_, None, Response(200))
    assert queue.is_last is is_last
    assert queue.has_room is not is_last


async def test_while_draining_each_is_the_last(queue: AnswerQueue, shared: Shared) -> None:
    shared.is_draining = True
    queue.say(Request(), None, Response(200))
    assert queue.is_last


async def test_there_is_room_for_so_much(queue: AnswerQueue) -> None:
    queue.say(Request(), None, Response(200, bytes(ANSWERS_BYTES)))
    assert not queue.has_room
    queue.flush(Transport())
    assert queue.has_room


async def test_a_header_that_breaks_the_message_is_a_500_and_the_last(queue: AnswerQueue, shared: Shared) -> None:
    transport = Transport()
    with capture_logs() as logs:
        queue.say(Request(), None, Response(200, headers=(("X", "a\r\nb"),), more=[b"rest"]))
    assert [line["event"] for line in logs] == ["answer cannot be encoded"]
    queue.flush(transport)
    assert transport.written[0].startswith(b"HTTP/1.1 500 ")
    assert queue.is_last
    assert (queue.more, shared.unsent.total) == (None, 0)


async def test_a_long_answer_is_written_as_it_is_taken(queue: AnswerQueue, shared: Shared) -> None:
    transport, pieces = Transport(), [b"%d" % number for number in range(PIECES_AT_ONCE + 1)]
    queue.say(Request(), None, Response(200, b"begin", more=pieces))
    assert not queue.has_room
    assert not queue.is_late(shared.loop.time())
    assert queue.is_late(shared.loop.time() + 1000)
    assert not queue.write_more(transport)
    assert transport.written == pieces[:-1]
    transport.unsent_bytes = 1
    assert not queue.write_more(transport)
    transport.unsent_bytes = 0
    assert queue.write_more(transport)
    assert transport.written == pieces
    assert (queue.more, shared.unsent.total) == (None, 0)


async def test_who_asks_across_origins_may_read_the_answer(queue: AnswerQueue) -> None:
    transport = Transport()
    for request in (Request(), Request(headers={"origin": "https://a"})):
        queue.say(request, None, Response(200))
        queue.flush(transport)
    assert [b"X-Shared: yes" in written for written in transport.written] == [False, True]
