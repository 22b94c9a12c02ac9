"""Answers of one connection on their way out."""

from __future__ import annotations

import asyncio
from collections import deque

import structlog

from pushd.http import messages
from pushd.http.application import BROKEN
from pushd.http.long_answers import Sending
from pushd.http.messages import Refusal, Request, Response
from pushd.http.pipeline import Begun
from pushd.http.shared import Shared

JOINED_BYTES = 8 * 1024  # a longer body is written as it is: where many get the same one, it is kept once
ANSWERS_BYTES = 32 * 1024  # of answers in one write: then the kernel must take them before another request is answered
PIECES_AT_ONCE = 8  # of a long answer

_TOO_MUCH = Refusal(503, "too many long answers are under way")

_log = structlog.get_logger("pushd.front")


class AnswerQueue:
    """Takes answers and writes them together; of a long one what the peer takes, when it does.

    `is_last`: the last answer of the connection is among those that were put into it. `behind` are the requests whose
    answers come behind the next one, for they were begun as well.
    """

    __slots__ = ("_pieces", "_shared", "behind", "held_bytes", "is_last", "more")

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._pieces: list[bytes] = []
        self.held_bytes = 0
        self.is_last = False
        self.behind: deque[Begun] | None = None  # made when it is needed
        self.more: Sending | None = None  # the rest of a long answer

    @property
    def has_room(self) -> bool:
        """Whether another answer may be put behind these."""
        return self.held_bytes < ANSWERS_BYTES and self.more is None and not self.is_last

    def is_late(self, now: float) -> bool:
        """Whether the peer should have taken a long answer by now."""
        return self.more is not None and now >= self.more.until

    def say(self, request: Request | None, refused: Request | None, response: Response) -> None:
        """Put the answer to `request` behind the others.

        Without a request, it answers bytes that were none: of them `refused` is what was understood.
        """
        shared, keep_alive, head_only = self._shared, False, False
        if request is not None:
            is_ending = request.is_upgrade or (shared.is_draining and not self.behind)
            keep_alive, head_only = request.keep_alive and not is_ending, request.method == "HEAD"
        if response.more and not head_only:
            self.more = shared.unsent.send(response, shared.loop.time())
            response = shared.application.fail(_TOO_MUCH) if self.more is None else response
        if request is None or "origin" in request.headers:
            response = shared.application.share(request or refused, response)
        is_apart = len(response.body) > JOINED_BYTES and not head_only
        date = messages.date_line(int(shared.wall_s()))
        try:
            answer = messages.encode(response, keep_alive, head_only or is_apart, date)
        except Exception:
            _log.exception("answer cannot be encoded", status=response.status)
            self.give_up()
            keep_alive, self.more = False, None
            response, is_apart = shared.application.share(request or refused, shared.application.fail(BROKEN)), False
            answer = messages.encode(response, keep_alive, head_only, date)
        self._pieces.append(answer)
        self.held_bytes += len(answer)
        if is_apart:
            self._pieces.append(response.body)
            self.held_bytes += len(response.body)
        self.is_last = not keep_alive

    def flush(self, transport: asyncio.Transport) -> None:
        """Write all but the rest of a long answer, unless the transport is closing."""
        pieces = self._pieces
        if pieces and not transport.is_closing():
            if self.held_bytes > JOINED_BYTES:
                transport.writelines(pieces)
            else:
                transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self.held_bytes = 0
        pieces.clear()

    def write_more(self, transport: asyncio.Transport) -> bool:
        """Write a share of the rest, and say whether that was all.

        A peer that takes it as fast as it comes must not keep the loop.
        """
        more = self.more
        for _ in range(PIECES_AT_ONCE):
            if not more or transport.get_write_buffer_size() or transport.is_closing():
                break
            transport.write(more.take())
        if not more:
            self.more = None
        return not more

    def give_up(self) -> None:
        """Give the rest of a long answer up: nobody wants it."""
        if self.more is not None:
            self.more.end()
