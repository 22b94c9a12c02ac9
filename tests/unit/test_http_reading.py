"""What is kept of a connection's requests is counted, and no more is read than may be kept."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pushd.config.schema import LimitsConfig
from pushd.http.messages import Request
from pushd.http.parser import RequestParser
from pushd.http.reading import HELD_BYTES, Reading
from pushd.http.shared import Shared
from tests.unit.http_support import Application, Transport

MAX_BODIES_BYTES = 1000


class Upload:
    """A connection whose body may have to give way."""

    def __init__(self, shared: Shared) -> None:
        self.transport = Transport()
        self.parser = RequestParser(max_body_bytes=1_000_000)
        self.reading = Reading(shared, self.transport, self.parser, self)
        self.has_given_way = False

    def give_way(self) -> None:
        self.has_given_way = True
        self.reading.end()

    def feed(self, data: bytes) -> None:
        self.parser.feed(data)
        assert self.parser.next() is None
        self.reading.balance(has_to_queue=False, has_eof=False)


@pytest.fixture
async def shared() -> AsyncIterator[Shared]:
    shared = Shared(Application(), LimitsConfig(max_bodies_bytes=MAX_BODIES_BYTES))
    yield shared
    shared.first_reads.close()


def body(size: int, missing: int = 1) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (size + missing) + bytes(size)


async def test_what_arrives_and_what_is_worked_on_is_counted_until_the_end(shared: Shared) -> None:
    upload = Upload(shared)
    upload.feed(body(600))
    assert shared.bodies.held_bytes == upload.reading.counted_bytes == 600
    upload.reading.worked_bytes = 50
    upload.reading.balance(has_to_queue=False, has_eof=False)
    assert shared.bodies.held_bytes == 650
    upload.reading.end()
    upload.reading.end()
    assert shared.bodies.held_bytes == 0


async def test_a_body_without_room_must_not_go_on_and_old_ones_give_way(shared: Shared) -> None:
    old, new = Upload(shared), Upload(shared)
    old.feed(body(900))
    assert old.reading.may_go_on()
    new.feed(body(200))
    assert not new.reading.may_go_on()
    assert not old.has_given_way
    shared.bodies.patience_s = 0.0
    assert new.reading.may_go_on()
    assert old.has_given_way
    assert shared.bodies.held_bytes == 200


async def test_a_whole_request_has_room_and_counts_what_is_not_counted_yet(shared: Shared) -> None:
    upload = Upload(shared)
    upload.feed(body(900))
    assert upload.reading.may_go_on()
    assert upload.reading.has_room_for(Request(body=bytes(1250)))
    assert not upload.reading.has_room_for(Request(body=bytes(1251)))
    assert upload.reading.has_room_for(Request())


async def test_reading_waits_for_a_turn_and_while_too_much_is_held(shared: Shared) -> None:
    upload = Upload(shared)
    upload.reading.balance(has_to_queue=True, has_eof=False)
    assert upload.transport.is_paused
    upload.reading.balance(has_to_queue=False, has_eof=False)
    assert not upload.transport.is_paused
    upload.parser.feed(bytes(HELD_BYTES))
    upload.reading.balance(has_to_queue=False, has_eof=False)
    assert not upload.transport.is_paused
    upload.parser.feed(b"x")
    upload.reading.balance(has_to_queue=False, has_eof=False)
    assert upload.transport.is_paused
    upload.parser.close()
    upload.reading.balance(has_to_queue=False, has_eof=True)
    assert upload.transport.is_paused, "nothing comes after the peer's end"
