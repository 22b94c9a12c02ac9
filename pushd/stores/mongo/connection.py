"""One store's connection to MongoDB: a client of its own, how long each kind of call may take, what its errors mean."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote

import pymongo
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    DocumentTooLarge,
    ExecutionTimeout,
    InvalidURI,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
)

from pushd.errors import StartError, StoreError, StoreLost, StoreUnavailable
from pushd.ports import Observe
from pushd.stores.guard import Guard
from pushd.urls import is_secret_option
from pushd.user_ids import INTEGERS, STRINGS, UserIds

T = TypeVar("T")
Document = dict[str, Any]
Write = pymongo.InsertOne[Document] | pymongo.UpdateOne | pymongo.UpdateMany
Collection = AsyncIOMotorCollection[Document]

MOST_TEXT = 300
QUICK_S = 1.0
# A bulk of 500 upserts takes a healthy server some tens of milliseconds; a busy disk must not make it fail half done.
WRITE_S = 3.0
# Counting looks at every receive record that is counted.
COUNT_S = 10.0
# Building an index over what another program left takes as long as it takes, but not for ever.
BUILD_S = 300.0
# A call that may take long is not begun with a server that has been silent for so long: it is asked for a sign of life.
SILENCE_S = 1.0
# The driver gives up first, since it knows why; the guard is for a driver that does not.
GRACE_S = 0.25

AUTHENTICATION_FAILED, UNAUTHORIZED, DUPLICATE_KEY = 18, 13, 11000
# What is wrong with a document or command itself stays wrong however often it is tried: BadValue, FailedToParse,
# TypeMismatch, Overflow, the paths and names of fields, ImmutableField, DocumentValidationFailure, sizes.
REFUSALS = frozenset(
    {2, 9, 14, 15, 40, 52, 55, 56, 57, 66, 121, 10334, 17280, 17419, 17420, 28, 54, 51091, DUPLICATE_KEY}
)

# Dates are milliseconds on both sides: no time zones, and no date of another program is out of range.
CODEC: CodecOptions[Document] = CodecOptions(
    tz_aware=True,
    unicode_decode_error_handler="replace",
    datetime_conversion=DatetimeConversion.DATETIME_MS,
)


class Done(NamedTuple):
    """What became of a bulk write: how many documents it found, how many its upserts made, and the duplicate-key
    errors (`index`, `errmsg`)."""

    matched: int
    made: int
    duplicates: list[Document]


class Connection:
    """The collections of one store. Every call is timed, given up in time and not tried while the server is away."""

    def __init__(self, store: str, key: str, url: str, database: str, observe: Observe) -> None:
        self.store = store
        self._key = key
        self._secrets = _secrets(url)
        try:
            limits = {"timeoutMS": int(QUICK_S * 1000), "serverSelectionTimeoutMS": int(QUICK_S * 1000)}
            options: Document = {name: value for name, value in limits.items() if name.lower() not in _options(url)}
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # an option that the driver would ignore
                self._client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(url, appname="pushd", **options)
            self._database = self._client.get_database(database, codec_options=CODEC)
        except (InvalidURI, ConfigurationError, PyMongoError, ValueError, TypeError, UserWarning) as error:
            raise StartError(f"{key}: {self.text(error)}") from None
        quick_s = self._client.delegate.options.timeout or QUICK_S
        self._quick_s, self._write_s, self._count_s = quick_s, max(quick_s, WRITE_S), max(quick_s, COUNT_S)
        self._guard = Guard(store, observe, self._meaning, BUILD_S + 2 * GRACE_S)
        self._bulk = asyncio.Semaphore(1)
        self._under_way: set[asyncio.Future[Any]] = set()
        self._answered_at = 0.0

    def collection(self, name: str) -> Collection:
        """A collection, for `work`."""
        return self._database[name]

    async def command(self, command: Document) -> Document:
        """One command to the database."""
        return dict(await self._database.command(command))

    async def read(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        """What should take milliseconds. Raises StoreError and its kinds."""
        return await self._call(operation, work, self._quick_s)

    async def count(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        """What looks at many documents."""
        return await self._call(operation, work, self._count_s)

    async def change(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        """What writes."""
        return await self._call(operation, work, self._write_s)

    async def build(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        """What may take minutes."""
        return await self._call(operation, work, BUILD_S)

    async def probe(self, work: Callable[[], Awaitable[T]]) -> T:
        """What is tried also while the server is away. Raises StartError for credentials that are wrong."""
        try:
            return await self._call("check", work, self._quick_s, is_probe=True)
        except StoreUnavailable as error:
            raise self._credentials_error(error) or error from error.__cause__

    async def _call(
        self, operation: str, work: Callable[[], Awaitable[T]], within_s: float, *, is_probe: bool = False
    ) -> T:
        if within_s > self._quick_s and monotonic() - self._answered_at > SILENCE_S:
            await self._call("ping", lambda: self.command({"ping": 1}), self._quick_s)

        async def limited() -> T:
            try:
                async with asyncio.timeout(within_s + GRACE_S):
                    with pymongo.timeout(within_s):
                        return await asyncio.shield(self._begun(work))
            except TimeoutError as error:
                raise StoreLost(self.store, f"{operation}: no answer within {within_s:g} s") from error

        result = await self._guard.call(operation, limited, is_probe=is_probe)
        self._answered_at = monotonic()
        return result

    def _begun(self, work: Callable[[], Awaitable[T]]) -> asyncio.Future[T]:
        """The driver goes on with what nobody waits for any more, and somebody must hear of its failure."""

        def ended(call: asyncio.Future[T]) -> None:
            self._under_way.discard(call)
            if not call.cancelled():
                call.exception()

        call = asyncio.ensure_future(work())
        self._under_way.add(call)
        call.add_done_callback(ended)
        return call

    def writing(self) -> asyncio.Semaphore:
        """Who writes much holds this: two bulk writes at once would add up how long each holds up the loop."""
        return self._bulk

    async def bulk(self, operation: str, collection: str, writes: Sequence[Write], refused: list[StoreError]) -> Done:
        """Do these, in any order.

        For the holder of `writing`. What can never be written is added to `refused`, and all else is done. Cost: 5 to
        10 us of CPU a write, in the driver's thread. Raises StoreUnavailable.
        """

        async def work() -> Done:
            try:
                result = await self.collection(collection).bulk_write(writes, ordered=False)
            except BulkWriteError as error:
                return self._partly_done(error, refused)
            return Done(result.matched_count, result.upserted_count, [])

        try:
            return await self.change(operation, work)
        except StoreUnavailable:
            raise
        except StoreError as error:
            if len(writes) == 1:
                refused.append(error)
                return Done(0, 0, [])
        # The driver cannot encode one of them.
        middle = len(writes) // 2
        first = await self.bulk(operation, collection, writes[:middle], refused)
        second = await self.bulk(operation, collection, writes[middle:], refused)
        moved = [{**wrong, "index": wrong["index"] + middle} for wrong in second.duplicates]
        return Done(first.matched + second.matched, first.made + second.made, first.duplicates + moved)

    def _partly_done(self, error: BulkWriteError, refused: list[StoreError]) -> Done:
        """Raises StoreUnavailable for what may be written later."""
        details: Document = dict(error.details or {})
        if details.get("writeConcernErrors"):
            raise StoreUnavailable(self.store, f"write concern: {details['writeConcernErrors'][0].get('errmsg')}")
        duplicates: list[Document] = []
        for wrong in details.get("writeErrors", []):
            code, said = wrong.get("code"), " ".join(str(wrong.get("errmsg")).split())[:MOST_TEXT]
            if code == DUPLICATE_KEY:
                duplicates.append(wrong)
            elif code in REFUSALS:
                refused.append(StoreError(self.store, f"write refused: {said}"))
            else:
                raise StoreUnavailable(self.store, said) from error
        return Done(details.get("nMatched", 0), details.get("nUpserted", 0), duplicates)

    async def require_version(self, least: tuple[int, int]) -> None:
        """Raises StartError for a server that is older."""
        found = await self.probe(lambda: self.command({"buildInfo": 1}))
        if tuple(found.get("versionArray", least)[:2]) < least:
            needed = ".".join(map(str, least))
            raise StartError(f"{self._key}: MongoDB {found.get('version')} is too old: {needed} is needed")

    async def require_kind(self, collection: str, ids: UserIds) -> None:
        """Raises StartError for a collection whose first document has an id of the other kind."""

        async def work() -> Document | None:
            return await self.collection(collection).find_one({}, {"_id": 0, "user_id": 1})

        user_id = (await self.read("check", work) or {}).get("user_id")
        found = STRINGS if isinstance(user_id, str) else INTEGERS
        if isinstance(user_id, str | int) and found is not ids:
            raise StartError(
                f"{self._key}: collection {collection}: found {found.kind} user ids, expected {ids.kind} ones"
                f' (directory.user_ids = "{ids.kind}"): another records.database is needed,'
                " or the former directory.user_ids"
            )

    def text(self, error: BaseException) -> str:
        """What the driver says, on one line, without the password."""
        said = " ".join(str(error).split()) or type(error).__name__
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return said[:MOST_TEXT]

    def _meaning(self, error: Exception) -> StoreError | None:
        match error:
            case NotPrimaryError():
                return StoreUnavailable(self.store, self.text(error))
            case AutoReconnect() | ExecutionTimeout():
                return StoreLost(self.store, self.text(error))
            case OperationFailure() if error.code in REFUSALS:
                return StoreError(self.store, self.text(error))
            case DocumentTooLarge() | BSONError() | OverflowError():
                return StoreError(self.store, self.text(error))
            case PyMongoError():
                return StoreUnavailable(self.store, self.text(error))
        return None

    def _credentials_error(self, error: StoreUnavailable) -> StartError | None:
        cause = error.__cause__
        if isinstance(cause, OperationFailure) and cause.code in (AUTHENTICATION_FAILED, UNAUTHORIZED):
            return StartError(f"{self._key}: MongoDB does not let us in: {self.text(cause)}")
        return None

    async def aclose(self) -> None:
        """Takes two seconds at most, also when the server does not answer."""

        def close() -> None:
            with pymongo.timeout(QUICK_S):
                self._client.delegate.close()

        await asyncio.to_thread(close)
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=QUICK_S)


def _options(url: str) -> set[str]:
    """The names of the options in a URL, in lower case: there they matter in no case."""
    return {name.lower() for name, _ in parse_qsl(url.partition("?")[2], keep_blank_values=True)}


def _secrets(url: str) -> list[str]:
    """The password in a URL, and what passwords its options have, as they are written there and as they are meant."""
    credentials = url.partition("://")[2].rpartition("@")[0]
    options = [option.partition("=") for option in url.partition("?")[2].split("&")]
    passwords = [credentials.partition(":")[2], *(value for name, _, value in options if is_secret_option(name))]
    return [secret for password in passwords for secret in {password, unquote(password)} if secret]


@asynccontextmanager
async def connect(store: str, key: str, url: str, database: str, observe: Observe) -> AsyncIterator[Connection]:
    """A connection for one store until the end of the block; `key` names it in the configuration. Raises StartError."""
    connection = Connection(store, key, url, database, observe)
    try:
        yield connection
    finally:
        await connection.aclose()
