"""The indexes of CONTRACT section 5, and a few more: made at the start, left alone where they are, whatever their name.

More, because pages must not overlap: an order without ties cannot be read from an index on a time alone, and sorting a
month of receive records for every page takes longer than anybody waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from pymongo.errors import OperationFailure

from pushd.errors import StartError
from pushd.stores.mongo.connection import DUPLICATE_KEY, Connection, Document
from pushd.stores.mongo.documents import ONLINE_STATUS, PUSH_RECORDS, RECEIVE_RECORDS, VERSIONS

log = structlog.get_logger("pushd.stores")

UP, DOWN = 1, -1
DAY_S = 86_400
# IndexOptionsConflict, IndexKeySpecsConflict, CannotCreateIndex, InvalidIndexSpecificationOption, InvalidOptions.
CONFLICTS = frozenset({85, 86, 67, 197, 72})


@dataclass(frozen=True, slots=True)
class Index:
    """An index as pushd needs it. `expire_s`: documents go so long after the time in its field."""

    keys: tuple[tuple[str, int], ...]
    is_unique: bool = False
    is_sparse: bool = False
    expire_s: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the driver is told beside the keys."""
        given = {"unique": self.is_unique, "sparse": self.is_sparse, "expireAfterSeconds": self.expire_s}
        return {name: value for name, value in given.items() if value not in (False, None)}

    @property
    def text(self) -> str:
        """The keys as MongoDB's shell has them."""
        return "{" + ", ".join(f"{name}: {direction}" for name, direction in self.keys) + "}"


def record_indexes(retention_days: int) -> dict[str, tuple[Index, ...]]:
    """The indexes of the collections of records."""
    expires = Index((("created_at", UP),), expire_s=retention_days * DAY_S)
    return {
        VERSIONS: (Index((("message_id", UP), ("version", UP)), is_unique=True), expires),
        PUSH_RECORDS: (
            Index((("message_id", UP),), is_unique=True),
            Index((("push_time", DOWN),)),
            expires,
            Index((("push_time", DOWN), ("message_id", DOWN))),  # the order of the list
            Index((("expires_at", UP),), is_sparse=True),  # whose receive records expire
            Index((("tags", UP),), is_sparse=True),  # those with tags
        ),
        RECEIVE_RECORDS: (
            Index((("user_id", UP), ("created_at", DOWN))),
            Index((("message_id", UP), ("user_id", UP)), is_unique=True),
            Index((("user_id", UP), ("is_archived", UP), ("created_at", DOWN))),  # inboxes
            Index((("is_online", UP), ("delivery_status", UP))),
            expires,
            Index((("created_at", DOWN), ("message_id", DOWN), ("user_id", DOWN))),  # the order of the list
            Index((("tags", UP),), is_sparse=True),  # of notices with tags
        ),
    }


PRESENCE_INDEXES: dict[str, tuple[Index, ...]] = {
    ONLINE_STATUS: (
        Index((("user_id", UP),), is_unique=True),
        Index((("is_online", UP), ("last_seen", DOWN))),
    )
}


async def ensure(connection: Connection, wanted: Mapping[str, Sequence[Index]]) -> None:
    """Create what is missing and set how long documents stay.

    Raises StartError for an index that is in the way, and for documents that keep a unique one from being made.
    """
    for collection, indexes in wanted.items():
        found = await connection.probe(lambda name=collection: _listed(connection, name))  # type: ignore[misc]
        _check_unique(collection, indexes, found)
        for index in indexes:
            there = [other for other in found if _is_alike(index, other)]
            if not there:
                await _create(connection, collection, index)
            elif index.expire_s not in [None, *(other.get("expireAfterSeconds") for other in there)]:
                await _set_expiry(connection, collection, index, there[0]["name"])


async def _listed(connection: Connection, collection: str) -> list[Document]:
    return [dict(index) async for index in connection.collection(collection).list_indexes()]


def _keys(found: Document) -> tuple[tuple[str, Any], ...]:
    return tuple(dict(found["key"]).items())


def _is_alike(index: Index, found: Document) -> bool:
    """The same keys for all documents. The direction of a single key makes no difference."""
    if "collation" in found or "partialFilterExpression" in found or found.get("hidden"):
        return False
    if found.get("sparse") and not index.is_sparse and not index.is_unique:
        return False
    if len(index.keys) == 1:
        return [name for name, _ in _keys(found)] == [index.keys[0][0]]
    return _keys(found) == index.keys


def _check_unique(collection: str, indexes: Sequence[Index], found: Sequence[Document]) -> None:
    """What is unique must be, and nothing else may: else writes would be refused."""
    sets = [{name for name, _ in index.keys} for index in indexes if index.is_unique]
    for other in found:
        names = {name for name, _ in _keys(other)}
        if other.get("unique") and names != {"_id"} and not any(names >= needed for needed in sets):
            raise _conflict(collection, other["name"], "is unique, which it must not be")
    for index in indexes:
        there = [other for other in found if index.is_unique and _is_alike(index, other)]
        if there and not any(other.get("unique") for other in there):
            raise _conflict(collection, there[0]["name"], "must be unique")


def _conflict(collection: str, name: str, text: str) -> StartError:
    return StartError(
        f'MongoDB: index "{name}" of collection {collection} {text}: drop it (db.{collection}.dropIndex("{name}"))'
        " and start pushd again, which makes the one it needs"
    )


async def _create(connection: Connection, collection: str, index: Index) -> None:
    async def work() -> None:
        await connection.collection(collection).create_index(list(index.keys), **index.options)

    try:
        await _index_command(connection, work, collection, index)
    except OperationFailure as error:
        if error.code != DUPLICATE_KEY:
            text = f"index {index.text} cannot be made: {connection.text(error)}"
            raise StartError(f"MongoDB: collection {collection}: {text}; drop the index that is in its way") from error
        names = ", ".join(name for name, _ in index.keys)
        raise StartError(
            f"MongoDB: collection {collection} has several documents with the same {names}, so that the unique index"
            f" {index.text} cannot be made: remove all but one of each"
        ) from error


async def _set_expiry(connection: Connection, collection: str, index: Index, name: str) -> None:
    async def work() -> None:
        change = {"name": name, "expireAfterSeconds": index.expire_s}
        await connection.command({"collMod": collection, "index": change})

    try:
        await _index_command(connection, work, collection, index)
    except OperationFailure as error:
        # Before MongoDB 5.1 an index without a time cannot be given one.
        text = f"does not expire documents and cannot be changed ({connection.text(error)})"
        raise _conflict(collection, name, text) from error


async def _index_command(
    connection: Connection, work: Callable[[], Awaitable[None]], collection: str, index: Index
) -> None:
    """Raises OperationFailure when the server refuses it, StoreUnavailable when it cannot do it now."""
    refused: list[OperationFailure] = []

    async def caught() -> None:
        try:
            await work()
        except OperationFailure as error:
            if error.code not in CONFLICTS | {DUPLICATE_KEY}:
                raise
            refused.append(error)

    log.info("indexing", collection=collection, index=index.text)
    await connection.build("index", caught)
    if refused:
        raise refused[0]
