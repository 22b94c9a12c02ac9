"""The least a server can do for returning clients: how fast the clients are by themselves.

    python -m bench.loadlib.canned '["n0", "n1"]'

prints its port; every connection gets a 101, a hello and the canned notices in one write. Ends with stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop

HELLO = b'{"type":"hello","data":{"user_id":1,"conn_id":"c"},"code":200}'
NOTICE = (
    b'{"type":"bench","content":"%b","data":null,"time":"2026-01-01 00:00:00","ts":1767225600000,'
    b'"message_id":"%b","priority":1,"need_confirm":false,"offline":true}'
)
CONTENT = b"a notice of a hundred characters, as they are short texts for people in a back office, more or less."


def server_frame(payload: bytes) -> bytes:
    """An unmasked text frame."""
    size = len(payload)
    return (bytes((0x81, size)) if size < 126 else bytes((0x81, 126)) + size.to_bytes(2, "big")) + payload


class Canned(asyncio.Protocol):
    """One connection; what comes after the handshake is swallowed."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n") and self._transport is not None:
            self._transport.write(self._answer)


async def _serve(ids: list[str]) -> None:
    notices = [server_frame(NOTICE % (CONTENT, known.encode())) for known in ids]
    answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + server_frame(HELLO) + b"".join(notices)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Canned(answer), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(json.loads(sys.argv[1])))
