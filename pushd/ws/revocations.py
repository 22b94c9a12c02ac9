"""Closes the connections whose tokens were revoked.

A connection answers for every token that it was opened or renewed with, until that one has expired: when one of them is
revoked, the connection ends. So a renewal saves nobody whose former token was revoked, noticed or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from pushd._fastpath import Connection, Hub
from pushd.errors import CloseCode, StoreError
from pushd.model import Client
from pushd.ports import Revocations
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics
from pushd.turns import sliced

log = structlog.get_logger("pushd.gateway")

REVOKED_WITHIN_S = 4.0
REVOKED = "the token was revoked"
NO_TOKEN = ""


class RevocationWatch:
    """Asks again and again which tokens of live connections were revoked, and closes those connections.

    A connection is closed within `within_s` of the revocation: a round begins after half of that, and takes at most the
    other half.
    """

    def __init__(
        self,
        hub: Hub,
        revocations: Revocations,
        metrics: Metrics,
        *,
        within_s: float = REVOKED_WITHIN_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._hub = hub
        self._revocations = revocations
        self._metrics = metrics
        self.within_s = within_s
        self._sleep = sleep

    async def run(self) -> None:
        """Until cancelled. A round that fails is logged, and the next one comes in its time."""
        while True:
            await self._sleep(self.within_s / 2)
            try:
                async with asyncio.timeout(self.within_s / 2):
                    await faults.unless_cancelled(self._close_revoked())
            except (StoreError, TimeoutError) as error:
                log.warning("revoked tokens cannot be asked for", error=str(error))
            except Exception as error:
                faults.noted(self._metrics, "revocations", error)

    async def _close_revoked(self) -> None:
        by_token: dict[str, list[Connection]] = {}
        async for connection in sliced(self._hub.snapshot()):
            for token_id in token_ids(connection.details):
                by_token.setdefault(token_id, []).append(connection)
        # Asked also when there is nothing to ask for: so health knows whether new tokens could be checked.
        for token_id in await self._revocations.revoked(by_token or [NO_TOKEN]):
            for connection in by_token.get(token_id, ()):
                self._hub.close(connection, CloseCode.REVOKED, REVOKED)


def token_ids(client: Client) -> list[str]:
    """The ids of the tokens that a client's connection answers for."""
    return [client.token_id] if client.token_id else [token_id for token_id, _ in client.tokens]
