"""One HTTP connection: requests in, answers out in order, its timeouts, and its end.

Timeouts are deadlines that the front's sweep compares with the clock (`front.SWEEP_S`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from math import inf
from typing import TYPE_CHECKING, Any, cast

import structlog

from pushd.http import messages
from pushd.http.admission import Line
from pushd.http.answer_queue import BROKEN, AnswerQueue
from pushd.http.messages import Refusal, Request, Response
from pushd.http.parser import Phase, RequestParser
from pushd.later import Later
from pushd.telemetry.faults import unless_cancelled

if TYPE_CHECKING:
    from pushd.http.server import Front

IDLE_S = 75.0  # between two requests of a connection
BODY_S = 10.0  # for a body, and one second more for each MIN_BODY_BYTES_PER_S that arrived
MIN_BODY_BYTES_PER_S = 8 * 1024
ANSWER_S = 10.0  # for the peer to take an answer
LINGER_S = 1.0  # after our last byte and the peer's, so that the peer reads the answer rather than a reset
LARGE_READ_BYTES = 8 * 1024
HELD_BYTES = 64 * 1024  # of requests that wait for the one in work; reading is paused beyond

_UNDECIDED = Refusal(503, "the decision on the upgrade took too long", (("Retry-After", "1"),))
_SLOW = Refusal(408, "the request took too long to arrive")

_Answer = Later[Response] | Awaitable[Response | None]

_log = structlog.get_logger("pushd.front")


class HttpConnection(asyncio.Protocol):
    """At most one request is in work, the following ones held as bytes. No body is kept before its head was judged.

    An answer that is there at once is written without a task, and so is a `Later` one once it is decided; any
    other awaitable gets a task for that time.
    `_is_finished` once the last answer is written (or the connection lost): from then on bytes are discarded.
    """

    __slots__ = (
        "_body_since", "_deadline", "_fd", "_front", "_has_eof", "_held_bytes", "_is_admitting", "_is_choked",
        "_is_finished", "_is_known", "_is_last", "_is_paused", "_is_queued", "_is_secure", "_out", "_parser",
        "_pending", "_task", "_timed_stage", "_transport", "_unsent_until", "_worked_bytes", "peer",
    )  # fmt: skip

    _parser: RequestParser

    def __init__(self, front: Front, peer: str, is_secure: bool) -> None:
        self._front = front
        self._is_secure = is_secure
        self.peer = peer
        self._transport: Any = None
        self._task: asyncio.Task[None] | None = None
        self._pending: tuple[Request, Later[Response]] | None = None
        self._is_admitting = False
        self._is_queued = False
        self._out = AnswerQueue(front)
        self._worked_bytes = 0  # of the body of the request in work
        self._held_bytes = 0  # as the front's `bodies` counts them
        self._timed_stage: Phase | None = Phase.IDLE
        self._deadline = inf
        self._fd = -1  # of one that was silent at first
        self._unsent_until = inf
        self._body_since = 0.0
        self._is_last = False
        self._is_finished = False
        self._is_choked = False
        self._is_paused = False
        self._is_known = False  # its last request was served
        self._has_eof = False

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock of the first head; or say why there will be none."""
        self._transport = cast(asyncio.Transport, transport)
        if self._is_finished:  # lost before it was made
            self._transport.abort()
            return
        limits = self._front.limits
        self._parser = RequestParser(max_body_bytes=limits.max_body_bytes, peer=self.peer, is_secure=self._is_secure)
        self._deadline = self._front.loop.time() + limits.handshake_timeout_s
        # Only what the kernel takes at once is nothing to wait for. uvloop's TLS pauses at a limit, not above it.
        self._transport.set_write_buffer_limits(1 if self._is_secure else 0, 0)
        if self._is_secure:
            self._transport.set_read_buffer_limits(HELD_BYTES)
        refusal = self._front.refusal_of(self)
        if refusal is not None:
            self._refuse(refusal)
        elif not self._is_secure:
            self._front.loop.call_soon(self._wait_on_porch)

    def _wait_on_porch(self) -> None:
        """Nothing has come yet: let the front choose the turn of the loop in which it is read."""
        if self._is_finished or self._is_at_work or self._parser.held_bytes or self._parser.phase is not Phase.IDLE:
            return
        self._fd = self._transport.get_extra_info("socket").fileno()
        self._transport.pause_reading()
        self._front.porch.watch(self._fd, self._transport.resume_reading)

    def data_received(self, data: bytes) -> None:
        """Answer what is complete; hold what must wait."""
        if len(data) >= LARGE_READ_BYTES:
            self._front.turns.count_read(len(data))
        if self._is_finished:
            self._discard()
            return
        self._parser.feed(data)
        if self._is_at_work or self._is_choked or self._is_queued:
            self._balance_reading()
        elif self._parser.has_upgrade:
            self._is_admitting = True
            self._set_deadline()
            self._front.pace.queue(self.take_turn)
        elif self._front.turns.is_free(line := self._line):
            self._go_on()
        else:
            self._queue(line)

    def take_turn(self) -> None:
        """Its upgrade has waited for others that came before."""
        if not self._is_finished:
            self._is_admitting = False
            self._go_on()

    def eof_received(self) -> bool:
        """The peer sends no more: answer what it asked, then close. One that waits for an upgrade has left."""
        self._has_eof = True
        is_busy = self._is_at_work or self._is_choked or self._parser.has_work
        has_left = self._is_admitting and self._task is not None
        return is_busy and not has_left and not self._is_finished and not self._is_secure

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing can be answered any more. A handler at work is left to finish, deciding about an upgrade is not."""
        self._is_finished = True
        if self._pending is not None:
            self._pending[1].decided.remove_done_callback(self._take_pending)
            self._pending = None
        self._out.give_up()
        if self._transport is not None:
            self._parser.close()
        self._hold(0)
        self._front.porch.forget(self._fd)
        if self._is_admitting and self._task is not None:
            self._task.cancel()
        self._front.forget(self)

    def pause_writing(self) -> None:
        """The peer does not take its answers: work on no more requests."""
        self._is_choked = True

    def resume_writing(self) -> None:
        """It took all of them: go on."""
        self._is_choked = False
        self._unsent_until = inf
        if self._out.more is not None:
            self._write_more()
        elif not self._is_queued and not self._is_finished and not self._is_at_work:
            self._queue()

    # Requests in, answers out.

    @property
    def _is_at_work(self) -> bool:
        """Whether an answer is waited for, or on its way."""
        is_waiting = self._pending is not None or self._task is not None
        return is_waiting or self._is_admitting or self._out.more is not None

    @property
    def _line(self) -> Line:
        """In which it would wait for its turn with what has just come."""
        if self._parser.phase is not Phase.IDLE:
            return Line.GOING_ON
        return Line.KNOWN if self._is_known else Line.STRANGER

    def _queue(self, line: Line = Line.GOING_ON) -> None:
        """Go on when it is this connection's turn, and read no more until then."""
        self._is_queued = True
        self._balance_reading()
        self._front.turns.queue(self._turn, line)

    def _turn(self) -> None:
        self._is_queued = False
        if self._is_finished and not self._transport.is_closing():
            self._transport.resume_reading()
            self._front.turns.count_read(HELD_BYTES)
        elif not self._is_at_work and not self._is_choked and not self._is_finished:
            self._go_on()

    def _go_on(self) -> None:
        """Answer what can be answered at once, in one write, and begin to wait for what cannot."""
        self._answer_ready()
        if not self._is_finished:
            self._settle()

    def _answer_ready(self) -> None:
        """Reply to requests until one must be waited for, the connection is handed off, or there is nothing to do."""
        has_share_left = self._front.turns.has_share_left
        while not self._is_last and not self._is_choked and self._out.has_room:
            request = self._parser.next(has_share_left)
            if request is None:
                break
            answer = self._ask_to_upgrade(request) if request.is_upgrade else self._ask(request)
            if answer is None:
                return
            if not isinstance(answer, Response):
                self._wait_for(request, answer)
                return
            self._reply(request, answer)
            if not self._parser.has_work or not has_share_left():
                break
        if self._out.more is not None:
            return
        head = self._parser.take_head()
        if head is not None:
            self._judge(head)
        if self._parser.failure is not None and not self._is_last:
            self._reply(None, self._front.fail(self._parser.failure))

    def _judge(self, head: Request) -> None:
        """Before a byte of its body is kept: refuse the request, or go on reading it."""
        try:
            verdict = self._front.application.judge_head(head)
        except Exception:
            verdict = self._crash(head)
        if isinstance(verdict, Response):
            head.keep_alive = False
            self._reply(head, verdict)
        elif not verdict:
            self._parser.discard_body()

    def _wait_for(self, request: Request, answer: _Answer) -> None:
        self._worked_bytes = len(request.body)
        if isinstance(answer, Later):
            self._pending = request, answer
            answer.decided.add_done_callback(self._take_pending)
        else:
            self._task = self._front.spawn(self._work(request, answer))

    def _ask(self, request: Request) -> Response | _Answer:
        front = self._front
        if self._held_bytes:
            front.bodies.ends(self)
        more_bytes = len(request.body) - self._held_bytes
        if request.body and not front.bodies.has_room(more_bytes, front.limits.max_bodies_bytes):
            return front.crowded()
        try:
            return front.application.handle(request)
        except Exception:
            return self._crash(request)

    def _ask_to_upgrade(self, request: Request) -> Response | _Answer | None:
        """None after the hand-off, or when the peer, who sends no more, cannot want one."""
        if self._has_eof:
            return None
        refusal = messages.find_upgrade_fault(request)
        if refusal is not None:
            return self._front.fail(refusal)
        try:
            verdict = self._front.application.admit(request)
        except Exception:
            return self._crash(request)
        if isinstance(verdict, Response):
            return verdict
        if isinstance(verdict, Awaitable):
            self._is_admitting = True
            return self._admit(request, verdict)
        self._hand_off(request, verdict)
        return None

    def _take_pending(self, decided: asyncio.Future[Any]) -> None:
        """A pending answer is there; nobody waits for one that was given up."""
        if self._pending is None or self._pending[1].decided is not decided:
            return
        request, pending = self._pending
        self._pending = None
        try:
            response = pending.result()
        except (Exception, asyncio.CancelledError):
            response = self._crash(request)
        self._reply(request, response)
        self._go_on()

    async def _work(self, request: Request, answer: Awaitable[Response | None]) -> None:
        try:
            response = await unless_cancelled(answer)
        except Exception:
            response = self._crash(request)
        self._is_admitting = False
        if not self._is_finished:
            self._task = None
            if response is not None:
                self._reply(request, response)
            self._go_on()

    async def _admit(self, request: Request, verdict: Awaitable[Any]) -> Response | None:
        """The refusal of an upgrade, or None after the hand-off."""
        decision = await verdict
        if isinstance(decision, Response):
            return decision
        if not self._is_finished:
            self._hand_off(request, decision)
        return None

    def _crash(self, request: Request) -> Response:
        _log.exception("request failed", method=request.method, path=request.path)
        return self._front.fail(BROKEN)

    def _reply(self, request: Request | None, response: Response) -> None:
        """Put an answer behind those to be written; None stands for bytes that were no request."""
        self._is_last = not self._out.say(request, self._parser.refused if request is None else None, response)
        self._is_known = response.status < 400
        self._worked_bytes = 0
        self._timed_stage = None
        if self._out.more is not None:
            self._flush()

    def _flush(self) -> None:
        self._out.flush(self._transport)
        if self._out.more is not None:
            self._write_more()
        elif self._is_last and not self._is_finished:
            self._finish()

    def _write_more(self) -> None:
        """The rest of a long answer: what the peer takes of it, in shares of a turn."""
        if self._is_finished or self._out.more is None or self._is_choked:
            return
        is_all = self._out.write_more(self._transport)
        self._front.loop.call_soon(self._end_long_answer if is_all else self._write_more)

    def _end_long_answer(self) -> None:
        if self._is_finished:  # an upgrade behind it was faster
            return
        self._flush()
        if not self._is_queued:
            self._turn()

    def _settle(self) -> None:
        """After a turn: write, and read on, yield to the loop, or wait, with a deadline for what is awaited."""
        if self._out.held_bytes:
            self._flush()
        if self._is_finished:
            return
        if not self._is_at_work and not self._is_choked:
            if self._parser.has_work:
                self._queue()
                return
            if self._has_eof:
                self._transport.close()
            elif self._parser.take_continue():
                self._transport.write(messages.CONTINUE)
        self._balance_reading()
        if self._parser.phase is Phase.BODY and self._held_bytes:
            front = self._front
            if not front.bodies.arrives(self, front.limits.max_bodies_bytes, front.loop.time()):
                self.give_way()
                return
        self._set_deadline()

    def _hold(self, count: int) -> None:
        """Tell the front how many bytes of requests there are here."""
        self._front.bodies.held_bytes += count - self._held_bytes
        self._held_bytes = count
        if not count:
            self._front.bodies.ends(self)

    def give_way(self) -> None:
        """Others need the room of this body."""
        self._reply(None, self._front.crowded())
        self._flush()

    def _balance_reading(self) -> None:
        held = self._parser.kept_bytes + self._worked_bytes
        if held != self._held_bytes:
            self._hold(held)
        is_full = self._is_queued or self._parser.held_bytes > HELD_BYTES
        if is_full is self._is_paused:
            return
        self._is_paused = is_full
        if is_full:
            self._transport.pause_reading()
        elif not self._has_eof:
            self._transport.resume_reading()
            if self._parser.phase is Phase.BODY:
                self._front.turns.count_read(2 * HELD_BYTES)  # what comes is kept as well

    def _hand_off(self, request: Request, upgrade: object) -> None:
        if self._transport.is_closing():
            return
        self._flush()
        tail = self._parser.tail
        self._is_finished = True
        self._hold(0)
        self._parser.close()
        self._transport.pause_reading()
        self._front.forget(self)
        try:
            self._front.application.attach(self._transport, request, upgrade, tail)
        except Exception:
            _log.exception("hand-off failed")
            self._transport.abort()
        else:
            # uvloop keeps this object for as long as the transport lives: let it be small.
            self._task = None
            del self._parser, self._out

    # The end, and time.

    def _refuse(self, refusal: Refusal) -> None:
        self._reply(None, self._front.fail(refusal))
        self._flush()

    def _finish(self) -> None:
        """End our side and discard what still comes, for a reset would take the answer from the peer's buffer."""
        self._is_finished = True
        self._parser.close()
        self._hold(0)
        self._body_since = self._front.loop.time()
        self._deadline = self._body_since + LINGER_S
        if self._transport.is_closing():
            return
        if self._has_eof or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._transport.write_eof()
            self._transport.resume_reading()

    def _discard(self) -> None:
        """Read on for a peer that writes all of its body before it reads, if that does not take too long."""
        self._deadline = min(self._front.loop.time() + LINGER_S, self._body_since + BODY_S)
        if not self._is_queued and not self._front.turns.is_free(Line.GOING_ON):
            self._is_queued = True
            self._transport.pause_reading()
            self._front.turns.queue(self._turn, Line.GOING_ON)

    def drop(self) -> None:
        """Close now, whatever is under way."""
        if self._transport is None:
            self.connection_lost(None)
        else:
            self._transport.abort()

    def _set_deadline(self) -> None:
        """For the answer that is awaited, or for the message that arrives; not anew for each of its bytes."""
        now, limits, phase = self._front.loop.time(), self._front.limits, self._parser.phase
        is_new = phase is not self._timed_stage
        self._timed_stage = None if self._is_at_work else phase
        if self._pending is not None:
            self._deadline = now + self._front.application.answer_within_s
        elif self._is_at_work:
            self._deadline = now + limits.handshake_timeout_s if self._is_admitting else inf
        elif phase is Phase.BODY:
            self._body_since = now if is_new else self._body_since
            self._deadline = self._body_since + BODY_S + self._parser.body_bytes / MIN_BODY_BYTES_PER_S
        elif is_new:
            self._deadline = now + (IDLE_S if phase is Phase.IDLE else limits.handshake_timeout_s)

    def check_time(self, now: float) -> None:
        """Called by the sweep: end what took too long. The time of a TLS handshake is the transport's."""
        if self._transport is None:
            return
        if not self._transport.get_write_buffer_size():
            self._unsent_until = inf
        elif self._unsent_until == inf:
            self._unsent_until = now + ANSWER_S
        if now >= self._unsent_until or (self._out.more is not None and now >= self._out.more.until):
            self._transport.abort()
        elif now >= self._deadline and not self._is_queued and (self._unsent_until == inf or not self._is_finished):
            self._expire()

    def _expire(self) -> None:
        if self._is_finished:
            self._transport.abort()
        elif self._is_admitting:
            if self._task is not None:
                self._task.cancel()
            self._refuse(_UNDECIDED)
        elif self._pending is not None:
            self._give_up(*self._pending)
        elif self._parser.phase is Phase.IDLE:
            self._transport.close()
        else:
            self._refuse(_SLOW)

    def _give_up(self, request: Request, pending: Later[Response]) -> None:
        pending.decided.remove_done_callback(self._take_pending)
        self._pending = None
        self._reply(request, self._front.application.too_late())
        self._go_on()
