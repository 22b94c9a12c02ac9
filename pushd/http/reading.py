"""Reading from one connection as far as there is room: counts what is kept of its requests, and pauses."""

from __future__ import annotations

import asyncio

from pushd.http.bodies import Bodies, Holder
from pushd.http.messages import Request
from pushd.http.parser import BODY, RequestParser
from pushd.http.shared import Shared

HELD_BYTES = 64 * 1024  # of requests that wait for the one in work; reading is paused beyond


class Reading:
    """What is kept of one connection's requests, as the `Bodies` of all count it, and whether more is read.

    `worked_bytes` are those of the bodies of the requests in work.
    """

    __slots__ = ("_bodies", "_fd", "_holder", "_is_arriving", "_is_paused", "_parser", "_shared", "_transport",
                 "counted_bytes", "worked_bytes")  # fmt: skip

    def __init__(self, shared: Shared, transport: asyncio.Transport, parser: RequestParser, holder: Holder) -> None:
        self._shared = shared
        self._bodies: Bodies = shared.bodies
        self._transport = transport
        self._parser = parser
        self._holder: Holder | None = holder
        self._fd = -1  # of one that was silent at first
        self._is_paused = False
        self._is_arriving = False  # a body that others may have to give way to
        self.counted_bytes = 0  # as `Bodies` counts them
        self.worked_bytes = 0

    def await_first(self) -> None:
        """Nothing has come yet: let the turn of the loop be chosen in which the first bytes are read."""
        self._fd = self._transport.get_extra_info("socket").fileno()
        self._transport.pause_reading()
        self._shared.first_reads.watch(self._fd, self._transport.resume_reading)

    def balance(self, has_eof: bool, has_to_queue: bool = False) -> None:
        """Count what is kept, and pause or resume reading: nothing is read before a turn, nor what must be held."""
        parser, kept_bytes, is_full = self._parser, self.worked_bytes, has_to_queue
        if not parser.is_clear:
            kept_bytes += parser.kept_bytes
            is_full = is_full or parser.held_bytes > HELD_BYTES
        if kept_bytes != self.counted_bytes:
            self._bodies.held_bytes += kept_bytes - self.counted_bytes
            self.counted_bytes = kept_bytes
            if self._is_arriving and not kept_bytes:
                self._end_arrival()
        if is_full is not self._is_paused:
            self._pause(is_full, has_eof)

    def _pause(self, is_full: bool, has_eof: bool) -> None:
        self._is_paused = is_full
        if is_full:
            self._transport.pause_reading()
        elif not has_eof:
            self._transport.resume_reading()
            if self._parser.phase is BODY:
                self._shared.turns.count_read(2 * HELD_BYTES)  # what comes is kept as well

    def has_room_for(self, request: Request) -> bool:
        """Whether a request that has come whole may be worked on."""
        if self._is_arriving:
            self._end_arrival()
        size = len(request.body)
        return not size or self._bodies.has_room(size - self.counted_bytes, self._shared.limits.max_bodies_bytes)

    def may_go_on(self) -> bool:
        """Whether there is room for the body that arrives. Others may have to give way to it."""
        if self._parser.phase is not BODY or not self.counted_bytes or self._holder is None:
            return True
        self._is_arriving = True
        return self._bodies.arrives(self._holder, self._shared.limits.max_bodies_bytes, self._shared.loop.time())

    def _end_arrival(self) -> None:
        self._is_arriving = False
        if self._holder is not None:
            self._bodies.ends(self._holder)

    def end(self) -> None:
        """Keep nothing any more. Cuts the reference cycle with the holder: no work for the garbage collector."""
        self._bodies.held_bytes -= self.counted_bytes
        self.counted_bytes = 0
        self._end_arrival()
        self._shared.first_reads.forget(self._fd)
        self._holder = None
