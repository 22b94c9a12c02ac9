"""The port: accepts connections on uvloop's own transport, counts them, and ends what takes too long.

`listening` opens the socket. Each accepted connection gets an `HttpConnection`, which answers requests in order with
what the `Application` says, until it closes or an upgrade is admitted; then the application takes the transport over
and the server forgets it. All of this happens on the event loop's thread.

Time: a connection knows its deadline, and one timer for all of them looks every `Times.sweep_s`; so a timeout strikes
up to that late, and a busy keep-alive connection costs no timer per request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

from pushd.config.schema import Config, LimitsConfig
from pushd.http import sockets
from pushd.http.addresses import Addresses, canonical
from pushd.http.admission import Acceptor
from pushd.http.application import Application, UpgradeT
from pushd.http.connection import HttpConnection
from pushd.http.deadlines import TIMES, Times
from pushd.http.messages import Refusal
from pushd.http.shared import Shared

MAX_REFUSED = 128  # connections over the limit that are being told so; more are dropped without a word

_FULL = Refusal(503, "there is no room for another connection", (("Retry-After", "1"),))


@contextlib.asynccontextmanager
async def listening(
    application: Application[UpgradeT],
    config: Config,
    *,
    open_sockets: Callable[[], int] = lambda: 0,
    addresses: Addresses | None = None,
    on_refused: Callable[[str], None] = lambda _: None,
    times: Times = TIMES,
    max_refused: int = MAX_REFUSED,
) -> AsyncIterator[HttpServer]:
    """Serve `application` on `server.host` and `server.port`. At the end no socket, task or timer of it is left.

    `open_sockets` tells how many connections the application has taken over: they count for `limits.max_connections`.
    `addresses` counts them and the server's by address. `on_refused` hears why a connection was refused at the accept,
    or a body. Of the connections over a limit, `max_refused` at a time are told so.
    Raises StartError when the port cannot be opened or the TLS files cannot be used.
    """
    tls = sockets.tls_context(config.server.tls_cert, config.server.tls_key)
    listeners = sockets.listen(config.server.host, config.server.port)
    shared = Shared(application, config.limits, on_refused=on_refused, times=times)
    server = HttpServer(
        shared, open_sockets, addresses or Addresses(config.server.trusted_proxies), max_refused=max_refused
    )
    try:
        server.serve(listeners, tls)
        yield server
    finally:
        await server.close()
        for listener in listeners:
            listener.close()


class HttpServer:
    """The listening port and the HTTP connections on it, which share what is in `shared`. Made by `listening`."""

    def __init__(
        self, shared: Shared, open_sockets: Callable[[], int], addresses: Addresses, *, max_refused: int = MAX_REFUSED
    ) -> None:
        self.shared = shared
        self.port = 0
        self._open_sockets = open_sockets
        self._addresses = addresses
        self._max_refused = max_refused
        self._is_secure = False
        self._room = sockets.room_for(shared.limits.max_connections)
        self._tls_options: dict[str, Any] = {}
        self._acceptors: list[Acceptor] = []
        self._stopped: list[Acceptor] = []
        self._connections: set[HttpConnection] = set()
        self._refused: set[HttpConnection] = set()
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()
        self._sweep_timer = shared.loop.call_later(shared.times.sweep_s, self._sweep)

    def serve(self, listeners: list[socket.socket], tls: ssl.SSLContext | None) -> None:
        """Accept connections on these listening sockets, of one port."""
        self._is_secure = tls is not None
        self.renew(self.shared.limits, tls)
        for listener in listeners:
            acceptor = Acceptor(listener, self.shared.upgrades, self.let_in, self._tls_options)
            acceptor.start()
            self._acceptors.append(acceptor)
        self.port = listeners[0].getsockname()[1]

    def renew(self, limits: LimitsConfig, tls: ssl.SSLContext | None) -> None:
        """Hold these limits from now on, and use this certificate, if any, for handshakes from now on."""
        self.shared.limits = limits
        if tls is not None:
            self._tls_options.update(
                ssl=tls,
                ssl_handshake_timeout=limits.handshake_timeout_s,
                ssl_shutdown_timeout=self.shared.times.answer_s,
            )

    @property
    def connections(self) -> int:
        """How many HTTP connections are open or being opened; those taken over by the application are not counted."""
        return len(self._connections)

    def stop_accepting(self) -> None:
        """Close the listening sockets; every answer from now on is the last of its connection."""
        self.shared.is_draining = True
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
        await self.shared.end_tasks()
        for connection in (*self._connections, *self._refused):
            connection.drop()
        await self.wait_idle()
        self.shared.first_reads.close()

    def let_in(self, host: str) -> HttpConnection | None:
        """Count a connection that was just accepted from this address; None when it is to be closed without a word.

        One over a limit is told so, unless it would need a TLS handshake, or too many others are being told.
        """
        peer = canonical(host)
        is_counted = self._addresses.is_counted_at_accept(peer)
        refusal = self._find_refusal(peer, is_counted)
        if refusal is None:
            connection = HttpConnection(self.shared, self, peer, is_secure=self._is_secure)
            if is_counted:
                self._addresses.enter(peer)
            self._connections.add(connection)
        else:
            self.shared.note_refused("queue_full" if refusal is _FULL else "rate_limited")
            if self._is_secure or len(self._refused) >= self._max_refused:
                return None
            connection = HttpConnection(self.shared, self, peer, is_secure=False, refusal=refusal)
            self._refused.add(connection)
        self._idle.clear()
        return connection

    def _find_refusal(self, peer: str, is_counted: bool) -> Refusal | None:
        limits = self.shared.limits
        most = min(limits.max_connections, self._room)
        if len(self._connections) + self._open_sockets() >= most or self.shared.is_draining:
            return _FULL
        fault = self._addresses.find_fault(peer, limits) if is_counted else ""
        return Refusal(429, fault, (("Retry-After", "60"),)) if fault else None

    def forget(self, connection: HttpConnection) -> None:
        """The connection is closed, could not be opened, or is no longer the server's."""
        if connection in self._connections:
            self._connections.remove(connection)
            if self._addresses.is_counted_at_accept(connection.peer):
                self._addresses.leave(connection.peer)
        self._refused.discard(connection)
        if not self._connections and not self._refused:
            self._idle.set()

    def _sweep(self) -> None:
        now = self.shared.loop.time()
        for connection in (*self._connections, *self._refused):
            connection.check_time(now)
        self._sweep_timer = self.shared.loop.call_later(self.shared.times.sweep_s, self._sweep)
