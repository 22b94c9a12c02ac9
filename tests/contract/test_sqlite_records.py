"""The embedded records: what the ledger's numbers stand for, and the shape in which receipts are kept."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from pushd.ledger.clients import FIRST_WEEK_MS, WEEK_MS
from pushd.model import Target, TargetKind
from pushd.records import Part, ReceiptFilter, ReceiptSort
from pushd.stores.sqlite.notices import DENSE, DENSE_LEAST
from tests.samples import DELIVERED, OFFLINE, at, item_of, receipt

from .conftest import Node

ALL = Part(0, 10_000)


def connections(node: Node) -> list[str]:
    """Those whose facts are stored."""
    with closing(sqlite3.connect(node.directory / "data" / "pushd.db")) as connection:
        return [row[0] for row in connection.execute("SELECT connection_id FROM client ORDER BY number")]


async def test_clients_go_with_the_last_receipts_that_may_name_them(node: Node) -> None:
    for week, name in enumerate(["a", "b", "c"]):
        node.clock.now_ms = FIRST_WEEK_MS + week * WEEK_MS
        await node.accept(name, accepted_ms=node.clock.now_ms)
        for user_id in (1, 2):
            outcome = at(node.clock.now_ms, DELIVERED)
            await node.stores.records.write([], [receipt(name, user_id, outcome, connection_id=f"of {name}")])
    assert connections(node) == ["of a", "of b", "of c"]
    kept_from_ms = FIRST_WEEK_MS + WEEK_MS
    assert await node.stores.records.purge(kept_from_ms, 1) == 1
    assert connections(node) == ["of a", "of b", "of c"]
    assert await node.stores.records.purge(kept_from_ms, 10) == 2
    assert connections(node) == ["of b", "of c"]
    await node.restart()
    rows = await node.stores.records.receive_records(ReceiptFilter(), ReceiptSort.CREATED_AT, ALL)
    assert {(row.message_id, row.connection_id) for row in rows} == {("b", "of b"), ("c", "of c")}


@pytest.mark.parametrize("first", ["save", "note"])
async def test_what_is_for_all_or_for_many_is_dense(node: Node, first: str) -> None:
    """Whether it is first saved in mailboxes or noted, and only then; but for all of a small office."""
    everyone = [*range(1, DENSE_LEAST + 1)]
    everybody, some = Target(TargetKind.ALL), Target(TargetKind.ROLE)
    targets = {"small": everybody, "many": some, "few": some, "all": everybody}
    users = {"small": [1], "many": everyone, "few": everyone[1:], "all": [1]}
    for name, target in targets.items():
        (accepted,) = await node.accept(name, target=target)
        if first == "save":
            await node.stores.mailbox.save([(item_of(accepted), users[name])])
        await noted(node, name, users[name])
    await noted(node, "few", everyone)
    ledger = node.stores.records._ledger  # type: ignore[attr-defined]
    assert [bool(ledger.notice_state(seq) & DENSE) for seq in (1, 2, 3, 4)] == [False, True, False, True]
    assert [sum(ledger.counts(seq).values()) for seq in (1, 2, 3, 4)] == [1, DENSE_LEAST, DENSE_LEAST, 1]


async def noted(node: Node, name: str, user_ids: list[int]) -> None:
    ledger = node.stores.ledger
    assert ledger is not None
    assert ledger.note(0, name, user_ids, OFFLINE, [], 0)
    await ledger.commit()


async def test_expiry_goes_on_where_it_stopped(node: Node) -> None:
    names = [f"m{number}" for number in range(12)]
    for place, name in enumerate(names):
        await node.accept(name, expires_ms=2000 + place % 3)
    await node.stores.records.write([], [receipt(name, user, OFFLINE) for name in names for user in (1, 2)])
    marked = [await node.stores.records.expire(0, 2001, 5) for _ in range(5)]
    assert marked == [5, 5, 5, 1, 0]
    assert await node.stores.records.unread_counts([1, 2]) == {1: 4, 2: 4}
