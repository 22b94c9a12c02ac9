"""What the benchmarks of the offline path compute: frames, acknowledgements, lag, medians, round trips."""

from __future__ import annotations

import json
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.loadlib.admin import Metrics, lag_between, notice, parse_metrics
from bench.loadlib.canned import server_frame
from bench.loadlib.lean import ACK_BYTES, FrameScanner, ack_frames, text_frame
from bench.loadlib.options import LoadError
from bench.loadlib.paired import Middle, middle
from bench.loadlib.turns import Turns
from bench.loadlib.watchers import SO_TIMESTAMPNS, TIMESPEC, monotonic_ns, sent_ns
from pushd.protocol.frames import PING_FRAME, close_frame, ws_frame

SLEPT_NS = 200_000_000
BUCKET = "pushd_loop_lag_seconds_bucket"


# ---- frames


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 400))
def test_frames_in_pieces_of_any_size(payloads: list[bytes], piece: int) -> None:
    stream = PING_FRAME + b"".join(map(server_frame, payloads)) + PING_FRAME
    scanner = FrameScanner()
    found: list[bytes] = []
    for start in range(0, len(stream), piece):
        found += scanner.feed(stream[start : start + piece])
    assert found == payloads


def test_long_frame() -> None:
    assert FrameScanner().feed(ws_frame(1, b"x" * 70_000)) == [b"x" * 70_000]


def test_close_is_an_error_that_says_the_code() -> None:
    with pytest.raises(LoadError, match="4008"):
        FrameScanner().feed(close_frame(4008, "slow"))


def test_text_frame_is_masked_with_nothing() -> None:
    assert text_frame(b"hi") == b"\x81\x82\0\0\0\0hi"
    assert text_frame(b"x" * 200) == b"\x81\xfe\x00\xc8\0\0\0\0" + b"x" * 200


@given(st.lists(st.from_regex(rb"[a-z0-9]{1,60}", fullmatch=True), max_size=200))
def test_every_id_is_acknowledged_once_in_frames_of_bounded_size(ids: list[bytes]) -> None:
    # the server's view: without masks, which are zero, the rest is an ordinary frame
    stream, found = ack_frames(ids), []
    while stream:
        length, start = stream[1] & 0x7F, 6
        if length == 126:
            length, start = int.from_bytes(stream[2:4], "big"), 8
        frame, stream = json.loads(stream[start : start + length]), stream[start + length :]
        assert length <= ACK_BYTES + 100
        assert frame["type"] == "ack"
        found += frame["message_ids"]
    assert [known.encode() for known in found] == ids


def test_when_a_live_notice_was_sent() -> None:
    assert sent_ns(b'{"type":"live","content":"c","data":{"number":3,"sent_ns":123456},"ts":1}') == 123456


def test_notice_begins_with_its_type() -> None:
    assert notice("text", "m1", target="all").startswith(b'{"type": "bench"')


# ---- figures


def scrape(*counts: int) -> Metrics:
    bounds = ("0.005", "0.05", "+Inf")
    lines = [f'{BUCKET}{{le="{bound}"}} {count}' for bound, count in zip(bounds, counts, strict=True)]
    return Metrics(parse_metrics("\n".join(["# HELP x", *lines, 'pushd_notices_total{target="all"} 2.0', ""])))


def test_lag_is_what_came_in_between() -> None:
    lag = lag_between(scrape(10, 12, 12), scrape(20, 25, 25))
    assert (lag.readings, lag.over_5_ms, lag.over_50_ms) == (13, 3, 0)
    assert (lag.p99_below_ms, lag.max_below_ms) == (50, 50)
    assert lag_between(scrape(0, 0, 0), scrape(1, 1, 2)).max_below_ms == float("inf")
    assert lag_between(scrape(1, 1, 1), scrape(1, 1, 1)).readings == 0


def test_metrics_are_summed_over_labels() -> None:
    text = 'a_total{x="1"} 2\na_total{x="2"} 3\na_total_other 7\n'
    assert Metrics(parse_metrics(text)).total("a_total") == 5


def test_middle() -> None:
    assert middle([3.0, 1.0, 2.0]) == Middle(2.0, 1.0, 3.0)


def test_requests_without_an_answer_in_between_are_one_round_trip() -> None:
    turns, client, server, last = Turns(), 0, 1, 1
    for side in (server, client, client, server, server, client):  # a greeting, a request in two pieces, another
        last = turns.note(side, last, 1)
    assert (turns.total, turns.bytes_total) == (2, 6)


def test_when_bytes_came_not_when_they_were_read() -> None:
    """The kernel begins to note times a moment after the first socket on the machine asks for them."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        peer, _ = server.accept()
        with peer:
            stamps: list[tuple[int, int, bytes]] = []
            deadline = time.monotonic() + 5
            while not stamps and time.monotonic() < deadline:
                before = time.monotonic_ns()
                peer.sendall(b"it")
                after = time.monotonic_ns()
                time.sleep(SLEPT_NS / 1e9)
                data, stamps, _, _ = client.recvmsg(10, socket.CMSG_SPACE(TIMESPEC.size))
    ((_, kind, stamp),) = stamps
    assert (data, kind) == (b"it", SO_TIMESTAMPNS)
    assert before - SLEPT_NS // 2 < monotonic_ns(stamp) < after + SLEPT_NS // 2
