"""Lists and counts of receipts against a plain list of rows, and beside changes in another thread."""

from __future__ import annotations

import threading
from collections import Counter
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushd.ledger._ledger import Ledger
from pushd.ledger._lists import ReceiptQuery
from pushd.ledger.receipt_states import states_of
from pushd.ledger.users import Users
from pushd.model import Channel, DeliveryStatus, User
from pushd.records import ReceiptFilter, ReceiptSort

PENDING, OFFLINE, EXPIRED, DELIVERED, READ, CONFIRMED = range(1, 7)
ONLINE, BY_MAILBOX = 0x40, 0x80
LATE_MS = 30 * 86_400_000  # beyond what a time column has milliseconds for
NAMES = ("Ada", "ada_b", "100%", "王小明", "Öl", "")
KEYS = {ReceiptSort.RECEIVED_AT: 3, ReceiptSort.READ_AT: 4, ReceiptSort.CONFIRMED_AT: 5}


class Row(NamedTuple):
    """As ReceiptQuery.page has it."""

    seq: int
    user: int
    state: int
    received_ms: int
    read_ms: int
    confirmed_ms: int
    client: int


class Asked(NamedTuple):
    where: ReceiptFilter
    user: int | None
    seq: int | None
    bounds: tuple[int, int]
    marked: frozenset[int] | None = None  # only notices with one of these seqs


class World:
    """A ledger, and what must be in it."""

    def __init__(self, user_ids: list[int | str]) -> None:
        self.ledger = Ledger(100)
        self.users = Users()
        self.users.numbers(user_ids)
        self.ledger.add_users(len(user_ids))
        self.rows: dict[tuple[int, int], Row] = {}
        self.names: dict[int, list[tuple[int, str]]] = {}

    def call(self, user: int, seq: int, name: str) -> None:
        """The user gets a new name."""
        self.users.note_name(user, seq, name, 1)

    def publish(self, seq: int, created_ms: int, receipts: list[tuple[int, int, int, int]], *, is_dense: bool) -> None:
        """A notice, and (user, state, ms until it was received, client) of its recipients."""
        self.ledger.add_notice(seq, created_ms, 0)
        if is_dense:
            self.ledger.begin_dense(seq)
        for user, state, after_ms, client in receipts:
            received_ms = created_ms + after_ms if state & 15 >= DELIVERED else 0
            self.ledger.note(seq, [user], state, received_ms, [client])
            self.rows[seq, user] = Row(seq, user, *self.ledger.receipt(seq, user) or (0,) * 5)

    def mark(self, seq: int, user: int, step: int, at_ms: int) -> None:
        """The user reads or confirms."""
        if self.ledger.mark(seq, user, step, at_ms):
            self.rows[seq, user] = Row(seq, user, *self.ledger.receipt(seq, user) or (0,) * 5)

    def hide(self, seq: int) -> None:
        """The notice's record is deleted."""
        self.ledger.hide(seq)
        self.rows = {key: row for key, row in self.rows.items() if row.seq != seq}

    def name_of(self, row: Row) -> str:
        """What the user was called."""
        return self.users.name_role(row.user, row.seq)[0]

    def found(self, asked: Asked) -> list[Row]:
        """What matches."""
        where, user, seq, bounds, _ = asked
        states = states_of(where)
        return [
            row
            for row in self.rows.values()
            if states[row.state]
            and (user is None or row.user == user)
            and (seq is None or row.seq == seq)
            and bounds[0] <= row.seq < bounds[1]
            and (asked.marked is None or row.seq in asked.marked)
            and (where.username is None or folded(where.username) in folded(self.name_of(row)))
        ]

    def in_order(self, rows: list[Row], sort: ReceiptSort, *, is_descending: bool) -> list[Row]:
        """The same, sorted."""
        order = {user: place for place, user in enumerate(self.users.order().by_id())}

        def key(row: Row) -> Any:
            rank = order[row.user]
            if sort is ReceiptSort.USER_ID:
                return rank, -row.seq
            if sort is ReceiptSort.USERNAME:
                return self.name_of(row).encode(), rank, -row.seq
            at_ms = row[KEYS[sort]] if sort in KEYS else 0
            return (at_ms, rank, row.seq) if at_ms else (0, row.seq, rank)

        return sorted(rows, key=key, reverse=is_descending)

    def query(self, asked: Asked, few: int = 100_000) -> ReceiptQuery:
        """What is asked of the ledger."""
        where, user, seq, bounds, marked = asked
        first, end = (min(marked), max(marked) + 1) if marked else (7, 7)
        named = None if where.username is None else self.users.named(where.username)
        return ReceiptQuery(
            self.ledger,
            self.users,
            seq=seq,
            user=user,
            names=named,
            state_set=states_of(where),
            since_seq=bounds[0],
            before_seq=bounds[1],
            having=None if marked is None else bytes(seq in marked for seq in range(first, end)),
            having_from=first,
            few=few,
        )


def folded(name: str) -> str:
    """As SQLite's lower()."""
    return name.encode().lower().decode()


def is_received(row: Row) -> bool:
    return row.state & 15 >= DELIVERED


def is_read(row: Row) -> bool:
    return row.state & 15 in (READ, CONFIRMED)


def is_confirmed(row: Row) -> bool:
    return row.state & 15 == CONFIRMED


def counted(rows: list[Row]) -> tuple[int, int, int, int, int]:
    online = sum(bool(row.state & ONLINE) for row in rows)
    return len(rows), online, sum(map(is_received, rows)), sum(map(is_read, rows)), sum(map(is_confirmed, rows))


def busiest(world: World, rows: list[Row], limit: int) -> list[tuple[int, ...]]:
    order = {user: place for place, user in enumerate(world.users.order().by_id())}
    totals = Counter(row.user for row in rows)
    found: list[tuple[int, ...]] = []
    for user in sorted(totals, key=lambda user: (-totals[user], order[user]))[:limit]:
        mine = [row for row in rows if row.user == user]
        total, _, received, read, confirmed = counted(mine)
        found.append((user, total, received, read, confirmed, max(row.seq for row in mine)))
    return found


states = st.builds(
    lambda step, online, channel: step | online | channel,
    st.sampled_from((PENDING, OFFLINE, EXPIRED, DELIVERED)),
    st.sampled_from((0, ONLINE)),
    st.sampled_from((0, BY_MAILBOX)),
)
delays = st.sampled_from((0, 1, 5, 1_000, 100_000, LATE_MS, 2 * LATE_MS))
USERS = 12


@st.composite
def worlds(draw: st.DrawFn) -> World:
    ids: list[int | str] = list(draw(st.permutations(range(1, USERS - 1))))
    world = World([*ids, "zoe", "Zoe"])
    users = st.integers(0, USERS - 1)
    seq, now_ms = draw(st.sampled_from((1, 4090, 9000))), 1_000_000
    for _ in range(draw(st.integers(1, 14))):
        seq += draw(st.sampled_from((1, 1, 1, 2, 3000)))
        now_ms += draw(st.sampled_from((0, 0, 1, 50, 10**6)))
        for user in draw(st.lists(users, max_size=4)):
            world.call(user, seq, draw(st.sampled_from(NAMES)))
        noted = draw(st.lists(st.tuples(users, states, delays, st.integers(0, 3)), max_size=USERS))
        world.publish(seq, now_ms, noted, is_dense=draw(st.booleans()))
    for key in draw(st.lists(st.sampled_from(sorted(world.rows)), max_size=20) if world.rows else st.just([])):
        created_ms = world.ledger.created_ms(key[0])
        world.mark(*key, draw(st.sampled_from((READ, CONFIRMED))), created_ms + draw(delays))
    for hidden in draw(
        st.lists(st.sampled_from(sorted({key[0] for key in world.rows})), max_size=2) if world.rows else st.just([])
    ):
        world.hide(hidden)
    return world


filters = st.builds(
    ReceiptFilter,
    username=st.none() | st.none() | st.sampled_from(["A", "ada", "%", "小", "a", "", "x", "ö", "Ö"]),
    is_online=st.none() | st.booleans(),
    is_received=st.none() | st.none() | st.booleans(),
    is_read=st.none() | st.none() | st.booleans(),
    is_confirmed=st.none() | st.none() | st.booleans(),
    delivery_status=st.none() | st.none() | st.sampled_from(DeliveryStatus),
    push_channel=st.none() | st.none() | st.sampled_from(Channel),
)
some = settings(max_examples=100, deadline=None)


@st.composite
def questions(draw: st.DrawFn, world: World) -> Asked:
    seqs = st.sampled_from(sorted({key[0] for key in world.rows} | {1, 99_999}))
    low = draw(st.just(0) | seqs)
    return Asked(
        draw(st.just(ReceiptFilter()) | filters),
        draw(st.none() | st.none() | st.integers(0, USERS + 3)),
        draw(st.none() | st.none() | seqs),
        (low, draw(st.just(1 << 62) | seqs)),
        draw(st.none() | st.none() | st.frozensets(seqs)),
    )


@given(data=st.data())
@some
def test_counts_and_pages_are_those_of_the_plain_list(data: st.DataObject) -> None:
    world = data.draw(worlds())
    for _ in range(4):
        asked = data.draw(questions(world))
        rows, query = world.found(asked), world.query(asked, data.draw(st.sampled_from((0, 3, 10, 100_000))))
        assert query.counts() == counted(rows)
        assert query.by_users(5) == busiest(world, rows, 5)
        for sort in ReceiptSort:
            is_descending, size = data.draw(st.booleans()), data.draw(st.sampled_from((1, 3, 7, 1000)))
            expected = world.in_order(rows, sort, is_descending=is_descending)
            for offset in range(0, len(rows) + size, size):
                page = query.page(sort, offset, size, is_descending)
                assert page == expected[offset : offset + size]


def large() -> World:
    """More users than a segment has, more rows than a page has, blocks that overlap in time; few distinct times."""
    random = Random(5)
    count = 4500
    world = World([*random.sample(range(1, 10**6), count)])
    world.users.note_names(range(count), [User(1, f"user {user % 70}") for user in range(count)], 1)
    for seq in range(2, 22):
        for user in random.sample(range(count), 40):
            world.call(user, seq, f"user {user % 50}")
        is_dense = seq % 3 == 0
        receivers = random.sample(range(count), 500 if is_dense else 350)
        noted = [
            (user, random.choice((OFFLINE, DELIVERED, DELIVERED | ONLINE)), random.randrange(50) ** 3, user % 7)
            for user in receivers
        ]
        world.publish(seq, 1_000_000 + seq * 10, noted, is_dense=is_dense)
        for user in receivers[::3]:
            world.mark(seq, user, random.choice((READ, CONFIRMED)), 1_000_000 + random.randrange(30) ** 4)
    world.hide(7)
    return world


WORLD = large()


@pytest.mark.parametrize("few", [0, 50, 100_000])
@pytest.mark.parametrize("sort", list(ReceiptSort))
@pytest.mark.parametrize(
    "asked",
    [
        Asked(ReceiptFilter(), None, None, (0, 1 << 62)),
        Asked(ReceiptFilter(username="r 1"), None, None, (0, 1 << 62)),
        Asked(ReceiptFilter(is_read=True), None, None, (5, 20)),
        Asked(ReceiptFilter(is_online=False, username="r 2"), None, 9, (0, 1 << 62)),
        Asked(ReceiptFilter(), None, None, (0, 1 << 62), frozenset({3, 4, 6, 7, 8, 13, 20})),
        Asked(ReceiptFilter(is_read=True, username="r 1"), None, None, (4, 1 << 62), frozenset({3, 4, 8, 9})),
    ],
)
def test_pages_of_many_rows(asked: Asked, sort: ReceiptSort, few: int) -> None:
    rows, query = WORLD.found(asked), WORLD.query(asked, few)
    assert rows
    assert query.counts() == counted(rows)
    for is_descending in (True, False):
        expected = WORLD.in_order(rows, sort, is_descending=is_descending)
        for size in (len(rows) // 4 + 1, len(rows) + 1):
            for offset in range(0, len(rows) + size, size):
                assert query.page(sort, offset, size, is_descending) == expected[offset : offset + size]


def test_the_busiest_of_many() -> None:
    asked = Asked(ReceiptFilter(username="user"), None, None, (3, 1 << 62))
    assert WORLD.query(asked).by_users(50) == busiest(WORLD, WORLD.found(asked), 50)


LAST = 399 + 4096 * 3


def change(ledger: Ledger, users: Users, noted: set[tuple[int, int]]) -> None:
    """Everything that gives memory back: blocks that widen, that are dropped, chunks that are forgotten."""
    random = Random(7)
    for seq in range(1, 400):
        if seq % 20 == 0:
            number = users.numbers([1000 + seq, f"user {seq}"])[-1]
            users.note_name(number, seq, f"name {seq}", 1)
            ledger.add_users(len(users))
        users.note_name(random.randrange(len(users)), seq, f"name {random.randrange(9)}", 1)
        ledger.add_notice(seq + 4096 * (seq // 100), 1_000_000 + seq, 0)
        at = seq + 4096 * (seq // 100)
        if seq % 3 == 0:
            ledger.begin_dense(at)
        receivers = random.sample(range(len(users)), 60)
        noted.update((at, user) for user in receivers)
        ledger.note(at, receivers, DELIVERED if seq % 2 else OFFLINE, 1_000_000 + seq + random.randrange(10**6))
        for user in receivers[:20]:
            ledger.mark(at, user, READ, 1_000_000 + seq + random.randrange(10**6))
        if seq % 50 == 0:
            ledger.hide(at)
        if seq > 100 and seq % 7 == 0:
            past = seq - 100 + 4096 * ((seq - 100) // 100)
            ledger.drop(past, 1000)
        if seq in (250, 399):
            for old in range(1, seq - 150):
                ledger.drop(old + 4096 * (old // 100), 1000)
            ledger.forget_before(seq - 150 + 4096 * ((seq - 150) // 100))


def test_changes_go_on_while_pages_are_made() -> None:
    first_ids = list(range(1, 101))

    def begun() -> tuple[Ledger, Users]:
        ledger, users = Ledger(100), Users()
        users.numbers(first_ids)
        ledger.add_users(len(users))
        return ledger, users

    quiet, quiet_users = begun()
    change(quiet, quiet_users, set())
    ledger, users = begun()
    noted: set[tuple[int, int]] = set()
    is_over = threading.Event()
    listed: list[tuple[int, int]] = []
    failures: list[BaseException] = []

    def read(seed: int) -> None:
        random = Random(seed)
        try:
            is_last = False
            while not is_last:
                is_last = is_over.is_set()  # once more then, for a machine where all changes come before the first page
                names = users.named("name 1") if random.random() < 0.5 else None
                user = random.randrange(120) if random.random() < 0.2 else None
                query = ReceiptQuery(ledger, users, names=names, user=user, few=random.choice((0, 10_000)))
                total = query.counts()[0]
                for sort in ReceiptSort:
                    page = query.page(sort, random.randrange(total + 1), 50, random.random() < 0.5)
                    listed.extend((row[0], row[1]) for row in page)
                query.by_users(5)
        except BaseException as error:
            failures.append(error)
            raise

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for reader in readers:
        reader.start()
    change(ledger, users, noted)
    is_over.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert listed
    assert set(listed) <= noted
    for each in (quiet, ledger):  # what it was told while a pass was under way it may have left for later
        each.forget_before(LAST)
    assert ledger.memory == quiet.memory  # nothing is left to be freed


@pytest.mark.parametrize(
    "wrong",
    [
        {"state_set": b"short"},
        {"seq": "1"},
        {"user": 1 << 70},
        {"names": "ada"},
        {"since_seq": 1.5},
    ],
)
def test_arguments_of_a_wrong_kind(wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        ReceiptQuery(Ledger(1), Users(), **wrong)


def test_nothing_is_there() -> None:
    query = ReceiptQuery(Ledger(1), Users())
    assert query.counts() == (0, 0, 0, 0, 0)
    assert query.by_users(3) == []
    assert [query.page(sort, 0, 10, True) for sort in ReceiptSort] == [[]] * 6
