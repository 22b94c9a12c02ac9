"""What the connections of a node share: the parts that their clients' words reach, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass

from pushd._fastpath import Connection, Hub
from pushd.clock import Clock
from pushd.config.current import CurrentConfig
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.delivery.inboxes import Inboxes
from pushd.http.addresses import Addresses
from pushd.telemetry.metrics import Metrics
from pushd.ws._reader import Reader
from pushd.ws.renewals import Renewals
from pushd.ws.tasks import Tasks

ABNORMAL_CLOSURE = 1006


@dataclass(slots=True, eq=False)
class Shared:
    """One for all connections of a node: the `Gateway` lets them in by it, and each one's `Listener` acts through it.

    `open_sockets` counts the connections whose socket is still there, closing ones included; `addresses` counts them by
    their clients' addresses.
    """

    hub: Hub
    reader: Reader
    acknowledgements: Acknowledgements
    inboxes: Inboxes
    renewals: Renewals
    tasks: Tasks
    addresses: Addresses
    current: CurrentConfig
    metrics: Metrics
    clock: Clock
    open_sockets: int = 0

    def opened(self, connection: Connection) -> None:
        """Count a connection whose transport was handed over."""
        self.open_sockets += 1
        self.addresses.enter(connection.details.client_ip)

    def lost(self, connection: Connection) -> None:
        """Let go of a connection whose socket is gone."""
        self.reader.forget(connection)
        self.open_sockets -= 1
        self.addresses.leave(connection.details.client_ip)
        self.metrics.count_disconnect(connection.close_code or ABNORMAL_CLOSURE)
