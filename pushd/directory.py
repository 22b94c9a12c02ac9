"""The directory behind a cache: who exists, and whom a target means."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection

from cachetools import LRUCache

from pushd.errors import StoreError
from pushd.live import Live
from pushd.model import Target, TargetKind, User
from pushd.ports import Directory

ALL = "all"
_NOBODY: tuple[float, None] = (0.0, None)


class CachedDirectory:
    """Users (LRU with TTL) and id lists per role, each asked for once at a time, stale while the store is down.

    A user learned from a connection is known at once; one added to the store by others within
    `directory.cache_ttl_s`.
    """

    def __init__(self, directory: Directory, live: Live, now: Callable[[], float]) -> None:
        self._directory = directory
        self._live = live
        self._now = now
        # each with the time from which it is stale
        self._users: LRUCache[int, tuple[float, User]] = LRUCache(live.config.directory.cache_size)
        self._ids: dict[str, tuple[float, list[int]]] = {}
        self._known: set[int] = set()  # at least everybody in the list of all
        self._loading: dict[str, asyncio.Task[list[int]]] = {}

    def cached_ids(self, target: Target) -> list[int] | None:
        """The recipients of a target, if that can be said without asking the store. Not to be changed."""
        if target.kind is TargetKind.CUSTOM:
            return list(target.user_ids)
        if target.kind is TargetKind.ONLINE:
            return []  # whoever is connected, known or not
        key, _ = self._query(target)
        entry = self._ids.get(key)
        return entry[1] if entry is not None and entry[0] > self._now() else None

    async def ids(self, target: Target) -> list[int]:
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
            return sorted(self._known) if key == ALL else entry[1]

    async def users(self, user_ids: Collection[int]) -> dict[int, User]:
        """The known ones of these users; while the store is down those that are remembered, however old."""
        now = self._now()
        found: dict[int, User] = {}
        stale: dict[int, User] = {}
        for user_id in user_ids:
            ends, user = self._users.get(user_id, _NOBODY)
            if user is not None:
                (found if ends > now else stale)[user_id] = user
        missing = [user_id for user_id in user_ids if user_id not in found]
        return found | (await self._load_users(missing, stale) if missing else {})

    async def _load_users(self, user_ids: list[int], stale: dict[int, User]) -> dict[int, User]:
        try:
            loaded = await self._directory.users(user_ids)
        except StoreError:
            return stale
        ends = self._now() + self._live.config.directory.cache_ttl_s
        for user in loaded.values():
            self._users[user.user_id] = (ends, user)
        return loaded

    async def learn(self, users: list[User]) -> None:
        """These users are connected, so they exist."""
        unknown = [user for user in users if user.user_id not in self._known]
        if not unknown:
            return
        await self._directory.learn(unknown)
        self._known.update(user.user_id for user in unknown)
        # The lists lack them, those on their way perhaps too: they are asked for again at the next notice.
        self._ids = {key: (-math.inf, ids) for key, (_, ids) in self._ids.items()}
        self._loading.clear()

    def _query(self, target: Target) -> tuple[str, Callable[[], Awaitable[list[int]]]]:
        if target.kind is TargetKind.ALL:
            return ALL, self._directory.all_ids
        roles = target.roles
        if target.kind is TargetKind.ADMIN:
            roles = self._live.config.auth.admin_roles
        ordered = sorted(set(roles))
        return f"roles:{ordered}", lambda: self._directory.ids_by_role(ordered)

    async def _load(self, key: str, ask: Callable[[], Awaitable[list[int]]]) -> list[int]:
        task = self._loading.get(key)
        if task is None:
            task = asyncio.ensure_future(self._fetch(key, ask))
            self._loading[key] = task
            task.add_done_callback(lambda ended: self._loaded(key, ended))
        return await asyncio.shield(task)

    def _loaded(self, key: str, task: asyncio.Task[list[int]]) -> None:
        if self._loading.get(key) is task:
            del self._loading[key]

    async def _fetch(self, key: str, ask: Callable[[], Awaitable[list[int]]]) -> list[int]:
        ids = await ask()
        if self._loading.get(key) is asyncio.current_task():  # else somebody was learned meanwhile
            self._ids[key] = (self._now() + self._live.config.directory.cache_ttl_s, ids)
        if key == ALL:
            self._known.update(ids)
        return ids
