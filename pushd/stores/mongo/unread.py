"""How many notices users have not read, as MongoDB has it, and whose count this node may have changed there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from pushd.batched import batched
from pushd.model import UserId
from pushd.records import RecordState
from pushd.stores.mongo import receipt_queries
from pushd.stores.mongo.connection import Connection, Document
from pushd.stores.mongo.documents import PUSH_RECORDS, RECEIVE_RECORDS, date, number, stored_id, text
from pushd.user_ids import UserIds

IDS_AT_ONCE = 500
IDS_PER_BATCH = 1000
MOST = 10_000  # users; with more it is anybody


async def unread_counts(
    connection: Connection, user_ids: Collection[UserId], now_ms: int, ids: UserIds
) -> dict[UserId, int]:
    """Unread receive records per user, of notices neither expired by now nor revoked. Users with none are absent."""
    counts: dict[UserId, int] = {}
    receipts = connection.collection(RECEIVE_RECORDS)
    for chunk in batched(user_ids, IDS_AT_ONCE):
        pipeline = receipt_queries.unread(chunk, now_ms)

        async def work(pipeline: Sequence[Document] = pipeline) -> list[Document]:
            return await receipts.aggregate(pipeline, hint=dict(receipt_queries.BY_USER)).to_list(None)

        rows = await connection.read("unread_counts", work)
        counts.update((stored_id(row["_id"], ids), number(row["n"])) for row in rows)
        older = [stored_id(row["_id"], ids) for row in rows if number(row["older"])]
        for user_id, over in (await _over(connection, older, now_ms, ids)).items():
            counts[user_id] -= over
    return {user_id: count for user_id, count in counts.items() if count}


async def _over(connection: Connection, user_ids: Sequence[UserId], now_ms: int, ids: UserIds) -> Counter[UserId]:
    """How many unread receive records of version 1, which do not say so, are of notices that are over."""
    over: Counter[UserId] = Counter()
    if not user_ids:
        return over
    where = receipt_queries.unread_of(user_ids, now_ms) | {"message_type": None}

    async def records() -> list[Document]:
        fields = {"_id": 0, "user_id": 1, "message_id": 1}
        cursor = connection.collection(RECEIVE_RECORDS).find(where, fields, hint=receipt_queries.BY_USER)
        return await cursor.batch_size(IDS_PER_BATCH).to_list(None)

    users: dict[str, list[UserId]] = {}
    for row in await connection.read("unread_counts", records):
        users.setdefault(text(row.get("message_id")), []).append(stored_id(row.get("user_id"), ids))
    is_over = [{"expires_at": {"$lte": date(now_ms)}}, {"state": RecordState.REVOKED.value}]
    for chunk in batched(users, IDS_AT_ONCE):
        those = {"message_id": {"$in": chunk}, "$or": is_over}

        async def notices(those: Document = those) -> list[Document]:
            return await connection.collection(PUSH_RECORDS).find(those, {"_id": 0, "message_id": 1}).to_list(None)

        for document in await connection.read("unread_counts", notices):
            over.update(users[text(document.get("message_id"))])
    return over


class UnreadChanges:
    """The users of whom it may have changed since that was asked last."""

    def __init__(self, *, most: int = MOST) -> None:
        self._most = most
        self._user_ids: set[UserId] = set()
        self._is_anybody = False

    def note(self, user_ids: Iterable[UserId]) -> None:
        """Of these it may have."""
        if not self._is_anybody:
            self._user_ids.update(user_ids)
            if len(self._user_ids) > self._most:
                self.note_anybody()

    def note_anybody(self) -> None:
        """It may have of anybody."""
        self._is_anybody = True
        self._user_ids = set()

    def take(self) -> Collection[UserId] | None:
        """Whose it was; None: anybody's. From now on it is nobody's."""
        taken = None if self._is_anybody else self._user_ids
        self._user_ids, self._is_anybody = set(), False
        return taken
