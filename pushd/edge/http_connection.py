"""One HTTP connection: requests in, answers out in order, its timeouts, and its end.

Timeouts are deadlines that the front's sweep compares with the clock (`front.SWEEP_S`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from math import inf
from typing import TYPE_CHECKING, Any, cast

import structlog

from pushd.edge import http1
from pushd.edge.http1 import Pending, Refusal, Request, Response
from pushd.edge.long_answers import Sending
from pushd.edge.request_parser import RequestParser, Stage

if TYPE_CHECKING:
    from pushd.edge.front import Front

IDLE_S = 75.0  # between two requests of a connection
BODY_S = 10.0  # for a body, and one second more for each MIN_BODY_BYTES_PER_S that arrived
MIN_BODY_BYTES_PER_S = 8 * 1024
ANSWER_S = 10.0  # for the peer to take an answer
LINGER_S = 1.0  # between our last byte and the end, so that the peer reads the answer rather than a reset
HELD_BYTES = 64 * 1024  # of requests that wait for the one in work; reading is paused beyond
PIECES_AT_ONCE = 8  # of a long answer
PIPELINE_DEPTH = 16  # requests answered before the loop gets its turn

_FULL = Refusal(503, "there is no room for another connection", (("Retry-After", "1"),))
_TOO_MUCH = Refusal(503, "too many long answers are under way")
_UNDECIDED = Refusal(503, "the decision on the upgrade took too long", (("Retry-After", "1"),))
_SLOW = Refusal(408, "the request took too long to arrive")

_Answer = Pending | Awaitable[Response | None]

_log = structlog.get_logger("pushd.front")


class HttpConnection(asyncio.Protocol):
    """At most one request is in work, the following ones held as bytes.

    An answer that is there at once is written without a task, and so is a `Pending` one when it comes; one that must be
    awaited gets a task for that time.
    `_is_finished` once the last answer is written (or the connection lost): from then on bytes are discarded.
    """

    __slots__ = (
        "_body_since",
        "_deadline",
        "_fd",
        "_front",
        "_has_eof",
        "_is_admitting",
        "_is_choked",
        "_is_finished",
        "_is_last",
        "_is_paused",
        "_is_secure",
        "_more",
        "_out",
        "_parser",
        "_pending",
        "_task",
        "_timed_stage",
        "_transport",
        "_unsent_until",
    )

    _transport: asyncio.Transport
    _parser: RequestParser

    def __init__(self, front: Front, is_secure: bool) -> None:
        self._front = front
        self._is_secure = is_secure
        self._task: asyncio.Task[None] | None = None
        self._pending: tuple[Request, Pending] | None = None
        self._is_admitting = False
        self._out: list[bytes] = []
        self._more: Sending | None = None  # the rest of a long answer, as the peer takes it
        self._timed_stage: Stage | None = Stage.IDLE
        self._deadline = inf
        self._fd = -1  # of one that was silent at first
        self._unsent_until = inf
        self._body_since = 0.0
        self._is_last = False
        self._is_finished = False
        self._is_choked = False
        self._is_paused = False
        self._has_eof = False

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock of the first head; or say that there is no room."""
        self._transport = cast(asyncio.Transport, transport)
        limits = self._front.limits
        self._parser = RequestParser(
            max_body_bytes=limits.max_body_bytes, peer=_peer_of(self._transport), is_secure=self._is_secure
        )
        self._deadline = self._front.loop.time() + limits.handshake_timeout_s
        if not self._front.take(self):
            self._refuse(_FULL)
            if self._front.has_too_many_refused():
                self._transport.abort()
        elif not self._is_secure:
            self._front.loop.call_soon(self._wait_on_porch)

    def _wait_on_porch(self) -> None:
        """Nothing has come yet: let the front choose the turn of the loop in which it is read."""
        if self._is_finished or self._is_at_work or self._parser.held_bytes or self._parser.stage is not Stage.IDLE:
            return
        self._fd = self._transport.get_extra_info("socket").fileno()
        self._transport.pause_reading()
        self._front.porch.watch(self._fd, self._transport.resume_reading)

    def data_received(self, data: bytes) -> None:
        """Answer what is complete; hold what must wait."""
        if self._is_finished:
            return
        self._parser.feed(data)
        if self._is_at_work or self._is_choked:
            self._balance_reading()
        elif self._parser.has_upgrade:
            self._is_admitting = True
            self._set_deadline()
            self._front.pace.queue(self.take_turn)
        else:
            self._go_on()

    def take_turn(self) -> None:
        """Its upgrade has waited for others that came before."""
        if not self._is_finished:
            self._is_admitting = False
            self._go_on()

    def eof_received(self) -> bool:
        """The peer sends no more: answer what it asked, then close. One that waits for an upgrade has left."""
        self._has_eof = True
        is_busy = self._is_at_work or self._is_choked or self._parser.held_bytes > 0
        return is_busy and not self._is_admitting and not self._is_finished and not self._is_secure

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing can be answered any more. A handler at work is left to finish, an admission is not."""
        self._is_finished = True
        if self._pending is not None:
            self._pending[1].done.remove_done_callback(self._take_pending)
            self._pending = None
        if self._more is not None:
            self._more.end()
        self._parser.close()
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
        if self._more is not None:
            self._flush()
        self._turn()

    # Requests in, answers out.

    @property
    def _is_at_work(self) -> bool:
        """Whether an answer is waited for, or on its way."""
        is_waiting = self._pending is not None or self._task is not None
        return is_waiting or self._is_admitting or self._more is not None

    def _turn(self) -> None:
        if not self._is_at_work and not self._is_choked and not self._is_finished:
            self._go_on()

    def _go_on(self) -> None:
        """Answer what can be answered at once, in one write, and begin to wait for what cannot."""
        self._answer_ready()
        if not self._is_finished:
            self._settle()

    def _answer_ready(self) -> None:
        """Reply to requests until one must be waited for, the connection is handed off, or there is nothing to do."""
        for _ in range(PIPELINE_DEPTH):
            is_done = self._is_last or self._is_choked or self._more is not None
            request = None if is_done else self._parser.next()
            if request is None:
                break
            answer = self._ask_to_upgrade(request) if request.is_upgrade else self._ask(request)
            if answer is None:
                return
            if not isinstance(answer, Response):
                self._wait_for(request, answer)
                return
            self._reply(request, answer)
        if self._parser.failure is not None and not self._is_last and self._more is None:
            self._reply(None, self._front.fail(self._parser.failure))

    def _wait_for(self, request: Request, answer: _Answer) -> None:
        if isinstance(answer, Pending):
            self._pending = request, answer
            answer.done.add_done_callback(self._take_pending)
        else:
            self._task = self._front.spawn(self._work(request, answer))

    def _ask(self, request: Request) -> Response | _Answer:
        try:
            return self._front.application.handle(request)
        except Exception:
            return self._crash(request)

    def _ask_to_upgrade(self, request: Request) -> Response | _Answer | None:
        """None after the hand-off."""
        refusal = http1.find_upgrade_fault(request)
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

    def _take_pending(self, done: asyncio.Future[None]) -> None:
        """A pending answer is there; nobody waits for one that was given up."""
        if self._pending is None or self._pending[1].done is not done:
            return
        request, pending = self._pending
        self._pending = None
        try:
            response = pending.respond()
        except (Exception, asyncio.CancelledError):
            response = self._crash(request)
        self._reply(request, response)
        self._go_on()

    async def _work(self, request: Request, answer: Awaitable[Response | None]) -> None:
        response = await self._await_answer(request, answer)
        self._is_admitting = False
        if not self._is_finished:
            self._task = None
            if response is not None:
                self._reply(request, response)
            self._go_on()

    async def _await_answer(self, request: Request, answer: Awaitable[Response | None]) -> Response | None:
        try:
            return await answer
        except Exception:
            return self._crash(request)
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            return self._crash(request)

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
        return self._front.fail(Refusal(500, "internal error"))

    def _reply(self, request: Request | None, response: Response) -> None:
        """Put an answer behind those to be written; None stands for bytes that were no request."""
        keep_alive = request is not None and request.keep_alive and not request.is_upgrade
        keep_alive = keep_alive and not self._front.is_draining
        head_only = request is not None and request.method == "HEAD"
        more = None
        if response.more and not head_only:
            more = self._front.unsent.send(response, self._front.loop.time())
            response = self._front.fail(_TOO_MUCH) if more is None else response
        try:
            answer = http1.encode(response, keep_alive=keep_alive, head_only=head_only)
        except Exception:
            _log.exception("answer cannot be encoded", status=response.status)
            keep_alive, answer = False, http1.encode(Response(500), keep_alive=False, head_only=head_only)
        self._out.append(answer)
        self._is_last = not keep_alive
        self._timed_stage = None
        if more is not None:
            self._more = more
            self._flush()

    def _flush(self) -> None:
        if self._out and not self._transport.is_closing():
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()
        self._write_more()
        if self._is_last and not self._is_finished and self._more is None:
            self._finish()

    def _write_more(self) -> None:
        """A share of a long answer: a peer that takes it as fast as it comes must not keep the loop."""
        more = self._more
        for _ in range(PIECES_AT_ONCE):
            if not more or self._is_choked or self._transport.is_closing():
                break
            self._transport.write(more.take())
        if not more:
            self._more = None
        elif not self._is_choked:
            self._front.loop.call_soon(self._write_on)

    def _write_on(self) -> None:
        if self._more is not None and not self._is_choked:
            self._flush()
            self._turn()

    def _settle(self) -> None:
        """After a turn: write, and read on, yield to the loop, or wait, with a deadline for what is awaited."""
        if self._out:
            self._flush()
        if self._is_finished:
            return
        if not self._is_at_work and not self._is_choked:
            if self._parser.held_bytes:
                self._front.loop.call_soon(self._turn)
            elif self._has_eof:
                self._transport.close()
            elif self._parser.take_continue():
                self._transport.write(http1.CONTINUE)
        self._balance_reading()
        self._set_deadline()

    def _balance_reading(self) -> None:
        is_full = self._parser.held_bytes > HELD_BYTES
        if is_full is self._is_paused:
            return
        self._is_paused = is_full
        if is_full:
            self._transport.pause_reading()
        elif not self._has_eof:
            self._transport.resume_reading()

    def _hand_off(self, request: Request, admission: object) -> None:
        if self._transport.is_closing():
            return
        self._flush()
        tail = self._parser.tail
        self._is_finished = True
        self._parser.close()
        self._transport.pause_reading()
        self._front.forget(self)
        try:
            self._front.application.attach(self._transport, request, admission, tail)
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
        self._deadline = self._front.loop.time() + LINGER_S
        if self._transport.is_closing():
            return
        if self._has_eof or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._transport.write_eof()
            self._transport.resume_reading()

    def close_if_idle(self) -> None:
        """Close unless a request is being read or answered."""
        is_busy = self._is_at_work or self._is_finished or self._parser.held_bytes > 0
        if not is_busy and self._parser.stage is Stage.IDLE:
            self._transport.close()

    def drop(self) -> None:
        """Close now, whatever is under way."""
        self._transport.abort()

    def _set_deadline(self) -> None:
        """For the answer that is awaited, or for the message that arrives; not anew for each of its bytes."""
        now = self._front.loop.time()
        if self._pending is not None:
            self._timed_stage = None
            self._deadline = now + self._pending[1].within_s
            return
        limits, stage = self._front.limits, self._parser.stage
        is_new = stage is not self._timed_stage
        self._timed_stage = stage
        if self._task is not None or self._is_admitting:
            self._timed_stage = None
            self._deadline = now + limits.handshake_timeout_s if self._is_admitting else inf
        elif stage is Stage.BODY:
            self._body_since = now if is_new else self._body_since
            self._deadline = self._body_since + BODY_S + self._parser.body_bytes / MIN_BODY_BYTES_PER_S
        elif is_new:
            self._deadline = now + (IDLE_S if stage is Stage.IDLE else limits.handshake_timeout_s)

    def check_time(self, now: float) -> None:
        """Called by the sweep: end what took too long."""
        if not self._transport.get_write_buffer_size():
            self._unsent_until = inf
        elif self._unsent_until == inf:
            self._unsent_until = now + ANSWER_S
        if now >= self._unsent_until or (self._more is not None and now >= self._more.until):
            self._transport.abort()
        elif now >= self._deadline and (self._unsent_until == inf or not self._is_finished):
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
        elif self._parser.stage is Stage.IDLE:
            self._transport.close()
        else:
            self._refuse(_SLOW)

    def _give_up(self, request: Request, pending: Pending) -> None:
        pending.done.remove_done_callback(self._take_pending)
        self._pending = None
        self._reply(request, pending.give_up())
        self._go_on()


def _is_being_cancelled() -> bool:
    """Whether it is the running task that is cancelled, and not something it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _peer_of(transport: asyncio.Transport) -> str:
    """The peer's IP address, "" if it is not known; IPv4 in IPv6 clothes is shown as IPv4."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]).removeprefix("::ffff:").partition("%")[0] if peer else ""
