"""The receiving side: WebSocket connections on picows, with as little Python per frame as the books need."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSHandshakeError,
    WSListener,
    WSMsgType,
    WSTransport,
    ws_connect,
)

from bench.loadlib.http import UPGRADE, Answer, advice
from bench.loadlib.ledger import Ledger, message_id
from bench.loadlib.options import LoadError, Options

READ_BUFFER_BYTES = 4096
ACK_SLOTS = 10
ACK_SLOT_S = 0.005  # one round of all slots: 50 ms, so 20 frames/s for each connection
ACK_BYTES = 3500  # of ids in one frame; limits.max_frame_bytes is 4096
CLOSE_WITHIN_S = 10.0
_HELLO = b'{"type":"hello"'


class Receiver(WSListener):
    """One connection. `ready` is done when hello and, if any are awaited, all replayed frames have come."""

    def __init__(self, crew: Receivers, index: int, awaited: int) -> None:
        self._crew = crew
        self._index = index
        self._awaited = awaited
        self._has_hello = False
        self.transport: WSTransport | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.hello_ns = self.last_replayed_ns = 0
        self.unacknowledged: list[bytes] = []

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.transport = None
        self._crew.lost(transport)
        self._settle()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        now_ns = time.monotonic_ns()
        if frame.msg_type != WSMsgType.TEXT:
            if frame.msg_type == WSMsgType.CLOSE:
                self._crew.closed_by_daemon(transport, int(cast(Any, frame.get_close_code())))
            return
        payload = frame.get_payload_as_bytes()
        if not self._has_hello:
            self._take_hello(payload, now_ns)
        elif self._awaited:
            self._take_replayed(payload, now_ns)
        else:
            self._crew.live.arrived(self._index, payload, now_ns)
        if self._crew.is_acking and self._has_hello:
            self._note(payload)

    def _take_hello(self, payload: bytes, now_ns: int) -> None:
        if payload.startswith(_HELLO):
            self._has_hello = True
            self.hello_ns = now_ns
            if not self._awaited:
                self._settle()

    def _take_replayed(self, payload: bytes, now_ns: int) -> None:
        if self._crew.replayed.arrived(self._index, payload, now_ns):
            self.last_replayed_ns = now_ns
            self._awaited -= 1
            if not self._awaited:
                self._settle()

    def _settle(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def give_up_replay(self) -> None:
        """What has not come by now is lost."""
        self._awaited = 0

    @property
    def has_hello(self) -> bool:
        """The daemon has greeted."""
        return self._has_hello

    def _note(self, payload: bytes) -> None:
        if known := message_id(payload):
            if not self.unacknowledged:
                self._crew.has_news(self._index)
            self.unacknowledged.append(known)

    def acknowledge(self) -> bool:
        """Send one frame of acknowledgements; whether there are more."""
        ids, size = self.unacknowledged, 0
        taken = 0
        while taken < len(ids) and size < ACK_BYTES:
            size += len(ids[taken]) + 3
            taken += 1
        if taken and self.transport is not None:
            batch = b'","'.join(ids[:taken])
            self.transport.send(WSMsgType.TEXT, b'{"type":"ack","message_ids":["%s"]}' % batch)
        del ids[:taken]
        return bool(ids)


class Receivers:
    """All connections, and the books their frames go into."""

    def __init__(self, options: Options, address: str, live: Ledger, replayed: Ledger) -> None:
        self.live = live
        self.replayed = replayed
        self.is_acking = options.is_acking
        self.handshakes_ns: list[int] = []
        self.connects_ns: list[int] = []
        self.replays_ns: list[int] = []
        self.lost_total = 0
        self.close_codes: dict[int, int] = {}
        self._options = options
        self._base = f"ws://[{address}]:{options.port}" if ":" in address else f"ws://{address}:{options.port}"
        self._members: dict[int, Receiver] = {}
        self._is_closing = False
        self._news: list[set[int]] = [set() for _ in range(ACK_SLOTS)]
        self._slot = 0

    # ---- connecting

    async def connect(self, token_of: Callable[[int], str], tick: Callable[[], object]) -> None:
        """Open all connections, `concurrency` at a time; each is ready before the next. Raises LoadError."""
        indices = iter(range(self._options.connections))

        async def worker() -> None:
            for index in indices:
                await self._open(index, token_of(index))
                tick()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._options.concurrency, self._options.connections)):
                    group.create_task(worker())
        except* LoadError as errors:
            raise errors.exceptions[0] from None

    async def _open(self, index: int, token: str) -> None:
        receiver = Receiver(self, index, self.replayed.notices)
        headers = {"Host": self._options.authority}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        began_ns = time.monotonic_ns()
        try:
            async with asyncio.timeout(self._options.timeout_s):
                await ws_connect(
                    lambda: receiver,
                    self._base + self._options.resource(index),
                    extra_headers=headers,
                    websocket_handshake_timeout=self._options.timeout_s,
                    read_buffer_init_size=READ_BUFFER_BYTES,
                    max_redirects=0,
                )
                self.handshakes_ns.append(time.monotonic_ns() - began_ns)
                self._members[index] = receiver
                await receiver.ready
        except TimeoutError:
            if not receiver.has_hello:
                raise LoadError(f"connection {index}: no hello within {self._options.timeout_s:g} s") from None
            receiver.give_up_replay()
        except WSHandshakeError as error:
            raise _refusal(error) from None
        except (OSError, WSError) as error:
            raise LoadError(f"connection {index}: {error}") from None
        if not receiver.has_hello:
            raise LoadError(f"connection {index} was closed before hello{self._why()}")
        self.connects_ns.append(receiver.hello_ns - began_ns)
        if self.replayed.notices:
            self.replays_ns.append(receiver.last_replayed_ns - began_ns)

    # ---- acknowledging

    def has_news(self, index: int) -> None:
        """A connection has something to acknowledge again."""
        self._news[index % ACK_SLOTS].add(index)

    async def acknowledge(self) -> None:
        """Until cancelled: one slot of connections after the other, each once in 50 ms."""
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while True:
            next_at = max(next_at + ACK_SLOT_S, loop.time())
            await asyncio.sleep(next_at - loop.time())
            self.acknowledge_slot()

    def acknowledge_slot(self) -> None:
        """One slot's turn."""
        self._slot = (self._slot + 1) % ACK_SLOTS
        news, self._news[self._slot] = self._news[self._slot], set()
        for index in news:
            if self._members[index].acknowledge():
                self._news[self._slot].add(index)

    @property
    def has_unacknowledged(self) -> bool:
        """Something waits to be acknowledged."""
        return any(self._news)

    # ---- closing

    def closed_by_daemon(self, transport: WSTransport, code: int) -> None:
        """A CLOSE came."""
        if not self._is_closing:
            self.close_codes[code] = self.close_codes.get(code, 0) + 1
        transport.disconnect()

    def lost(self, transport: WSTransport) -> None:
        """A socket is gone."""
        if not self._is_closing:
            self.lost_total += 1

    def _why(self) -> str:
        return "".join(f", close code {code}" for code in self.close_codes)

    @property
    def open_total(self) -> int:
        """Connections that are still there."""
        return sum(receiver.transport is not None for receiver in self._members.values())

    async def close(self) -> None:
        """Say goodbye on every connection, and wait a little for the answers."""
        self._is_closing = True
        transports = [receiver.transport for receiver in self._members.values() if receiver.transport is not None]
        for start in range(0, len(transports), 100):
            for transport in transports[start : start + 100]:
                transport.send_close(WSCloseCode.OK)
            await asyncio.sleep(0.01)
        deadline = time.monotonic() + CLOSE_WITHIN_S
        while self.open_total and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for receiver in self._members.values():
            if receiver.transport is not None:
                receiver.transport.disconnect(graceful=False)


def _refusal(error: WSHandshakeError) -> LoadError:
    if error.response is None:
        return LoadError(f"upgrade failed: {error}")
    return advice(Answer(int(error.response.status), b"", bytes(error.raw_body or b"")), UPGRADE)
