"""One HTTP connection: requests in, answers out in order, and its end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from math import inf
from typing import Any, Protocol, cast

from pushd.http import messages
from pushd.http.admission import GOING_ON, KNOWN, STRANGER, Line
from pushd.http.answer_queue import AnswerQueue
from pushd.http.deadlines import Deadline
from pushd.http.messages import Refusal, Request, Response
from pushd.http.parser import IDLE, RequestParser
from pushd.http.pipeline import Begun, begin_alike
from pushd.http.reading import HELD_BYTES, Reading
from pushd.http.shared import Shared
from pushd.http.states import State
from pushd.later import Later
from pushd.telemetry.faults import unless_cancelled

LARGE_READ_BYTES = 8 * 1024

_UNDECIDED = Refusal(503, "the decision on the upgrade took too long", (("Retry-After", "1"),))
_SLOW = Refusal(408, "the request took too long to arrive")

# To look a member up in its class takes ten times as long as to look up a name.
READING, QUEUED, UPGRADE_QUEUED, DECIDING, WAITING, SENDING, LINGERING, LINGERING_QUEUED, HANDED_OVER, GONE = State


class Server(Protocol):
    """What a connection needs of the server that made it."""

    def forget(self, connection: HttpConnection) -> None:
        """The connection is closed, could not be opened, or is no longer the server's. May be called twice."""


class HttpConnection(asyncio.Protocol):
    """At most one request is in work, or a `pipeline` of them that ask for the same; the following ones are held as
    bytes. No body is kept before its head was judged.

    An answer that is there at once is written without a task, and so is a `Later` one once it is decided; any
    other awaitable gets a task for that time. What the connection waits for is its `State`; see there for a drawing.
    One made with a `refusal` says nothing but that.
    """

    __slots__ = (
        "_deadline", "_has_eof", "_is_choked", "_is_known", "_is_secure", "_out", "_parser", "_pending",
        "_reading", "_refusal", "_server", "_shared", "_state", "_task", "_transport", "peer",
    )  # fmt: skip

    # From `connection_made` until the connection is handed over.
    _parser: RequestParser
    _reading: Reading
    _out: AnswerQueue
    _deadline: Deadline

    def __init__(
        self, shared: Shared, server: Server, peer: str, *, is_secure: bool, refusal: Refusal | None = None
    ) -> None:
        self._shared = shared
        self._server = server
        self._is_secure = is_secure
        self._refusal = refusal
        self.peer = peer
        self._transport: Any = None
        self._state = READING
        self._task: asyncio.Task[None] | None = None
        self._pending: tuple[Request, Later[Response]] | None = None
        self._has_eof = False  # the peer sends no more
        self._is_choked = False  # the peer does not take our answers
        self._is_known = False  # its last request was served

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock of the first head; or say why there will be none."""
        self._transport = cast(asyncio.Transport, transport)
        if self._state.is_over:  # lost before it was made
            self._transport.abort()
            return
        shared, limits = self._shared, self._shared.limits
        self._parser = RequestParser(
            max_body_bytes=limits.max_body_bytes, peer=self.peer, is_secure=self._is_secure, known=shared.known_heads
        )
        self._reading = Reading(shared, self._transport, self._parser, self)
        self._out = AnswerQueue(shared)
        self._deadline = Deadline(shared.times, shared.loop.time() + limits.handshake_timeout_s)
        # Only what the kernel takes at once is nothing to wait for. uvloop's TLS pauses at a limit, not above it.
        self._transport.set_write_buffer_limits(1 if self._is_secure else 0, 0)
        if self._is_secure:
            self._transport.set_read_buffer_limits(HELD_BYTES)
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif not self._is_secure:
            shared.loop.call_soon(self._await_first)

    def _await_first(self) -> None:
        if self._state is READING and not self._parser.held_bytes and self._parser.phase is IDLE:
            self._reading.await_first()

    def data_received(self, data: bytes) -> None:
        """Answer what is complete; hold what must wait."""
        state, turns = self._state, self._shared.turns
        if len(data) >= LARGE_READ_BYTES:
            turns.count_read(len(data))
        if state.is_over:
            self._discard()
            return
        parser = self._parser
        parser.feed(data)
        if state is not READING or self._is_choked:
            if self._pending is not None and not self._is_choked and turns.is_free(self._line()):
                self._begin_alike(self._pending)
            self._balance_reading()
        elif parser.has_upgrade():
            self._state = UPGRADE_QUEUED
            self._deadline.await_answer(self._admitted_until())
            self._shared.upgrades.queue(self._take_upgrade)
        elif turns.is_free(line := self._line()):
            self._go_on()
        else:
            self._queue(line)

    def eof_received(self) -> bool:
        """The peer sends no more: answer what it asked, then close. One that waits for an upgrade has left."""
        self._has_eof = True
        state = self._state
        if state.is_over or state is DECIDING or self._is_secure:
            return False
        return state.is_at_work or self._is_choked or self._parser.has_work

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing can be answered any more. A handler at work is left to finish, deciding about an upgrade is not."""
        state, self._state = self._state, GONE
        if self._transport is not None and state is not GONE:
            if self._pending is not None:
                self._stop_waiting(self._pending[1])
            self._out.give_up()
            self._out.behind = None
            self._parser.close()
            self._reading.end()
            if state is DECIDING:
                self._cancel_task()
        self._server.forget(self)

    def pause_writing(self) -> None:
        """The peer does not take its answers: work on no more requests."""
        self._is_choked = True

    def resume_writing(self) -> None:
        """The peer took all of its answers: go on."""
        self._is_choked = False
        self._deadline.taken()
        if self._state is SENDING:
            self._write_more()
        elif self._state is READING:
            self._queue()

    # Requests in.

    def _line(self) -> Line:
        """The line in which it would wait for its turn with what has just come."""
        if self._parser.phase is not IDLE:
            return GOING_ON
        return KNOWN if self._is_known else STRANGER

    def _queue(self, line: Line = GOING_ON) -> None:
        """Go on when it is this connection's turn, and read no more until then."""
        self._state = QUEUED
        self._balance_reading()
        self._shared.turns.queue(self._take_turn, line)

    def _take_turn(self) -> None:
        if self._state is QUEUED:
            self._state = READING
            if not self._is_choked:
                self._go_on()
        elif self._state is LINGERING_QUEUED:
            self._state = LINGERING
            if not self._transport.is_closing():
                self._transport.resume_reading()
                self._shared.turns.count_read(HELD_BYTES)

    def _take_upgrade(self) -> None:
        """Its upgrade has waited for others that came before."""
        if self._state is UPGRADE_QUEUED:
            self._state = READING
            self._go_on()

    def _go_on(self) -> None:
        """Answer what can be answered at once, in one write, and begin to wait for what cannot."""
        if not self._parser.is_clear:
            self._answer_ready()
            if self._state.is_over:
                return
        if self._out.held_bytes:
            self._flush()
        if self._state is READING:
            self._read_on()
        elif not self._state.is_over:
            self._reading.balance(self._has_eof)

    def _answer_ready(self) -> None:
        """Reply to requests until one must be waited for, the connection is handed over, or there is nothing to do."""
        parser, out, has_share_left = self._parser, self._out, self._shared.turns.has_share_left
        while self._state is READING and not self._is_choked and (not out.held_bytes or out.has_room):
            request = parser.next(has_share_left)
            if request is None:
                break
            answer = self._ask_to_upgrade(request) if request.is_upgrade else self._ask(request)
            if answer is None:
                return
            self._reply(request, answer)
            if not parser.has_work or not has_share_left():
                break
        if parser.is_clear or self._state is SENDING:
            return
        head = parser.take_head()
        if head is not None:
            self._judge(head)
        if parser.failure is not None and not out.is_last:
            self._reply(None, self._shared.application.fail(parser.failure))

    def _judge(self, head: Request) -> None:
        """Before a byte of its body is kept: refuse the request, or go on reading it."""
        verdict = self._shared.application.judge_head(head)
        if isinstance(verdict, Response):
            head.keep_alive = False
            self._reply(head, verdict)
        elif not verdict:
            self._parser.discard_body()

    def _read_on(self) -> None:
        """Wait for more of the message that arrives; or for the next turn, if there is more to be looked at."""
        parser, shared = self._parser, self._shared
        is_more_here = not parser.is_clear
        if not self._is_choked:
            if is_more_here and parser.has_work:
                self._queue()
                return
            if self._has_eof:
                self._transport.close()
            elif is_more_here and parser.take_continue():
                self._transport.write(messages.CONTINUE)
        self._reading.balance(self._has_eof)
        if is_more_here and not self._reading.may_go_on():
            self.give_way()
        else:
            head_s, now = shared.limits.handshake_timeout_s, shared.loop.time()
            self._deadline.await_message(parser.phase, parser.body_bytes, head_s, now)

    def _balance_reading(self) -> None:
        self._reading.balance(self._has_eof, self._state.has_to_queue)

    def give_way(self) -> None:
        """Others need the room of this body."""
        self._say_last(self._shared.crowded())

    # Asking the application.

    def _ask(self, request: Request) -> Response | None:
        """The answer; None when it must be waited for."""
        if not self._reading.has_room_for(request):
            return self._shared.crowded()
        shared = self._shared
        answer = shared.application.handle(request)
        if isinstance(answer, Later):  # asked first: it is what those who publish get
            self._wait_on(request, answer, shared.loop.time() + shared.application.answer_within_s)
            if not self._parser.is_clear:
                self._begin_alike((request, answer))
        elif isinstance(answer, Response):
            return answer
        else:
            self._state = WAITING
            self._reading.worked_bytes = len(request.body)
            self._deadline.await_answer(inf)
            self._task = shared.spawn(self._work(request, answer))
        return None

    def _wait_on(self, request: Request, answer: Later[Response], until: float) -> None:
        self._state = WAITING
        self._pending = request, answer
        answer.decided.add_done_callback(self._take_pending)
        self._reading.worked_bytes = len(request.body)
        self._deadline.await_answer(until)

    def _begin_alike(self, pending: tuple[Request, Later[Response]]) -> None:
        if self._out.behind is None:
            self._out.behind = deque()
        begin_alike(self._shared, self._parser, self._reading, pending, self._out.behind)

    def _answer_behind(self, behind: deque[Begun]) -> None:
        """Answer what was begun behind a request that is answered now, as far as that is decided, in one write."""
        now = self._shared.loop.time()
        while behind and self._state is READING and not self._out.is_last:
            request, answer, until = behind.popleft()
            if isinstance(answer, Later):
                if answer.decided.done():
                    answer = self._shared.application.result(request, answer)
                elif now >= until:
                    answer = self._shared.application.too_late(request)
                else:
                    self._wait_on(request, answer, until)
                    self._reading.worked_bytes += sum(len(begun[0].body) for begun in behind)
                    self._flush()
                    self._balance_reading()
                    return
            self._reply(request, answer)
        if self._out.is_last:
            behind.clear()  # one before them could not be answered
        self._reading.worked_bytes = sum(len(request.body) for request, _, _ in behind)
        if not self._state.is_over:
            self._go_on()

    def _take_pending(self, decided: asyncio.Future[Any]) -> None:
        """A pending answer is there; nobody waits for one that was given up."""
        pending = self._pending
        if pending is not None and pending[1].decided is decided:
            self._pending = None
            request, answer = pending
            self._answer(request, self._shared.application.result(request, answer))

    def _stop_waiting(self, answer: Later[Response]) -> None:
        answer.decided.remove_done_callback(self._take_pending)
        self._pending = None

    async def _work(self, request: Request, answer: Awaitable[Response | None]) -> None:
        try:
            response = await unless_cancelled(answer)
        except Exception:
            response = self._shared.application.crashed(request)
        if not self._state.is_over:
            self._task = None
            self._answer(request, response)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _ask_to_upgrade(self, request: Request) -> Response | None:
        """The refusal; None when it may yet come, after the hand-over, or when the peer, who sends no more, is gone."""
        if self._has_eof:
            return None
        verdict = self._shared.application.admit(request)
        if isinstance(verdict, Response):
            return verdict
        if isinstance(verdict, Awaitable):
            self._state = DECIDING
            self._deadline.await_answer(self._admitted_until())
            self._task = self._shared.spawn(self._work(request, self._decided(request, verdict)))
        else:
            self._hand_over(request, verdict)
        return None

    def _admitted_until(self) -> float:
        return self._shared.loop.time() + self._shared.limits.handshake_timeout_s

    async def _decided(self, request: Request, verdict: Awaitable[Any]) -> Response | None:
        """The refusal of an upgrade, or None after the hand-over."""
        decision = await verdict
        if isinstance(decision, Response):
            return decision
        if not self._state.is_over:
            self._hand_over(request, decision)
        return None

    def _hand_over(self, request: Request, upgrade: object) -> None:
        if self._transport.is_closing():
            return
        self._flush()
        tail = self._parser.tail
        self._state = HANDED_OVER
        self._reading.end()
        self._parser.close()
        self._transport.pause_reading()
        self._server.forget(self)
        if self._shared.application.attach(self._transport, request, upgrade, tail):
            # uvloop keeps this object for as long as the transport lives: let it be small.
            self._task = None
            del self._parser, self._reading, self._out, self._deadline

    # Answers out.

    def _answer(self, request: Request, response: Response | None) -> None:
        """The request in work is done with; None: there is nothing to say."""
        self._state = READING
        if response is not None:
            self._reply(request, response)
        if self._out.behind:
            self._answer_behind(self._out.behind)
        else:
            self._go_on()

    def _reply(self, request: Request | None, response: Response) -> None:
        """Put an answer behind those to be written; None stands for bytes that were no request."""
        out = self._out
        out.say(request, None if request is not None else self._parser.refused, response)
        self._is_known = response.status < 400
        self._reading.worked_bytes = 0
        self._deadline.answered()
        if out.more is not None:
            self._state = SENDING
            self._deadline.await_answer(inf)
            self._flush()

    def _flush(self) -> None:
        self._out.flush(self._transport)
        if self._state is SENDING:
            self._write_more()
        elif self._out.is_last and not self._state.is_over:
            self._finish()

    def _write_more(self) -> None:
        """The rest of a long answer: what the peer takes of it, in shares of a turn."""
        if self._state is SENDING and self._out.more is not None and not self._is_choked:
            is_all = self._out.write_more(self._transport)
            self._shared.loop.call_soon(self._end_long_answer if is_all else self._write_more)

    def _end_long_answer(self) -> None:
        if self._state is SENDING:
            self._state = READING
            self._flush()
            if self._out.behind:
                self._answer_behind(self._out.behind)
            elif self._state is READING and not self._is_choked:
                self._go_on()

    # The end, and time.

    def _refuse(self, refusal: Refusal) -> None:
        self._say_last(self._shared.application.fail(refusal))

    def _say_last(self, response: Response) -> None:
        self._reply(None, response)
        self._flush()

    def _finish(self) -> None:
        """End our side and discard what still comes, for a reset would take the answer from the peer's buffer."""
        self._state = LINGERING_QUEUED if self._state is QUEUED else LINGERING
        self._parser.close()
        self._reading.end()
        self._deadline.linger(self._shared.loop.time())
        if self._transport.is_closing():
            return
        if self._has_eof or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._transport.write_eof()
            self._transport.resume_reading()

    def _discard(self) -> None:
        """Read on for a peer that writes all of its body before it reads, if that does not take too long."""
        self._deadline.linger_on(self._shared.loop.time())
        if self._state is LINGERING and not self._shared.turns.is_free(GOING_ON):
            self._state = LINGERING_QUEUED
            self._transport.pause_reading()
            self._shared.turns.queue(self._take_turn, GOING_ON)

    def drop(self) -> None:
        """Close now, whatever is under way."""
        if self._transport is None:
            self.connection_lost(None)
        else:
            self._transport.abort()

    def check_time(self, now: float) -> None:
        """Called by the sweep: end what took too long. The time of a TLS handshake is the transport's."""
        if self._transport is None:
            return
        deadline, state = self._deadline, self._state
        if deadline.is_unsent_too_long(self._transport.get_write_buffer_size(), now) or self._out.is_late(now):
            self._transport.abort()
        elif deadline.is_over(now) and not state.has_to_queue and not (deadline.has_unsent and state.is_over):
            self._expire()

    def _expire(self) -> None:
        state = self._state
        if state.is_over:
            self._transport.abort()
        elif state.is_admitting:
            if state is DECIDING:
                self._cancel_task()
            self._refuse(_UNDECIDED)
        elif self._pending is not None:
            request, answer = self._pending
            self._stop_waiting(answer)
            self._answer(request, self._shared.application.too_late(request))
        elif self._parser.phase is IDLE:
            self._transport.close()
        else:
            self._refuse(_SLOW)
