"""Registers connections, at most so many per user, and notes in the stored online status who came and left."""

from __future__ import annotations

from pushd._fastpath import Connection, Hub
from pushd.basis import Basis
from pushd.errors import CloseCode
from pushd.model import Arrival, Client
from pushd.writing.online_status import StatusWriter


class Register:
    """Enters connections, and notes when a user's first one came and the last one went."""

    def __init__(self, hub: Hub, statuses: StatusWriter, basis: Basis) -> None:
        self._hub = hub
        self._statuses = statuses
        self._current = basis.current
        self._metrics = basis.metrics
        self._wall_ms = basis.clock.wall_ms

    def enter(self, connection: Connection) -> bool:
        """Register a connection: live notices wait behind it until it is released. True when it is its user's first.

        The oldest ones make room when the user has `limits.max_connections_per_user` already.
        """
        user_id = connection.user_id
        present = self._hub.connections_of(user_id)
        limit = self._current.config.limits.max_connections_per_user
        if len(present) >= limit:
            for oldest in present[: len(present) + 1 - limit]:
                self._hub.close(oldest, CloseCode.REPLACED, "another connection of this user took its place")
        is_first = not self._hub.has_user(user_id)
        self._hub.add(connection)
        self._metrics.connects.inc()
        return is_first

    def came(self, connection: Connection) -> None:
        """A user's first connection is there."""
        client: Client = connection.details
        arrival = Arrival(
            user_id=connection.user_id,
            username=client.username,
            connection_id=connection.conn_id,
            client_ip=client.client_ip,
            user_agent=client.user_agent,
            at_ms=self._wall_ms(),
        )
        self._statuses.arrived(arrival)

    def gone(self, connection: Connection) -> None:
        """The hub stopped delivering to a connection: when it was its user's last, the user has left."""
        if not connection.is_guest and not self._hub.has_user(connection.user_id):
            self._statuses.left(connection.user_id, self._wall_ms())
