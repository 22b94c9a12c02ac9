"""Arrivals: connections are registered at once, and greeted in batches with what waited for their users."""

from __future__ import annotations

import asyncio

from pushd._fastpath import Connection, Hub
from pushd.errors import StoreError
from pushd.presence.failures import Failures
from pushd.presence.hello import Greeting
from pushd.presence.mailboxes import Mailboxes
from pushd.presence.register import Register
from pushd.presence.replay import Replays
from pushd.turns import Slice

ARRIVALS_PER_BATCH = 64
WELCOMES_AT_ONCE = 2  # fewer, but larger batches
SLICE_S = 0.0005  # the loop runs between slices of a welcome


class Arrivals:
    """Welcomes connections. One task serves them in batches: one round trip to the stores for many users."""

    def __init__(
        self,
        hub: Hub,
        register: Register,
        greeting: Greeting,
        mailboxes: Mailboxes,
        replays: Replays,
        failures: Failures,
    ) -> None:
        self._hub = hub
        self._register = register
        self._greeting = greeting
        self._mailboxes = mailboxes
        self._replays = replays
        self._failures = failures
        self._waiting: list[Connection] = []
        self._arrived = asyncio.Event()
        self._welcoming = asyncio.Lock()

    def arrive(self, connection: Connection, *, is_told_unread: bool = False) -> None:
        """A connection is open: register it; hello and mailbox follow, live notices wait behind them.

        With `is_told_unread` its client hears how many notices are unread whenever that changes.
        """
        is_first = self._register.enter(connection)
        try:
            if connection.is_guest:
                self._greeting.greet(connection, 0)
                self._hub.release(connection)
                return
            if is_first:
                self._register.came(connection)
            if is_told_unread:
                self._greeting.unread.follow(connection)
            self._waiting.append(connection)
            self._arrived.set()
        except Exception as error:
            self._failures.arrival_failed(connection, error)

    def __len__(self) -> int:
        """How many connections wait until others have been welcomed."""
        return len(self._waiting)

    async def run(self, *, per_batch: int = ARRIVALS_PER_BATCH) -> None:
        """Welcome who arrives, until cancelled. While one batch waits for the stores, another may ask them."""
        free = asyncio.Semaphore(WELCOMES_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as welcomes:
                while True:
                    await free.acquire()
                    await self._arrived.wait()
                    batch = self._waiting[:per_batch]
                    del self._waiting[:per_batch]
                    if not self._waiting:
                        self._arrived.clear()
                    welcome = welcomes.create_task(self._welcome(batch))
                    welcome.add_done_callback(lambda _: free.release())
        finally:
            self._replays.stop()

    async def _welcome(self, connections: list[Connection]) -> None:
        """An unexpected failure costs only the connection that it is about: after one, each is welcomed by itself."""
        connections = [connection for connection in connections if connection.is_registered]
        try:
            waiting = await self._mailboxes.read(connections)
            unread = await self._greeting.count_unread({connection.user_id for connection in connections})
        except StoreError:
            self._welcome_without_stores(connections)
            return
        except Exception as error:
            if len(connections) == 1:
                self._failures.arrival_failed(connections[0], error)
                return
            for connection in connections:
                await self._welcome([connection])
            return
        async with self._welcoming:  # one slice in each turn of the loop
            one_slice = Slice(SLICE_S)
            for connection in connections:
                await one_slice.rest()
                try:
                    self._greeting.greet(connection, unread.get(connection.user_id, 0))
                    self._replays.replay(connection, waiting.get(connection.user_id, ()))
                except Exception as error:
                    self._failures.arrival_failed(connection, error)

    def _welcome_without_stores(self, connections: list[Connection]) -> None:
        """Live notices need not wait for the stores; the mailboxes come later."""
        for connection in connections:
            with self._failures.at_cost_of(connection):
                self._greeting.greet(connection, 0)
                self._hub.release(connection)
                self._replays.replay_later(connection)
