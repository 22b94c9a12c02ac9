"""Mailboxes: per user a list of JSON elements, newest at the head (CONTRACT section 5)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import structlog

from pushd.batched import batched
from pushd.config.schema import Config, LimitsConfig
from pushd.errors import StartError, StoreError, StoreUnavailable
from pushd.model import MailboxItem, UserId
from pushd.ports import LeftAside, Observe
from pushd.stores.causes import Causes
from pushd.stores.guard import Guard
from pushd.stores.redis import elements, scripts
from pushd.stores.redis.batches import Batch, Call, Grouping, Places, Value, key_of, slotted
from pushd.stores.redis.client import RedisClient
from pushd.stores.redis.failures import is_refusal, translate
from pushd.stores.redis.scripts import Script
from pushd.stores.redis.writers import Writers

log = structlog.get_logger("pushd.stores.redis")

STORE = "mailbox"
DAY_S = 86_400
# What is grouped together: more makes fewer calls, less memory and a shorter repeat after a failure.
PAIRS_AT_ONCE = 50_000
ITEMS_AT_ONCE = 1000
BYTES_AT_ONCE = 1024 * 1024
REMOVALS_AT_ONCE = 2000
# So much of an answer takes the driver about 2 ms to take apart, and as long to decode: 500 usual elements.
READ_BYTES = 512 * 1024
DECODED_AT_ONCE = 128 * 1024
ELEMENT_COSTS = 256  # to decode the smallest one, in bytes of a large one
# Of a client's frame, what an acknowledgement needs around the id.
AROUND_AN_ID_BYTES = 64
# Connections beside those of the writers.
READERS = 8


class RedisMailbox:
    """ports.Mailbox and ports.Remote.

    A key that another program gave another type is left alone and logged: that user gets nothing saved, all others do.
    `left_aside` hears how many elements could not be used each time they are read.
    """

    def __init__(
        self,
        client: RedisClient,
        guard: Guard,
        config: Config,
        clock: Callable[[], int],
        left_aside: LeftAside = lambda _: None,
    ) -> None:
        mailbox, limits, delivery = config.mailbox, config.limits, config.delivery
        self._client = client
        self._guard = guard
        self._prefix = mailbox.key_prefix.encode()
        self._max_per_user = mailbox.max_per_user
        self._ttl_s = mailbox.ttl_days * DAY_S
        self._reader = elements.Reader(
            self._ttl_s * 1000, ZoneInfo(config.server.timezone), limits.max_frame_bytes - AROUND_AN_ID_BYTES
        )
        self._most_element_bytes = _most_element_bytes(limits)
        self._writers = Writers(delivery.min_workers, delivery.max_workers)
        self._clock = clock
        self._left_aside = left_aside
        self._saving = asyncio.Lock()
        self._causes = Causes()  # of complaints: texts, and keys

    @property
    def store(self) -> str:
        """Its name in health and metrics."""
        return STORE

    @property
    def writers(self) -> int:
        """How many chunks may be on their way at the same time: it grows with what waits to be saved."""
        return self._writers.count

    async def check(self) -> None:
        """Return when the server answers and has what is needed; raises StartError when it never can.

        Tries every command that is needed, on a key that nobody has.
        """
        call = Call([self._prefix + b"check"], ())
        try:
            await self._guard.call("check", partial(self._run, scripts.PROBE, lambda _: [call]), is_probe=True)
        except StoreError as error:
            if not isinstance(error, StoreUnavailable) or is_refusal(error.__cause__):
                raise StartError(f"mailbox.url: {str(error).removeprefix(f'{STORE}: ')}") from error
            raise

    async def save(self, saves: Sequence[tuple[MailboxItem, Collection[UserId]]], *, is_first: bool = False) -> None:
        """Put each item into the mailboxes of its users, in the order of the calls.

        Users are written in chunks: repeat the whole call when it raises.

        Looking whether an item waits already costs Redis 10 us where 10 others wait, 60 where 98 do.
        """
        async with self._saving:  # in the order of the calls
            waiting = sum(len(user_ids) for _, user_ids in saves)
            try:
                for values, parts in self._windows(saves):
                    self._writers.adapt(waiting // self._client.keys_at_once)
                    chunks = (await self._grouped(values, parts)).chunks(self._client.keys_at_once)
                    # One window after the other, and every user in one chunk of it: this keeps each user's order.
                    await self._writers.write_all(chunks, partial(self._save_chunk, may_repeat=not is_first))
                    waiting -= sum(len(user_ids) for _, user_ids in parts)
            finally:
                self._writers.adapt(0)

    async def read(self, user_ids: Collection[UserId]) -> dict[UserId, list[MailboxItem]]:
        """What waits for each of these users, oldest first.

        One round trip for 500 users, unless they have more than READ_BYTES waiting.
        """
        found: dict[UserId, list[MailboxItem]] = {}
        for chunk in batched(dict.fromkeys(user_ids), self._client.keys_at_once):
            users = {key_of(self._prefix, user_id): user_id for user_id in chunk}
            while users:
                split = partial(self._read_calls, list(users.values()))
                answers = await self._guard.read("read", partial(self._run, scripts.READ, split))
                for call, answer in answers:
                    for _ in self._take_in(call, answer, users, found):
                        await asyncio.sleep(0)
        return found

    async def remove(self, removals: Mapping[UserId, Collection[str]]) -> None:
        """Take these items out. An element without an id goes by the one `read` gave it."""
        limits = (self._max_per_user, self._most_element_bytes)
        for batch in _removals(removals):
            for chunk in batch.chunks(self._client.keys_at_once):
                await self._change("remove", scripts.REMOVE, chunk, limits)

    async def replace(self, item: MailboxItem, user_ids: Collection[UserId]) -> None:
        """Put `item` in place of what waits under its id."""
        value = (elements.encode(item, self._clock()), item.message_id)
        for chunk in Batch([((0,), list(dict.fromkeys(user_ids)))], [value]).chunks(self._client.keys_at_once):
            await self._change("replace", scripts.REPLACE, chunk, (self._max_per_user,))

    async def clear(self, user_id: UserId) -> int:
        """Empty one user's mailbox; how many items were in it. Counts what is in the list, be it past its time."""
        call = Call([key_of(self._prefix, user_id)], ())
        ((_, count),) = await self._guard.call("clear", partial(self._run, scripts.CLEAR, lambda _: [call]))
        return int(count)

    async def purge(self, now_ms: int, limit: int) -> int:
        """Drop at most `limit` items past their time; how many were dropped.

        Redis drops a user's mailbox `ttl_days` after the last save.
        """
        return 0

    # ---- saving

    def _windows(
        self, saves: Sequence[tuple[MailboxItem, Collection[UserId]]]
    ) -> Iterator[tuple[list[Value], list[tuple[int, list[UserId]]]]]:
        """Portions that fit into memory: values by place, and per place users."""
        values: list[Value] = []
        parts: list[tuple[int, list[UserId]]] = []
        pairs_left, bytes_left = PAIRS_AT_ONCE, BYTES_AT_ONCE
        for item, all_users in saves:
            value = (elements.encode(item, self._clock()), item.message_id)
            users = iter(all_users)
            while user_ids := list(islice(users, pairs_left)):
                parts.append((len(values), user_ids))
                values.append(value)
                pairs_left, bytes_left = pairs_left - len(user_ids), bytes_left - len(value[0])
                if pairs_left <= 0 or bytes_left <= 0 or len(values) >= ITEMS_AT_ONCE:
                    yield values, parts
                    values, parts = [], []
                    pairs_left, bytes_left = PAIRS_AT_ONCE, BYTES_AT_ONCE
        if parts:
            yield values, parts

    async def _grouped(self, values: list[Value], parts: list[tuple[int, list[UserId]]]) -> Batch:
        grouping = Grouping(values, parts, self._max_per_user)
        for _ in grouping.steps():
            await asyncio.sleep(0)
        return grouping.batch

    async def _save_chunk(self, chunk: Batch, *, may_repeat: bool) -> None:
        await self._change("save", scripts.SAVE, chunk, (self._max_per_user, self._ttl_s, int(may_repeat)))

    async def _change(self, operation: str, script: Script, chunk: Batch, head: Sequence[int]) -> None:
        left = [chunk]
        while left:
            sent: list[Batch] = []

            def split(is_cluster: bool, left: list[Batch] = left, sent: list[Batch] = sent) -> list[Call]:
                sent[:] = [part for batch in left for part in batch.by_slot(self._prefix)] if is_cluster else left
                return [batch.call(self._prefix, head) for batch in sent]

            answers = await self._guard.call(operation, partial(self._run, script, split))
            left = []
            for batch, (call, (done, *refused)) in zip(sent, answers, strict=True):
                for index in refused:
                    self._complain(call.keys[index - 1], "mailbox key is no list; nothing is written there")
                if done < len(call.keys):
                    left.append(batch.after(done))

    # ---- reading

    def _read_calls(self, user_ids: Sequence[UserId], is_cluster: bool) -> list[Call]:
        portions = slotted(user_ids, self._prefix).values() if is_cluster else [user_ids]
        limits = (READ_BYTES // len(portions), self._max_per_user, self._most_element_bytes)
        return [Call([key_of(self._prefix, user_id) for user_id in portion], limits) for portion in portions]

    def _take_in(
        self, call: Call, answer: list[Any], users: dict[bytes, UserId], found: dict[UserId, list[MailboxItem]]
    ) -> Iterator[None]:
        """Put what `answer` says into `found`, in steps of milliseconds, and take who was read out of `users`."""
        now_ms = self._clock()
        left = DECODED_AT_ONCE
        for index, waiting in zip(answer[1::2], answer[2::2], strict=True):
            key = call.keys[index - 1]
            if not isinstance(waiting, list):
                self._complain(key, "mailbox key is no list; nothing is read there")
                continue
            reading = self._reader.begin(now_ms)
            for element in reversed(waiting):
                reading.add(element)
                left -= ELEMENT_COSTS + (len(element) if isinstance(element, bytes) else 0)
                if left <= 0:
                    left = DECODED_AT_ONCE
                    yield
            if reading.unusable:
                self._leave_aside(key, reading.unusable)
            if items := reading.items():
                found[users[key]] = items
        for key in call.keys[: answer[0]]:
            del users[key]
        if users:
            yield

    # ---- both

    async def _run(self, script: Script, split: Callable[[bool], Sequence[Call]]) -> list[tuple[Call, Any]]:
        return await self._client.run(script, split)

    def _leave_aside(self, key: bytes, unusable: Counter[str]) -> None:
        """They stay where they are until they are trimmed."""
        self._left_aside(unusable.total())
        causes = sorted(cause for cause in unusable if self._causes.is_new(cause))
        if causes:
            event = "mailbox has elements that cannot be read"
            log.error(event, key=key.decode(errors="replace"), unreadable=unusable.total(), causes=causes)

    def _complain(self, key: bytes, event: str) -> None:
        if self._causes.is_new(key):
            log.error(event, key=key.decode(errors="replace"))


def _removals(removals: Mapping[UserId, Collection[str]]) -> Iterator[Batch]:
    """Batches of about REMOVALS_AT_ONCE ids."""
    places: dict[str, int] = {}
    groups: dict[Places, list[UserId]] = {}
    pairs = 0
    for user_id, message_ids in removals.items():
        wanted = [message_id for message_id in message_ids if message_id]
        if not wanted:
            continue
        mine = tuple({places.setdefault(message_id, len(places)): None for message_id in wanted})
        groups.setdefault(mine, []).append(user_id)
        pairs += len(mine)
        if pairs >= REMOVALS_AT_ONCE:
            yield Batch(list(groups.items()), [(message_id,) for message_id in places])
            places, groups, pairs = {}, {}, 0
    if groups:
        yield Batch(list(groups.items()), [(message_id,) for message_id in places])


@asynccontextmanager
async def open_mailbox(
    config: Config, observe: Observe, clock: Callable[[], int], left_aside: LeftAside = lambda _: None
) -> AsyncIterator[RedisMailbox]:
    """Connects when first asked. Raises StartError for a URL that cannot be used."""
    client = RedisClient(config.mailbox.url, "mailbox.url", config.delivery.max_workers + READERS)
    try:
        yield RedisMailbox(client, Guard(STORE, observe, translate(STORE)), config, clock, left_aside)
    finally:
        await client.aclose()


def _most_element_bytes(limits: LimitsConfig) -> int:
    """What cannot be sent to any client, nor be our own."""
    own = limits.max_data_bytes + 12 * limits.max_content_chars
    return max(own, limits.max_pending_bytes) + 4096
