"""Where things are kept. One module per database; nothing else names a driver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pushd.config import Config
from pushd.ports import Revocations, Stores

Observe = Callable[[str, str, float, bool], None]


@asynccontextmanager
async def open_stores(config: Config, observe: Observe) -> AsyncIterator[Stores]:
    """The stores the configuration names, open until the end of the block.

    `observe(store, operation, seconds, ok)` is called for every operation. Raises StartError.
    """
    from pushd.stores import sqlite  # drivers are imported when they are used

    async with sqlite.open_stores(config, observe) as stores:
        yield stores


@asynccontextmanager
async def open_revocations(config: Config, observe: Observe) -> AsyncIterator[Revocations | None]:
    """Where revoked tokens are listed, None if the configuration names nothing. Raises StartError."""
    if not config.auth.revocation_url:
        yield None
        return
    from pushd.stores import redis

    async with redis.open_revocations(config.auth.revocation_url, observe) as revocations:
        yield revocations
