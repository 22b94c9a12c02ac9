"""The contract of ports.ReceiptLedger: the same as `write` of receipts, which need not be made."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pushd.model import Mark, Outcome, User
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


async def noted(
    node: Node, message_id: str, outcomes: Outcomes, users: dict[int, User] | None = None, *, is_found: bool = False
) -> None:
    """Notes outcomes one after the other, with names and devices; `is_found`: the notice's seq is not looked up."""
    ledger = node.stores.ledger
    assert ledger is not None
    seq = 0 if is_found else (await ledger.find([message_id])).get(message_id, 0)
    for outcome, user_ids in outcomes:
        has_client = outcome.is_online or outcome.received_ms
        clients = [ledger.client(*client_of(user_id)) for user_id in user_ids] if has_client else []
        if user_ids:
            ledger.note(seq, message_id, user_ids, outcome, clients, 0)
    named = KNOWN if users is None else users
    mentioned = dict.fromkeys(user_id for _, user_ids in outcomes for user_id in user_ids)
    ledger.name([(named[user_id], seq) for user_id in mentioned if user_id in named])
    for client, user_agent in ledger.undescribed():
        device = device_of(user_agent)
        ledger.describe(client, (device.device_type, device.platform, device.browser))
    ledger.conclude(seq, message_id, "success")
    await ledger.commit()


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


async def test_notices_are_found_by_their_ids(node: Node) -> None:
    """Whether they were accepted since the start or before it; of ids that no notice has nothing is noted."""
    names = [f"m{number}" for number in range(20)]
    await node.accept(*names)
    one = [(OUTCOMES[0], [1, 2]), (OUTCOMES[3], [2, 3])]
    for name in [*names[:10], "unknown", ""]:
        await noted(node, name, one, is_found=True)
    await node.restart()
    ledger = node.stores.ledger
    assert ledger is not None
    assert not ledger.note(0, "m15", [1], OUTCOMES[0], [], 0)
    assert not ledger.conclude(0, "m15", "success")
    for name in [*names[10:], "unknown", ""]:
        await noted(node, name, one)
    await node.restart()
    assert (await node.stores.records.receive_stats(ReceiptFilter())).total_users == 3 * len(names)
    assert {row["delivery_status"] for row in rows(node, "m7")} == {"pending", "delivered"}
    assert await node.stores.records.receive_status("unknown") is None


async def test_notes_of_deleted_notices_are_none(node: Node) -> None:
    await node.accept("a", "b")
    for name in "ab":
        await noted(node, name, [(OUTCOMES[1], [1])])
    await node.stores.records.delete("a")
    for name in "ab":
        await noted(node, name, [(OUTCOMES[4], [1, 2])])
    assert await node.stores.records.receive_status("a") is None
    assert await node.stores.records.received_by("b") == {1, 2}
    assert await node.stores.records.mark(1, ["a", "b"], Mark.READ, 2000) == ["b"]


async def test_a_client_is_told_with_its_device_once_that_is_known(node: Node) -> None:
    await node.accept("a")
    ledger = node.stores.ledger
    assert ledger is not None
    client = ledger.client(*CLIENTS[1])
    assert client >= ledger.oldest_client
    assert ledger.client(*CLIENTS[1]) == client != ledger.client(*CLIENTS[2])
    ledger.note(1, "a", [1], OUTCOMES[3], [client], 0)
    assert (client, FIREFOX) in ledger.undescribed()
    for _ in range(2):
        ledger.describe(client, ("desktop", "Linux", "Firefox"))
    assert [number for number, _ in ledger.undescribed()] == [client + 1]
    await ledger.commit()
    await node.restart()
    (row,) = rows(node, "a")
    assert (row["connection_id"], row["platform"]) == ("c1", "Linux")
