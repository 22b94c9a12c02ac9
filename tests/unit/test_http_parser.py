"""Bytes to requests: any chunking gives the same ones, and nothing that comes makes it raise."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pushd.http.messages import Request
from pushd.http.parser import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_KNOWN_HEAD_BYTES,
    MAX_TARGET_BYTES,
    KnownHeads,
    Phase,
    RequestParser,
)

MAX_BODY_BYTES = 1000
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def heads(count: int = 100) -> KnownHeads:
    """Room for heads that parsers learn."""
    return KnownHeads(count)


def parser(
    known: KnownHeads | None = None, *, max_body_bytes: int = MAX_BODY_BYTES, peer: str = "192.0.2.1"
) -> RequestParser:
    """One that knows what those with the same `known` have learned."""
    known = heads() if known is None else known
    return RequestParser(max_body_bytes=max_body_bytes, peer=peer, is_secure=peer == "192.0.2.1", known=known)


def drain(source: RequestParser) -> list[Request]:
    requests = []
    while (request := source.next()) is not None:
        requests.append(request)
    return requests


def parse(*pieces: bytes, known: KnownHeads | None = None) -> tuple[list[Request], int, bytes]:
    """Requests, status of the failure (0 for none) and tail."""
    source, requests = parser(known), []
    for piece in pieces:
        source.feed(piece)
        requests += drain(source)
    if source.failure is not None:
        assert "callback" not in source.failure.text, "an exception in one of our callbacks"
    return requests, source.failure.status if source.failure else 0, source.tail


def seen(request: Request) -> tuple[object, ...]:
    return request.method, request.target, request.headers, request.body, request.keep_alive, request.is_upgrade


def one(data: bytes, known: KnownHeads | None = None) -> Request:
    requests, status, _ = parse(data, known=known)
    assert status == 0
    (request,) = requests
    return request


def status_of(data: bytes, known: KnownHeads | None = None) -> int:
    return parse(data, known=known)[1]


# What is read


def test_a_post() -> None:
    request = one(b"POST /a?b=c HTTP/1.1\r\nHost: x:1\r\nX-Y:  z \r\nX-Y: w\r\nContent-Length: 5\r\n\r\nhello")
    assert (request.method, request.path, request.query, request.body) == ("POST", "/a", {"b": "c"}, b"hello")
    assert request.headers == {"host": "x:1", "x-y": "z, w", "content-length": "5"}
    assert (request.keep_alive, request.peer, request.is_secure) == (True, "192.0.2.1", True)


def test_chunks_and_trailers() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"3;x=y\r\nabc\r\n4\r\n\r\n\r\n\r\n0\r\nAuthorization: none\r\n\r\n"
    requests, status, _ = parse(head + body + GET)
    assert status == 0
    assert [request.body for request in requests] == [b"abc\r\n\r\n", b""]
    assert all("authorization" not in request.headers for request in requests)


@pytest.mark.parametrize(
    ("version", "connection", "expected"),
    [("1.1", "", True), ("1.1", "close", False), ("1.0", "", False), ("1.0", "keep-alive", True)],
)
def test_keep_alive(version: str, connection: str, expected: bool) -> None:
    header = f"Connection: {connection}\r\n" if connection else ""
    request = one(f"GET / HTTP/{version}\r\nHost: a\r\n{header}\r\n".encode())
    assert request.keep_alive is expected


def test_nothing_is_read_after_the_last_request() -> None:
    requests, status, tail = parse(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET)
    assert (len(requests), status, tail) == (1, 0, GET)


def test_an_upgrade_leaves_its_tail() -> None:
    head = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
    requests, status, tail = parse(GET + head + b"\x81\x80\r\n\r\n")
    assert [request.is_upgrade for request in requests] == [False, True]
    assert (status, tail) == (0, b"\x81\x80\r\n\r\n")


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
def test_an_offered_upgrade_that_is_not_taken_up_keeps_its_body(framing: bytes) -> None:
    offer = b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" + framing
    requests, status, _ = parse(offer + GET)
    assert status == 0
    assert [(request.method, request.body) for request in requests] == [("POST", b"hello"), ("GET", b"")]


def test_empty_lines_before_a_request_are_skipped() -> None:
    source = parser()
    source.feed(b"\r\n\r\n")
    assert source.next() is None
    assert source.phase is Phase.IDLE
    source.feed(b"\r\n" + GET)
    assert source.next() is not None


def test_requests_wait_as_bytes() -> None:
    source = parser()
    source.feed(GET * 3)
    assert source.next() is not None
    assert source.held_bytes == 2 * len(GET)


def test_phases() -> None:
    source = parser()
    for piece, phase, body_bytes in (
        (b"POST / HT", Phase.HEAD, 0),
        (b"TP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", Phase.BODY, 0),
        (b"ab", Phase.BODY, 2),
    ):
        source.feed(piece)
        assert source.next() is None
        assert (source.phase, source.body_bytes) == (phase, body_bytes)
    source.feed(b"c")
    assert source.next() is not None
    assert source.phase is Phase.IDLE


def test_continue_is_due_once_and_only_before_the_body() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n"
    source = parser()
    source.feed(head)
    assert source.next() is None
    assert [source.take_continue(), source.take_continue()] == [True, False]
    source = parser()
    source.feed(head + b"x")
    assert source.next() is None
    assert not source.take_continue()


def test_a_closed_parser_reads_nothing() -> None:
    source = parser()
    source.close()
    source.feed(GET)
    assert source.next() is None
    assert source.failure is None


# Heads that came before


POST = b"POST /a?b=c HTTP/1.1\r\nHost: x:1\r\nAuthorization: Bearer t\r\nContent-Length: 5\r\n\r\n"


def test_a_known_head_means_the_same_on_every_connection() -> None:
    known = heads()
    first, second = parser(known), parser(known, max_body_bytes=5, peer="192.0.2.2")
    first.feed(POST + b"hello")
    (learned,) = drain(first)
    second.feed(POST + b"world" + GET + POST + b"again")
    again, get, last = drain(second)
    assert seen(again) == (*seen(learned)[:3], b"world", *seen(learned)[4:])
    assert (again.path, again.query, again.peer, again.is_secure) == ("/a", {"b": "c"}, "192.0.2.2", False)
    assert (learned.body, learned.peer, learned.is_secure) == (b"hello", "192.0.2.1", True)
    assert (get.path, last.body, second.held_bytes, second.phase) == ("/", b"again", 0, Phase.IDLE)


def test_a_known_head_does_not_reach_httptools() -> None:
    source = parser()
    for body in (b"first", b"other"):
        source.feed(POST + body)
        (request,) = drain(source)
        assert request.body == body
        source._http = httptools.HttpRequestParser(object())  # one that tells nobody


def test_the_body_behind_a_known_head_may_come_later() -> None:
    known = heads()
    assert one(POST + b"hello", known).body == b"hello"
    source = parser(known)
    for piece, phase in ((POST[:-1], Phase.HEAD), (POST[-1:] + b"he", Phase.BODY), (b"ll", Phase.BODY)):
        source.feed(piece)
        assert drain(source) == []
        assert source.phase is phase
    source.feed(b"o" + POST + b"w")
    assert [request.body for request in drain(source)] == [b"hello"]
    source.feed(b"orld")
    assert [request.body for request in drain(source)] == [b"world"]


def test_a_known_head_is_told_when_its_body_comes_apart() -> None:
    known = heads()
    learned = one(POST + b"hello", known)
    source = parser(known)
    source._http = httptools.HttpRequestParser(object())  # one that tells nobody
    source.feed(POST + b"he")
    assert source.next() is None
    head = source.take_head()
    assert head is not None
    assert (head.headers, head.memo, source.body_bytes) == (learned.headers, learned.memo, 2)
    assert source.take_head() is None
    source.feed(b"llo")
    assert source.next() is head
    assert head.body == b"hello"


def test_whether_something_of_a_next_message_has_come() -> None:
    source = parser()
    for piece, is_clear in (
        (POST[:9], False),
        (POST[9:] + b"hell", False),
        (b"o", True),
        (POST + b"hello" + GET, False),
    ):
        source.feed(piece)
        source.next()
        assert source.is_clear is is_clear
    assert source.next() is not None
    assert source.is_clear
    source.feed(b"nonsense\r\n\r\n")
    assert source.next() is None
    assert not source.is_clear


def test_requests_share_what_is_kept_about_their_head() -> None:
    known = heads()
    first, again, other = one(POST + b"hello", known), one(POST + b"other", known), one(GET, known)
    assert first.memo is not None
    assert first.memo is again.memo is not other.memo
    assert one(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", known).memo is None


def test_a_known_head_may_announce_too_much_for_another_connection() -> None:
    known = heads()
    assert one(POST + b"hello", known).body == b"hello"
    source = parser(known, max_body_bytes=4)
    source.feed(POST + b"hello")
    assert source.next() is None
    assert source.failure is not None
    assert source.failure.status == 413


@pytest.mark.parametrize(
    "field",
    [
        b"Connection: close",
        b"Expect: 100-continue",
        b"Idempotency-Key: k",
        b"Transfer-Encoding: chunked",
        b"Connection: Upgrade\r\nUpgrade: h2c",
        b"Connection: Upgrade\r\nUpgrade: websocket",
        b"X-Long: " + b"x" * MAX_KNOWN_HEAD_BYTES,
    ],
)
def test_unusual_heads_are_not_learned(field: bytes) -> None:
    known = heads()
    parse(b"GET / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n0\r\n\r\n", known=known)
    assert not known


@pytest.mark.parametrize(
    "head",
    [b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", b"nonsense\r\n\r\n"],
)
def test_a_refused_head_is_refused_again(head: bytes) -> None:
    known = heads()
    assert status_of(head, known) == status_of(head, known) >= 400


def test_so_many_heads_are_known() -> None:
    known = heads(10)
    sent = [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(25)]
    parse(*sent, known=known)
    assert list(known) == sent[-10:]


# What is refused


def head_of(size: int) -> bytes:
    start, end = b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"\r\n\r\n"
    return start + b"x" * (size - len(start) - len(end)) + end


def test_the_head_is_limited_exactly() -> None:
    assert status_of(head_of(MAX_HEAD_BYTES)) == 0
    assert status_of(head_of(MAX_HEAD_BYTES + 1)) == 431
    assert status_of(head_of(2 * MAX_HEAD_BYTES)[:-4]) == 431


def test_the_number_of_headers_is_limited() -> None:
    def with_headers(count: int) -> bytes:
        return GET[:-2] + b"".join(b"x%d: y\r\n" % number for number in range(count - 1)) + b"\r\n"

    assert status_of(with_headers(MAX_HEADERS)) == 0
    assert status_of(with_headers(MAX_HEADERS + 1)) == 431


def test_the_target_is_limited() -> None:
    def with_target(size: int) -> bytes:
        return b"GET /" + b"x" * (size - 1) + GET[5:]

    assert status_of(with_target(MAX_TARGET_BYTES)) == 0
    assert status_of(with_target(MAX_TARGET_BYTES + 1)) == 414


LINES = [
    b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b"GET / HTTP/1.1 ", b"GET\t/ HTTP/1.1", b"GET /\tHTTP/1.1", b"GET HTTP/1.1",
    b"GET / HTTP/1.1\t", b"GET   /   HTTP/1.1", b"GET /a b HTTP/1.1", b"GET / http/1.1", b"GET / HTTP/1.1\r", b"GET /",
    b"GET\x0b/ HTTP/1.1", b"GET /\x0c HTTP/1.1", b"get / HTTP/1.1", b" GET / HTTP/1.1", b"GET / HTTP/ 1.1",
    b"GET /\0 HTTP/1.1",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_request_line_has_one_space_twice(line: bytes) -> None:
    head = line + b"\r\nHost: a\r\n\r\n"
    assert status_of(head) == status_of(GET + head) == 400
    assert parse(*(head[at : at + 1] for at in range(len(head))))[1] == 400


def test_a_request_line_may_come_in_any_pieces() -> None:
    head = b"OPTIONS /a?b=%20 HTTP/1.0\r\n\r\n"
    for pieces in ([head], [head[at : at + 1] for at in range(len(head))], [b"\r\n", head[:10], head[10:]]):
        requests, status, _ = parse(*pieces)
        assert (status, [(one.method, one.target) for one in requests]) == (0, [("OPTIONS", b"/a?b=%20")])


def test_a_token_of_8_kb_fits_wherever_it_stands() -> None:
    token = b"x" * 8192
    head = b"GET /ws?token=%b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % (token, token)
    known = heads()
    request = one(head, known)
    assert request.query["token"] == token.decode()
    assert request.headers["authorization"] == f"Bearer {token.decode()}"
    assert not known  # too big to be worth it


def test_a_head_without_a_host_is_not_learned() -> None:
    """On loopback it is served where health is asked for, elsewhere not."""
    head, known = b"GET /healthz HTTP/1.1\r\n\r\n", heads()
    local = parser(known, max_body_bytes=0, peer="127.0.0.1")
    local.feed(head)
    assert local.next() is not None
    assert status_of(head, known) == 400


def test_what_is_refused_says_where_it_comes_from() -> None:
    origin = b"Host: a\r\nOrigin: https://b\r\n"
    for head in (
        b"GET / HTTP/1.1\r\n" + origin + b"X: y\r\nBad Name: x\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + origin + b"Content-Length: 9999\r\n\r\n",
        b"GET  / HTTP/1.1\r\n" + origin + b"\r\n",
    ):
        source = parser()
        source.feed(head)
        assert source.next() is None
        assert source.failure is not None
        assert source.refused is not None
        assert source.refused.headers["origin"] == "https://b"
        assert source.refused.peer == "192.0.2.1"
    unknown = parser()
    unknown.feed(b"nonsense\r\n" + origin)
    assert unknown.next() is None
    assert unknown.refused is None


def test_a_big_body_is_refused_by_its_announcement() -> None:
    assert status_of(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n") == 413


def test_chunks_are_counted_as_they_come() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"1f4\r\n" + b"x" * 500 + b"\r\n"
    assert status_of(head + 2 * chunk) == 0
    assert status_of(head + 2 * chunk + b"1\r\nx") == 413


def test_a_trailer_is_limited() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    assert parse(head, b"x: " + b"y" * 2 * MAX_HEAD_BYTES)[1] == 431


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /ä HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
        *(
            b"GET / HTTP/1.1\r\nHost: a\r\n" + 2 * (name + b": x\r\n") + b"\r\n"
            for name in (b"Authorization", b"Origin", b"Sec-WebSocket-Key", b"sec-websocket-version", b"X-API-Key")
        ),
    ],
)
def test_bad_requests_are_refused(data: bytes) -> None:
    requests, status, _ = parse(data + GET)
    assert requests == []
    assert status in {400, 501}
    assert status == status_of(data), "the refusal waited for more bytes"


def test_a_content_length_may_begin_with_zeros() -> None:
    assert one(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"0" * 5000 + b"1\r\n\r\nx").body == b"x"


def test_requests_before_a_bad_one_are_read() -> None:
    requests, status, _ = parse(GET + b"\x00")
    assert (len(requests), status) == (1, 400)


# Any stream, in any pieces


@dataclass
class Sent:
    """A request as a client would write it, in one of the framings."""

    method: str
    path: str
    fields: dict[str, str]
    body: bytes
    chunks: list[int] | None
    offer: bytes
    wire: bytes = field(init=False)

    def __post_init__(self) -> None:
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: example.org"]
        lines += [f"{name}: {value}" for name, value in self.fields.items()]
        if self.chunks is None:
            framing = b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body if self.body else b"\r\n"
        else:
            cuts = [0, *sorted(min(cut, len(self.body)) for cut in self.chunks), len(self.body)]
            parts = [self.body[begin:end] for begin, end in pairwise(cuts)]
            chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)
            framing = b"Transfer-Encoding: chunked\r\n\r\n" + chunked + b"0\r\n\r\n"
        self.wire = "\r\n".join([*lines, ""]).encode() + self.offer + framing


SENT = st.builds(
    Sent,
    st.sampled_from(["GET", "POST", "DELETE", "HEAD"]),
    st.from_regex(r"/[a-z0-9/_.-]{0,20}", fullmatch=True),
    st.dictionaries(
        st.from_regex(r"x-[a-z]{1,5}", fullmatch=True), st.from_regex(r"([!-~]([ -~]{0,10}[!-~])?)?", fullmatch=True)
    ),
    st.binary(max_size=60) | st.lists(st.sampled_from([b"\r\n", b"\n", b"\r", b"0", b"x"]), max_size=20).map(b"".join),
    st.none() | st.lists(st.integers(0, 60), max_size=4),
    st.sampled_from([b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"]),
)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    return [data[begin:end] for begin, end in pairwise([0, *sorted(min(at, len(data)) for at in cuts), len(data)])]


@given(st.lists(SENT, max_size=4), st.data())
def test_what_was_sent_is_read_in_any_pieces(sent: list[Sent], data: st.DataObject) -> None:
    stream = b"".join(request.wire for request in sent)
    pieces = cut(stream, data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    known = heads()
    for _ in ("for the first time", "with heads that are known"):
        requests, status, tail = parse(*pieces, known=known)
        assert (status, tail) == (0, b"")
        assert len(requests) == len(sent)
        for request, expected in zip(requests, sent, strict=True):
            assert (request.method, request.path, request.body) == (expected.method, expected.path, expected.body)
            assert expected.fields.items() <= request.headers.items()


FRAGMENTS = [
    *(
        b"GET / HTTP/1.1\r\n",
        b"POST /x HTTP/1.1\r\n",
        b"GET /%ff HTTP/1.0\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        b"HTTP/1.1",
    ),
    *(b"Host: a\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n"),
    *(b"Connection: Upgrade\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n"),
    *(b"\r\n", b"\n", b"\r", b":", b" ", b"\x00", b"3\r\nabc\r\n", b"0\r\n\r\n", b"abc"),
]
BYTES = st.binary(max_size=200) | st.lists(st.sampled_from(FRAGMENTS), max_size=25).map(b"".join)


@given(BYTES)
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\r")
def test_any_bytes_give_the_same_whole_and_one_by_one(data: bytes) -> None:
    known = heads()
    whole, whole_status, whole_tail = parse(data, known=known)
    single, single_status, single_tail = parse(*(data[at : at + 1] for at in range(len(data))), known=known)
    again, again_status, again_tail = parse(data, known=known)
    assert [seen(request) for request in whole] == [seen(request) for request in single]
    assert [seen(request) for request in whole] == [seen(request) for request in again]
    assert whole_status == single_status == again_status
    assert whole_status in {0, 400, 413, 417, 501}
    if whole_status == 0:
        assert whole_tail == single_tail == again_tail
