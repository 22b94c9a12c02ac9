"""The chunked transfer coding (RFC 9112 section 7.1), without I/O, as strict as the heads are read.

A cost per byte that does not depend on what the content is: content is not searched for anything.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from pushd.http.messages import Refusal, too_big

MAX_LINE_BYTES = 4096  # of a chunk's size and extensions
PARTS_AT_ONCE = 256  # chunks and trailers read by one call: about 0.2 ms
USUAL_LINE_BYTES = 18

_NEW_LINE = b"\r\n"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;" + _TEXT + rb")?\r\n")
_PLAIN_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n").match
_SIZE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:[ \t]*(?:;" + _TEXT + rb"\r?)?|\r)?)?")
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_TRAILER = re.compile(_TOKEN + rb"+:" + _TEXT + rb"\r\n")
_TRAILER_BEGUN = re.compile(rb"(?:\r|" + _TOKEN + rb"+(?::" + _TEXT + rb"\r?)?)?")


class _Next(Enum):
    SIZE = auto()
    CONTENT = auto()
    NEW_LINE = auto()
    TRAILER = auto()


class ChunkedBody:
    """Reads one body: `read` until `is_whole` or a `failure`. Trailers and extensions are counted and ignored."""

    def __init__(self, max_bytes: int, max_trailers: int, max_framing_bytes: int) -> None:
        self.failure: Refusal | None = None
        self.is_whole = False
        self._max_bytes = max_bytes
        self._room = max_bytes
        self._trailers_left = max_trailers
        self._framing_left = max_framing_bytes  # for trailers, and for size lines longer than usual
        self._next = _Next.SIZE
        self._missing = 0

    def read(self, data: bytes, at: int) -> tuple[int, bytes]:
        """Read on at `data[at]`: up to where, and the content found. What is left must be in the next call's data.

        Nothing read means that bytes are missing.
        """
        contents: list[bytes] = []
        at = self._read_whole_chunks(data, at, contents)
        for _ in range(PARTS_AT_ONCE - len(contents)):
            begin = at
            if self._next is _Next.SIZE:
                at = self._read_size(data, at)
            if self._next is _Next.CONTENT:
                content = data[at : at + self._missing]
                at += len(content)
                self._missing -= len(content)
                contents.append(content)
                if not self._missing:
                    self._next = _Next.NEW_LINE
            if self._next is _Next.NEW_LINE:
                at = self._read_new_line(data, at)
            elif self._next is _Next.TRAILER:
                at = self._read_trailer(data, at)
            if at == begin or self.is_whole or self.failure is not None:
                break
        return at, contents[0] if len(contents) == 1 else b"".join(contents)

    def _read_whole_chunks(self, data: bytes, at: int, contents: list[bytes]) -> int:
        """Take the chunks that are here from size to end: many small ones cost a third so."""
        if self._next is not _Next.SIZE:
            return at
        for _ in range(PARTS_AT_ONCE):
            line = _PLAIN_SIZE(data, at)
            if line is None:
                break
            begin, size = line.end(), int(line[1], 16)
            end = begin + size
            if not data.startswith(_NEW_LINE, end) or not 0 < size <= self._room:
                break
            contents.append(data[begin:end])
            self._room -= size
            at = end + len(_NEW_LINE)
        return at

    def _read_size(self, data: bytes, at: int) -> int:
        line = _SIZE.match(data, at)
        if line is None:
            self._check_begun(_SIZE_BEGUN, data, at, MAX_LINE_BYTES)
            return at
        end, size = line.end(), int(line[1], 16)
        if end - at > USUAL_LINE_BYTES:
            self._count_framing(end - at)
        self._room -= size
        if self._room < 0:
            self._fail(413, too_big(self._max_bytes))
            return at
        self._missing = size
        self._next = _Next.CONTENT if size else _Next.TRAILER
        return end

    def _read_new_line(self, data: bytes, at: int) -> int:
        if data.startswith(_NEW_LINE, at):
            self._next = _Next.SIZE
            return at + len(_NEW_LINE)
        if at < len(data) and data[at:] != _NEW_LINE[:1]:
            self._fail(400, "a chunk is longer than it says")
        return at

    def _read_trailer(self, data: bytes, at: int) -> int:
        if data.startswith(_NEW_LINE, at):
            self.is_whole = True
            return at + len(_NEW_LINE)
        line = _TRAILER.match(data, at)
        if line is None:
            self._check_begun(_TRAILER_BEGUN, data, at, self._framing_left)
            return at
        self._trailers_left -= 1
        if self._trailers_left < 0:
            self._fail(431, "too many trailers")
        self._count_framing(line.end() - at)
        return line.end()

    def _check_begun(self, pattern: re.Pattern[bytes], data: bytes, at: int, max_bytes: int) -> None:
        """What is no whole line may become one."""
        if pattern.fullmatch(data, at) is None:
            self._fail(400, "a chunk's size or a trailer is malformed")
        elif len(data) - at > max_bytes:
            self._fail(431, "a chunk's extensions or the trailers are too big")

    def _count_framing(self, count: int) -> None:
        self._framing_left -= count
        if self._framing_left < 0:
            self._fail(431, "a chunk's extensions or the trailers are too big")

    def _fail(self, status: int, text: str) -> None:
        if self.failure is None:
            self.failure = Refusal(status, text)
