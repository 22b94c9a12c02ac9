"""Columns of receive records against lists of them in Python."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.stores.sqlite import _columns
from pushd.stores.sqlite._columns import NoticeColumns, Owners, Selection

USERS = (7, 3, 900, 3, 12, (1 << 63) - 1)  # 3 has two names
NAMES = (b"ann", b"bob", "\u00e4da".encode(), b"bobby", b"", b"x")
RANKS = [2, 3, 5, 4, 0, 1]
OWNERS = Owners(list(USERS), list(NAMES), RANKS)
ANY = b"\1" * _columns.STATES
NEVER = -(1 << 62)


class Row(NamedTuple):
    notice: int
    owner: int
    state: int
    created: int
    received: int | None
    read: int | None
    confirmed: int | None
    rowid: int = 0


TIMES = st.none() | st.integers(1, 30)
ROWS = st.lists(
    st.builds(Row, st.integers(0, 3), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3), TIMES, TIMES, TIMES),
    max_size=40,
    unique_by=lambda row: (row.notice, USERS[row.owner]),
).map(lambda rows: [row._replace(rowid=100 - place) for place, row in enumerate(rows)])


def columns_of(rows: Sequence[Row], message_id: str = "m") -> NoticeColumns:
    rows = sorted(rows, key=lambda row: USERS[row.owner])
    lists = ([getattr(row, name) for row in rows] for name in Row._fields[1:3])
    times = ([getattr(row, name) for row in rows] for name in Row._fields[3:7])
    return NoticeColumns(message_id, *lists, [row.rowid for row in rows], *times)


def selection(rows: Sequence[Row], states: bytes = ANY, members: bytes | None = None, *times: int | None) -> Selection:
    notices = [columns_of([row for row in rows if row.notice == notice], f"m{notice}") for notice in range(4)]
    return Selection(notices, OWNERS, states, members, *(times or (None, None)))


def never(time: int | None) -> int:
    return NEVER if time is None else time


ORDERS: dict[int, Callable[[Row], Any]] = {
    _columns.CREATED: lambda row: (row.created, row.notice, USERS[row.owner]),
    _columns.CREATED_BY_STATE: lambda row: (row.created, row.notice, row.state, USERS[row.owner]),
    _columns.RECEIVED: lambda row: (never(row.received), USERS[row.owner], row.created, row.state, row.rowid),
    _columns.READ: lambda row: (never(row.read), USERS[row.owner], row.created, row.state, row.rowid),
    _columns.CONFIRMED: lambda row: (never(row.confirmed), USERS[row.owner], row.created, row.state, row.rowid),
    _columns.USER_ID: lambda row: (
        USERS[row.owner], -row.created, never(row.received), RANKS[row.owner], row.state, row.rowid,
    ),
    _columns.USERNAME: lambda row: (RANKS[row.owner], -row.created, never(row.received), 0, row.state, row.rowid),
}  # fmt: skip


@given(ROWS, st.sampled_from(sorted(ORDERS)), st.integers(0, 40), st.integers(0, 12), st.data())
def test_pages_and_counts(rows: list[Row], sort: int, offset: int, limit: int, data: st.DataObject) -> None:
    states = bytes(data.draw(st.lists(st.booleans(), min_size=6, max_size=6))).ljust(_columns.STATES, b"\0")
    members = data.draw(st.none() | st.lists(st.booleans(), min_size=6, max_size=6).map(bytes))
    since_ms, before_ms = data.draw(st.tuples(st.none() | st.integers(0, 4), st.none() | st.integers(0, 4)))
    matching = [
        row
        for row in rows
        if states[row.state]
        and (members is None or members[row.owner])
        and (since_ms is None or row.created >= since_ms)
        and (before_ms is None or row.created < before_ms)
    ]
    found = selection(rows, states, members, since_ms, before_ms)
    assert found.page(sort, offset, limit) == [
        row.rowid for row in sorted(matching, key=ORDERS[sort])[offset : offset + limit]
    ]
    counts = found.counts()
    assert len(counts) == _columns.STATES
    assert counts[:6] == [sum(row.state == state for row in matching) for state in range(6)]


@pytest.mark.parametrize("sort", sorted(ORDERS))
@pytest.mark.parametrize("spread", [1, 3, 5_000, 1 << 40])
def test_a_long_list_is_narrowed_down(sort: int, spread: int) -> None:
    """To buckets: with all in one, many in a few, and each nearly alone in its own; of a page, and over borders."""
    drawn = random.Random(spread)
    users = [drawn.randrange(1, 1 + spread * 2) for _ in range(9_000)]
    owners = Owners(users, [b"x"] * len(users), list(range(len(users))))
    times = [[drawn.randrange(1, 1 + spread) for _ in users] for _ in range(4)]
    order = sorted(range(len(users)), key=users.__getitem__)
    columns = [[column[owner] for owner in order] for column in times]
    notice = NoticeColumns("m", order, [owner % 7 for owner in order], order, *columns)
    rows = [Row(0, owner, owner % 7, *(column[owner] for column in times), rowid=owner) for owner in order]
    keys: dict[int, Callable[..., Any]] = {
        _columns.CREATED: lambda row: (row.created, users[row.owner]),
        _columns.CREATED_BY_STATE: lambda row: (row.created, row.state, users[row.owner]),
        _columns.USER_ID: lambda row: (users[row.owner], -row.created, row.received, row.owner),
        _columns.USERNAME: lambda row: row.owner,
    }
    for by_time, name in ((_columns.RECEIVED, "received"), (_columns.READ, "read"), (_columns.CONFIRMED, "confirmed")):
        keys[by_time] = lambda row, name=name: (getattr(row, name), users[row.owner], row.created, row.state, row.rowid)
    key = keys[sort]
    expected = sorted(rows, key=key)
    found = Selection([notice], owners, ANY, None, None, None)
    for offset in range(0, 9_200, 433):
        page = found.page(sort, offset, 40)
        if sort in (_columns.CREATED, _columns.CREATED_BY_STATE):  # users who are there twice are not told apart
            by_rowid = {row.rowid: key(row) for row in rows}
            assert [by_rowid[rowid] for rowid in page] == [key(row) for row in expected[offset : offset + 40]]
        else:
            assert page == [row.rowid for row in expected[offset : offset + 40]]
    assert found.page(sort, 0, 9_000) == [*found.page(sort, 0, 4_500), *found.page(sort, 4_500, 4_500)]


@given(ROWS, ROWS, st.sets(st.sampled_from(USERS)))
def test_records_are_replaced(rows: list[Row], changed: list[Row], gone: set[int]) -> None:
    old = [row._replace(notice=0) for row in rows if row.notice == 0]
    gone |= {USERS[row.owner] for row in old if any(USERS[row.owner] == USERS[other.owner] for other in changed)}
    new = list({USERS[row.owner]: row._replace(notice=0) for row in changed}.values())
    made = columns_of(old).replaced(sorted(gone), columns_of(new), OWNERS)
    expected = [row for row in old if USERS[row.owner] not in gone] + new
    assert len(made) == len(expected)
    assert made.message_id == "m"
    for sort, key in ORDERS.items():
        found = Selection([made], OWNERS, ANY, None, None, None)
        assert found.page(sort, 0, 50) == [row.rowid for row in sorted(expected, key=key)]


def test_who_has_a_part_of_a_name() -> None:
    assert OWNERS.having(b"b") == bytes([0, 1, 0, 1, 0, 0])
    assert OWNERS.having(b"bobb") == bytes([0, 0, 0, 1, 0, 0])
    assert OWNERS.having(b"nb") == bytes(6)  # one name ends, the next begins
    assert OWNERS.having("\u00e4".encode()) == bytes([0, 0, 1, 0, 0, 0])
    assert OWNERS.having(b"") == b"\1" * 6
    assert len(OWNERS) == 6
    assert Owners([], [], []).having(b"a") == b""


def test_what_does_not_fit_is_refused() -> None:
    row = Row(0, 5, 0, 1, None, None, None)
    few = Owners([1], [b"a"], [0])
    with pytest.raises(ValueError, match="expected 6 owners, found 1"):
        Selection([columns_of([row])], few, ANY, None, None, None)
    with pytest.raises(ValueError, match="expected 6 owners, found 1"):
        columns_of([row]).replaced([], columns_of([]), few)
    with pytest.raises(ValueError, match="expected the number of an owner, not -1"):
        NoticeColumns("m", [-1], [0], [1], [1], [1], [1], [1])
    with pytest.raises(ValueError, match="expected lists of 1, found one of 2"):
        NoticeColumns("m", [0], [0], [1, 2], [1], [1], [1], [1])
    with pytest.raises(ValueError, match="expected 4 lists of times, not 1"):
        NoticeColumns("m", [0], [0], [1], [1])  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="expected lists of 2, found one of 1"):
        Owners([1, 2], [b"a"], [0, 1])
    for states, members in ((b"", None), (ANY, b"")):
        with pytest.raises(ValueError, match="expected a mark for each state, and for each owner"):
            Selection([], OWNERS, states, members, None, None)
    for sort in (-1, 7):
        with pytest.raises(ValueError, match=f"expected one of the sorts, not {sort}"):
            selection([row]).page(sort, 0, 1)
    with pytest.raises(ValueError, match="expected an offset of at least 0, not -1"):
        selection([row]).page(0, -1, 1)
    assert selection([row]).page(0, 0, -1) == []


def test_a_pass_does_not_hold_the_gil() -> None:
    """Several at once over the same notices, while these are replaced: none changes under another."""
    rows = [Row(0, owner, owner, 1, None, None, None, rowid=owner) for owner in (0, 1, 2, 4, 5)]
    notice = columns_of(rows)
    ends: list[bool] = []

    def look() -> None:
        found = Selection([notice], OWNERS, ANY, None, None, None)
        ends.append(all(found.page(_columns.CREATED, 0, 9) == [1, 0, 4, 2, 5] for _ in range(300)))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        notice.replaced([7], columns_of([]), OWNERS)
    for thread in threads:
        thread.join()
    assert ends == [True] * 4
