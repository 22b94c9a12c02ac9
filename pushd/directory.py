"""The directory behind a cache: who exists, and whom a target means."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from cachetools import TTLCache

from pushd.errors import StoreError
from pushd.live import Live
from pushd.model import Target, TargetKind, User
from pushd.ports import Directory

T = TypeVar("T")
ALL = "all"


class CachedDirectory:
    """Users (LRU with TTL) and id lists per role, each asked for once at a time, stale while the store is down.

    A user learned from a connection is known at once; one added to the store by others within
    `directory.cache_ttl_s`.
    """

    def __init__(self, directory: Directory, live: Live, now: Callable[[], float]) -> None:
        self._directory = directory
        self._live = live
        config = live.config.directory
        self._users: TTLCache[int, User] = TTLCache(config.cache_size, config.cache_ttl_s, timer=now)
        self._now = now
        self._ids: dict[str, tuple[float, list[int]]] = {}
        self._known: set[int] = set()  # at least everybody in the list of all
        self._generation = 0
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
            return entry[1]

    async def users(self, user_ids: Collection[int]) -> dict[int, User]:
        """The known ones of these users."""
        found = {user_id: user for user_id in user_ids if (user := self._users.get(user_id)) is not None}
        missing = [user_id for user_id in user_ids if user_id not in found]
        if missing:
            loaded = await self._directory.users(missing)
            for user in loaded.values():
                self._users[user.user_id] = user
            found.update(loaded)
        return found

    async def learn(self, users: list[User]) -> None:
        """These users are connected, so they exist."""
        unknown = [user for user in users if user.user_id not in self._known]
        if not unknown:
            return
        await self._directory.learn(unknown)
        self._known.update(user.user_id for user in unknown)
        # The lists lack them: they are asked for again at the next notice.
        self._generation += 1
        self._ids.clear()

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
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        return await asyncio.shield(task)

    async def _fetch(self, key: str, ask: Callable[[], Awaitable[list[int]]]) -> list[int]:
        generation = self._generation
        ids = await ask()
        if generation == self._generation:
            self._ids[key] = (self._now() + self._live.config.directory.cache_ttl_s, ids)
        if key == ALL:
            self._known.update(ids)
        return ids
