"""A stand-in for a MongoDB server: mongomock behind the wire protocol (OP_MSG), as a process of its own.

    python -m tests.mongo_stub PORT [JOURNAL]

It keeps what is written while it lives; with JOURNAL also over a SIGKILL, since every write command is appended to that
file before it is answered and is done again at the next start. It has no users, so that credentials are always
wrong, as with a real server without access control. What it cannot show: which index a query uses, when a TTL index
deletes (never, here), failover, write concerns, transactions, and the time a real server takes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import bson
import mongomock
from bson.codec_options import CodecOptions, DatetimeConversion
from mongomock import aggregate as mock_aggregate
from mongomock import collection as mock_collection
from mongomock import filtering
from mongomock.helpers import get_value_by_dot, hashdict
from mongomock.store import CollectionStore
from pymongo.errors import DuplicateKeyError, OperationFailure

Document = dict[str, Any]

OP_QUERY, OP_REPLY, OP_MSG = 2004, 1, 2013
MORE_TO_COME, HAS_CHECKSUM = 2, 1
REPLY_BYTES = 15_000_000
FIRST_BATCH, NEXT_BATCH = 101, 100_000
MOST_CANDIDATES = 200_000
VERSION = f"7.0.0-mongomock-{mongomock.__version__}"
# Python's dates end before MongoDB's.
NAIVE = CodecOptions(document_class=dict, tz_aware=False, datetime_conversion=DatetimeConversion.DATETIME_CLAMP)
INDEX_OPTIONS = {"unique", "sparse", "expireAfterSeconds", "partialFilterExpression"}


class CommandError(Exception):
    """What a command answers instead of a result."""

    def __init__(self, code: int, name: str, text: str) -> None:
        super().__init__(text)
        self.code, self.name = code, name


# ---- hash indexes: mongomock looks at every document of a collection otherwise


class HashIndexes:
    """For the fields of every index and their prefixes: which documents have which values."""

    def __init__(self) -> None:
        self._maps: dict[tuple[str, ...], tuple[dict[Any, set[Any]], set[Any]]] = {}
        self._keys: dict[Any, dict[tuple[str, ...], Any]] = {}
        self._order: dict[Any, int] = {}
        self._counter = itertools.count()

    def refresh(self, store: CollectionStore) -> None:
        """Build anew when the collection's indexes are others than before."""
        wanted = {("_id",)}
        for index in store.indexes.values():
            fields = tuple(field for field, _ in index["key"])
            wanted |= {fields[:length] for length in range(1, len(fields) + 1)}
        if set(self._maps) != wanted:
            self._maps = {fields: ({}, set()) for fields in wanted}
            self._keys = {}
            for document_id, document in store._documents.items():
                self.put(document_id, document)

    def put(self, document_id: Any, document: Document) -> None:
        self.drop(document_id)
        self._order.setdefault(document_id, next(self._counter))
        keys: dict[tuple[str, ...], Any] = {}
        for fields, (by_key, odd) in self._maps.items():
            try:
                key = tuple(_hashable(document, field) for field in fields)
                by_key.setdefault(key, set()).add(document_id)
                keys[fields] = key
            except TypeError:
                odd.add(document_id)
                keys[fields] = None
        self._keys[document_id] = keys

    def drop(self, document_id: Any) -> None:
        for fields, key in self._keys.pop(document_id, {}).items():
            by_key, odd = self._maps.get(fields, ({}, set()))
            if key is None:
                odd.discard(document_id)
            elif key in by_key:
                by_key[key].discard(document_id)
                if not by_key[key]:
                    del by_key[key]

    def forget(self, document_id: Any) -> None:
        self.drop(document_id)
        self._order.pop(document_id, None)

    def candidates(self, where: Any) -> list[Any] | None:
        """Ids of all documents that may match, in the order they came; None: any may."""
        if not isinstance(where, dict):
            return None
        best: set[Any] | None = None
        for fields, (by_key, odd) in self._maps.items():
            keys = _wanted_keys(where, fields)
            if keys is not None:
                found = odd.union(*(by_key.get(key, ()) for key in keys))
                best = found if best is None or len(found) < len(best) else best
        return None if best is None else sorted(best, key=self._order.__getitem__)

    def alike(self, document_id: Any, fields: tuple[str, ...]) -> Iterable[Any]:
        """Ids of the documents that have the same values there as this one, or odd ones."""
        key = self._keys[document_id].get(fields)
        by_key, odd = self._maps[fields]
        return list(self._keys) if key is None else (by_key.get(key, set()) | odd)


def _hashable(document: Document, field: str) -> Any:
    try:
        value = get_value_by_dot(document, field)
    except KeyError:
        return None
    hash(value)
    return value


def _wanted_keys(where: Document, fields: tuple[str, ...]) -> list[tuple[Any, ...]] | None:
    """The values that these fields must have, every combination; None where the filter does not say so."""
    keys: list[tuple[Any, ...]] = [()]
    for field in fields:
        value = where.get(field)
        if isinstance(value, dict) and len(value) == 1 and set(value) <= {"$in", "$eq"}:
            values = value["$in"] if "$in" in value else [value["$eq"]]
        else:
            values = [value]
        if any(item is None or isinstance(item, dict | list) or hasattr(item, "pattern") for item in values):
            return None
        if len(keys) * len(values) > MOST_CANDIDATES:
            return None
        keys = [(*key, item) for key in keys for item in values]
    return keys


def _hash_indexes(store: CollectionStore) -> HashIndexes:
    indexes = store.__dict__.setdefault("_hash_indexes", HashIndexes())
    indexes.refresh(store)
    return indexes


_set_document, _delete_document, _drop_all = (
    CollectionStore.__setitem__,
    CollectionStore.__delitem__,
    CollectionStore.drop,
)


def _put(store: CollectionStore, document_id: Any, document: Document) -> None:
    _set_document(store, document_id, document)
    _hash_indexes(store).put(document_id, document)


def _delete(store: CollectionStore, document_id: Any) -> None:
    _delete_document(store, document_id)
    _hash_indexes(store).forget(document_id)


def _drop(store: CollectionStore) -> None:
    _drop_all(store)
    store.__dict__.pop("_hash_indexes", None)


def _iter_documents(collection: Any, where: Any) -> Iterator[Document]:
    store = collection._store
    if not store._documents:
        filtering.filter_applies(where, {})  # a wrong filter is an error even when there is nothing
    ids = _hash_indexes(store).candidates(where)
    documents = list(store._documents.values()) if ids is None else [store._documents[found] for found in ids]
    return (document for document in documents if filtering.filter_applies(where, document))


def _ensure_uniques(collection: Any, new: Document) -> None:
    """mongomock calls this with every document that was added or changed."""
    store, indexes = collection._store, _hash_indexes(collection._store)
    document_id = hashdict(new["_id"]) if isinstance(new["_id"], dict) else new["_id"]
    indexes.put(document_id, new)
    for name, index in store.indexes.items():
        if index.get("unique"):
            _ensure_unique(collection, indexes, document_id, new, name, index)


def _ensure_unique(
    collection: Any, indexes: HashIndexes, document_id: Any, new: Document, name: str, index: Document
) -> None:
    fields = tuple(field for field, _ in index["key"])
    values = {field: _value(new, field) for field in fields}
    part = index.get("partialFilterExpression")
    if (index.get("sparse") and set(values.values()) == {None}) or (part and not filtering.filter_applies(part, new)):
        return
    for other_id in indexes.alike(document_id, fields):
        other = collection._store._documents[other_id]
        if other_id == document_id or (part and not filtering.filter_applies(part, other)):
            continue
        if filtering.filter_applies(values, other):
            text = f"E11000 duplicate key error collection: {collection.full_name} index: {name} dup key: {values}"
            raise DuplicateKeyError(text, 11000, {"keyPattern": dict(index["key"]), "keyValue": values})


def _value(document: Document, field: str) -> Any:
    try:
        return get_value_by_dot(document, field)
    except KeyError:
        return None


# ---- where mongomock differs from a server


def _extreme(keep_new: Callable[[Any, Any], bool]) -> Callable[[Any, str, Any], None]:
    """$min and $max in the order of BSON types: null < numbers < texts < booleans < dates."""

    def update(document: Any, field: str, value: Any) -> None:
        new, old = filtering.BsonComparable(value), filtering.BsonComparable(document.get(field))
        if field not in document or keep_new(new, old):
            document[field] = value

    return update


def patch_mongomock() -> None:
    """Once per process."""
    CollectionStore.__setitem__, CollectionStore.__delitem__, CollectionStore.drop = _put, _delete, _drop
    CollectionStore._remove_expired_documents = lambda store: None
    mock_collection.Collection._iter_documents = _iter_documents
    mock_collection.Collection._ensure_uniques = _ensure_uniques
    mock_collection._updaters["$min"] = _extreme(lambda new, old: new < old)
    mock_collection._updaters["$max"] = _extreme(lambda new, old: old < new)
    filtering.TYPE_MAP["null"] = lambda value: value is None


def run_pipeline(database: Any, name: str, pipeline: list[Document]) -> list[Document]:
    """An aggregation; a $match in front finds by index, and $unionWith is known."""
    documents, rest = None, list(pipeline)
    if rest and "$match" in rest[0]:
        documents = list(database[name].find(rest.pop(0)["$match"]))
    else:
        documents = list(database[name].find())
    for stage in rest:
        if "$unionWith" in stage:
            union = stage["$unionWith"]
            documents += run_pipeline(database, union["coll"], union["pipeline"])
        else:
            documents = list(mock_aggregate.process_pipeline(documents, database, [stage], None))
    return documents


# ---- commands

store = mongomock.MongoClient()
cursors: dict[int, tuple[str, list[Document]]] = {}
cursor_ids = itertools.count(1000)


def hello(database: Any, command: Document) -> Document:
    return {
        "helloOk": True, "ismaster": True, "isWritablePrimary": True, "readOnly": False, "maxWireVersion": 21,
        "minWireVersion": 0, "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000,
        "maxWriteBatchSize": 100_000, "localTime": datetime.now(UTC), "connectionId": 1,
        "logicalSessionTimeoutMinutes": 30, "ok": 1.0,
    }  # fmt: skip


def build_info(database: Any, command: Document) -> Document:
    return {"version": VERSION, "versionArray": [7, 0, 0, 0], "ok": 1.0}


def no_users(database: Any, command: Document) -> Document:
    raise CommandError(18, "AuthenticationFailed", "Authentication failed.")


def nothing(database: Any, command: Document) -> Document:
    return {"ok": 1.0}


def _write_error(position: int, error: Exception) -> Document:
    wrong: Document = {"index": position, "errmsg": str(error) or type(error).__name__}
    if isinstance(error, DuplicateKeyError):
        return wrong | {"code": 11000} | (error.details or {})
    if isinstance(error, CommandError | OperationFailure):
        return wrong | {"code": error.code or 2}
    return wrong | {"code": 2, "errmsg": f"{type(error).__name__}: {error}"}


def _each(command: Document, operations: list[Document], write: Callable[[Document, int], Document]) -> Document:
    """Run every operation, or up to the first error if ordered; what they answer, added up."""
    answer: Document = {"ok": 1.0, "n": 0}
    for position, operation in enumerate(operations):
        try:
            for name, value in write(operation, position).items():
                answer[name] = answer[name] + value if name in answer else value
        except Exception as error:
            answer.setdefault("writeErrors", []).append(_write_error(position, error))
            if command.get("ordered", True):
                break
    return answer


def insert(database: Any, command: Document) -> Document:
    def write(document: Document, position: int) -> Document:
        database[command["insert"]].insert_one(document)
        return {"n": 1}

    return _each(command, command["documents"], write)


def update(database: Any, command: Document) -> Document:
    def write(operation: Document, position: int) -> Document:
        changes, is_upsert = operation["u"], operation.get("upsert", False)
        _check_conflicts(changes)
        collection = database[command["update"]]
        if not any(name.startswith("$") for name in changes):
            change = collection.replace_one
        else:
            change = collection.update_many if operation.get("multi") else collection.update_one
        done = change(operation["q"], changes, upsert=is_upsert)
        if done.upserted_id is not None:
            return {"n": 1, "nModified": 0, "upserted": [{"index": position, "_id": done.upserted_id}]}
        return {"n": done.matched_count, "nModified": done.modified_count or 0}

    return {"nModified": 0} | _each(command, command["updates"], write)


def _check_conflicts(changes: Document) -> None:
    paths = [path for operator, fields in changes.items() if operator.startswith("$") for path in fields]
    for path in paths:
        if paths.count(path) > 1:
            text = f"Updating the path '{path}' would create a conflict at '{path}'"
            raise CommandError(40, "ConflictingUpdateOperators", text)


def delete(database: Any, command: Document) -> Document:
    def write(operation: Document, position: int) -> Document:
        collection = database[command["delete"]]
        drop = collection.delete_one if operation.get("limit") == 1 else collection.delete_many
        return {"n": drop(operation["q"]).deleted_count}

    return _each(command, command["deletes"], write)


def _cursor(
    namespace: str, documents: list[Document], size: int, *, cursor_id: int = 0, is_single: bool = False
) -> Document:
    """The next batch of `documents`; the rest waits for getMore."""
    count, total = 0, 0
    for document in documents[:size]:
        total += len(bson.encode(document))
        if count and total > REPLY_BYTES:
            break
        count += 1
    batch, rest = documents[:count], documents[count:]
    field = "nextBatch" if cursor_id else "firstBatch"
    cursors.pop(cursor_id, None)
    cursor_id = 0 if is_single or not rest else cursor_id or next(cursor_ids)
    if cursor_id:
        cursors[cursor_id] = (namespace, rest)
    return {"cursor": {field: batch, "id": bson.Int64(cursor_id), "ns": namespace}, "ok": 1.0}


def find(database: Any, command: Document) -> Document:
    cursor = database[command["find"]].find(command.get("filter") or {}, command.get("projection") or None)
    if command.get("sort"):
        cursor = cursor.sort(list(command["sort"].items()))
    documents = list(cursor)[command.get("skip", 0) :]
    if command.get("limit"):
        documents = documents[: abs(command["limit"])]
    size = command.get("batchSize", FIRST_BATCH)
    return _cursor(f"{database.name}.{command['find']}", documents, size, is_single=command.get("singleBatch", False))


def get_more(database: Any, command: Document) -> Document:
    if command["getMore"] not in cursors:
        raise CommandError(43, "CursorNotFound", f"cursor id {command['getMore']} not found")
    namespace, rest = cursors[command["getMore"]]
    return _cursor(namespace, rest, command.get("batchSize") or NEXT_BATCH, cursor_id=command["getMore"])


def kill_cursors(database: Any, command: Document) -> Document:
    for cursor_id in command["cursors"]:
        cursors.pop(cursor_id, None)
    return {"ok": 1.0}


def aggregate(database: Any, command: Document) -> Document:
    name = command["aggregate"]
    documents = run_pipeline(database, name, command["pipeline"])
    return _cursor(f"{database.name}.{name}", documents, command.get("cursor", {}).get("batchSize", FIRST_BATCH))


def count(database: Any, command: Document) -> Document:
    return {"n": database[command["count"]].count_documents(command.get("query") or {}), "ok": 1.0}


def distinct(database: Any, command: Document) -> Document:
    return {"values": list(database[command["distinct"]].distinct(command["key"], command.get("query"))), "ok": 1.0}


def create_indexes(database: Any, command: Document) -> Document:
    collection = database[command["createIndexes"]]
    for wanted in command["indexes"]:
        options = {name: value for name, value in wanted.items() if name in INDEX_OPTIONS}
        key, name = list(wanted["key"].items()), wanted["name"]
        _check_index(collection, key, name, options)
        try:
            collection.create_index(key, name=name, **options)
        except DuplicateKeyError as error:
            raise CommandError(11000, "DuplicateKey", str(error)) from error
    return {"ok": 1.0}


def _check_index(collection: Any, key: list[tuple[str, Any]], name: str, options: Document) -> None:
    """A server takes the same index twice, but no second one with the same name or the same keys."""
    for other, index in collection.index_information().items():
        same_key = list(index["key"]) == key
        if other == name and not same_key:
            raise CommandError(86, "IndexKeySpecsConflict", f"An existing index has the same name as {name}")
        if same_key and other != "_id_":
            has = {option: value for option, value in index.items() if option in INDEX_OPTIONS}
            if other != name or has != options:
                raise CommandError(85, "IndexOptionsConflict", f"Index {other} has the same keys, other options")


def list_indexes(database: Any, command: Document) -> Document:
    name = command["listIndexes"]
    if name not in database.list_collection_names():
        raise CommandError(26, "NamespaceNotFound", f"ns does not exist: {database.name}.{name}")
    found = [
        {"v": 2, "key": dict(index["key"]), "name": index_name}
        | {option: value for option, value in index.items() if option in INDEX_OPTIONS}
        for index_name, index in database[name].index_information().items()
    ]
    return _cursor(f"{database.name}.{name}", found, NEXT_BATCH)


def drop_indexes(database: Any, command: Document) -> Document:
    collection, wanted = database[command["dropIndexes"]], command["index"]
    if wanted == "*":
        collection.drop_indexes()
    else:
        indexes = list(collection._store.indexes.items())
        for name in [name for name, index in indexes if wanted in (name, dict(index["key"]))]:
            collection.drop_index(name)
    return {"ok": 1.0}


def change_collection(database: Any, command: Document) -> Document:
    """collMod, as far as it sets the time of a TTL index."""
    wanted = command["index"]
    for name, index in database[command["collMod"]]._store.indexes.items():
        if name == wanted.get("name") or dict(index["key"]) == wanted.get("keyPattern"):
            index["expireAfterSeconds"] = wanted["expireAfterSeconds"]
            return {"ok": 1.0}
    raise CommandError(27, "IndexNotFound", "cannot find index for collMod")


def drop_collection(database: Any, command: Document) -> Document:
    database.drop_collection(command["drop"])
    return {"ok": 1.0}


def drop_database(database: Any, command: Document) -> Document:
    store.drop_database(database.name)
    return {"ok": 1.0}


def list_collections(database: Any, command: Document) -> Document:
    found = [{"name": name, "type": "collection", "options": {}} for name in database.list_collection_names()]
    return _cursor(f"{database.name}.$cmd.listCollections", found, NEXT_BATCH)


def list_databases(database: Any, command: Document) -> Document:
    found = [{"name": name, "sizeOnDisk": 1, "empty": False} for name in store.list_database_names()]
    return {"databases": found, "totalSize": 1, "ok": 1.0}


COMMANDS: dict[str, Callable[[Any, Document], Document]] = {
    "hello": hello, "ismaster": hello, "isMaster": hello, "buildInfo": build_info, "buildinfo": build_info,
    "ping": nothing, "endSessions": nothing, "saslStart": no_users, "find": find, "getMore": get_more,
    "killCursors": kill_cursors, "aggregate": aggregate, "count": count, "distinct": distinct,
    "listIndexes": list_indexes, "listCollections": list_collections, "listDatabases": list_databases,
}  # fmt: skip
WRITES: dict[str, Callable[[Any, Document], Document]] = {
    "insert": insert, "update": update, "delete": delete, "createIndexes": create_indexes,
    "dropIndexes": drop_indexes, "collMod": change_collection, "drop": drop_collection,
    "dropDatabase": drop_database,
}  # fmt: skip


def run(command: Document, journal: BinaryIO | None = None) -> Document:
    """The answer to one command; never raises. A write is in the journal when it is answered."""
    name = next(iter(command))
    if "txnNumber" in command or "startTransaction" in command:
        text = "Transaction numbers are only allowed on a replica set member or mongos"
        return {"ok": 0.0, "code": 20, "codeName": "IllegalOperation", "errmsg": text}
    perform = COMMANDS.get(name) or WRITES.get(name)
    if perform is None:
        return {"ok": 0.0, "code": 59, "codeName": "CommandNotFound", "errmsg": f"no such command: '{name}'"}
    kept = {part: value for part, value in command.items() if part not in ("lsid", "$clusterTime")}
    body = bson.encode(kept) if journal is not None and name in WRITES else b""
    try:
        answer = perform(store[command.get("$db", "admin")], command)
    except Exception as error:
        wrong = _write_error(0, error)
        code_name = error.name if isinstance(error, CommandError) else "Failed"
        return {"ok": 0.0, "code": wrong["code"], "codeName": code_name, "errmsg": wrong["errmsg"]}
    if journal is not None and body:
        journal.write(body)
    return answer


# ---- the wire


def read_message(body: bytes) -> tuple[int, Document]:
    """Flags and command of an OP_MSG: one body section, and documents sent beside it."""
    (flags,) = struct.unpack_from("<I", body)
    position, end = 4, len(body) - (4 if flags & HAS_CHECKSUM else 0)
    command: Document = {}
    beside: Document = {}
    while position < end:
        kind = body[position]
        position += 1
        (size,) = struct.unpack_from("<i", body, position)
        if kind == 0:
            command = bson.decode(body[position : position + size], NAIVE)
        else:
            name_end = body.index(b"\0", position + 4)
            documents = bson.decode_all(body[name_end + 1 : position + size], NAIVE)
            beside[body[position + 4 : name_end].decode()] = documents
        position += size
    return flags, command | beside


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, journal: BinaryIO | None) -> None:
    """One connection: a command after the other."""
    try:
        while True:
            size, request_id, _, operation = struct.unpack("<iiii", await reader.readexactly(16))
            body = await reader.readexactly(size - 16)
            if operation == OP_MSG:
                flags, command = read_message(body)
                answer = struct.pack("<iB", 0, 0) + bson.encode(run(command, journal))
                if flags & MORE_TO_COME:
                    continue
            elif operation == OP_QUERY:
                command = bson.decode(body[body.index(b"\0", 4) + 9 :], NAIVE)
                answer = struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(run(command, journal))
            else:
                return
            kind = OP_MSG if operation == OP_MSG else OP_REPLY
            writer.write(struct.pack("<iiii", 16 + len(answer), 0, request_id, kind) + answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def replay(path: Path) -> None:
    """Do again what the journal says; what was cut off by a kill was not answered and is forgotten."""
    body = path.read_bytes() if path.exists() else b""
    position = 0
    while position + 4 <= len(body):
        (size,) = struct.unpack_from("<i", body, position)
        if position + size > len(body):
            break
        run(bson.decode(body[position : position + size], NAIVE))
        position += size
    if position < len(body):
        os.truncate(path, position)


async def main(port: int, journal_path: str = "") -> None:
    patch_mongomock()
    with ExitStack() as opened:
        journal: BinaryIO | None = None
        if journal_path:
            replay(Path(journal_path))
            journal = opened.enter_context(Path(journal_path).open("ab", buffering=0))
        server = await asyncio.start_server(
            lambda reader, writer: serve(reader, writer, journal), "127.0.0.1", port, limit=1 << 24
        )
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:3]))
