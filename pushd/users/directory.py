"""The directory behind a cache: who exists, and whom a target means."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable
from itertools import islice
from typing import Any

from pushd.config.current import CurrentConfig
from pushd.errors import StoreError
from pushd.model import Target, TargetKind, User, UserId
from pushd.ports import Directory

ALL = "all"
GROUPS = "groups:"  # what keys of these lists begin with
UNKNOWN_TTL_S = 10.0
LISTS_MOST = 256  # id lists remembered
LISTED_MOST = 4_000_000  # ids in them

# From when it is stale, and who the user is; None: nobody whom the directory knows.
Entry = tuple[float, User | None]

_NOT_REMEMBERED: Entry = (0.0, None)


class CachedDirectory:
    """Users and lists of ids by target (LRU with TTL), each asked for once at a time, stale while the store is down.

    A user learned from a connection is known at once; one added to the store by others within
    `directory.cache_ttl_s`, or UNKNOWN_TTL_S when asked for before. At most `lists_most` id lists are remembered, and
    `listed_most` ids in them.
    """

    def __init__(
        self,
        directory: Directory,
        current: CurrentConfig,
        now: Callable[[], float],
        *,
        lists_most: int = LISTS_MOST,
        listed_most: int = LISTED_MOST,
    ) -> None:
        self._directory = directory
        self._current = current
        self._now = now
        self._lists_most = lists_most
        self._listed_most = listed_most
        self._users: OrderedDict[UserId, Entry] = OrderedDict()  # the least recently used first
        self._asked: dict[UserId, asyncio.Task[dict[UserId, User]]] = {}  # whom the store is being asked for
        self._ids: OrderedDict[str, tuple[float, list[UserId]]] = OrderedDict()  # the least recently used first
        self._listed: set[UserId] = set()  # everybody who was ever in the list of all
        self._learned: dict[UserId, int] = {}  # whoever was connected: a hash of what the last token said
        self._loading: dict[str, asyncio.Task[list[UserId]]] = {}
        self.version = 0  # another one when it has learned that users have other names or roles

    def cached_ids(self, target: Target) -> list[UserId] | None:
        """The recipients of a target, if that can be said without asking the store. Not to be changed."""
        if target.kind is TargetKind.CUSTOM:
            return list(target.user_ids)
        if target.kind is TargetKind.ONLINE:
            return []  # whoever is connected, known or not
        key, _ = self._query(target)
        entry = self._ids.get(key)
        if entry is None:
            return None
        self._ids.move_to_end(key)
        return entry[1] if entry[0] > self._now() else None

    async def ids(self, target: Target) -> list[UserId]:
        """The recipients of a target; stale ones while the store is down. Raises StoreError without any."""
        cached = self.cached_ids(target)
        if cached is not None:
            return cached
        key, ask = self._query(target)
        try:
            return await self._load(key, ask)
        except StoreError:
            entry = self._ids.get(key)
            if entry is None:
                raise
            strangers = self._learned.keys() - self._listed if key == ALL else ()
            return sorted(self._listed.union(strangers)) if strangers else entry[1]

    async def users(self, user_ids: Collection[UserId]) -> dict[UserId, User]:
        """The known ones of these users; while the store is down those that are remembered, however old.

        Remembered ones cost a fraction of a microsecond each. Of more than `directory.cache_size` the store is asked
        for the excess every time.
        """
        now = self._now()
        found: dict[UserId, User] = {}
        stale: dict[UserId, User] = {}
        missing: list[UserId] = []
        entries = self._users
        for user_id in user_ids:
            entry = entries.get(user_id)
            if entry is None:
                missing.append(user_id)
                continue
            entries.move_to_end(user_id)
            ends, user = entry
            if ends <= now:
                missing.append(user_id)
            if user is not None:
                (found if ends > now else stale)[user_id] = user
        if not missing:
            return found
        return found | await self._ask_for(missing, stale, len(user_ids) - len(missing))

    async def _ask_for(self, user_ids: list[UserId], stale: dict[UserId, User], remembered: int) -> dict[UserId, User]:
        """The known ones of these; those whom somebody else is asking for come with that answer.

        `stale` is for those about whom the store says nothing; `remembered`: how many entries the caller has just
        used, which are not to make room for these.
        """
        new = [user_id for user_id in dict.fromkeys(user_ids) if user_id not in self._asked]
        if new:
            task = asyncio.ensure_future(self._fetch_users(new, remembered))
            task.add_done_callback(_retrieve)
            self._asked.update(dict.fromkeys(new, task))
        asked = [(user_id, self._asked[user_id]) for user_id in user_ids]
        tasks = list({task: None for _, task in asked})
        results = await asyncio.gather(*map(asyncio.shield, tasks), return_exceptions=True)
        answers = {task: _answer(result) for task, result in zip(tasks, results, strict=True)}
        known: dict[UserId, User] = {}
        for user_id, task in asked:
            answer = answers[task]
            user = (stale if answer is None else answer).get(user_id)
            if user is not None:
                known[user_id] = user
        return known

    async def _fetch_users(self, user_ids: list[UserId], remembered: int) -> dict[UserId, User]:
        task = asyncio.current_task()
        try:
            known = await self._directory.users(user_ids)
        finally:
            current = [user_id for user_id in user_ids if self._asked.get(user_id) is task]
            for user_id in current:
                del self._asked[user_id]
        # Whoever was learned meanwhile is not among the current ones: the answer may be from before.
        self._remember(known, islice(current, max(0, self._current.config.directory.cache_size - remembered)))
        return known

    def _remember(self, known: dict[UserId, User], user_ids: Iterable[UserId]) -> None:
        config = self._current.config.directory
        now = self._now()
        ends = now + config.cache_ttl_s
        ends_unknown = now + min(config.cache_ttl_s, UNKNOWN_TTL_S)
        for user_id in user_ids:
            user = known.get(user_id)
            self._users[user_id] = (ends_unknown if user is None else ends, user)
            self._users.move_to_end(user_id)
        while len(self._users) > config.cache_size:
            self._users.popitem(last=False)

    async def learn(self, claims: list[User]) -> None:
        """These users are connected, so they exist, and this is what their tokens say. Of what was said before nothing
        is asked of the store; what changes who is meant holds from the next notice on."""
        news = [said for said in claims if self._learned.get(said.user_id) != hash(said)]
        changed: set[UserId] = set()
        if news:
            changed = await self._directory.learn(news)
            if changed or not all(self._is_known(said.user_id) for said in news):
                # The lists lack them, those on their way perhaps too: they are asked for again at the next notice. No
                # token says who is in a group.
                for key, (_, ids) in self._ids.items():
                    if not key.startswith(GROUPS):
                        self._ids[key] = (-math.inf, ids)
                for key in [key for key in self._loading if not key.startswith(GROUPS)]:
                    del self._loading[key]
            self._learned.update((said.user_id, hash(said)) for said in news)
        self._forget([said.user_id for said in claims], changed)
        if changed:
            self.version += 1

    def _is_known(self, user_id: UserId) -> bool:
        return user_id in self._listed or user_id in self._learned

    def _forget(self, user_ids: Iterable[UserId], changed: set[UserId]) -> None:
        """What is remembered wrongly of these, or as unknown; nor may an answer bring that back that is on its way."""
        for user_id in user_ids:
            self._asked.pop(user_id, None)
            _, remembered = self._users.get(user_id, _NOT_REMEMBERED)
            if remembered is None or user_id in changed:
                self._users.pop(user_id, None)

    def _query(self, target: Target) -> tuple[str, Callable[[], Awaitable[list[UserId]]]]:
        if target.kind is TargetKind.ALL:
            return ALL, self._directory.all_ids
        if target.kind is TargetKind.GROUP:
            groups = sorted(set(target.groups))
            return f"{GROUPS}{groups}", lambda: self._directory.ids_by_group(groups)
        roles = target.roles
        if target.kind is TargetKind.ADMIN:
            roles = self._current.config.auth.admin_roles
        ordered = sorted(set(roles))
        return f"roles:{ordered}", lambda: self._directory.ids_by_role(ordered)

    async def _load(self, key: str, ask: Callable[[], Awaitable[list[UserId]]]) -> list[UserId]:
        task = self._loading.get(key)
        if task is None:
            task = asyncio.ensure_future(self._fetch(key, ask))
            self._loading[key] = task
            task.add_done_callback(lambda ended: self._loaded(key, ended))
        return await asyncio.shield(task)

    def _loaded(self, key: str, task: asyncio.Task[list[UserId]]) -> None:
        _retrieve(task)
        if self._loading.get(key) is task:
            del self._loading[key]

    async def _fetch(self, key: str, ask: Callable[[], Awaitable[list[UserId]]]) -> list[UserId]:
        ids = await ask()
        if self._loading.get(key) is asyncio.current_task():  # else somebody was learned meanwhile
            self._keep_list(key, ids)
        if key == ALL:
            self._listed.update(ids)
        return ids

    def _keep_list(self, key: str, ids: list[UserId]) -> None:
        """Remembers a list; of too many, or too long ones, the least recently used are forgotten, but that of all."""
        self._ids[key] = (self._now() + self._current.config.directory.cache_ttl_s, ids)
        self._ids.move_to_end(key)
        listed = sum(len(ids) for _, ids in self._ids.values())
        for other in [other for other in self._ids if other not in (key, ALL)]:
            if len(self._ids) <= self._lists_most and listed <= self._listed_most:
                break
            listed -= len(self._ids.pop(other)[1])


def _answer(result: dict[UserId, User] | BaseException) -> dict[UserId, User] | None:
    """None when the store was down."""
    if isinstance(result, StoreError):
        return None
    if isinstance(result, BaseException):
        raise result
    return result


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Whoever waited for it may have given up: its failure is then nobody's."""
    if not task.cancelled():
        task.exception()
