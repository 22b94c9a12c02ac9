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

from pushd.config import Config, LimitsConfig
from pushd.edge import sockets
from pushd.edge.http1 import Pending, Refusal, Request, Response
from pushd.edge.http_connection import ANSWER_S, HttpConnection
from pushd.edge.long_answers import Unsent
from pushd.edge.pace import Acceptor, Pace, Porch

SWEEP_S = 0.5
MAX_REFUSED = 128  # connections over the limit that are being told so; more are dropped without a word

_log = structlog.get_logger("pushd.front")

AdmissionT = TypeVar("AdmissionT")


class Application(Protocol[AdmissionT]):
    """What answers requests. An exception from `handle` or `admit` is logged and becomes a 500 without details."""

    def handle(self, request: Request) -> Response | Pending | Awaitable[Response]:
        """Answer any request that is no WebSocket upgrade. Work that was begun goes on when the peer leaves."""

    def failure(self, status: int, text: str) -> Response:
        """The answer to what the front refuses by itself; `text` is written for people and holds no secret."""

    def admit(self, request: Request) -> Response | AdmissionT | Awaitable[Response | AdmissionT]:
        """Decide on a well-formed WebSocket upgrade; a Response refuses it.

        What takes time is cancelled when the peer leaves or `limits.handshake_timeout_s` is over. Reserve nothing: an
        admission is dropped without a word when the peer has left by the time it is given.
        """

    def attach(self, transport: asyncio.Transport, request: Request, admission: AdmissionT, tail: bytes) -> None:
        """Take the connection over: reading is paused, `tail` came behind the head. Must not raise."""


@contextlib.asynccontextmanager
async def listening(
    application: Application[AdmissionT], config: Config, *, open_sockets: Callable[[], int] = lambda: 0
) -> AsyncIterator[Front]:
    """Serve `application` on `server.host` and `server.port`. At the end no socket, task or timer of it is left.

    `open_sockets` tells how many connections the application has taken over: they count for `limits.max_connections`.
    Raises StartError when the port cannot be opened or the TLS files cannot be used.
    """
    tls = sockets.tls_context(config.server.tls_cert, config.server.tls_key)
    listeners = sockets.listen(config.server.host, config.server.port)
    front = Front(application, config.limits, open_sockets)
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
        self, application: Application[Any], limits: LimitsConfig, open_sockets: Callable[[], int] = lambda: 0
    ) -> None:
        self.application = application
        self.limits = limits  # may be replaced at any time; holds for connections made from then on
        self.port = 0
        self.is_draining = False
        self.unsent = Unsent()
        self.loop = asyncio.get_running_loop()
        self._open_sockets = open_sockets
        self._room = sockets.room_for(limits.max_connections)
        self.pace = Pace()
        self.porch = Porch()
        self._acceptors: list[Acceptor] = []
        self._connections: set[HttpConnection] = set()
        self._refused: set[HttpConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()
        self._sweep_timer = self.loop.call_later(SWEEP_S, self._sweep)

    def serve(self, listeners: list[socket.socket], tls: ssl.SSLContext | None) -> None:
        """Accept connections on these listening sockets, of one port."""
        options: dict[str, Any] = {}
        if tls is not None:
            times = {"ssl_handshake_timeout": self.limits.handshake_timeout_s, "ssl_shutdown_timeout": ANSWER_S}
            options = {"ssl": tls, **times}
        for listener in listeners:
            acceptor = Acceptor(listener, self.pace, lambda: HttpConnection(self, tls is not None), self.spawn, options)
            acceptor.start()
            self._acceptors.append(acceptor)
        self.port = listeners[0].getsockname()[1]

    @property
    def connections(self) -> int:
        """How many HTTP connections are open; those taken over by the application are not counted."""
        return len(self._connections)

    def stop_accepting(self) -> None:
        """Close the listening sockets; every answer from now on is the last of its connection."""
        self.is_draining = True
        for acceptor in self._acceptors:
            acceptor.stop()
        self._acceptors.clear()

    def close_idle(self) -> None:
        """Close the connections on which no request is being read or answered."""
        for connection in tuple(self._connections):
            connection.close_if_idle()

    async def wait_idle(self) -> None:
        """Return when no HTTP connection is open. Nothing is hurried: time it, after `close_idle`."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop at once: tasks are cancelled and awaited, connections dropped."""
        self.stop_accepting()
        self._sweep_timer.cancel()
        for connection in (*self._connections, *self._refused):
            connection.drop()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.wait_idle()
        self.porch.close()

    def take(self, connection: HttpConnection) -> bool:
        """Count a new connection; whether there is room for it."""
        limit = min(self.limits.max_connections, self._room)
        has_room = len(self._connections) + self._open_sockets() < limit and not self.is_draining
        (self._connections if has_room else self._refused).add(connection)
        self._idle.clear()
        return has_room

    def forget(self, connection: HttpConnection) -> None:
        """The connection is closed, or no longer the front's."""
        self._connections.discard(connection)
        self._refused.discard(connection)
        if not self._connections and not self._refused:
            self._idle.set()

    def has_too_many_refused(self) -> bool:
        """Whether connections over the limit come faster than they can be told so."""
        return len(self._refused) > MAX_REFUSED

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
        return replace(answer, headers=(*answer.headers, *refusal.headers)) if refusal.headers else answer

    def _sweep(self) -> None:
        now = self.loop.time()
        for connection in (*self._connections, *self._refused):
            connection.check_time(now)
        self._sweep_timer = self.loop.call_later(SWEEP_S, self._sweep)
