"""The port: accepts connections on uvloop's own transport, counts them, and owns their tasks and their time.

`listening` opens the socket. Each accepted connection gets an `HttpConnection`, which answers requests in order with
what the `Application` says, until it closes or an upgrade is admitted; then the application takes the transport over
and the front forgets it. All of this happens on the event loop's thread.

Time: a connection knows its deadline, and one timer for all of them looks every `SWEEP_S`; so a timeout strikes
up to `SWEEP_S` late, and a busy keep-alive connection costs no timer per request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import structlog

from pushd.config.schema import Config, LimitsConfig
from pushd.http import sockets
from pushd.http.addresses import Addresses, canonical
from pushd.http.admission import Acceptor, Pace, Porch, Turns
from pushd.http.bodies import Bodies
from pushd.http.connection import ANSWER_S, HttpConnection
from pushd.http.long_answers import Unsent
from pushd.http.messages import Refusal, Request, Response
from pushd.later import Later

SWEEP_S = 0.5
MAX_REFUSED = 128  # connections over the limit that are being told so; more are dropped without a word
QUIET_S = 60.0  # after a line in the log about what was refused, per reason

_CROWDED = Refusal(503, "too many request bodies are under way", (("Retry-After", "1"),))
_FULL = Refusal(503, "there is no room for another connection", (("Retry-After", "1"),))

_log = structlog.get_logger("pushd.front")

UpgradeT = TypeVar("UpgradeT")


class Application(Protocol[UpgradeT]):
    """What answers requests. An exception is logged and becomes a 500 without details."""

    answer_within_s: float  # after which a `Later` answer is not waited for any more

    def judge_head(self, request: Request) -> Response | bool:
        """Decide about a request whose body has yet to come: the refusal, or whether anybody will read the body.

        What is refused here, `handle` would refuse whatever the body is. A body that nobody reads is not kept.
        """

    def handle(self, request: Request) -> Response | Later[Response] | Awaitable[Response]:
        """Answer any request that is no WebSocket upgrade. Work that was begun goes on when the peer leaves."""

    def too_late(self) -> Response:
        """The answer instead of a `Later` one whose time is over."""

    def failure(self, status: int, text: str) -> Response:
        """The answer to what the front refuses by itself; `text` is written for people and holds no secret."""

    def shared(self, request: Request | None, response: Response) -> Response:
        """Any answer as it leaves, to a request with an Origin, or to one of which too little was read to know."""

    def admit(self, request: Request) -> Response | UpgradeT | Awaitable[Response | UpgradeT]:
        """Decide on a well-formed WebSocket upgrade; a Response refuses it.

        What takes time is cancelled when the peer leaves or `limits.handshake_timeout_s` is over. Reserve nothing: an
        upgrade is dropped without a word when the peer has left by the time it is allowed.
        """

    def attach(self, transport: asyncio.Transport, request: Request, upgrade: UpgradeT, tail: bytes) -> None:
        """Take the connection over: reading is paused, `tail` came behind the head. Must not raise."""


@contextlib.asynccontextmanager
async def listening(
    application: Application[UpgradeT],
    config: Config,
    *,
    open_sockets: Callable[[], int] = lambda: 0,
    addresses: Addresses | None = None,
    on_refused: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Front]:
    """Serve `application` on `server.host` and `server.port`. At the end no socket, task or timer of it is left.

    `open_sockets` tells how many connections the application has taken over: they count for `limits.max_connections`.
    `addresses` counts them and the front's by address. `on_refused` hears why a connection was refused at the accept,
    or a body.
    Raises StartError when the port cannot be opened or the TLS files cannot be used.
    """
    tls = sockets.tls_context(config.server.tls_cert, config.server.tls_key)
    listeners = sockets.listen(config.server.host, config.server.port)
    front = Front(
        application, config.limits, open_sockets, addresses or Addresses(config.server.trusted_proxies), on_refused
    )
    try:
        front.serve(listeners, tls)
        yield front
    finally:
        await front.close()
        for listener in listeners:
            listener.close()


class Front:
    """The listening port and the HTTP connections on it. Made by `listening`."""

    def __init__(
        self,
        application: Application[Any],
        limits: LimitsConfig,
        open_sockets: Callable[[], int],
        addresses: Addresses,
        on_refused: Callable[[str], None],
    ) -> None:
        self.application = application
        self.limits = limits  # may be replaced at any time; holds for connections made from then on
        self.port = 0
        self.is_draining = False
        self.unsent = Unsent()
        self.loop = asyncio.get_running_loop()
        self._open_sockets = open_sockets
        self._addresses = addresses
        self._on_refused = on_refused
        self._quiet_until: dict[str, float] = {}
        self._is_secure = False
        self._room = sockets.room_for(limits.max_connections)
        self.pace = Pace()
        self.porch = Porch()
        self.turns = Turns()
        self.bodies = Bodies()
        self._tls_options: dict[str, Any] = {}
        self._acceptors: list[Acceptor] = []
        self._stopped: list[Acceptor] = []
        self._connections: set[HttpConnection] = set()
        self._refused: dict[HttpConnection, Refusal] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()
        self._sweep_timer = self.loop.call_later(SWEEP_S, self._sweep)

    def serve(self, listeners: list[socket.socket], tls: ssl.SSLContext | None) -> None:
        """Accept connections on these listening sockets, of one port."""
        self._is_secure = tls is not None
        if tls is not None:
            self.renew_tls(tls)
        for listener in listeners:
            acceptor = Acceptor(listener, self.pace, self.let_in, self._tls_options)
            acceptor.start()
            self._acceptors.append(acceptor)
        self.port = listeners[0].getsockname()[1]

    def renew_tls(self, tls: ssl.SSLContext) -> None:
        """Use another certificate, and the limits in force, for handshakes from now on."""
        times = {"ssl_handshake_timeout": self.limits.handshake_timeout_s, "ssl_shutdown_timeout": ANSWER_S}
        self._tls_options.update(times, ssl=tls)

    @property
    def connections(self) -> int:
        """How many HTTP connections are open or being opened; those taken over by the application are not counted."""
        return len(self._connections)

    def stop_accepting(self) -> None:
        """Close the listening sockets; every answer from now on is the last of its connection."""
        self.is_draining = True
        for acceptor in self._acceptors:
            acceptor.stop()
        self._stopped += self._acceptors
        self._acceptors.clear()

    async def wait_idle(self) -> None:
        """Return when no HTTP connection is open. Nothing is hurried."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop at once: tasks are cancelled and awaited, connections dropped, also those that are just being opened."""
        self.stop_accepting()
        self._sweep_timer.cancel()
        await asyncio.gather(*(acceptor.finish() for acceptor in self._stopped))
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in (*self._connections, *self._refused):
            connection.drop()
        await self.wait_idle()
        self.porch.close()

    def let_in(self, host: str) -> HttpConnection | None:
        """Count a connection that was just accepted from this address; None when it is to be closed without a word.

        One over a limit is told so, unless it would need a TLS handshake, or too many others are being told.
        """
        peer = canonical(host)
        is_counted = self._addresses.is_counted_at_accept(peer)
        refusal = self._find_refusal(peer, is_counted)
        if refusal is None:
            connection = HttpConnection(self, peer, self._is_secure)
            if is_counted:
                self._addresses.enter(peer)
            self._connections.add(connection)
        else:
            self._refused_for("queue_full" if refusal is _FULL else "rate_limited")
            if self._is_secure or len(self._refused) >= MAX_REFUSED:
                return None
            connection = HttpConnection(self, peer, self._is_secure)
            self._refused[connection] = refusal
        self._idle.clear()
        return connection

    def _find_refusal(self, peer: str, is_counted: bool) -> Refusal | None:
        limit = min(self.limits.max_connections, self._room)
        if len(self._connections) + self._open_sockets() >= limit or self.is_draining:
            return _FULL
        fault = self._addresses.find_fault(peer, self.limits) if is_counted else ""
        return Refusal(429, fault, (("Retry-After", "60"),)) if fault else None

    def refusal_of(self, connection: HttpConnection) -> Refusal | None:
        """All that is said on this connection, if it was let in only to be told so."""
        return self._refused.get(connection)

    def crowded(self) -> Response:
        """The answer to a body for which there is no room."""
        self._refused_for("bodies_full")
        return self.fail(_CROWDED)

    def _refused_for(self, reason: str) -> None:
        self._on_refused(reason)
        now = self.loop.time()
        if now >= self._quiet_until.get(reason, 0.0):
            self._quiet_until[reason] = now + QUIET_S
            _log.warning("refused for want of room", reason=reason)

    def forget(self, connection: HttpConnection) -> None:
        """The connection is closed, could not be opened, or is no longer the front's."""
        if connection in self._connections:
            self._connections.remove(connection)
            if self._addresses.is_counted_at_accept(connection.peer):
                self._addresses.leave(connection.peer)
        self._refused.pop(connection, None)
        if not self._connections and not self._refused:
            self._idle.set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task that `close` ends."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def fail(self, refusal: Refusal) -> Response:
        """The application's answer to a refusal, or a bare one if it cannot say."""
        try:
            answer = self.application.failure(refusal.status, refusal.text)
        except Exception:
            _log.exception("failure answer failed", status=refusal.status)
            answer = Response(refusal.status)
        said = {name.lower() for name, _ in refusal.headers}
        others = (header for header in answer.headers if header[0].lower() not in said)
        return replace(answer, headers=(*others, *refusal.headers)) if refusal.headers else answer

    def shared(self, request: Request | None, response: Response) -> Response:
        """The answer as the application lets it leave, or as it is if it cannot say."""
        try:
            return self.application.shared(request, response)
        except Exception:
            _log.exception("an answer could not be shared", status=response.status)
            return response

    def _sweep(self) -> None:
        now = self.loop.time()
        for connection in (*self._connections, *self._refused):
            connection.check_time(now)
        self._sweep_timer = self.loop.call_later(SWEEP_S, self._sweep)
