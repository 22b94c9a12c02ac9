"""Hub connections over real sockets on a uvloop, and a reader's end that is read only when a test says so."""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import termios
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from pushd._fastpath import Connection, Hub
from pushd.model import Client, UserId

T = TypeVar("T")

SOMEBODY = Client(username="", role=0, client_ip="127.0.0.1", user_agent="")


def connection_over(transport: Any, hub: Hub, user_id: UserId = 1, **how: Any) -> Connection:
    """A connection over any transport, not yet registered; nothing is known of its client."""
    options = {"conn_id": "c1", "dialect": 0, "is_acking": False, "now": 0.0, "details": SOMEBODY}
    return Connection(hub, transport, user_id=user_id, **{**options, **how})


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        return listener.accept()[0], theirs


class Bridge(asyncio.Protocol):
    """Tells a connection what uvloop does: when its buffer is empty and when it is lost."""

    connection: Connection

    def resume_writing(self) -> None:
        self.connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.connection_lost(None)


class Peer:
    """A registered connection's other end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()
        self.is_at_end = False

    def read(self, most: int = 1 << 20) -> bytes:
        """What is there, without waiting; b"" when nothing is."""
        try:
            data = self.sock.recv(most)
        except BlockingIOError:
            return b""
        except ConnectionResetError:
            data = b""
        self.is_at_end = not data
        self.received += data
        return data

    @property
    def unread(self) -> int:
        """Bytes in the kernel, on their way to this end."""
        count = array.array("i", [0])
        fcntl.ioctl(self.sock.fileno(), termios.FIONREAD, count)
        return count[0]

    @property
    def arrived_total(self) -> int:
        """Bytes the kernel ever took for this end."""
        return len(self.received) + self.unread


class Workshop:
    """A loop of its own with hub connections on it; `close` leaves nothing behind."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.errors: list[dict[str, Any]] = []
        self.loop = uvloop.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.peers: dict[Connection, Peer] = {}
        self._made = 0

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def turn(self, times: int = 3) -> None:
        """Let the loop do what it can do now."""

        async def turn() -> None:
            for _ in range(times):
                await asyncio.sleep(0)

        self.run(turn())

    def connect(
        self,
        user_id: UserId = 1,
        *,
        dialect: int = 0,
        is_acking: bool = False,
        send_buffer: int = 0,
        hub: Hub | None = None,
        now: float = 0.0,
        is_tcp: bool = False,
        is_told_changes: bool = False,
        is_guest: bool = False,
    ) -> Connection:
        """A connection over a socket pair, not yet registered."""
        ours, theirs = _tcp_pair() if is_tcp else socket.socketpair()
        if send_buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        ours.setblocking(False)
        theirs.setblocking(False)
        create = self.loop.create_connection if is_tcp else self.loop.create_unix_connection
        transport, bridge = self.run(create(Bridge, sock=ours))
        self._made += 1
        how = {"conn_id": f"c{self._made}", "dialect": dialect, "is_acking": is_acking, "now": now}
        how["is_told_changes"] = is_told_changes
        how["is_guest"] = is_guest
        connection = connection_over(transport, hub or self.hub, user_id, **how)
        bridge.connection = connection
        self.peers[connection] = Peer(theirs)
        return connection

    def join(self, user_id: UserId = 1, *, is_released: bool = True, **options: Any) -> Connection:
        """A registered connection."""
        connection = self.connect(user_id, **options)
        self.hub.add(connection)
        if is_released:
            self.hub.release(connection)
        return connection

    def drain(self, connection: Connection) -> bytes:
        """Read all there is to come for now, and say what was received in all."""
        peer = self.peers[connection]
        while True:
            self.turn()
            if not peer.read():
                return bytes(peer.received)

    def close(self) -> None:
        for connection, peer in self.peers.items():
            connection.abort()
            peer.sock.close()
        self.turn(5)
        self.loop.close()
        assert not self.errors, self.errors
        assert all(connection.transport is None for connection in self.peers)
