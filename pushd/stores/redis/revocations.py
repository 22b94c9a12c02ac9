"""Which tokens are revoked: the keys `jwt_blacklist:{jti}` that a login service sets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial

from redis.asyncio import Redis

from pushd.ports import Observe
from pushd.stores.guard import Guard
from pushd.stores.redis.client import Pool, connection_pool, renewing
from pushd.stores.redis.failures import translate

STORE = "revocations"
PREFIX = "jwt_blacklist:"
CONNECTIONS = 4
KEYS_AT_ONCE = 500


class RedisRevocations:
    """ports.Revocations. One MGET for up to KEYS_AT_ONCE tokens; any value means revoked."""

    def __init__(self, pool: Pool, client: Redis, guard: Guard) -> None:
        self._pool = pool
        self._client = client
        self._guard = guard

    async def revoked(self, token_ids: Collection[str]) -> set[str]:
        """The revoked ones of these tokens. Raises StoreUnavailable within about guard.TIMEOUT_S."""
        ids = list(token_ids)
        found: set[str] = set()
        for start in range(0, len(ids), KEYS_AT_ONCE):
            part = ids[start : start + KEYS_AT_ONCE]
            get = partial(renewing, self._pool, partial(self._client.mget, [PREFIX + token_id for token_id in part]))
            # Always tried: nobody probes, and a user at the door is not refused because Redis was away before.
            values = await self._guard.call("revoked", get, is_probe=True)
            found.update(token_id for token_id, value in zip(part, values, strict=True) if value is not None)
        return found


@asynccontextmanager
async def open_revocations(url: str, observe: Observe) -> AsyncIterator[RedisRevocations]:
    """Connects when first asked. Raises StartError for a URL that cannot be used."""
    pool = connection_pool(url, "auth.revocation_url", CONNECTIONS)
    client: Redis = Redis(connection_pool=pool)
    try:
        yield RedisRevocations(pool, client, Guard(STORE, observe, translate(STORE)))
    finally:
        await client.aclose()
        await pool.aclose()
