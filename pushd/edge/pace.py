"""Connections at a pace: a few in each turn of the loop, so that a storm of them does not hold up what is live.

uvloop's own server takes everything that waits at once, and handshakes come when they like: 5,000 clients that
reconnected together made turns of 700 ms. Here they wait, most of them in the kernel's queue, which costs nothing.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

ACCEPTS_PER_TURN = 16
ADMISSIONS_PER_TURN = 8  # a millisecond or two
CROWD = 64  # upgrades that wait: nothing more is accepted then
CROWDED_S = 0.002
REST_S = 0.1  # after a connection that could not be taken for want of descriptors or memory

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_log = structlog.get_logger("pushd.front")


class Pace:
    """Lets ADMISSIONS_PER_TURN through in each turn of the loop, in the order in which they asked."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left = ADMISSIONS_PER_TURN
        self._is_counting = False

    @property
    def is_crowded(self) -> bool:
        """So many wait that others had better not come yet."""
        return len(self._waiting) > CROWD

    async def turn(self) -> None:
        """Return when it is the caller's turn."""
        if not self._is_counting:
            self._is_counting = True
            self._loop.call_soon(self._next_turn)
        if self._left:
            self._left -= 1
        else:
            turn: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(turn)
            await turn

    def _next_turn(self) -> None:
        self._left = ADMISSIONS_PER_TURN
        while self._left and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its caller was cancelled
                turn.set_result(None)
                self._left -= 1
        self._is_counting = self._left < ADMISSIONS_PER_TURN
        if self._is_counting:
            self._loop.call_soon(self._next_turn)


class Acceptor:
    """Takes connections from one listening socket between `start` and `stop` and gives each a protocol of `make`.

    None while `pace` is crowded. `spawn` owns the tasks of connections that are being opened. `options`: those of TLS
    of `loop.connect_accepted_socket`.
    """

    def __init__(
        self,
        listener: socket.socket,
        pace: Pace,
        make: Callable[[], asyncio.Protocol],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        options: dict[str, Any],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._pace = pace
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
        if self._pace.is_crowded:
            self._wait(CROWDED_S)
            return
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # the peer has gone already
                _log.error("connections wait", reason=error.strerror)
                self._wait(REST_S)
                return
            self._spawn(self._open(sock))

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._rest = self._loop.call_later(seconds, self.start)

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
