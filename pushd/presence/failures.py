"""Bounds what an unexpected failure costs: one connection, or one step of what is done for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import structlog

from pushd._fastpath import Connection, Hub
from pushd.errors import CloseCode
from pushd.telemetry.metrics import Metrics

log = structlog.get_logger("pushd.presence")


class Failures:
    """Catches failures that nobody foresaw: each is counted, logged once per cause, and what comes next goes on."""

    def __init__(self, hub: Hub, metrics: Metrics) -> None:
        self._hub = hub
        self._metrics = metrics

    @contextlib.contextmanager
    def at_cost_of(self, connection: Connection) -> Iterator[None]:
        """A failure in the block closes this connection and concerns nobody else."""
        try:
            yield
        except Exception as error:
            self.arrival_failed(connection, error)

    def arrival_failed(self, connection: Connection, error: Exception) -> None:
        """This connection could not be welcomed: close it with 1011."""
        self._metrics.errors.labels("arrival").inc()
        self._report("arrival failed", error, user_id=connection.user_id, conn_id=connection.conn_id)
        self.close(connection, CloseCode.INTERNAL_ERROR, "")

    @contextlib.contextmanager
    def carrying_on(self, step: str) -> Iterator[None]:
        """A failure in the block is counted as one of `step` and ends nothing but the block."""
        try:
            yield
        except Exception as error:
            self._metrics.errors.labels(step).inc()
            self._report(f"{step} failed", error)

    def close(self, connection: Connection, code: CloseCode, reason: str) -> None:
        """Close one connection of many: when that fails, the others can still be closed."""
        with self.carrying_on("close"):
            self._hub.close(connection, code, reason)

    def _report(self, event: str, error: Exception, **details: object) -> None:
        if self._metrics.is_new_cause((event, repr(error))):
            log.error(event, exc_info=error, **details)
