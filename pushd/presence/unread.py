"""Tells connections that asked for it how many notices their users have not read, whenever that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from pushd._fastpath import Connection, Hub
from pushd.batched import batched
from pushd.errors import StoreError
from pushd.model import UserId
from pushd.ports import Inbox, RecordStore
from pushd.protocol import frames
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics
from pushd.turns import Slice

EVERY_S = 1.0
LOOKS = 4
COUNTED_AT_ONCE = 250  # users
UNKNOWN = -1  # a count that is none


class Followed:
    """A user some of whose connections are told, and the count they were told last."""

    __slots__ = ("connections", "count")

    def __init__(self, count: int) -> None:
        self.connections: list[Connection] = []
        self.count = count


class UnreadFrames:
    """Sends `unread` frames to the connections that were opened with `unread=1`, at most one a second to each.

    Nobody says when a count changes: the store is asked several times in `every_s` whose may have. So long after the
    first one, those are counted, and who was told another number is told this one: ten broadcasts within a second are
    one frame.
    """

    def __init__(
        self, hub: Hub, inbox: Inbox, records: RecordStore, metrics: Metrics, *, every_s: float = EVERY_S
    ) -> None:
        self._hub = hub
        self._inbox = inbox
        self._records = records
        self._metrics = metrics
        self._every_s = every_s
        self._asked: set[Connection] = set()  # and not greeted yet: the hello comes first
        self._followed: dict[UserId, Followed] = {}
        self._unsure: set[UserId] = set()  # to be counted next time, whatever the store says
        self._is_anybody = False  # so is everybody
        self._frames: dict[tuple[int, int], bytes] = {}  # of one sweep, by count and dialect

    def follow(self, connection: Connection) -> None:
        """This one wants to be told, from its hello on."""
        self._asked.add(connection)

    def greeted(self, connection: Connection, count: int) -> None:
        """Its hello went out, with this count, which may be of an earlier moment."""
        if connection not in self._asked:
            return
        self._asked.discard(connection)
        followed = self._followed.get(connection.user_id)
        if followed is None:
            followed = self._followed[connection.user_id] = Followed(count)
        elif followed.count != count:
            followed.count = UNKNOWN
        followed.connections.append(connection)
        self._unsure.add(connection.user_id)

    def gone(self, connection: Connection) -> None:
        """It is closed."""
        if not self._followed and not self._asked:
            return
        self._asked.discard(connection)
        followed = self._followed.get(connection.user_id)
        if followed is not None and connection in followed.connections:
            followed.connections.remove(connection)
            if not followed.connections:
                del self._followed[connection.user_id]

    async def run(self) -> None:
        """Tells until it is cancelled."""
        while True:
            await asyncio.sleep(self._every_s / LOOKS)
            try:
                if self._is_changed():
                    await asyncio.sleep(self._every_s)
                    await self.sweep()
            except Exception as error:  # whose counts changed is not known now
                self._is_anybody = True
                faults.noted(self._metrics, "unread", error)

    async def sweep(self) -> None:
        """Tells those whose count is not what they were told. What cannot be counted now is counted next time."""
        if not self._followed:
            return
        self._frames.clear()
        due = self._due()
        for user_ids in batched(due, COUNTED_AT_ONCE):
            try:
                await self._tell(user_ids, await self._records.unread_counts(user_ids))
            except StoreError:  # it is away, which its health says
                self._unsure.update(user_ids)
            except Exception as error:
                self._unsure.update(user_ids)
                faults.noted(self._metrics, "unread", error)

    def _due(self) -> Collection[UserId]:
        """Whose counts are not known for sure."""
        self._is_changed()
        unsure, self._unsure = self._unsure, set()
        if not self._is_anybody:
            return [*unsure]
        self._is_anybody = False
        return [*self._followed]

    def _is_changed(self) -> bool:
        """Whether there is anybody whose count is not known for sure."""
        if not self._followed:
            return False
        changed = self._inbox.unread_changed()
        if changed is None:
            self._is_anybody = True
        else:
            self._unsure.update(changed)
        self._unsure.intersection_update(self._followed)
        return self._is_anybody or bool(self._unsure)

    async def _tell(self, user_ids: Collection[UserId], counts: dict[UserId, int]) -> None:
        one_slice = Slice()
        for user_id in user_ids:
            followed, count = self._followed.get(user_id), counts.get(user_id, 0)
            if followed is None or followed.count == count:
                continue
            await one_slice.rest()
            followed.count = count
            for connection in tuple(followed.connections):
                self._hub.send(connection, self._frame(count, connection.dialect))

    def _frame(self, count: int, dialect: int) -> bytes:
        frame = self._frames.get((count, dialect))
        if frame is None:
            frame = self._frames[count, dialect] = frames.frame(frames.UnreadFrame(count), dialect)
        return frame
