"""Where things are kept. One module or package per database; nothing else names a driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import structlog

from pushd.clock import wall_ms
from pushd.config.schema import Config
from pushd.errors import StoreError
from pushd.ports import LeftAside, Observe, Remote, Revocations, Stores

log = structlog.get_logger("pushd.stores")


@asynccontextmanager
async def open_stores(
    config: Config, observe: Observe, clock: Callable[[], int] = wall_ms, left_aside: LeftAside = lambda _: None
) -> AsyncIterator[Stores]:
    """The stores the configuration names, open until the end of the block; one that is away is used when it is back.

    `observe(store, operation, seconds, ok)` is called for every operation, `left_aside(count)` for what waits in a
    mailbox and cannot be used. Raises StartError for a store that can never be used as configured. Drivers are imported
    when they are used.
    """
    from pushd.stores import sqlite

    async with AsyncExitStack() as opened:
        stores = await opened.enter_async_context(sqlite.open_stores(config, observe, clock, left_aside))
        stores = await _with_mailbox(stores, opened, config, observe, clock, left_aside)
        stores = await _with_records(stores, opened, config, observe, clock)
        stores = await _with_directory(stores, opened, config, observe)
        await asyncio.gather(*map(_first_check, stores.remotes))
        yield stores


async def _with_mailbox(
    stores: Stores,
    opened: AsyncExitStack,
    config: Config,
    observe: Observe,
    clock: Callable[[], int],
    left_aside: LeftAside,
) -> Stores:
    if config.mailbox.url == "sqlite:":
        return stores
    from pushd.stores import redis

    mailbox = await opened.enter_async_context(redis.open_mailbox(config, observe, clock, left_aside))
    return replace(stores, mailbox=mailbox, remotes=(*stores.remotes, mailbox))


async def _with_records(
    stores: Stores, opened: AsyncExitStack, config: Config, observe: Observe, clock: Callable[[], int]
) -> Stores:
    """Records and online status, which go to the same place unless `presence.url` says otherwise."""
    presence_url = config.presence.url or config.records.url
    if config.records.url != "sqlite:":
        from pushd.stores import mongo

        records = await opened.enter_async_context(mongo.open_records(config, observe, clock))
        background = {**stores.background, **records.background}
        stores = replace(
            stores,
            records=records,
            inbox=records.inbox,
            ledger=None,
            remotes=(*stores.remotes, records),
            background=background,
        )
    if presence_url != "sqlite:":
        from pushd.stores import mongo

        presence = await opened.enter_async_context(mongo.open_presence(config, presence_url, observe, clock))
        stores = replace(stores, presence=presence, remotes=(*stores.remotes, presence))
    return stores


async def _with_directory(stores: Stores, opened: AsyncExitStack, config: Config, observe: Observe) -> Stores:
    if config.directory.url == "sqlite:":
        return stores
    if config.directory.url == "none":
        from pushd.stores.nobody import NoDirectory

        return replace(stores, directory=NoDirectory())
    from pushd.stores import mysql

    directory = await opened.enter_async_context(mysql.open_directory(config, observe))
    return replace(stores, directory=directory, remotes=(*stores.remotes, directory))


async def _first_check(remote: Remote) -> None:
    try:
        await remote.check()
    except StoreError as error:
        log.warning("store is away; starting without it", store=remote.store, error=str(error))


@asynccontextmanager
async def open_revocations(config: Config, observe: Observe) -> AsyncIterator[Revocations | None]:
    """Where revoked tokens are listed, None if the configuration names nothing. Raises StartError."""
    if not config.auth.revocation_url:
        yield None
        return
    from pushd.stores import redis

    async with redis.open_revocations(config.auth.revocation_url, observe) as revocations:
        yield revocations
