"""Heartbeats: a sweep that pings connections and ends silent or expired ones, and the life sign of the node itself."""

from __future__ import annotations

import asyncio

import structlog

from pushd._fastpath import Connection, Hub
from pushd.clock import Clock
from pushd.config.current import CurrentConfig
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.errors import CloseCode, StoreError
from pushd.ports import PresenceStore
from pushd.presence.failures import Failures
from pushd.writing.writers import Writers

log = structlog.get_logger("pushd.presence")

SWEEP_EVERY_S = 0.25
SWEEPS_PER_ROUND = 4  # every connection is looked at once a second
ALIVE_EVERY_S = 2.0


class Heartbeat:
    """Sweeps over all connections, some at a time, instead of a timer for each of them."""

    def __init__(
        self, hub: Hub, acknowledgements: Acknowledgements, current: CurrentConfig, clock: Clock, failures: Failures
    ) -> None:
        self._hub = hub
        self._acknowledgements = acknowledgements
        self._current = current
        self._now = clock.now
        self._failures = failures

    async def run(self, *, every_s: float = SWEEP_EVERY_S) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            self.sweep(self._now())

    def sweep(self, now: float) -> None:
        """Look at some connections, so that SWEEPS_PER_ROUND calls reach all of them.

        Idle ones are pinged, those that did not answer or whose token has expired are closed. Frames that nobody
        acknowledged in time go to the mailboxes, and closed connections that linger too long are aborted.
        """
        delivery = self._current.config.delivery
        limit = self._hub.connections_total // SWEEPS_PER_ROUND + 16
        silent: list[Connection] = []
        expired: list[Connection] = []
        with self._failures.carrying_on("sweep"):
            silent, expired = self._hub.sweep(now, delivery.heartbeat_s, delivery.heartbeat_timeout_s, limit)
        for connection in silent:
            self._failures.close(connection, CloseCode.NO_PONG, "no pong")
        for connection in expired:
            self._failures.close(connection, CloseCode.TOKEN_INVALID, "token expired")
        with self._failures.carrying_on("sweep"):
            self._acknowledgements.expire()
        with self._failures.carrying_on("sweep"):
            self._hub.reap(now)


class LifeSign:
    """Keeps storing that this node is alive: after a crash, users were online until the last time it did so."""

    def __init__(
        self,
        statuses: PresenceStore,
        writers: Writers,
        clock: Clock,
        failures: Failures,
        *,
        every_s: float = ALIVE_EVERY_S,
    ) -> None:
        self._statuses = statuses
        self._writers = writers
        self._wall_ms = clock.wall_ms
        self._failures = failures
        self._every_s = every_s

    async def run(self) -> None:
        """Give life signs until cancelled; one that the store does not take is left out."""
        while True:
            with self._failures.carrying_on("alive"):
                try:
                    await self._writers.statuses_written()  # whom a former process left is looked at before
                    await self._statuses.alive(self._wall_ms())
                except StoreError as error:
                    log.debug("no life sign is stored", error=str(error))  # health has seen it
            await asyncio.sleep(self._every_s)
