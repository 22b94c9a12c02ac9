"""A hub with connections over socket pairs, whose other ends are read when a benchmark says so."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import uvloop

from pushd._fastpath import Connection, Hub
from pushd.model import Client

READ_BYTES = 1 << 16
CLIENT = Client(username="", role=0, client_ip="127.0.0.1", user_agent="")


class _Bridge(asyncio.Protocol):
    """What the listener does for a connection."""

    connection: Connection | None = None

    def resume_writing(self) -> None:
        if self.connection is not None:
            self.connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.connection is not None:
            self.connection.connection_lost(None)


class Crowd:
    """Connections of users 1, 2, …; `close` leaves nothing behind."""

    def __init__(self) -> None:
        self.hub = Hub(1 << 20)
        self._loop = uvloop.new_event_loop()
        self._ends: list[socket.socket] = []
        self._transports: list[asyncio.Transport] = []
        self._connections: list[Connection] = []

    def transport(self, bridge: _Bridge | None = None) -> asyncio.Transport:
        """One end of a socket pair."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._ends.append(theirs)
        made = bridge or _Bridge()
        connected = self._loop.run_until_complete(self._loop.create_unix_connection(lambda: made, sock=ours))
        transport = cast(asyncio.Transport, connected[0])
        self._transports.append(transport)
        return transport

    def join(self, count: int) -> None:
        """So many users, ready to be written to."""
        for user_id in range(1, count + 1):
            bridge = _Bridge()
            connection = bridge.connection = self._connection(self.transport(bridge), user_id)
            self.hub.add(connection)
            self.hub.release(connection)
            self._connections.append(connection)

    def come_and_go(self, transport: asyncio.Transport, user_id: int) -> None:
        """A connection is registered, becomes direct, and is lost."""
        connection = self._connection(transport, user_id)
        self.hub.add(connection)
        self.hub.release(connection)
        connection.connection_lost(None)

    def _connection(self, transport: asyncio.Transport, user_id: int) -> Connection:
        return Connection(
            self.hub, transport, user_id=user_id, conn_id="c", dialect=0, is_acking=True, now=0.0, details=CLIENT
        )

    def read_all(self) -> int:
        """Take what came; at how many ends something was there."""
        found = 0
        for end in self._ends:
            try:
                found += bool(end.recv(READ_BYTES))
            except BlockingIOError:
                continue
        return found

    def close(self) -> None:
        """Everything at once."""
        for transport in self._transports:
            transport.abort()
        for end in self._ends:
            end.close()
        for _ in range(5):
            self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()
