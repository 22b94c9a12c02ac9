"""What is taken from a ledger and loaded again is the same ledger, whatever is lost or repeated on the way."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pushd.ledger._changes import has_changes, renumber, take_changes
from pushd.ledger._ledger import Ledger
from tests.unit.ledger_file import (
    BY_MAILBOX,
    CONFIRMED,
    DAYS_MS,
    DELIVERED,
    DENSE_KIND,
    HIDDEN,
    KNOWN,
    MAX_WAITING,
    OFFLINE,
    ONLINE,
    PAGE,
    PAGE_KIND,
    PENDING,
    READ,
    SETTLED,
    START_MS,
    SUCCESS,
    UNBOUNDED,
    WAITING,
    File,
    facts,
    receipt,
    seen_by_reader,
)

# ---- random changes

Act = tuple[Any, ...]
who = st.sampled_from(["few", "some", "all"])
when = st.sampled_from([0, 1, 700, 90_000, 30 * DAYS_MS])
indices = st.integers(0, 5)
acts = st.one_of(
    st.tuples(st.just("add"), st.sampled_from([1, 1, 1, 2, 4000]), when, st.booleans()),
    st.tuples(st.just("users"), st.sampled_from([1, 40, 300])),
    st.tuples(
        st.just("note"), indices, who, st.sampled_from([PENDING, OFFLINE, DELIVERED]),
        st.sampled_from([0, WAITING, ONLINE, WAITING | BY_MAILBOX]), when, st.integers(0, 3),
    ),
    st.tuples(st.just("mark"), indices, who, st.sampled_from([READ, CONFIRMED]), when),
    st.tuples(st.just("wait"), indices, who),
    st.tuples(st.just("remove"), indices, who),
    st.tuples(st.just("clear"), who),
    st.tuples(st.sampled_from(["settle", "hide", "forget_before", "drop_waiting", "expire", "drop"]), indices),
    st.tuples(st.just("renumber")),
    st.tuples(
        st.just("take"),
        st.sampled_from([{}, {"take_bytes": 500}, {"log_bytes": 300}, {"log_bytes": 0}, {"memory": 0}, {"memory": 0}]),
    ),
    st.tuples(st.sampled_from(["lose", "reload", "repeat"]), st.sampled_from([0, UNBOUNDED])),
)  # fmt: skip


class World:
    """A ledger, the file that it is written to, and what it was when all of it was written last."""

    def __init__(self) -> None:
        self.ledger = Ledger(MAX_WAITING)
        self.ledger.add_users(8)
        self.file = File()
        self.file.user_count = 8
        self.seqs: list[int] = []
        self.at_ms = START_MS
        self.written = self.file.copy()
        self.facts = facts(self.ledger, ())

    def act(self, act: Act) -> None:
        name, *rest = act
        getattr(self, name)(*rest)

    def seq(self, index: int) -> int:
        """The newest ones are used most."""
        return self.seqs[-1 - min(index, len(self.seqs) - 1)] if self.seqs else 1

    def numbers(self, who: str, index: int = 0) -> list[int]:
        count = self.ledger.user_count
        if who == "few":
            return [(index * 3 + 1) % 8, (index + 2) % 8]
        return list(range(0, count, 3)) if who == "some" else list(range(count))

    def add(self, gap: int, later_ms: int, is_dense: bool) -> None:
        seq = (self.seqs[-1] if self.seqs else 0) + gap
        self.at_ms += min(later_ms, DAYS_MS)
        self.ledger.add_notice(seq, self.at_ms, seq % 7)
        if is_dense:
            self.ledger.begin_dense(seq)
        self.seqs.append(seq)
        self.file.notices[seq] = self.at_ms, seq % 7

    def users(self, count: int) -> None:
        self.ledger.add_users(min(self.ledger.user_count + count, 2000))

    def note(self, index: int, who: str, step: int, flags: int, later_ms: int, client: int) -> None:
        numbers = self.numbers(who, index)
        clients = [client * (number % 2) for number in numbers] if client else None
        received_ms = self.at_ms + later_ms if later_ms else 0
        self.ledger.note(self.seq(index), numbers, step | flags, received_ms, clients)

    def mark(self, index: int, who: str, step: int, later_ms: int) -> None:
        for number in self.numbers(who, index):
            self.ledger.mark(self.seq(index), number, step, self.at_ms + later_ms)

    def wait(self, index: int, who: str) -> None:
        self.ledger.wait(self.seq(index), self.numbers(who, index))

    def remove(self, index: int, who: str) -> None:
        for number in self.numbers(who, index):
            self.ledger.remove(self.seq(index), number)

    def clear(self, who: str) -> None:
        for number in self.numbers(who):
            self.ledger.clear(number)

    def settle(self, index: int) -> None:
        self.ledger.set_notice(self.seq(index), SETTLED | SUCCESS)

    def hide(self, index: int) -> None:
        self.ledger.hide(self.seq(index))

    def forget_before(self, index: int) -> None:
        self.ledger.forget_before(self.seq(index))

    def drop_waiting(self, index: int) -> None:
        self.ledger.drop_waiting(self.seq(index), 5)

    def expire(self, index: int) -> None:
        self.ledger.expire(self.seq(index), 100)

    def drop(self, index: int) -> None:
        self.ledger.drop(self.seq(index), 10_000)

    def take(self, limits: dict[str, int]) -> None:
        """All of it, in as many flushes as it takes."""
        self.file.take_all(self.ledger, **limits)
        self.written, self.facts = self.file.copy(), facts(self.ledger, self.seqs, self.file)

    def check(self, memory: int = UNBOUNDED) -> Ledger:
        """What was written last, loaded."""
        loaded = self.written.load(memory=memory)
        assert facts(loaded, self.seqs, self.written) == self.facts
        assert not has_changes(loaded) or self.written.notices
        return loaded

    def lose(self, memory: int = UNBOUNDED) -> None:
        """What was not written all the same is lost: a start without it."""
        self.ledger, self.file = self.check(memory), self.written.copy()
        self.seqs = [seq for seq in self.seqs if self.ledger.notice_state(seq)] or self.seqs[:0]

    def reload(self, memory: int = UNBOUNDED) -> None:
        self.take({})
        self.lose(memory)

    def renumber(self) -> None:
        """A start that numbers pages anew, whatever their numbers are."""
        self.reload()
        before = facts(self.ledger, self.seqs)
        if renumber(self.ledger, 0):
            self.file.take(self.ledger, log_bytes=0, take_bytes=1 << 40)
        assert facts(self.ledger, self.seqs) == before
        numbers = sorted({key >> 5 for key in self.file.parts if key >> 3 & 3 == PAGE_KIND})
        assert not numbers or self.file.changes or numbers == [*range(len(numbers))]
        self.reload()
        assert facts(self.ledger, self.seqs) == before

    def repeat(self, _: int = 0) -> None:
        """A flush that was written and was not known to be, again."""
        self.file.write(self.file.take(self.ledger))
        self.take({})


@settings(max_examples=100, deadline=None)
@given(st.lists(acts, max_size=50))
@example(
    [
        ("add", 1, 0, True),
        ("note", 0, "all", OFFLINE, WAITING, 0, 0),
        ("take", {}),
        ("users", 40),
        ("mark", 0, "few", READ, 5),
        ("note", 0, "all", DELIVERED, 0, 9, 2),
        ("reload",),
        ("reload",),
    ]
)
@example(
    [
        ("add", 1, 0, False),
        *[("users", 300)] * 6,
        *[("note", 0, "all", OFFLINE, WAITING, 0, 0), ("add", 4000, 1, False)] * 4,
        ("take", {"take_bytes": 500}),
        ("mark", 2, "some", READ, 700),
        ("reload",),
        ("hide", 1),
        ("reload",),
    ]
)
@example(  # what of a column only the log has, and then the block is stored
    [
        ("users", 300),
        ("add", 1, 0, True),
        ("note", 0, "all", OFFLINE, 0, 0, 0),
        ("mark", 0, "some", READ, 5),
        ("take", {}),
        ("mark", 0, "few", READ, 5),
        ("reload",),
        ("note", 0, "all", DELIVERED, 0, 9, 0),
        ("reload",),
    ]
)
def test_what_is_loaded_is_what_was_written(acts: list[Act]) -> None:
    world = World()
    for act in acts:
        world.act(act)
    world.check()
    world.reload()
    listed = [seq for seq in world.seqs if world.ledger.notice_state(seq) & (KNOWN | HIDDEN) == KNOWN]
    assert seen_by_reader(world.written) == {
        (seq, user): receipt(world.ledger, seq, user, world.file)
        for seq in listed
        for user in world.ledger.receipts(seq)
    }


# ---- flushes


def ledger_of(users: int) -> tuple[Ledger, File]:
    ledger, file = Ledger(100), File()
    ledger.add_users(users)
    return ledger, file


def add(ledger: Ledger, file: File, seq: int, is_dense: bool = False) -> None:
    file.notices[seq] = START_MS, 1
    ledger.add_notice(seq, START_MS, 1)
    if is_dense:
        ledger.begin_dense(seq)


def test_nothing_to_take() -> None:
    ledger, _ = ledger_of(3)
    assert not has_changes(ledger)
    assert take_changes(ledger) == (0, b"", [], 0)
    assert ledger.flush == 0


def test_a_new_dense_block_is_stored_whole_and_a_change_of_it_is_a_few_bytes() -> None:
    ledger, file = ledger_of(10_000)
    add(ledger, file, 1, is_dense=True)
    ledger.note(1, list(range(10_000)), OFFLINE | WAITING)
    _, row, parts, _ = file.take(ledger)
    assert [key for key, _ in parts] == [1 << 5 | DENSE_KIND << 3]
    assert sum(len(blob or b"") for _, blob in parts) == 10_032
    assert len(row) < 40
    ledger.mark(1, 5000, READ, START_MS + 60_000)
    flush, row, parts, floor = file.take(ledger)
    assert (flush, parts, floor) == (2, [], 1)
    assert len(row) < 32 + 20


def test_a_block_of_which_an_eighth_changed_is_stored_with_the_columns_that_changed() -> None:
    ledger, file = ledger_of(1000)
    add(ledger, file, 1, is_dense=True)
    ledger.note(1, list(range(1000)), DELIVERED, START_MS + 5, list(range(1000)))
    file.take(ledger)
    for number in range(126):
        ledger.mark(1, number, READ, START_MS + 10)
    _, _, parts, _ = file.take(ledger)
    assert sorted(key & 7 for key, _ in parts) == [0, 2]
    for number in range(120):
        ledger.mark(1, number, CONFIRMED, START_MS + 10)
    assert file.take(ledger)[2] == []
    for number in range(120, 246):
        ledger.mark(1, number, CONFIRMED, START_MS + 10)
    assert sorted(key & 7 for key, _ in file.take(ledger)[2]) == [0, 2, 3]


def test_rows_below_the_floor_go_once_all_is_stored() -> None:
    ledger, file = ledger_of(10)
    for seq in range(1, 2 * PAGE):
        add(ledger, file, seq)
        ledger.note(seq, [seq % 10], DELIVERED, START_MS + 1)
        ledger.set_notice(seq, SETTLED)
        if seq % 500 == 0:
            file.take_all(ledger)
    file.take_all(ledger)
    assert {key for key in file.parts if key & 0x1F == 0} == {0 << 5}
    assert {key >> 5 for key in file.parts if key >> 3 & 3 == PAGE_KIND} == {0}
    assert min(file.changes) > 7
    assert facts(file.load(), range(2 * PAGE)) == facts(ledger, range(2 * PAGE))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 3), st.integers(2_000, 20_000))
def test_the_log_keeps_below_its_bound(kind: int, log_bytes: int) -> None:
    """One slow notice keeps the oldest rows: it is stored again, though little of it has changed."""
    ledger, file = ledger_of(3000)
    add(ledger, file, 1, is_dense=kind > 1)
    ledger.note(1, list(range(3000)), OFFLINE)
    file.take(ledger)
    ledger.mark(1, 5, READ, START_MS + 5)
    for seq in range(2, 200):
        add(ledger, file, seq, is_dense=kind % 2 == 1 and seq % 3 == 0)
        ledger.note(seq, list(range(seq, seq + 300)), DELIVERED, START_MS + 9)
        file.take(ledger, log_bytes=log_bytes)
        assert sum(map(len, file.changes.values())) <= log_bytes + 10_000
    assert facts(file.load(), range(200)) == facts(ledger, range(200))


def test_one_flush_copies_no_more_than_it_may() -> None:
    ledger, file = ledger_of(1000)
    for seq in range(1, 101):
        add(ledger, file, seq, is_dense=True)
        ledger.note(seq, list(range(1000)), DELIVERED, START_MS + 9)
    flushes = 0
    while has_changes(ledger):
        taken = file.take(ledger, take_bytes=50_000)
        assert len(taken[1]) + sum(len(blob or b"") for _, blob in taken[2]) <= 60_000
        flushes += 1
    assert flushes > 8
    assert facts(file.load(), range(101)) == facts(ledger, range(101))


def test_flush_numbers_go_on_from_all_that_was_seen() -> None:
    ledger, file = ledger_of(100)
    add(ledger, file, 1, is_dense=True)
    ledger.note(1, list(range(100)), OFFLINE)
    for number in range(5):
        ledger.mark(1, number, READ, START_MS + 1)
        file.take(ledger)
    file.changes[9] = b"damaged"
    again = file.load([])
    assert again.flush == 9
    again.mark(1, 50, READ, START_MS + 1)
    assert file.take(again)[0] == 10
    assert facts(file.load([]), [1]) == facts(again, [1])


def test_the_number_of_a_dropped_page_may_be_used_again() -> None:
    ledger, file = ledger_of(10)
    add(ledger, file, 1)
    add(ledger, file, 2)
    ledger.note(2, [3], OFFLINE)
    file.take(ledger)
    ledger.hide(2)
    add(ledger, file, 5000)
    ledger.forget_before(4999)
    file.take_all(ledger)
    assert facts(file.load(), range(5001)) == facts(ledger, range(5001))
    again = file.load()
    again.note(5000, [4, 5], OFFLINE)
    file.take_all(again)
    assert facts(file.load(), range(5001)) == facts(again, range(5001))
    assert file.load().receipts(5000) == [4, 5]


def test_a_notice_in_a_gap_of_a_stored_chunk_is_stored_with_it() -> None:
    ledger, file = ledger_of(3)
    add(ledger, file, 1)
    add(ledger, file, 3)
    add(ledger, file, PAGE + 1)
    file.take_all(ledger)
    ledger.set_notice(PAGE + 1, SETTLED)
    file.take_all(ledger)
    assert file.parts.keys() == {0}
    add(ledger, file, 2)
    ledger.note(2, [1], DELIVERED, START_MS + 1)
    file.take_all(ledger)
    del file.notices[2]
    assert facts(file.load(), range(5000)) == facts(ledger, range(5000))


def test_a_notice_whose_block_is_lost_takes_receipts_again() -> None:
    ledger, file = ledger_of(10)
    add(ledger, file, 1, is_dense=True)
    ledger.note(1, [1, 2], OFFLINE)
    file.take_all(ledger)
    del file.parts[1 << 5 | DENSE_KIND << 3]
    again = file.load()
    assert again.receipts(1) == []
    again.note(1, [3], DELIVERED, START_MS + 1)
    file.take_all(again)
    assert file.load().receipts(1) == [3]


def test_pages_are_numbered_anew() -> None:
    file, ledger = File(), Ledger(MAX_WAITING)
    ledger.add_users(50)
    seqs = range(1, 401)
    for seq in seqs:
        file.notices[seq] = (START_MS + seq, 0)
        ledger.add_notice(seq, START_MS + seq, 0)
        ledger.note(seq, [*range(50)], OFFLINE | (WAITING if seq % 90 == 0 else 0))
    file.take_all(ledger)
    for seq in range(1, 200):
        ledger.hide(seq)
    ledger.forget_before(200)
    ledger.mark(300, 7, READ, START_MS + 900)
    file.take_all(ledger)
    loaded = file.load()
    before = facts(loaded, seqs)
    assert not renumber(loaded, 5)
    assert renumber(loaded, 4)
    file.take(loaded, log_bytes=0, take_bytes=1 << 40)
    assert not has_changes(loaded)
    assert {key >> 5 for key in file.parts if key >> 3 & 3 == PAGE_KIND} == {0, 1, 2}
    assert file.changes == {}
    assert facts(loaded, seqs) == before
    again = file.load()
    assert facts(again, seqs) == before
    for one in (loaded, again):
        one.add_notice(401, START_MS + 401, 0)
        one.note(401, [3], DELIVERED)
        assert one.newest(3, 1)[0][0] == 401
