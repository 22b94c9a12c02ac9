"""What the smallest steps cost, one process, no daemon. `python -m bench.micro` runs, stores and compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, cycle
from zoneinfo import ZoneInfo

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.loadlib import drive_plan
from bench.micro.exchange import Exchange
from bench.micro.hubs import Crowd
from pushd._fastpath import FanOut
from pushd.auth.authenticator import VERIFIED_TOKENS, Authenticator
from pushd.config.current import CurrentConfig
from pushd.config.schema import AuthConfig, Config, LimitsConfig
from pushd.delivery.dedup import DedupWindow
from pushd.delivery.lanes import Lanes
from pushd.http.parser import RequestParser
from pushd.local_time import date_and_time
from pushd.model import Channel, DeliveryStatus, Notice, Outcome, Priority, Target, TargetKind
from pushd.protocol import frames
from pushd.protocol.frames import Dialect, Opcode
from pushd.protocol.session import Session
from pushd.stores.sqlite.journal import encoded
from pushd.writing.records import merged

UTC = ZoneInfo("UTC")
LIMITS = LimitsConfig()
CROWD, WARM_UP = 500, 5
NOTICE = Notice(
    seq=1,
    message_id="0193a0b1c2d3e4f5061728394a5b6c7d",
    content="a notice of a hundred characters, as they are short texts for people in a back office, more or less.",
    target=Target(kind=TargetKind.CUSTOM, user_ids=(7,)),
    accepted_ms=1_767_225_600_000,
    data={"order": 4711, "link": "/orders/4711"},
)
BODY = b'{"content":"a notice","target":"custom","user_ids":[7],"priority":"high","data":{"order":4711}}'
POST = (
    b"POST /api/admin/system/notice HTTP/1.1\r\nHost: 127.0.0.1:8801\r\nX-API-Key: a-key-of-this-benchmark\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
ACK = b'{"type":"ack","message_ids":["0193a0b1c2d3e4f5061728394a5b6c7d"]}'


@pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.name.lower())
def test_encode_notice(benchmark: BenchmarkFixture, dialect: Dialect) -> None:
    frame = benchmark(lambda: frames.frame(frames.notice_frame(NOTICE, UTC), dialect))
    assert NOTICE.message_id.encode() in frame


def test_encode_journal_entry(benchmark: BenchmarkFixture) -> None:
    *_, body = benchmark(encoded, [NOTICE])
    assert NOTICE.message_id.encode() in body


def test_time_for_people(benchmark: BenchmarkFixture) -> None:
    assert benchmark(date_and_time, NOTICE.accepted_ms, UTC) == "2026-01-01 00:00:00"


def test_receive_ack(benchmark: BenchmarkFixture) -> None:
    receive, clock = Session(Dialect.JSON).receive, count()  # each in a second of its own: no frame is one too many
    event = benchmark(lambda: receive(Opcode.TEXT, True, False, ACK, next(clock), LIMITS))
    assert event == frames.Ack(message_ids=[NOTICE.message_id])


def test_receive_pong(benchmark: BenchmarkFixture) -> None:
    receive, clock = Session(Dialect.JSON).receive, count()
    assert benchmark(lambda: receive(Opcode.PONG, True, False, b"", next(clock), LIMITS)) is None


def parsed(parser: RequestParser, data: bytes) -> bytes:
    parser.feed(data)
    request = parser.next()
    assert request is not None
    return request.body


def test_parse_post(benchmark: BenchmarkFixture) -> None:
    """With a head that says something new each time."""
    parser, numbers = RequestParser(max_body_bytes=1_000_000), count()
    assert benchmark(lambda: parsed(parser, POST.replace(b"key", b"%d" % next(numbers), 1))) == BODY


def test_parse_post_with_known_head(benchmark: BenchmarkFixture) -> None:
    parser = RequestParser(max_body_bytes=1_000_000)
    assert benchmark(parsed, parser, POST) == BODY


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    made = Exchange()
    yield made
    made.close()


def test_a_request_and_its_answer(benchmark: BenchmarkFixture, exchange: Exchange) -> None:
    """On a kept-alive connection, from its bytes to those of the answer, but for what the handler does."""
    (_, request), *_ = drive_plan.singles(8801, drive_plan.one_each(1, [7]))
    assert benchmark(exchange.ask, request).startswith(b"HTTP/1.1 200 OK\r\n")


def test_verify_token(benchmark: BenchmarkFixture) -> None:
    """One that is not remembered."""
    auth = AuthConfig(mode="jwt", jwt_secret=drive_plan.SECRET)
    verify = Authenticator(CurrentConfig(Config(auth=auth))).verify
    tokens = cycle(drive_plan.tokens(range(1, 2 * VERIFIED_TOKENS)))
    assert benchmark(lambda: verify(next(tokens))).user_id


def test_verify_known_token(benchmark: BenchmarkFixture) -> None:
    auth = AuthConfig(mode="jwt", jwt_secret=drive_plan.SECRET)
    verify = Authenticator(CurrentConfig(Config(auth=auth))).verify
    (token,) = drive_plan.tokens([7])
    assert benchmark(verify, token).user_id == 7


def test_through_a_lane(benchmark: BenchmarkFixture) -> None:
    lanes: Lanes[Notice] = Lanes(10)

    def through() -> Notice | None:
        assert lanes.reserve()
        lanes.put(NOTICE, Priority.NORMAL, 0.0)
        return lanes.take()

    assert benchmark(through) is NOTICE


def test_dedup_window(benchmark: BenchmarkFixture) -> None:
    window: DedupWindow[int] = DedupWindow(0.001)
    numbers = count()

    def keep() -> int | None:
        number = next(numbers)
        keys, now = [f"id:{number}"], number * 1e-6
        assert window.find(keys, now) is None
        window.keep(keys, number, now)
        return window.find(keys, now)

    assert benchmark(keep) == next(numbers) - 1
    assert len(window) <= 1002


def test_merge_outcomes(benchmark: BenchmarkFixture) -> None:
    sent = Outcome(created_ms=5, is_online=True)
    received = Outcome(
        created_ms=5, is_online=True, received_ms=9, status=DeliveryStatus.DELIVERED, channel=Channel.WEBSOCKET
    )
    assert benchmark(merged, sent, received) == received


# ---- the hub, over socket pairs


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    people = Crowd()
    yield people
    people.close()


def test_add_and_remove_connection(benchmark: BenchmarkFixture, crowd: Crowd) -> None:
    crowd.join(CROWD)
    transport = crowd.transport()
    benchmark(crowd.come_and_go, transport, 7)
    assert crowd.hub.connections_total == CROWD


def _advanced(benchmark: BenchmarkFixture, crowd: Crowd, setup: Callable[[], object], rounds: int) -> bool:
    pedantic: Callable[..., bool] = benchmark.pedantic
    return pedantic(crowd.hub.advance, setup=setup, rounds=rounds, warmup_rounds=WARM_UP)


def test_fan_out_to_all(benchmark: BenchmarkFixture, crowd: Crowd) -> None:
    """One frame to 500 connections; divide by 500 for one send."""
    crowd.join(CROWD)
    frame = partial(frames.frame, frames.notice_frame(NOTICE, UTC))

    def prepared() -> tuple[tuple[FanOut, float], dict[str, object]]:
        crowd.read_all()
        return (FanOut(NOTICE.message_id, frame), 10.0), {}

    assert _advanced(benchmark, crowd, prepared, rounds=100)
    assert crowd.hub.frames_sent >= (100 + WARM_UP) * CROWD
    assert crowd.read_all() == CROWD


def test_fan_out_to_one(benchmark: BenchmarkFixture, crowd: Crowd) -> None:
    crowd.join(CROWD)
    frame = partial(frames.frame, frames.notice_frame(NOTICE, UTC))

    def prepared() -> tuple[tuple[FanOut, float], dict[str, object]]:
        crowd.read_all()
        return (FanOut(NOTICE.message_id, frame, [7]), 10.0), {}

    assert _advanced(benchmark, crowd, prepared, rounds=300)
    assert crowd.read_all() == 1
