"""A WebSocket client that may break every rule: bytes over a socket, frames as the test makes them."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from typing import Any, NamedTuple

from tests.daemon import PATIENCE_S

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


class Frame(NamedTuple):
    """A frame the server sent."""

    first: int
    payload: bytes

    @property
    def opcode(self) -> int:
        return self.first & 0x0F

    @property
    def close_code(self) -> int:
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2], "big")


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A client's frame (RFC 6455 section 5.2); control frames may be too long, and data unmasked."""
    size = len(payload)
    mask_bit = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if size < 126:
        head += bytes([mask_bit | size])
    elif size < 65536:
        head += struct.pack("!BH", mask_bit | 126, size)
    else:
        head += struct.pack("!BQ", mask_bit | 127, size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def close(code: int | None = None, reason: bytes = b"") -> bytes:
    """A CLOSE frame; without a code it is empty."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


def upgrade(path: str = "/ws", *headers: str, host: str = "localhost") -> bytes:
    """A handshake; `headers` replace those of the same name."""
    fields = {
        "host": host,
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": KEY,
        "sec-websocket-version": "13",
    }
    fields |= {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in headers)}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode()


class Raw:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}

    @classmethod
    async def connect(cls, port: int, *, receive_buffer: int = 0, tls: ssl.SSLContext | None = None) -> Raw:
        """`receive_buffer` bounds what this side's kernel keeps, so that a test can play the slow reader."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        options: dict[str, Any] = {"ssl": tls, "server_hostname": "localhost"} if tls else {}
        limit = receive_buffer or 2**16
        return cls(*await asyncio.open_connection(sock=sock, limit=limit, **options))

    @classmethod
    async def websocket(cls, port: int, path: str = "/ws", *headers: str, **options: Any) -> Raw:
        """Upgraded and greeted."""
        raw = await cls.connect(port, **options)
        raw.send(upgrade(path, *headers))
        assert await raw.head() == 101
        assert b'"type":"hello"' in (await raw.frame()).payload
        return raw

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def head(self) -> int:
        """The status of an answer; its headers are in `headers`."""
        async with asyncio.timeout(PATIENCE_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return self.status

    async def answer(self) -> tuple[int, bytes]:
        """An HTTP answer with a Content-Length."""
        status = await self.head()
        return status, await self.reader.readexactly(int(self.headers.get("content-length", 0)))

    async def frame(self) -> Frame:
        async with asyncio.timeout(PATIENCE_S):
            first, second = await self.reader.readexactly(2)
            assert second < 128, "servers do not mask"
            size = second
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return Frame(first, await self.reader.readexactly(size))

    async def close_code(self) -> int:
        """What the server closes with; frames before that are skipped. It then ends the connection once answered."""
        while (received := await self.frame()).opcode != CLOSE:
            pass
        self.send(close(received.close_code))
        await self.end()
        return received.close_code

    async def end(self) -> bytes:
        """What still comes until the server ends the connection."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read(-1)
            except ConnectionResetError:
                return b""

    def reset(self) -> None:
        """Gone without a word: RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def __aenter__(self) -> Raw:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.transport.abort()
