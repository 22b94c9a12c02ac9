"""What waits for absent users: a mailbox shown, and emptied."""

from __future__ import annotations

from typing import Any

import msgspec

from pushd.api.answers import AnswerTurns, without_empty
from pushd.api.endpoint import Call
from pushd.api.forms import UserQuery
from pushd.clock import Clock
from pushd.config.current import CurrentConfig
from pushd.http.long_answers import Long, encoded
from pushd.local_time import date_and_time
from pushd.model import MailboxItem, UserId
from pushd.ports import Mailbox
from pushd.writing.writers import Writers


class OfflineMessage(msgspec.Struct):
    """A notice that waits."""

    type: str
    content: str
    data: Any
    time: str
    ts: int
    message_id: str
    priority: int
    need_confirm: bool
    saved_at: int
    title: str | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType = msgspec.UNSET
    tags: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    version: int | msgspec.UnsetType = msgspec.UNSET  # from 2 on


class OfflineMessages(msgspec.Struct):
    """A mailbox, newest first."""

    user_id: UserId
    total_count: int
    offline_messages: list[OfflineMessage]
    query_time: str


class Cleared(msgspec.Struct):
    """A mailbox that was emptied."""

    user_id: UserId
    cleared_count: int


def offline_message(item: MailboxItem) -> OfflineMessage:
    """What waits, without what is not for people."""
    fields = without_empty(msgspec.structs.asdict(item), "title", "url", "tags")
    del fields["expires_ms"]
    if item.version < 2:
        del fields["version"]
    return OfflineMessage(**fields)


class MailboxHandlers:
    """Shows mailboxes and empties them."""

    def __init__(
        self, mailbox: Mailbox, writers: Writers, current: CurrentConfig, clock: Clock, turns: AnswerTurns
    ) -> None:
        self._mailbox = mailbox
        self._writers = writers
        self._current = current
        self._wall_ms = clock.wall_ms
        self._turns = turns

    async def show(self, call: Call[UserQuery, None]) -> Long:
        """GET /notification/offline-messages."""
        user_id = call.user(call.query.user_id)
        await self._writers.mailboxes_written()
        async with self._turns.mailboxes.turn(call.identity.user_id):
            items = (await self._mailbox.read([user_id])).get(user_id, [])
            items.reverse()
            total_count = len(items)
            messages = await encoded(items, offline_message)
        return Long(
            OfflineMessages(
                user_id=user_id,
                total_count=total_count,
                offline_messages=messages,
                query_time=date_and_time(self._wall_ms(), self._current.timezone),
            )
        )

    async def clear(self, call: Call[UserQuery, None]) -> Cleared:
        """DELETE /notification/offline-messages."""
        user_id = call.user(call.query.user_id)
        await self._writers.mailboxes_written()
        return Cleared(user_id=user_id, cleared_count=await self._mailbox.clear(user_id))
