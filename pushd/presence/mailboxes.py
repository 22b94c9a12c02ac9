"""Reads the mailboxes of users who arrive: within a deadline, and with what is still on its way into them."""

from __future__ import annotations

import asyncio

import structlog

from pushd._fastpath import Connection
from pushd.errors import StoreError, StoreUnavailable
from pushd.model import Client, MailboxItem, User, UserId
from pushd.ports import Mailbox
from pushd.telemetry.metrics import Metrics
from pushd.users.directory import CachedDirectory
from pushd.writing.writers import Writers

log = structlog.get_logger("pushd.presence")

STORES_WITHIN_S = 2.0  # after that a user is greeted without them
STORES_WITHIN_S_AGAIN = 0.2  # while they have not answered before


class Mailboxes:
    """The mailboxes of connected users. `failure` says why the last reading failed; it is "" while that works."""

    def __init__(
        self,
        directory: CachedDirectory,
        store: Mailbox,
        writers: Writers,
        metrics: Metrics,
        *,
        within_s: float = STORES_WITHIN_S,
    ) -> None:
        self._directory = directory
        self._store = store
        self._writers = writers
        self._metrics = metrics
        self._within_s = within_s
        self.failure = ""

    async def read(self, connections: list[Connection]) -> dict[UserId, list[MailboxItem]]:
        """What waits for the users of these connections, with every save that was asked for before this call.

        The directory learns of the users first. Raises StoreError, also when the stores take longer than they may.
        """
        within_s = STORES_WITHIN_S_AGAIN if self.failure else self._within_s
        try:
            async with asyncio.timeout(within_s):
                await self._learn(connections)
                user_ids = {connection.user_id for connection in connections}
                await self._writers.mailboxes_written(user_ids)
                waiting = await self._store.read(user_ids)
        except TimeoutError:
            late = StoreUnavailable("mailbox", f"no answer within {within_s} s")
            self._failed(late)
            raise late from None
        except StoreError as error:
            self._failed(error)
            raise
        self.failure = ""
        return waiting

    def nobody_waits(self) -> None:
        """No connection is left that waits for its mailbox, so that no failure concerns anybody."""
        self.failure = ""

    async def _learn(self, connections: list[Connection]) -> None:
        clients: list[Client] = [connection.details for connection in connections]
        await self._directory.learn(
            [
                User(connection.user_id, client.username, client.role, client.issued_ms)
                for connection, client in zip(connections, clients, strict=True)
            ]
        )
        for client in clients:
            client.issued_ms = None  # it takes 32 bytes for as long as the connection lives

    def _failed(self, error: StoreError) -> None:
        if not self.failure:
            log.warning("mailbox replay waits for the store", error=str(error), cause=repr(error.__cause__))
        self.failure = str(error)
        self._metrics.errors.labels("replay").inc()
