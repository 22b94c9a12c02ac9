"""The contract of ports.NoteTaker: the same as `write` of the receipts that need not be made."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pushd.model import Mark, Outcome, User
from pushd.ports import Noted
from pushd.records import ReceiptFilter
from pushd.users.devices import device_of
from tests.samples import OUTCOMES, RECEIPTS, receipt

from .conftest import Node

USERS = range(1, 7)
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0"
CLIENTS = {
    user_id: (f"c{user_id}", "10.0.0.1", FIREFOX if user_id % 2 else "curl/8") for user_id in USERS if user_id < 5
}
KNOWN = {user_id: User(user_id, f"user{user_id}", user_id % 3) for user_id in USERS if user_id != 2}
NOBODY = ("", "", "")

Outcomes = list[tuple[Outcome, list[int]]]


def client_of(user_id: int) -> tuple[str, str, str]:
    return CLIENTS.get(user_id, NOBODY)


async def noted(node: Node, message_id: str, outcomes: Outcomes, *, is_late: bool = False) -> None:
    await node.stores.records.note(  # type: ignore[attr-defined]
        [node.record(message_id, "success")], [Noted(message_id, outcomes, is_late)], KNOWN, client_of, device_of
    )


async def written(node: Node, message_id: str, outcomes: Outcomes) -> None:
    receipts = []
    for outcome, user_ids in outcomes:
        for user_id in user_ids:
            has_client = outcome.is_online or outcome.received_ms
            connection_id, client_ip, user_agent = client_of(user_id) if has_client else NOBODY
            device = device_of(user_agent)
            user = KNOWN.get(user_id, User(user_id))
            fields = {"username": user.username, "role": user.role, "device_type": device.device_type}
            fields |= {"connection_id": connection_id, "client_ip": client_ip, "user_agent": user_agent}
            fields |= {"platform": device.platform, "browser": device.browser}
            receipts.append(receipt(message_id, user_id, outcome, **fields))
    await node.stores.records.write([node.record(message_id, "success")], receipts)


def rows(node: Node, message_id: str) -> list[dict[str, Any]]:
    mine = [row | {"message_id": ""} for row in node.rows(RECEIPTS) if row["message_id"] == message_id]
    return sorted(mine, key=lambda row: row["user_id"])


some_users = st.lists(st.sampled_from(USERS), max_size=9)  # who may come twice
some_outcomes = st.lists(st.tuples(st.sampled_from(OUTCOMES), some_users), max_size=4)


@given(first=some_outcomes, second=some_outcomes)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_notes_are_receipts(node: Node, first: Outcomes, second: Outcomes) -> None:
    node.renew()
    await node.restart()
    for names, work in ((("a", "b"), noted), (("c", "d"), written)):
        await node.accept(*names)
        for name in names:
            await work(node, name, first)
            await work(node, name, second)
    assert rows(node, "a") == rows(node, "c")
    assert rows(node, "b") == rows(node, "d")


async def test_notes_of_many_notices_at_once(node: Node) -> None:
    """All of them, or in part: of ids that are no notices' nothing is noted."""
    names = [f"m{number}" for number in range(20)]
    await node.accept(*names)
    one = [(OUTCOMES[0], [1, 2]), (OUTCOMES[3], [2, 3])]
    of_all = [Noted(name, one) for name in [*names, "unknown", ""]]
    await node.stores.records.note([], of_all, KNOWN, client_of, device_of)  # type: ignore[attr-defined]
    await node.restart()
    assert (await node.stores.records.receive_stats(ReceiptFilter())).total_users == 3 * len(names)
    assert {row["delivery_status"] for row in rows(node, "m7")} == {"pending", "delivered"}
    assert await node.stores.records.receive_status("unknown") is None


async def test_late_notes_of_deleted_notices_are_none(node: Node) -> None:
    await node.accept("a", "b")
    for name in "ab":
        await noted(node, name, [(OUTCOMES[1], [1])])
    await node.stores.records.delete("a")
    late = [Noted(name, [(OUTCOMES[4], [1, 2])], is_late=True) for name in "ab"]
    await node.stores.records.note([], late, KNOWN, client_of, device_of)  # type: ignore[attr-defined]
    assert await node.stores.records.receive_status("a") is None
    assert await node.stores.records.received_by("b") == {1, 2}
    assert await node.stores.records.mark(1, ["a", "b"], Mark.READ, 2000) == ["b"]
