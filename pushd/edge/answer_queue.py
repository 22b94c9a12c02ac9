"""Answers of one connection on their way out, without I/O but the one write that takes them."""

from __future__ import annotations

import asyncio

import structlog

from pushd.edge import http1
from pushd.edge.http1 import Response

SHARED_BYTES = 8 * 1024  # a longer body is written as it is: where many get the same one, it is kept once

_log = structlog.get_logger("pushd.front")


class AnswerQueue:
    """Takes answers and writes them together."""

    __slots__ = ("_pieces", "held_bytes")

    def __init__(self) -> None:
        self.held_bytes = 0
        self._pieces: list[bytes] = []

    def add(self, response: Response, *, keep_alive: bool, head_only: bool, date: bytes) -> bool:
        """Put an answer behind the others; False if it cannot be said, which is logged."""
        is_shared = len(response.body) > SHARED_BYTES and not head_only
        try:
            answer = http1.encode(response, keep_alive=keep_alive, head_only=head_only or is_shared, date=date)
        except Exception:
            _log.exception("answer cannot be encoded", status=response.status)
            return False
        self._put(answer)
        if is_shared:
            self._put(response.body)
        return True

    def _put(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self.held_bytes += len(piece)

    def flush(self, transport: asyncio.Transport) -> None:
        """Write them all, unless the transport is closing."""
        pieces = self._pieces
        if pieces and not transport.is_closing():
            if self.held_bytes > SHARED_BYTES:
                transport.writelines(pieces)
            else:
                transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self.held_bytes = 0
        pieces.clear()
