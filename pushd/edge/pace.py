"""Accepting connections at a pace: a few in each turn of the loop, so that a storm of them does not hold up what is live.

uvloop's own server takes everything that waits at once: 5,000 clients that reconnect together made turns of 700 ms.
Here they wait in the kernel's queue, which costs nothing.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

ACCEPTS_PER_TURN = 16
REST_S = 0.1  # after a connection that could not be taken for want of descriptors or memory

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_log = structlog.get_logger("pushd.front")


class Acceptor:
    """Takes connections from one listening socket between `start` and `stop` and gives each a protocol of `make`.

    `spawn` owns the tasks of connections that are being opened. `options`: those of TLS of
    `loop.connect_accepted_socket`.
    """

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], asyncio.Protocol],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        options: dict[str, Any],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._make = make
        self._spawn = spawn
        self._options = options
        self._rest: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accept from now on."""
        self._rest = None
        self._loop.add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Accept no more and close the listening socket."""
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # the peer has gone already
                _log.error("connections wait", reason=error.strerror)
                self._loop.remove_reader(self._listener)
                self._rest = self._loop.call_later(REST_S, self.start)
                return
            self._spawn(self._open(sock))

    async def _open(self, sock: socket.socket) -> None:
        """What fails here is between the peer and the kernel, or a TLS handshake: nothing is ours to mend."""
        try:
            await self._loop.connect_accepted_socket(self._make, sock, **self._options)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            _log.debug("connection not opened", error=str(error))
            sock.close()
        except BaseException:
            sock.close()
            raise
