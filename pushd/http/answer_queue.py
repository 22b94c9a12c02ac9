"""Answers of one connection on their way out."""

from __future__ import annotations

import asyncio
from time import time
from typing import TYPE_CHECKING

import structlog

from pushd.http import messages
from pushd.http.messages import Refusal, Request, Response

if TYPE_CHECKING:
    from pushd.http.long_answers import Sending
    from pushd.http.server import Front

SHARED_BYTES = 8 * 1024  # a longer body is written as it is: where many get the same one, it is kept once
ANSWERS_BYTES = 32 * 1024  # of answers in one write: then the kernel must take them before another request is answered
PIECES_AT_ONCE = 8  # of a long answer

BROKEN = Refusal(500, "internal error")
_TOO_MUCH = Refusal(503, "too many long answers are under way")

_log = structlog.get_logger("pushd.front")


class AnswerQueue:
    """Takes answers and writes them together; of a long one what the peer takes, when it does."""

    __slots__ = ("_front", "_pieces", "held_bytes", "more")

    def __init__(self, front: Front) -> None:
        self._front = front
        self._pieces: list[bytes] = []
        self.held_bytes = 0
        self.more: Sending | None = None  # the rest of a long answer

    @property
    def has_room(self) -> bool:
        """Whether another answer may be put behind these."""
        return self.held_bytes < ANSWERS_BYTES and self.more is None

    def say(self, request: Request | None, refused: Request | None, response: Response) -> bool:
        """Put the answer to `request` behind the others; whether there may be another one behind it.

        Without a request, it answers bytes that were none: of them `refused` is what was understood.
        """
        front = self._front
        keep_alive = request is not None and request.keep_alive and not request.is_upgrade and not front.is_draining
        head_only = request is not None and request.method == "HEAD"
        if response.more and not head_only:
            self.more = front.unsent.send(response, front.loop.time())
            response = front.fail(_TOO_MUCH) if self.more is None else response
        if request is None or "origin" in request.headers:
            response = front.shared(request or refused, response)
        date = messages.date_line(int(time()))
        try:
            self._put(response, keep_alive, head_only, date)
        except Exception:
            _log.exception("answer cannot be encoded", status=response.status)
            self.give_up()
            keep_alive, self.more = False, None
            self._put(front.shared(request or refused, front.fail(BROKEN)), keep_alive, head_only, date)
        return keep_alive

    def _put(self, response: Response, keep_alive: bool, head_only: bool, date: bytes) -> None:
        is_shared = len(response.body) > SHARED_BYTES and not head_only
        answer = messages.encode(response, keep_alive=keep_alive, head_only=head_only or is_shared, date=date)
        self._pieces.append(answer)
        self.held_bytes += len(answer)
        if is_shared:
            self._pieces.append(response.body)
            self.held_bytes += len(response.body)

    def flush(self, transport: asyncio.Transport) -> None:
        """Write all but the rest of a long answer, unless the transport is closing."""
        pieces = self._pieces
        if pieces and not transport.is_closing():
            if self.held_bytes > SHARED_BYTES:
                transport.writelines(pieces)
            else:
                transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self.held_bytes = 0
        pieces.clear()

    def write_more(self, transport: asyncio.Transport) -> bool:
        """A share of the rest; whether that was all. One who takes it as fast as it comes must not keep the loop."""
        more = self.more
        for _ in range(PIECES_AT_ONCE):
            if not more or transport.get_write_buffer_size() or transport.is_closing():
                break
            transport.write(more.take())
        if not more:
            self.more = None
        return not more

    def give_up(self) -> None:
        """Nobody wants the rest."""
        if self.more is not None:
            self.more.end()
