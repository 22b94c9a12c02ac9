"""What all stores do on the thread: run one statement, or a few in one transaction, and take home one value.

A bulk write is one statement over `json_each(CAST(:rows AS TEXT))` or, where it is done for every notice, over bound
values (`Rows`); a bulk read is one row with one JSON document. SQLite does the whole batch in one step without the GIL,
where `executemany` or `fetchall` would take and give it for every row and hold up the event loop. Documents travel as
bytes, so that neither side decodes text under the GIL.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from pushd.stores.sqlite.engine.schema import transaction
from pushd.stores.sqlite.engine.thread import SqliteThread

Result = TypeVar("Result")
Parameter = bytes | str | int
Run = Callable[[sqlite3.Connection], Any]
Value = bytes | str | int | None  # exactly: what is of a subclass takes sqlite3 ten times as long to bind

# A column that goes into JSON. Other programs can write anything into any column: JSON has no blobs and no infinities.
JSON_VALUE = "CASE typeof({0}) WHEN 'blob' THEN hex({0}) WHEN 'real' THEN CAST({0} AS INTEGER) ELSE {0} END"
# A sum of what may be any numbers, where sum() gives up beyond 64 bits.
SUM = "CAST(total({}) AS INTEGER)"

Decoded = TypeVar("Decoded")

_EMPTY: dict[Any, Any] = {str: "", int: 0, bool: False}  # of the others: None


def decoded(decoder: msgspec.json.Decoder[Decoded], document: bytes) -> Decoded:
    """A document of SQLite's; of texts in it that are no UTF-8, which it takes from anybody, as much as can be read."""
    try:
        return decoder.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return decoder.decode(document.decode(errors="replace"))


def decoded_rows(decoder: msgspec.json.Decoder[list[Decoded]], kind: type[Decoded], document: bytes) -> list[Decoded]:
    """The same of rows of a struct, whoever wrote them: without what cannot be understood of one."""
    try:
        return decoder.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [_mended(kind, fields) for fields in _any_json(document)]


def _any_json(document: bytes) -> Any:
    """Also with bytes that are no UTF-8, surrogates, infinities."""
    value = json.loads(document.decode(errors="replace"))
    return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def _mended(kind: type[Decoded], fields: dict[str, Any]) -> Decoded:
    return kind(**{field.name: _read_as(field.type, fields[field.name]) for field in msgspec.structs.fields(kind)})  # type: ignore[arg-type]


def _read_as(kind: Any, value: Any) -> Any:
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        return _EMPTY.get(kind)


# A number of ours is below; what another program put at the end of all numbers is not counted on from.
HIGHEST_OWN = 1 << 62

# A journal append waits behind one chunk at most: 500 receive records take SQLite a few milliseconds.
CHUNK_ROWS = 500


async def drop_chunks(limit: int, drop: Callable[[int], Awaitable[int]]) -> int:
    """Call `drop` with at most CHUNK_ROWS until it finds fewer or `limit` are dropped; how many were dropped."""
    dropped = 0
    while dropped < limit:
        wanted = min(CHUNK_ROWS, limit - dropped)
        count = await drop(wanted)
        dropped += count
        if count < wanted:
            break
    return dropped


# Rows of a statement of its own; more are split into powers of two, so that few statements have to be kept.
EXACT_ROWS, MOST_ROWS = 32, 512

# So many receive records take SQLite 2 ms: a journal append need not wait longer, nor whoever waits for its answer.
TURN_ROWS = 128


class Rows:
    """A statement over many rows: it reads them from the table `given` with the columns `names`.

    Binding takes a twentieth of a microsecond a value under the GIL; taking the same rows out of JSON takes SQLite more
    than to write them.
    """

    def __init__(self, names: Sequence[str], statement: str) -> None:
        self._head = f"WITH given ({', '.join(names)}) AS (VALUES "
        self._row = f"({', '.join('?' * len(names))})"
        self._tail = f")\n{statement}"
        self.width = len(names)
        self._texts: dict[int, str] = {}

    def write(self, connection: sqlite3.Connection, values: list[Value]) -> None:
        """Run the statement for the rows in `values`, one after the other, in one transaction."""
        pieces = list(self._pieces(values, MOST_ROWS))
        if len(pieces) == 1:
            connection.execute(*pieces[0])
            return
        with transaction(connection):
            for text, part in pieces:
                connection.execute(text, part)

    def write_within(self, connection: sqlite3.Connection, values: list[Value]) -> None:
        """The same as a part of the caller's transaction."""
        for text, part in self._pieces(values, MOST_ROWS):
            connection.execute(text, part)

    def write_in_turns(self, connection: sqlite3.Connection, values: list[Value], pause: Callable[[], object]) -> None:
        """The same in transactions of at most TURN_ROWS; `pause` is called behind each."""
        for text, part in self._pieces(values, TURN_ROWS):
            connection.execute(text, part)
            pause()

    def _pieces(self, values: list[Value], most: int) -> Iterator[tuple[str, list[Value]]]:
        start = 0
        for size in _sizes(len(values) // self.width, most):
            end = start + size * self.width
            yield self._text(size), values[start:end]
            start = end

    def _text(self, size: int) -> str:
        text = self._texts.get(size)
        if text is None:
            text = self._texts[size] = self._head + ", ".join([self._row] * size) + self._tail
        return text


def _sizes(rows: int, most: int) -> Iterator[int]:
    while rows > EXACT_ROWS:
        size = min(1 << (rows.bit_length() - 1), most)
        yield size
        rows -= size
    if rows:
        yield rows


class Query(NamedTuple):
    """A statement with its parameters."""

    statement: str
    parameters: dict[str, Parameter]


class Reads:
    """What one store reads, by `submit(store, name, run)`."""

    def __init__(self, submit: Callable[[str, str, Run], Awaitable[Any]], store: str) -> None:
        self._submit = submit
        self._store = store

    async def row(self, name: str, statement: str, **parameters: Parameter) -> tuple[bytes | None, ...]:
        """The one row of documents that `statement` selects; a document is None where there was nothing."""
        return await self._one(name, statement, parameters)

    async def document(self, name: str, statement: str, **parameters: Parameter) -> bytes | None:
        """The one document that `statement` selects, None where there was nothing."""
        document: bytes | None = (await self._one(name, statement, parameters))[0]
        return document

    async def rows(self, name: str, statement: str, **parameters: Parameter) -> list[tuple[int, bytes]]:
        """The rows of a number and a document that `statement` selects."""
        return await self.read(name, lambda connection: connection.execute(statement, parameters).fetchall())

    async def numbers(self, name: str, statement: str, **parameters: Parameter) -> tuple[int, ...]:
        """The one row of numbers that `statement` selects, 0 for NULL."""
        return tuple(number or 0 for number in await self._one(name, statement, parameters))

    async def read(self, name: str, run: Callable[[sqlite3.Connection], Result]) -> Result:
        """What `run` makes of a connection."""
        result: Result = await self._submit(self._store, name, run)
        return result

    async def _one(self, name: str, statement: str, parameters: Mapping[str, Parameter]) -> tuple[Any, ...]:
        def run(connection: sqlite3.Connection) -> tuple[Any, ...]:
            row: tuple[Any, ...] = connection.execute(statement, parameters).fetchone()
            return row

        return await self.read(name, run)


class Statements(Reads):
    """One store's access to the writing thread, under the store's name: what it reads comes after what it wrote."""

    def __init__(self, thread: SqliteThread, store: str) -> None:
        super().__init__(partial(thread.submit, is_read=True), store)
        self._thread = thread

    async def change(self, name: str, statement: str, **parameters: Parameter) -> int:
        """Run one writing statement, which is a transaction of its own; how many rows it changed."""
        return await self._thread.submit(self._store, name, lambda db: db.execute(statement, parameters).rowcount)

    async def run(self, name: str, run: Callable[[sqlite3.Connection], Result]) -> Result:
        """What `run` makes of the connection that writes."""
        return await self._thread.submit(self._store, name, run)

    async def write(self, name: str, rows: Rows, values: list[Value], then: Callable[[], object] | None = None) -> None:
        """Write the rows in `values`, a part at a time: journal appends go between (Rows.write_in_turns).

        `then` is called on the thread when that is done, or has failed.
        """

        def run(connection: sqlite3.Connection) -> None:
            try:
                rows.write_in_turns(connection, values, self._thread.let_appends_pass)
            finally:
                if then is not None:
                    then()

        await self._thread.submit(self._store, name, run)

    async def change_all(self, name: str, statements: Sequence[str], **parameters: Parameter) -> None:
        """Run several writing statements, each with those of `parameters` that it names, in one transaction."""

        def run(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                for statement in statements:
                    connection.execute(statement, parameters)

        await self._thread.submit(self._store, name, run)
