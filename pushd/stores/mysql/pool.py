"""Connections to MySQL: few, made when needed, never used again after a query that did not end well."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import aiomysql  # type: ignore[import-untyped]
from pymysql.constants import CLIENT, CR  # type: ignore[import-untyped]
from pymysql.err import OperationalError  # type: ignore[import-untyped]

from pushd.stores.mysql.address import Address

Row = Sequence[bytes | None]

CONNECTIONS = 4
CONNECT_S = 10.0  # whoever waits gives up before; a TLS handshake that is broken off makes the event loop complain
QUIT_S = 1.0
RECYCLE_S = 300.0  # proxies and firewalls forget connections that lie idle

# What a server may have set for new connections would change answers: pages are to end where LIMIT says, names to come
# as they are stored, in our encoding. 2^64 - 1: DEFAULT would be what the server has set.
SESSION = "SET NAMES {charset}, SESSION sql_select_limit = 18446744073709551615, SESSION sql_mode = ''"

# Beside it where the operator has a statement of his own: functions that it calls cannot write either. MySQL 5.6.5.
READ_ONLY = "SET SESSION TRANSACTION READ ONLY"

_COM_QUIT = b"\x01\x00\x00\x00\x01"


class _Connection(aiomysql.Connection):  # type: ignore[misc]
    """The driver's, which would go on without TLS, and name the password, if the server offered none.

    It would also keep a closed TLS connection open until the server agrees.
    """

    _reader: Any
    _writer: Any

    async def _get_server_information(self) -> None:
        await super()._get_server_information()
        if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
            raise OperationalError(CR.CR_SSL_CONNECTION_ERROR, "the server offers no TLS")

    def close(self) -> None:
        """At once, whatever is on its way."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def quit(self) -> None:
        """Say goodbye first, else the server logs an aborted connection. Takes QUIT_S at most."""
        writer = self._writer
        if writer is None:
            return
        try:
            # RuntimeError: uvloop's word for a write to a connection that the server has closed.
            with suppress(OSError, RuntimeError):
                async with asyncio.timeout(QUIT_S):
                    writer.write(_COM_QUIT)
                    writer.close()
                    await writer.wait_closed()
        finally:
            self.close()


class _Cursor(aiomysql.Cursor):  # type: ignore[misc]
    """The driver's, which would ask for the server's warnings and print them."""

    async def _show_warnings(self, conn: Any) -> None:
        """They concern others' data."""


class Pool:
    """At most CONNECTIONS connections, made when needed. One whose query did not end well is closed with all idle ones.

    In place of the driver's, which forgets whoever waits for a connection that is closed by a cancellation, connects
    one at a time, and cannot tell when a handshake is cancelled.
    """

    def __init__(self, address: Address, *, is_read_only: bool = False) -> None:
        self._address = address
        self._is_read_only = is_read_only
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[_Connection] = []
        self._connecting: set[asyncio.Task[_Connection]] = set()
        self._is_closed = False

    async def query(
        self, statement: str, parameters: Sequence[object], *, is_fresh: bool = False
    ) -> tuple[Sequence[Any], Sequence[Row]]:
        """The columns (as in PEP 249) and the rows, all values as bytes; `is_fresh` connects for it."""
        async with self._free:
            connection = await (self._connect() if is_fresh else self._take())
            try:
                async with connection.cursor(_Cursor) as cursor:
                    await cursor.execute(statement, parameters)
                    answer = cursor.description, await cursor.fetchall()
            except BaseException:
                for suspect in (connection, *self._idle):
                    suspect.close()
                self._idle.clear()
                raise
            await self._put_back(connection)
            return answer

    async def close(self) -> None:
        """Whatever is in use is closed when it is given back."""
        self._is_closed = True
        if self._connecting:
            await asyncio.wait(self._connecting, timeout=QUIT_S)
        for task in self._connecting:
            task.cancel()
        idle, self._idle = self._idle, []
        await asyncio.gather(*(connection.quit() for connection in idle))

    async def _take(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if asyncio.get_running_loop().time() - connection.last_usage < RECYCLE_S:
                return connection
            await connection.quit()
        return await self._connect()

    async def _put_back(self, connection: _Connection) -> None:
        if self._is_closed or len(self._idle) == CONNECTIONS:
            await connection.quit()
        else:
            self._idle.append(connection)

    async def _connect(self) -> _Connection:
        task = asyncio.ensure_future(self._connected())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_abandon)
            raise

    async def _connected(self) -> _Connection:
        address = self._address
        connection = _Connection(
            host=address.host, port=address.port, user=address.user, db=address.database, charset=address.charset,
            # The driver encodes it in Latin-1; servers compare with what their own client sends, UTF-8.
            password=address.password.encode().decode("latin-1"),
            ssl=address.tls, autocommit=True, program_name="pushd",
            # Decoded here: one odd value must not spoil an answer.
            use_unicode=False, conv={},
        )  # fmt: skip
        try:
            async with asyncio.timeout(CONNECT_S):
                await connection.ping()  # connects; unlike aiomysql.connect it leaves us what is to be closed
                await connection.query(SESSION.format(charset=address.charset))
                if self._is_read_only:
                    await connection.query(READ_ONLY)
        except BaseException:
            connection.close()
            raise
        return connection


def _abandon(task: asyncio.Task[_Connection]) -> None:
    """Nobody waits for it any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
