"""The contract of ports.RecordStore."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from pushd.model import DeliveryStatus, Mark, Priority, Receipt, Target, TargetKind
from pushd.ports import Stores
from pushd.records import ReceiptStats
from tests.samples import DELIVERED, EXPIRED, FETCHED, OFFLINE, PENDING, RECEIPTS, receipt

from .conftest import START_MS, Node

IMPLEMENTATIONS = ("sqlite", "mongodb")


def row_of(node: Node, message_id: str, user_id: int) -> dict[str, Any]:
    found = (row for row in node.rows(RECEIPTS) if (row["message_id"], row["user_id"]) == (message_id, user_id))
    (row,) = found
    return row


async def test_a_receipt_is_stored_with_every_field(node: Node) -> None:
    await node.accept("m1")
    await node.stores.records.write([], [receipt("m1", 7, DELIVERED)])
    await node.restart()
    assert row_of(node, "m1", 7) == {
        "message_id": "m1",
        "user_id": 7,
        "username": "user7",
        "user_role": 1,
        "is_online": 1,
        "is_received": 1,
        "received_at": 1200,
        "is_read": 0,
        "read_at": None,
        "is_confirmed": 0,
        "confirmed_at": None,
        "device_type": "",
        "platform": "",
        "browser": "",
        "client_ip": "10.0.0.1",
        "user_agent": "Firefox",
        "connection_id": "c1",
        "push_channel": "websocket",
        "delivery_status": "delivered",
        "retry_count": 0,
        "error_message": None,
        "created_at": 1000,
        "updated_at": 1200,
    }


async def test_a_push_record_is_stored_and_goes_on(node: Node) -> None:
    fields = {
        "content": "消息",
        "target": Target(TargetKind.CUSTOM, user_ids=(1, 2)),
        "type": "order_paid",
        "data": {"order": 5},
        "priority": Priority.HIGH,
        "need_confirm": True,
        "sender_id": 9,
        "sender_name": "ops",
    }
    await node.accept("m1", **fields)
    await node.stores.records.write([node.record("m1")], [])
    node.clock.now_ms += 5
    await node.stores.records.write(
        [node.record("m1", "success", 2, 1)], [receipt("m1", 1, DELIVERED), receipt("m1", 2, OFFLINE)]
    )
    (row,) = node.rows("push_records")
    expected = {
        "message_id": "m1",
        "content": "消息",
        "message_type": "order_paid",
        "target": "custom",
        "status": "success",
        "success": 1,
        "error": None,
        "push_time": 1000,
        "sender_id": 9,
        "sender_name": "ops",
        "priority": 2,
        "need_confirm": 1,
        "total_count": 2,
        "created_at": 1000,
        "updated_at": 1200 if node.keeps_records else START_MS + 5,  # when its newest receipt says something happened
    }
    assert {name: row[name] for name in expected} == expected


async def test_a_receipt_follows_its_recipient(node: Node) -> None:
    await node.accept("m1")
    nobody = {"connection_id": "", "client_ip": "", "user_agent": ""}
    await node.stores.records.write([], [receipt("m1", 1, OFFLINE, username="", role=0, **nobody)])
    await node.stores.records.write([], [receipt("m1", 1, DELIVERED)])
    row = row_of(node, "m1", 1)
    assert (row["username"], row["connection_id"], row["client_ip"]) == ("user1", "c1", "10.0.0.1")
    assert (row["delivery_status"], row["push_channel"], row["is_received"]) == ("delivered", "offline", 1)


outcomes = st.one_of(
    st.sampled_from([PENDING, OFFLINE, EXPIRED]),
    st.builds(
        lambda outcome, received_ms: structs.replace(outcome, received_ms=received_ms),
        st.sampled_from([DELIVERED, FETCHED]),
        st.integers(1000, 1005),
    ),
)
receipts = st.builds(
    Receipt,
    message_id=st.just(""),
    user_id=st.just(0),
    username=st.sampled_from(["", "a", "b"]),
    role=st.integers(0, 2),
    connection_id=st.sampled_from(["", "c1", "c2"]),
    client_ip=st.sampled_from(["", "10.0.0.1"]),
    user_agent=st.sampled_from(["", "Firefox"]),
    outcome=outcomes,
)
marks = st.tuples(st.sampled_from(Mark), st.integers(1000, 1005))
fresh_numbers = itertools.count(1)

# Which of several names or connections is kept is up to the store.
USER = ("username", "user_role")
CONNECTION = ("connection_id", "client_ip", "user_agent")


async def written(node: Node, first: Receipt, steps: list[Receipt | tuple[Mark, int]]) -> dict[str, Any]:
    """The receive record of a new user and notice after `first` and then `steps`, each on its own."""
    user_id = next(fresh_numbers)
    message_id = f"message-{user_id}"
    await node.accept(message_id)
    for step in (first, *steps):
        if isinstance(step, Receipt):
            await node.stores.records.write([], [structs.replace(step, message_id=message_id, user_id=user_id)])
        else:
            assert await node.stores.records.mark(user_id, [message_id], *step) == [message_id]
    return row_of(node, message_id, user_id)


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in (*names, "message_id", "user_id")}


@given(data=st.data(), first=receipts, steps=st.lists(st.one_of(receipts, marks), max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_order_and_repetition_make_no_difference(
    node: Node, data: st.DataObject, first: Receipt, steps: list[Receipt | tuple[Mark, int]]
) -> None:
    repeated = data.draw(st.permutations([*steps, *steps, first]))
    once, again = await written(node, first, steps), await written(node, first, repeated)
    assert without(once, *USER, *CONNECTION) == without(again, *USER, *CONNECTION)


@given(steps=st.lists(receipts, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_to_write_it_all_again_changes_nothing(node: Node, steps: list[Receipt]) -> None:
    """Names and connections included; as when a call was cut off, and is repeated."""
    assert without(await written(node, steps[0], steps[1:])) == without(
        await written(node, steps[0], steps[1:] + steps)
    )


@given(first=receipts, second=receipts)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_merge_says_what_either_said(node: Node, first: Receipt, second: Receipt) -> None:
    row = await written(node, first, [second])
    both = (first.outcome, second.outcome)
    ranks = list(DeliveryStatus)
    received = [outcome.received_ms for outcome in both if outcome.received_ms]
    assert row["is_online"] == any(outcome.is_online for outcome in both)
    assert row["is_received"] == bool(received)
    assert row["received_at"] == min(received, default=None)
    assert row["delivery_status"] == max((outcome.status for outcome in both), key=ranks.index)
    assert row["push_channel"] == ("offline" if any(outcome.channel == "offline" for outcome in both) else "websocket")
    assert row["created_at"] == 1000
    users = [(said.username, said.role) for said in (first, second)]
    assert (row["username"], row["user_role"]) in users
    connections = [(said.connection_id, said.client_ip, said.user_agent) for said in (first, second)]
    found = tuple(row[name] for name in CONNECTION)
    assert found in connections
    assert any(found) == any(map(any, connections))


async def test_marks_include_what_comes_before_them(node: Node) -> None:
    await node.accept("m1", "m2")
    await node.stores.records.write([], [receipt("m1", 1, PENDING), receipt("m2", 1, DELIVERED)])
    assert await node.stores.records.mark(1, ["m1"], Mark.CONFIRMED, 2000) == ["m1"]
    assert await node.stores.records.mark(1, ["m2"], Mark.READ, 2000) == ["m2"]
    await node.stores.records.mark(1, ["m1", "m2"], Mark.READ, 3000)
    confirmed, read = row_of(node, "m1", 1), row_of(node, "m2", 1)
    assert (confirmed["is_received"], confirmed["received_at"], confirmed["delivery_status"]) == (1, 2000, "delivered")
    assert (confirmed["read_at"], confirmed["confirmed_at"], confirmed["is_confirmed"]) == (2000, 2000, 1)
    assert (read["received_at"], read["read_at"]) == (1200, 2000)
    assert (read["is_confirmed"], read["confirmed_at"]) == (0, None)
    assert read["updated_at"] == (2000 if node.keeps_records else 3000)  # read once more is nothing new to the ledger


async def test_mark_answers_known_ids_in_order(node: Node, stores: Stores) -> None:
    await node.accept("a", "b", "c", "d")
    await stores.records.write([], [receipt(name, 1, PENDING) for name in ("a", "b", "c")] + [receipt("d", 2, PENDING)])
    assert await stores.records.mark(1, ["c", "d", "x", "a"], Mark.READ, 2000) == ["c", "a"]
    assert await stores.records.mark(1, [], Mark.READ, 2000) == []
    assert await stores.records.unread_counts([1, 2, 3]) == {1: 1, 2: 1}


async def test_an_id_goes_on_behind_a_nul(node: Node, stores: Stores) -> None:
    await node.accept("a", "b")
    await stores.records.write([], [receipt("a", 1, PENDING), receipt("b", 1, PENDING)])
    assert await stores.records.mark(1, ["a\0", "\0", "b", "\0b", "b\0c"], Mark.READ, 2000) == ["b"]
    assert await stores.records.unread_counts([1]) == {1: 1}


async def test_receive_status_counts(node: Node, stores: Stores) -> None:
    await node.accept("m1", "m2", "m3")
    written_receipts = [receipt("m1", 1, DELIVERED), receipt("m1", 2, PENDING), receipt("m1", 3, OFFLINE)]
    await stores.records.write([node.record("m1"), node.record("m2")], [*written_receipts, receipt("m3", 1, OFFLINE)])
    await stores.records.mark(2, ["m1"], Mark.CONFIRMED, 2000)
    assert await stores.records.receive_status("m1") == ReceiptStats(3, 2, 2, 1, 1)
    assert await stores.records.receive_status("m2") == ReceiptStats(0, 0, 0, 0, 0)
    assert await stores.records.receive_status("m3") == ReceiptStats(1, 0, 0, 0, 0)
    assert await stores.records.receive_status("m4") is None


async def test_received_by_names_who_has_it(node: Node, stores: Stores) -> None:
    await node.accept("m1")
    everyone = [receipt("m1", user_id, DELIVERED if user_id % 2 else OFFLINE) for user_id in range(1, 1301)]
    await stores.records.write([], everyone)
    assert await stores.records.received_by("m1") == set(range(1, 1301, 2))
    assert await stores.records.received_by("m2") == set()


async def test_unread_counts_leave_read_and_expired_out(node: Node, stores: Stores) -> None:
    states = {"a": PENDING, "b": DELIVERED, "c": OFFLINE, "d": EXPIRED}
    await node.accept(*states)
    await stores.records.write([], [receipt(name, 1, outcome) for name, outcome in states.items()])
    await stores.records.write([], [receipt("a", user_id, OFFLINE) for user_id in range(2, 1301)])
    assert await stores.records.unread_counts([1, 2, 5000]) == {1: 3, 2: 1}
    await stores.records.mark(1, ["a", "d"], Mark.READ, 2000)
    assert await stores.records.unread_counts([1]) == {1: 2}
    assert await stores.records.unread_counts([]) == {}
    assert sum((await stores.records.unread_counts(range(1, 1301))).values()) == 1301


async def test_expire(node: Node) -> None:
    """Records of notices that expired in the given time and were not received; no others, and at most so many."""
    for name, expires_ms in (("early", 1000), ("due", 2000), ("later", 3000)):
        await node.accept(name, expires_ms=expires_ms)
    await node.accept("never")
    records = [node.record(name) for name in ("early", "due", "later", "never")]
    receipts = [receipt(name, user, OFFLINE) for name in ("early", "due", "later") for user in (1, 2, 3)]
    await node.stores.records.write(records, [*receipts, receipt("never", 1, OFFLINE)])
    await node.stores.records.write([], [receipt("due", 1, DELIVERED)])
    assert await node.stores.records.expire(1000, 2000, 1) == 1
    assert await node.stores.records.expire(1000, 2000, 10) == 1
    assert await node.stores.records.expire(1000, 2000, 10) == 0
    expired = {
        (row["message_id"], row["user_id"]) for row in node.rows(RECEIPTS) if row["delivery_status"] == "expired"
    }
    assert expired == {("due", 2), ("due", 3)}
    unread = {1: 3, 2: 2} if node.keeps_records else {1: 1}  # MongoDB leaves out by itself what has expired by now
    assert await node.stores.records.unread_counts([1, 2]) == unread
    await node.stores.records.write([], [receipt("due", 2, DELIVERED)])
    assert row_of(node, "due", 2)["delivery_status"] == "delivered"
