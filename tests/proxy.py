"""A TCP proxy that misbehaves on demand: in front of a real server, it makes the faults a network has."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

CHUNK_BYTES = 65536
NO_LINGER = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on `port` and passes everything on to a server on this host until it is told otherwise."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.delay_s = 0.0  # each piece, in both directions, is held back so long
        self._server_port = server_port
        self._listener: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, again on the same port after a cut."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        await self.cut()
        self._flowing.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def switch_to(self, server_port: int) -> None:
        """New connections go to another server; those there are stay where they are."""
        self._server_port = server_port

    def stall(self) -> None:
        """Connections are taken and kept, and nothing comes through."""
        self._flowing.clear()

    def flow(self) -> None:
        """Everything comes through again, what was held back first."""
        self._flowing.set()
        self.delay_s = 0.0

    async def cut(self) -> None:
        """Connections end and new ones are refused, until `start`."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.reset()

    def reset(self) -> None:
        """Every connection is reset, in the midst of whatever is under way; new ones are taken."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and not writer.transport.is_closing():
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.transport.abort()
        else:
            self._writers.add(server_writer)
            await asyncio.gather(
                self._pass_on(reader, server_writer), self._pass_on(server_reader, writer), return_exceptions=True
            )
            self._writers.discard(server_writer)
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                await asyncio.sleep(self.delay_s)
                await self._flowing.wait()
                writer.write(chunk)
                await writer.drain()
        except (OSError, RuntimeError):  # uvloop's word for a write to a closed transport
            pass
        finally:
            writer.close()


@asynccontextmanager
async def proxy_to(server_port: int) -> AsyncIterator[Proxy]:
    """A proxy in front of a server, for the length of the block."""
    proxy = Proxy(server_port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
