"""From a connection's bytes to requests, without I/O (RFC 9112).

httptools reads the syntax of heads and refuses what request smuggling is made of: Content-Length beside
Transfer-Encoding, repeated or malformed lengths, bare LF, folded headers. This module adds what it leaves open: bodies,
where a message ends, sizes and counts, and fields that may come only once.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

import httptools

from pushd.http.chunks import ChunkedBody
from pushd.http.messages import Head, Memo, Refusal, Request

MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
MAX_TARGET_BYTES = 16 * 1024  # a token of 8 KB in it, and as much again

MAX_KNOWN_HEADS = 512  # at most a megabyte of them
MAX_KNOWN_HEAD_BYTES = 2048

_EMPTY_LINE = b"\r\n\r\n"
# Heads that are not learned: what is read otherwise than by Content-Length, and what never comes twice.
_UNUSUAL = frozenset({"expect", "idempotency-key", "transfer-encoding", "upgrade"})
_NO_PARSER = httptools.HttpRequestParser(object())
_SINGLETONS = frozenset(
    {
        "authorization",
        "content-length",
        "content-type",
        "expect",
        "host",
        "idempotency-key",
        "origin",
        "sec-websocket-key",
        "sec-websocket-version",
        "transfer-encoding",
        "x-api-key",
    }
)
# As most clients spell them: looking one up takes less than decoding it.
_USUAL = ("accept", "accept-encoding", "accept-language", "cache-control", "connection", "cookie", "pragma")
_HANDSHAKE = ("upgrade", "user-agent", "sec-websocket-extensions", "sec-websocket-protocol")
_NAMES = {
    spelling.encode(): name
    for name in (*_SINGLETONS, *_USUAL, *_HANDSHAKE)
    for spelling in (name, name.title(), name.title().replace("Websocket", "WebSocket"))
}


class Phase(Enum):
    """How far the message that is arriving has come: what a timeout depends on."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()


# To look a member up in its class takes ten times as long as to look up a name.
IDLE, HEAD, BODY = Phase


class KnownHead(NamedTuple):
    """What a head meant: the same bytes mean the same again, on any connection."""

    request: Request
    content_length: int


class KnownHeads(dict[bytes, KnownHead]):
    """At most so many heads of requests; the oldest goes when there are too many.

    A publisher's requests have the same few heads over and over, which differ in their length at most. A head is looked
    up whole, so nobody finds another's credentials here without having them.
    """

    def __init__(self, most: int = MAX_KNOWN_HEADS) -> None:
        super().__init__()
        self._most = most

    def learn(self, head: bytes, known: KnownHead) -> None:
        """Remember what a head meant."""
        if len(self) >= self._most and head not in self:
            del self[next(iter(self))]
        self[head] = known


_KNOWN = KnownHeads()


class RequestParser:
    """Cuts a connection's bytes into requests: `feed` what came, ask `next` until it says None.

    Bytes are looked at only when `next` asks for a request, so whoever is busy with one holds the following
    ones as the bytes they came in. After an upgrade, a request that ends the connection, or a `failure`,
    `next` says None for good and `tail` is what was not looked at. No call raises because of what came.

    A head reaches httptools in pieces that end with an empty line, where it can end (RFC 9112 section 2.1), and a body
    not at all; a message with one gets an httptools parser of its own. So there is at most one head in its hands, the
    count of a head's bytes is exact, and the tail of an upgrade begins where it should.

    A head of the usual kind that came before, byte for byte, does not reach httptools at all: it is among the `known`
    heads, which parsers share.
    """

    def __init__(
        self, *, max_body_bytes: int, peer: str = "", is_secure: bool = False, known: KnownHeads = _KNOWN
    ) -> None:
        self.failure: Refusal | None = None
        self.phase = IDLE
        self.is_clear = True  # nothing of a next message has come: `next` would say None
        self._max_body_bytes = max_body_bytes
        self._peer = peer
        self._is_secure = is_secure
        self._known = known
        self._is_over = False
        self._data = b""
        self._at = 0
        self._seam = b""  # the last bytes given to httptools, when an empty line may have begun in them
        self._piece = b""  # what httptools reads at the moment
        self._http = _NO_PARSER  # made when there is something to read
        self._whole: Request | None = None
        self._is_starved = False
        self._start_message()

    def _start_message(self) -> None:
        self.phase = IDLE
        self._target = b""
        self._line_bytes = 0  # of the request line, as far as it came
        self._has_line = False
        self._headers: dict[str, str] = {}
        self._more_headers = 0  # repeated ones
        self._piece_bytes = 0
        self._body: bytes | bytearray = b""
        self._request: Request | None = None
        self._missing_bytes = 0
        self._chunks: ChunkedBody | None = None
        self.body_bytes = 0  # how much of it has come
        self._is_body_kept = True
        self._is_head_untold = False
        self._is_continue_due = False

    @property
    def held_bytes(self) -> int:
        """How many bytes were fed and not looked at yet."""
        return len(self._data) - self._at

    @property
    def has_work(self) -> bool:
        """Whether `next` may find something without more bytes."""
        return self._at < len(self._data) and not self._is_starved and not self._is_over

    def has_upgrade(self) -> bool:
        """Whether what comes next looks like a whole WebSocket upgrade. Others may be one, too, and this one not."""
        data, begin = self._data, self._at
        return (
            data.startswith(b"GET ", begin)
            and self.phase is IDLE
            and data.find(_EMPTY_LINE, begin) >= 0
            and b"pgrade: websocket" in data
        )

    @property
    def kept_bytes(self) -> int:
        """How much of it is kept, and what was not looked at yet."""
        return len(self._body) + len(self._data) - self._at

    @property
    def tail(self) -> bytes:
        """The bytes behind the last request: another protocol's, after an upgrade."""
        return self._data[self._at :]

    @property
    def refused(self) -> Request | None:
        """What was read of the message that is refused, if that says where it comes from."""
        headers = self._headers
        return Request(headers=headers, peer=self._peer, is_secure=self._is_secure) if "origin" in headers else None

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0
        self._is_starved = self.is_clear = False

    def next(self, has_time: Callable[[], bool] = lambda: True) -> Request | None:
        """The next whole request; None when bytes are missing, nothing more will be read, or there is no time.

        A chunked body is read in parts of about 0.2 ms, between which `has_time` is asked.
        """
        while not self._is_over and self._at < len(self._data):
            if self.phase is IDLE:
                request = self._next_known()
                if request is not None:
                    return request
                if self.phase is IDLE and not self._skip_empty_lines():
                    break
            if self.phase is BODY:
                self._read_body()
            else:
                self._read_head()
            if self._whole is not None:
                request, self._whole = self._whole, None
                return request
            if self._is_starved or (self._chunks is not None and not has_time()):
                break
        return None

    def _next_known(self, begins_body: bool = True) -> Request | None:
        """The next request when its head is known and its body is here; one that is not is begun, or left alone."""
        begin, data = self._at, self._data
        head_end = data.find(_EMPTY_LINE, begin) + len(_EMPTY_LINE)
        known = self._known.get(data[begin:head_end])
        if known is None:
            return None
        request, content_length = known
        end = head_end + content_length
        if content_length > self._max_body_bytes:
            return None
        if end <= len(data):
            self._at = end
            self.is_clear = end == len(data)
            return request.again(data[head_end:end], self._peer, self._is_secure)
        if begins_body:
            self._at = head_end
            self._request = request.again(b"", self._peer, self._is_secure)
            self._headers = request.headers
            self._begin_body(content_length)
        return None

    def next_like(self, former: Request) -> Request | None:
        """The next request if it is here, whole, with a head that came before, and asks for what `former` did."""
        begin = self._at
        if self._is_over or self.phase is not IDLE or begin >= len(self._data):
            return None
        request = self._next_known(begins_body=False)
        if request is not None and (request.method != former.method or request.target != former.target):
            request, self._at, self.is_clear = None, begin, False
        return request

    def take_head(self) -> Request | None:
        """The request whose head has come and whose body has not yet, once."""
        is_untold, self._is_head_untold = self._is_head_untold, False
        return self._request if is_untold else None

    def discard_body(self) -> None:
        """Keep nothing of the body that arrives: nobody reads it. It is counted as before."""
        self._is_body_kept = False
        self._body = b""

    def take_continue(self) -> bool:
        """Whether `CONTINUE` must be sent now (RFC 9110 section 10.1.1): true once per request that asks for it."""
        is_due, self._is_continue_due = self._is_continue_due, False
        return is_due

    def close(self) -> None:
        """Read no more, hold nothing. Cuts the reference cycle with httptools: no work for the garbage collector."""
        self._is_over = True
        self._http = _NO_PARSER
        self._data = self._body = self._piece = b""
        self._at = 0

    def _skip_empty_lines(self) -> bool:
        """Pass over empty lines before a request line (RFC 9112 section 2.2); whether a message begins."""
        if self._data[self._at] in b"\r\n":
            rest = self._data[self._at :].lstrip(b"\r\n")
            self._at = len(self._data) - len(rest)
        if self._at < len(self._data):
            self.phase = HEAD
        return self.phase is HEAD

    def _read_head(self) -> None:
        piece = self._piece = self._cut()
        if self._http is _NO_PARSER:
            self._http = httptools.HttpRequestParser(self)
        try:
            self._http.feed_data(piece)
        except httptools.HttpParserUpgrade:
            pass  # Java's client offers `h2c` with every first request; we do not take it up (RFC 9110 section 7.8)
        except httptools.HttpParserError as error:
            self._refuse(400, str(error))
        if self.phase is BODY:
            self._http = _NO_PARSER
        elif self._piece_bytes >= MAX_HEAD_BYTES:  # nothing bounds what httptools keeps of an unfinished head
            self._refuse(431, "the head is too big")

    def _cut(self) -> bytes:
        """The bytes for httptools up to where the head may end, or all there are."""
        begin = self._at
        end = min(self._find_empty_line(begin), begin + MAX_HEAD_BYTES - self._piece_bytes)
        piece = self._data[begin:end]
        if not self._has_line:
            line_end = piece.find(b"\n") + 1
            self._line_bytes += line_end or len(piece)
            self._has_line = line_end > 0
        self._at = begin + len(piece)
        self._piece_bytes += len(piece)
        return piece

    def _read_body(self) -> None:
        begin, chunks = self._at, self._chunks
        if chunks is None:
            content = self._data[begin : begin + self._missing_bytes]
            self._at += len(content)
            self._missing_bytes -= len(content)
        else:
            self._at, content = chunks.read(self._data, begin)
            if chunks.failure is not None:
                self._refuse(*chunks.failure[:2])
        self._is_starved = self._at == begin
        self._is_continue_due = False
        self._keep(content)
        if not self._missing_bytes and (chunks is None or chunks.is_whole):
            self._end_message()

    def _keep(self, content: bytes) -> None:
        self.body_bytes += len(content)
        if not self._is_body_kept:
            return
        if not self._body:
            self._body = content
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += content

    def _find_empty_line(self, begin: int) -> int:
        """Where the next empty line ends, be it that it began in bytes already read; else the end of the data."""
        if self._seam:
            found = (self._seam + self._data[begin : begin + 3]).find(_EMPTY_LINE)
            if found >= 0:
                end = begin + found + len(_EMPTY_LINE) - len(self._seam)
                self._seam = b""
                return end
        found = self._data.find(_EMPTY_LINE, begin)
        if found >= 0:
            self._seam = b""
            return found + len(_EMPTY_LINE)
        self._seam = (self._seam + self._data[max(begin, len(self._data) - 3) :])[-3:]
        return len(self._data)

    def _refuse(self, status: int, text: str) -> None:
        if self.failure is None and not self._is_over:
            self.failure = Refusal(status, text)
            self._is_over, self.is_clear = True, False

    # What httptools calls, during `feed_data`.

    def on_url(self, piece: bytes) -> None:
        """A piece of the target."""
        if self._request is None:
            self._target += piece
            if len(self._target) > MAX_TARGET_BYTES:
                self._refuse(414, "the URL is too long")

    def on_header(self, raw_name: bytes, raw_value: bytes) -> None:
        """One header."""
        name = _NAMES.get(raw_name) or raw_name.decode().lower()
        value = raw_value.decode("latin-1").strip(" \t")
        if name not in self._headers:
            self._headers[name] = value
        else:
            self._add_repeated(name, value)
        if len(self._headers) + self._more_headers > MAX_HEADERS:
            self._refuse(431, "too many headers")

    def _add_repeated(self, name: str, value: str) -> None:
        self._more_headers += 1
        if name in _SINGLETONS:
            self._refuse(400, f"repeated header {name}")
        self._headers[name] = f"{self._headers[name]}, {value}"

    def on_headers_complete(self) -> None:
        """The head is whole: decide whether and how the rest of the message is read."""
        if self._request is not None or self._is_over:
            return
        headers = self._headers
        head = Head(
            self._http.get_method().decode("latin-1"),
            self._http.get_http_version(),
            self._target,
            headers,
            # httptools lets any number of zeros through, int() does not.
            int(headers.get("content-length", "").lstrip("0") or 0),
            "transfer-encoding" in headers,
        )
        verdict = head.judge(self._max_body_bytes, self._peer)
        # httptools passes over further spaces, which others may take for parts of the target.
        if self._line_bytes != len(head.method) + len(head.target) + len(head.version) + len("  HTTP/\r\n"):
            self._refuse(400, "the request line is not a method, a target and a version, with one space between them")
        elif isinstance(verdict, Refusal):
            self._refuse(verdict.status, verdict.text)
        else:
            self._accept(head, verdict)

    def _accept(self, head: Head, request: Request) -> None:
        request.keep_alive = self._http.should_keep_alive()
        request.peer, request.is_secure = self._peer, self._is_secure
        self._request = request
        is_whole = self._piece_bytes == len(self._piece) <= MAX_KNOWN_HEAD_BYTES
        is_usual = "host" in head.headers and _UNUSUAL.isdisjoint(head.headers)
        if is_whole and request.keep_alive and is_usual:
            request.memo = Memo()
            self._known.learn(self._piece, KnownHead(request.again(b"", "", is_secure=False), head.content_length))
        if head.has_body:
            self._begin_body(head.content_length)
            self._is_continue_due = head.has_expectation
        if head.is_chunked:
            headers_left = MAX_HEADERS - len(self._headers) - self._more_headers
            self._chunks = ChunkedBody(self._max_body_bytes, headers_left, MAX_HEAD_BYTES)

    def _begin_body(self, content_length: int) -> None:
        self.phase = BODY
        self._missing_bytes = content_length
        self._is_head_untold = True

    def on_message_complete(self) -> None:
        """The message is whole, unless a body follows, which httptools does not see."""
        if self._request is not None and not self._is_over and self.phase is HEAD:
            self._end_message()

    def _end_message(self) -> None:
        request = self._request
        if request is None or self._is_over:
            return
        request.body = bytes(self._body)
        self._is_over = request.is_upgrade or not request.keep_alive
        self._whole = request
        self._start_message()
        self.is_clear = self._at == len(self._data)
