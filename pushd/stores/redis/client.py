"""A Redis or a Redis Cluster behind one URL, and scripts run there.

The driver never repeats a call (FACTS, "Stores": a timed-out LPUSH ran twice). It follows a cluster's redirections,
which the server answers instead of doing anything.

Behind one address there may be another server tomorrow. So after any call that did not end well no connection is used
again as it is: the server at its end may have become a replica, which goes on answering.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import hiredis
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection, Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from pushd.errors import StartError
from pushd.stores.guard import TIMEOUT_S
from pushd.stores.redis.batches import Call
from pushd.stores.redis.scripts import Script

T = TypeVar("T")

# How many keys should be asked for at once. In a cluster most keys are a call of their own, which costs redis-py
# about 50 us: so many take the event loop 5 ms.
KEYS_AT_ONCE = 500
KEYS_AT_ONCE_IN_CLUSTER = 100


class _Connection(Connection):
    """Packs the calls with hundreds of keys five times as fast as the driver's Python. Not used with TLS."""

    def pack_command(self, *args: Any) -> list[bytes]:
        if args[0] == "EVALSHA":
            return [hiredis.pack_command(args)]
        return super().pack_command(*args)


class Pool(BlockingConnectionPool):
    """Connections that can be renewed: each is made anew before it is used next."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._current: set[AbstractConnection] = set()

    def renew(self) -> None:
        """The server at the other end of all of them may not be the right one any more."""
        self._current.clear()

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Called by the driver for a connection that a call is about to use, and nobody else does."""
        if connection not in self._current:
            await connection.disconnect(nowait=True)
            self._current.add(connection)
        await super().ensure_connection(connection)


def connection_pool(url: str, key: str, most: int) -> Pool:
    """At most so many connections, made when needed. Raises StartError, with the configuration's `key`, for a bad
    URL."""
    try:
        pool: Pool = Pool.from_url(
            url, max_connections=most, timeout=2 * TIMEOUT_S, connection_class=_Connection, **_limits()
        )
        pool.connection_class(**pool.connection_kwargs)  # as the pool makes them: is every option known?
    except Exception:  # its text may have a piece of the password
        expected = "redis://user:password@host:port/database, each part percent-encoded, and options of redis-py"
        raise StartError(f"{key} cannot be read; expected {expected}") from None
    return pool


async def renewing(pool: Pool, call: Callable[[], Awaitable[T]]) -> T:
    """What `call` returns; when it fails, whichever way, the connections of `pool` are renewed."""
    try:
        return await call()
    except BaseException:
        pool.renew()
        raise


def _limits() -> dict[str, Any]:
    return {
        # The guard gives up before, and knows that nobody answered.
        "socket_timeout": 2 * TIMEOUT_S,
        "socket_connect_timeout": 2 * TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
    }


class RedisClient:
    """What the URL leads to is found out when first asked, and again after it was away."""

    def __init__(self, url: str, key: str, connections: int) -> None:
        self._url = url
        self._pool = connection_pool(url, key, connections)
        self._single: Redis = Redis(connection_pool=self._pool)
        self._cluster: RedisCluster | None = None
        self._is_known = False
        self._finding = asyncio.Lock()

    @property
    def keys_at_once(self) -> int:
        """How many keys to ask for at once."""
        return KEYS_AT_ONCE if self._cluster is None else KEYS_AT_ONCE_IN_CLUSTER

    async def run(self, script: Script, split: Callable[[bool], Sequence[Call]]) -> list[tuple[Call, Any]]:
        """Each call of `split(is_cluster)` with its reply; all keys of a call are in one slot of a cluster.

        Raises the first error of the driver that any call ended with; the others may have been done.
        """
        try:
            return await renewing(self._pool, partial(self._run, script, split))
        except BaseException:
            self._is_known = False
            raise

    async def _run(self, script: Script, split: Callable[[bool], Sequence[Call]]) -> list[tuple[Call, Any]]:
        if not self._is_known:
            await self._find()
        calls = split(self._cluster is not None)
        return list(zip(calls, await self._replies(script, calls), strict=True))

    async def aclose(self) -> None:
        """Ends all connections."""
        if self._cluster is not None:
            await self._cluster.aclose()
        await self._single.aclose()
        await self._pool.aclose()

    async def _find(self) -> None:
        async with self._finding:
            if self._is_known:  # another call found it meanwhile
                return
            if self._cluster is None or not await self._is_found_again(self._cluster):
                await self._find_by_url()
            self._is_known = True

    async def _is_found_again(self, cluster: RedisCluster) -> bool:
        """By any of the nodes it had."""
        await cluster.aclose()
        try:
            await cluster.initialize()
        except (exceptions.RedisError, exceptions.RedisClusterException, OSError):
            return False
        return True

    async def _find_by_url(self) -> None:
        is_cluster = await self._is_cluster()
        if self._cluster is not None:
            await self._cluster.aclose()
            self._cluster = None
        if is_cluster:
            cluster = RedisCluster.from_url(self._url, **_limits())
            await cluster.initialize()
            self._cluster = cluster

    async def _is_cluster(self) -> bool:
        try:
            about = await self._single.info("cluster")
        except exceptions.ResponseError as error:
            if isinstance(error, exceptions.NoPermissionError) or "unknown command" in str(error).lower():
                return False  # a cluster would redirect us, which is an error that names it
            raise
        return bool(about.get("cluster_enabled"))

    async def _replies(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        client = self._cluster or self._single
        send = self._send_single if self._cluster is None else partial(self._send_cluster, self._cluster)
        replies = await send(script, calls)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)]
        if unknown:
            await client.script_load(script.text)
            again = await send(script, [calls[index] for index in unknown])
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def _send_single(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        replies: list[Any] = []
        for call in calls:
            try:
                replies.append(await self._single.evalsha(*_command(script, call)))
            except exceptions.NoScriptError as error:
                replies.append(error)
        return replies

    async def _send_cluster(self, cluster: RedisCluster, script: Script, calls: Sequence[Call]) -> list[Any]:
        pipeline = cluster.pipeline()
        for call in calls:
            pipeline.execute_command("EVALSHA", *_command(script, call))
        return list(await pipeline.execute(raise_on_error=False))


def _command(script: Script, call: Call) -> tuple[Any, ...]:
    return (script.digest, len(call.keys), *call.keys, *call.arguments)
