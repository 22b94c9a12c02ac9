"""Chunked bodies: any pieces give the same, and nothing is taken for one that httptools would not take."""

from __future__ import annotations

from itertools import pairwise

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.http.chunks import MAX_LINE_BYTES, PARTS_AT_ONCE, ChunkedBody

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(*pieces: bytes, max_bytes: int = 1000) -> tuple[bytes, int, int, bytes]:
    """Content, status of the failure, 1 when whole, and what was left."""
    body, data, content = ChunkedBody(max_bytes, 3, 200), b"", b""
    for piece in pieces:
        data, at = data + piece, 0
        while not body.is_whole and body.failure is None:
            begin = at
            at, more = body.read(data, at)
            content += more
            if at == begin:
                break
        data = data[at:]
    return content, body.failure.status if body.failure else 0, int(body.is_whole), data


def test_content_extensions_and_trailers() -> None:
    data = b'3;x="y z"\r\nabc\r\n0004 ; a\r\n\r\n\r\n\r\n000\r\nX-Sum: 1\r\nY:\r\n\r\ntail'
    assert read(data) == (b"abc\r\n\r\n", 0, 1, b"tail")


def test_many_parts_take_several_calls() -> None:
    body = ChunkedBody(10_000, 0, 0)
    data = b"1\r\nx\r\n" * (PARTS_AT_ONCE + 1)
    assert body.read(data, 0) == (6 * PARTS_AT_ONCE, b"x" * PARTS_AT_ONCE)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"g", 400),
        (b"\r\n", 400),
        (b"-1\r\n", 400),
        (b"0x1\r\nx\r\n", 400),
        (b" 1\r\nx\r\n", 400),
        (b"1 \r\nx\r\n", 400),
        (b"1\nx", 400),
        (b"1;a\nb\r\n", 400),
        (b"1;a\rb", 400),
        (b"1;\x00", 400),
        (b"1\r\nxy", 400),
        (b"1\r\nx\n", 400),
        (b"1\r\nx\r\r", 400),
        (b"00000000000000001\r\n", 400),
        (b"0\r\nno trailer\r\n", 400),
        (b"0\r\n: x\r\n", 400),
        (b"0\r\n x: y\r\n", 400),
        (b"0\r\nx: y\n", 400),
        (b"0\r\nx: y\r\r", 400),
        (b"3e9\r\n", 413),
        (b"ffffffffffffffff\r\n", 413),
        (b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n", 413),
        (b"0\r\n" + b"x: y\r\n" * 4, 431),
        (b"0\r\nx: " + b"y" * 300, 431),
        (b"1;" + b"x" * MAX_LINE_BYTES, 431),
        ((b"1;" + b"x" * 60 + b"\r\nx\r\n") * 4, 431),
    ],
)
def test_what_is_refused(data: bytes, status: int) -> None:
    assert read(data)[1] == status, "at once"
    assert read(*(data[at : at + 1] for at in range(len(data))))[1] == status


FRAGMENTS = [b"0\r\n", b"1\r\n", b"3\r\n", b"4;x\r\n", b"a \t;\r\n", b"abc\r\n", b"x", b"\r\n", b"\r", b"\n"]
MORE = [b"0\r\n\r\n", b"3\r\nabc\r\n", b"4\r\n\r\n\r\n\r\n", b"x: y\r\n", b";", b" ", b":", b"\x00", b"F", b"\x80"]
BYTES = st.binary(max_size=60) | st.lists(st.sampled_from(FRAGMENTS + MORE), max_size=12).map(b"".join)
WHOLE = st.lists(st.binary(min_size=1, max_size=30) | st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n"]), max_size=5)


def encoded(contents: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(content), content) for content in contents) + b"0\r\n\r\n"


@given(WHOLE, st.binary(max_size=5), st.lists(st.integers(0, 300), max_size=8))
def test_what_was_sent_is_read_in_any_pieces(contents: list[bytes], tail: bytes, cuts: list[int]) -> None:
    data = encoded(contents) + tail
    ends = [0, *sorted(min(at, len(data)) for at in cuts), len(data)]
    content, status, is_whole, left = read(*(data[begin:end] for begin, end in pairwise(ends)))
    assert (content, status, is_whole, left) == (b"".join(contents), 0, 1, tail)


class Heard:
    def __init__(self) -> None:
        self.content = b""
        self.is_whole = False

    def on_body(self, piece: bytes) -> None:
        self.content += piece

    def on_message_complete(self) -> None:
        self.is_whole = True


def judged(data: bytes) -> tuple[bytes, bool]:
    """What httptools makes of a body."""
    heard = Heard()
    parser = httptools.HttpRequestParser(heard)
    parser.feed_data(HEAD + data)
    return heard.content, heard.is_whole


@given(BYTES | st.builds(lambda contents, rest: encoded(contents)[:-2] + rest, WHOLE, BYTES))
def test_httptools_reads_the_same(data: bytes) -> None:
    content, status, is_whole, left = read(data)
    single = read(*(data[at : at + 1] for at in range(len(data))))
    assert single[1:3] == (status, is_whole)
    if status == 0:
        assert single == (content, status, is_whole, left)
    if is_whole:
        end = len(data) - len(left)
        assert judged(data[:end]) == (content, True)
        assert judged(data[: end - 1])[1] is False
