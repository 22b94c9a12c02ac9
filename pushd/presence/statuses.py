"""The stored online status of users behind a cache."""

from __future__ import annotations

from collections.abc import Callable, Collection

from cachetools import LRUCache

from pushd.config.current import CurrentConfig
from pushd.model import UserId
from pushd.ports import PresenceStore
from pushd.records import OnlineStatus

STATUSES_REMEMBERED = 100_000


class CachedStatuses:
    """What is stored of users' presence, remembered for `presence.status_ttl_s` (LRU).

    Of users without a stored status nothing is remembered: they are asked for every time. What is remembered does not
    follow what this node writes in the meantime.
    """

    def __init__(
        self,
        presence: PresenceStore,
        current: CurrentConfig,
        now: Callable[[], float],
        *,
        most: int = STATUSES_REMEMBERED,
    ) -> None:
        self._presence = presence
        self._current = current
        self._now = now
        # From when it is stale, and what it is.
        self._statuses: LRUCache[UserId, tuple[float, OnlineStatus]] = LRUCache(most)

    async def of(self, user_ids: Collection[UserId]) -> dict[UserId, OnlineStatus]:
        """The stored status of those of these users who have one. One question to the store at most; StoreError."""
        now = self._now()
        found: dict[UserId, OnlineStatus] = {}
        for user_id in user_ids:
            entry = self._statuses.get(user_id)
            if entry is not None and entry[0] > now:
                found[user_id] = entry[1]
        missing = [user_id for user_id in user_ids if user_id not in found]
        if missing:
            loaded = await self._presence.statuses(missing)
            ends = now + self._current.config.presence.status_ttl_s
            self._statuses.update((user_id, (ends, status)) for user_id, status in loaded.items())
            found |= loaded
        return found
