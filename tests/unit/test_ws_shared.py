"""What connections share counts them, and lets go of those that are lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pushd.http.addresses import Addresses
from pushd.ws._reader import Reader
from pushd.ws.parser import longest_frames, parsing
from pushd.ws.renewals import Renewals
from pushd.ws.shared import Shared
from pushd.ws.tasks import Tasks
from tests.unit.parts import House


async def test_connections_are_counted_from_the_hand_over_to_their_end(make_house: Callable[..., House]) -> None:
    house = make_house()
    shared = Shared(
        hub=house.hub,
        reader=Reader(parsing, *longest_frames(house.current.config.limits)),
        acknowledgements=house.acknowledgements,
        inboxes=house.inboxes,
        renewals=cast(Renewals, None),
        tasks=Tasks(house.metrics),
        addresses=Addresses(),
        current=house.current,
        metrics=house.metrics,
        clock=cast(Any, house.clock),
    )
    clients = [house.connect(user_id, ip="192.0.2.1") for user_id in (1, 2)]
    for client in clients:
        shared.opened(client.connection)
    assert (shared.open_sockets, shared.addresses.open_from("192.0.2.1")) == (2, 2)
    house.hub.close(clients[0].connection, 4008)
    for client in clients:
        shared.lost(client.connection)
    assert (shared.open_sockets, shared.addresses.open_from("192.0.2.1")) == (0, 0)
    counts = {code: house.metrics.disconnects.labels(code).value for code in ("4008", "1006")}
    assert counts == {"4008": 1, "1006": 1}  # who leaves without a CLOSE: 1006
