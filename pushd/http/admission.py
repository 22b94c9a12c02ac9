"""Admission: how many new connections one turn of the loop takes, so that a storm does not hold up what is live.

uvloop's own server takes everything that waits at once, and handshakes come when they like: 5,000 clients that
reconnected together made turns of 700 ms. Here so many are accepted, so many read from for the first time, and so many
upgrades admitted in each turn. What is no upgrade waits for none of them.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from time import monotonic
from typing import Any

import structlog

from pushd.turns import Repeated, Slice

ACCEPTS_PER_TURN = 8
SLICE_S = 0.0005  # of admitting in one turn of the loop
CROWD = 4096  # upgrades that wait: nothing more is accepted then; a second's worth, and a few megabytes
FIRST_READS_PER_TURN = 4
CROWDED_S = 0.002
TURN_S = 0.002  # of HTTP requests in one turn of the loop; as much again for those who are known
SHARE_S = 0.001  # of these for one connection at most
REST_S = 0.1  # after a connection that could not be taken for want of descriptors or memory
READ_S_PER_BYTE = 0.5e-9

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_log = structlog.get_logger("pushd.front")


class UpgradeQueue:
    """Lets upgrades through for about SLICE_S in each turn of the loop, in the order in which they came."""

    def __init__(self, *, crowd: int = CROWD, now: Callable[[], float] = monotonic) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._work = Repeated(self._serve)
        self._crowd = crowd
        self._now = now

    @property
    def is_crowded(self) -> bool:
        """So many wait that others had better not come yet."""
        return len(self._waiting) > self._crowd

    def queue(self, enter: Callable[[], None]) -> None:
        """Have `enter` called when it is its turn."""
        self._waiting.append(enter)
        self._work.wake()

    def _serve(self) -> bool:
        part = Slice(SLICE_S, self._now)
        while self._waiting and not part.is_over:
            self._waiting.popleft()()
        return bool(self._waiting)


class Line(IntEnum):
    """Who waits for a turn."""

    KNOWN = 0  # with a new request; its connection was answered before
    STRANGER = 1  # with its first request
    GOING_ON = 2  # with a request that goes on, or another one behind it


KNOWN, STRANGER, GOING_ON = Line  # to look a member up in its class takes ten times as long


class RequestTurns:
    """Shares out the time for HTTP requests: about TURN_S in each turn of the loop, at most SHARE_S for a connection.

    Whoever comes when that is used up, or has more to do, waits: those who were answered before in one line, strangers
    in another, who goes on in a third, and one of each is served in turn. So nobody waits for a pipeline's end, nor for
    that of many, and a publisher does not wait for a crowd of strangers.
    """

    def __init__(self, *, now: Callable[[], float] = monotonic) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = now
        self._lines: tuple[deque[Callable[[], None]], ...] = tuple(deque() for _ in Line)
        self._is_begun = False  # time of a turn, which ends with `_serve`
        self._until = 0.0
        self._known_until = 0.0  # begins when one who is known comes too late for the other; 0: none has
        self._share_until = 0.0

    def is_free(self, line: Line) -> bool:
        """Whether one of this line is served at once; its share begins now. Who is known has time that is his alone."""
        now = self._now()
        if not self._is_begun:
            self._begin(now)
        self._share_until = now + SHARE_S
        has_time = now < self._until
        if line is KNOWN and not has_time:
            self._known_until = self._known_until or now + TURN_S
            has_time = now < self._known_until
        return has_time and not self._lines[line]

    def has_share_left(self) -> bool:
        """Whether the one that is served may go on."""
        return self._now() < self._share_until

    def _begin(self, now: float) -> None:
        """The first one in a turn of the loop who asks begins its time, until the next turn."""
        self._is_begun = True
        self._until, self._known_until = now + TURN_S, 0.0
        self._loop.call_soon(self._serve)

    def count_read(self, size: int) -> None:
        """So many bytes have come from the kernel, or will before the next turn: uvloop takes them unasked."""
        if not self._is_begun:
            self._begin(self._now())
        self._until -= size * READ_S_PER_BYTE

    def queue(self, go_on: Callable[[], None], line: Line) -> None:
        """Have `go_on` called when it is its turn."""
        self._lines[line].append(go_on)
        if not self._is_begun:
            self._begin(self._now())

    def _serve(self) -> None:
        self._is_begun = False
        left = [len(line) for line in self._lines]  # who goes on after its turn waits for the next one of the loop
        if not any(left):
            return
        self._begin(self._now())
        share_s = min(SHARE_S, TURN_S / sum(left))
        while any(left):  # one of each at least, however busy the turn has been
            for index, line in enumerate(self._lines):
                if left[index]:
                    left[index] -= 1
                    self._share_until = self._now() + share_s
                    line.popleft()()
            if self._now() >= self._until:
                break


class FirstReads:
    """Watches connections that have said nothing yet, and lets a few of those who begin to be read in each turn.

    uvloop reads from all who have sent something in one turn: the heads of 2,500 clients were one of 76 ms.
    """

    def __init__(self, *, per_turn: int = FIRST_READS_PER_TURN) -> None:
        self._loop = asyncio.get_running_loop()
        self._per_turn = per_turn
        self._epoll = select.epoll()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._loop.add_reader(self._epoll.fileno(), self._serve)

    def watch(self, fd: int, read: Callable[[], None]) -> None:
        """Have `read` called once when something comes, unless `forget` is called before."""
        self._waiting[fd] = read
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Watch a descriptor no more. Harmless when nobody does; call it before the descriptor is closed."""
        if self._waiting.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Watch nobody any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _serve(self) -> None:
        for fd, _ in self._epoll.poll(0, self._per_turn):
            read = self._waiting[fd]
            self.forget(fd)
            read()


class Acceptor:
    """Takes connections from one listening socket between `start` and `stop` and gives each a protocol of `let_in`.

    `let_in` gets the address of the peer; where it says None, the connection is closed at once. One that cannot be
    opened, such as for want of a TLS handshake, is told so by `connection_lost`, and was perhaps never made. None is
    taken while `upgrades` is crowded. `options`: those of TLS of `loop.connect_accepted_socket`; they may change, and
    hold for connections accepted from then on.
    """

    def __init__(
        self,
        listener: socket.socket,
        upgrades: UpgradeQueue,
        let_in: Callable[[str], asyncio.Protocol | None],
        options: dict[str, Any],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._upgrades = upgrades
        self._let_in = let_in
        self._options = options
        self._opening: set[asyncio.Task[None]] = set()
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

    async def finish(self) -> None:
        """After `stop`: return when each connection that was accepted has its protocol, or is closed for want of TLS.

        Only handshakes are broken off: uvloop closes a plain connection whose opening is cancelled without a word to
        the protocol, which may have been told of it by then.
        """
        await asyncio.sleep(0)  # a task cancelled before it has begun would not close its socket
        if self._options:
            for task in self._opening:
                task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _accept(self) -> None:
        if self._upgrades.is_crowded:
            self._wait(CROWDED_S)
            return
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # the peer has gone already
                _log.error("connections wait", reason=error.strerror)
                self._wait(REST_S)
                return
            protocol = self._let_in(address[0])
            if protocol is None:
                sock.close()
                continue
            task = self._loop.create_task(self._open(sock, protocol))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._rest = self._loop.call_later(seconds, self.start)

    async def _open(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        """What fails here is between the peer and the kernel, or a TLS handshake: nothing is ours to mend."""
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, sock, **self._options)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            _log.debug("connection not opened", error=str(error))
            sock.close()
            protocol.connection_lost(error)
        except BaseException:
            sock.close()
            protocol.connection_lost(None)
            raise
