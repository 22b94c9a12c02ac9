"""What is kept in Redis: which tokens are revoked, as the keys `jwt_blacklist:{jti}` that a login service sets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from time import monotonic

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from pushd.errors import StartError, StoreUnavailable
from pushd.stores import Observe

STORE = "revocations"
PREFIX = "jwt_blacklist:"
TIMEOUT_S = 1.0
CONNECTIONS = 4
KEYS_AT_ONCE = 500


class RedisRevocations:
    """ports.Revocations. One MGET for up to KEYS_AT_ONCE tokens; any value means revoked."""

    def __init__(self, client: Redis, observe: Observe) -> None:
        self._client = client
        self._observe = observe

    async def revoked(self, token_ids: Collection[str]) -> set[str]:
        """See ports.Revocations. Raises StoreUnavailable within about TIMEOUT_S."""
        ids = list(token_ids)
        found: set[str] = set()
        for start in range(0, len(ids), KEYS_AT_ONCE):
            part = ids[start : start + KEYS_AT_ONCE]
            values = await self._get([PREFIX + token_id for token_id in part])
            found.update(token_id for token_id, value in zip(part, values, strict=True) if value is not None)
        return found

    async def _get(self, keys: list[str]) -> list[bytes | str | None]:
        began = monotonic()
        try:
            values: list[bytes | str | None] = await self._client.mget(keys)
        except (RedisError, OSError, TimeoutError) as error:
            self._observe(STORE, "revoked", monotonic() - began, False)
            raise StoreUnavailable(STORE, "no answer") from error
        self._observe(STORE, "revoked", monotonic() - began, True)
        return values


@asynccontextmanager
async def open_revocations(url: str, observe: Observe) -> AsyncIterator[RedisRevocations]:
    """Connects when first asked. Raises StartError for a URL that cannot be used."""
    try:
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=TIMEOUT_S, socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
        )  # fmt: skip
    except ValueError as error:
        raise StartError(f"auth.revocation_url: {error}") from error
    client = Redis(connection_pool=pool)
    try:
        yield RedisRevocations(client, observe)
    finally:
        await client.aclose()
        await pool.aclose()
