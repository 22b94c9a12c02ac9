"""What is taken from a ledger and loaded again is the same ledger, whatever is lost, repeated or damaged on the way."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pushd.ledger._changes import has_changes, load_part, ready, replay, take_changes
from pushd.ledger._ledger import Ledger
from tests.ledger_rows import LedgerRows

START_MS = 1_700_000_000_000
MAX_WAITING = 3
KNOWN, SETTLED, DENSE, HIDDEN, SUCCESS = 0x01, 0x02, 0x04, 0x08, 0x40
PENDING, OFFLINE, EXPIRED, DELIVERED, READ, CONFIRMED = range(1, 7)
WAITING, ONLINE, BY_MAILBOX = 0x10, 0x40, 0x80
PAGE = 4096
CHUNK_KIND, DENSE_KIND, PAGE_KIND = range(3)
DAYS_MS = 86_400_000

Facts = dict[str, Any]
Taken = tuple[int, bytes, list[tuple[int, bytes | None]], int]


class File:
    """The tables `block` and `change`, and what is loaded from `notice`: seq -> (accepted_ms, label, state)."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.changes: dict[int, bytes] = {}
        self.notices: dict[int, tuple[int, int]] = {}
        self.user_count = 0

    def write(self, taken: Taken) -> None:
        flush, row, parts, floor = taken
        for key, blob in parts:
            if blob is None:
                self.parts.pop(key, None)
            else:
                self.parts[key] = blob
        if row:
            self.changes[flush] = row
        self.changes = {number: row for number, row in self.changes.items() if number >= floor}

    def take(self, ledger: Ledger, **limits: int) -> Taken:
        """Write one flush."""
        taken = take_changes(ledger, **limits)
        self.user_count = ledger.user_count
        self.notices = {seq: at for seq, at in self.notices.items() if ledger.notice_state(seq)}
        self.write(taken)
        return taken

    def take_all(self, ledger: Ledger, **limits: int) -> None:
        self.take(ledger, **limits)
        while has_changes(ledger):
            self.take(ledger, **limits)

    def copy(self) -> File:
        made = File()
        made.parts, made.changes, made.notices = dict(self.parts), dict(self.changes), dict(self.notices)
        made.user_count = self.user_count
        return made

    def load(self, damaged: list[int] | None = None) -> Ledger:
        """As the store does it. Without `damaged`, where what cannot be used is noted, it must all be of use."""
        ledger = Ledger(MAX_WAITING)
        ledger.add_users(self.user_count)
        for key in sorted(self.parts, key=lambda key: (key >> 3 & 3, key)):
            if key >> 3 & 3 != CHUNK_KIND:
                self.add_tail(ledger)
            is_used = used(load_part, ledger, key, self.parts[key], damaged)
            if key >> 3 & 3 == CHUNK_KIND and not is_used:
                self.add_tail(ledger, range((key >> 5) * PAGE, (key >> 5) * PAGE + PAGE))
        self.add_tail(ledger)
        for flush in sorted(self.changes):
            used(replay, ledger, flush, self.changes[flush], damaged)
        ready(ledger)
        return ledger

    def add_tail(self, ledger: Ledger, of: range | None = None) -> None:
        for seq, (accepted_ms, label) in sorted(self.notices.items()):
            if not ledger.notice_state(seq) and (of is None or seq in of):
                ledger.add_notice(seq, accepted_ms, label)

    def rows(self) -> LedgerRows:
        """What the plain reader says of it."""
        with closing(sqlite3.connect(":memory:")) as database:
            for table in (
                "block (key INTEGER PRIMARY KEY, body)",
                "change (flush INTEGER PRIMARY KEY, body)",
                "notice (seq INTEGER PRIMARY KEY, message_id, accepted_ms, body)",
                "user_number (number, id)",
                "identity (user, from_seq, name, role)",
                "client (number, connection_id, client_ip, user_agent, device_type, platform, browser)",
            ):
                database.execute(f"CREATE TABLE {table}")
            database.executemany("INSERT INTO block VALUES (?, ?)", self.parts.items())
            database.executemany("INSERT INTO change VALUES (?, ?)", self.changes.items())
            database.executemany(
                "INSERT INTO notice VALUES (?, ?, ?, ?)",
                [(seq, f"m{seq}", at_ms, "{}") for seq, (at_ms, _) in self.notices.items()],
            )
            return LedgerRows(database)


def used(
    use: Callable[[Ledger, int, bytes], None], ledger: Ledger, key: int, blob: bytes, damaged: list[int] | None
) -> bool:
    try:
        use(ledger, key, blob)
    except ValueError:
        if damaged is None:
            raise
        damaged.append(key)
        return False
    return True


def facts(ledger: Ledger, seqs: Iterable[int]) -> Facts:
    """All that can be asked of a ledger."""
    users = range(ledger.user_count)
    few = users[:12]
    known = [seq for seq in seqs if ledger.notice_state(seq)]
    return {
        "notices": [
            (seq, ledger.notice_state(seq) & ~DENSE, ledger.created_ms(seq), ledger.label(seq)) for seq in known
        ],
        "unsettled": ledger.unsettled(),
        "counts": [{state: n for state, n in ledger.counts(seq).items() if n} for seq in known],
        "receipts": [sorted(ledger.receipts(seq)) for seq in known],
        "each": [[ledger.receipt(seq, user) for user in few] for seq in known],
        "has_waiting": [ledger.has_waiting(seq) for seq in known],
        "waiting_count": [ledger.waiting_count(user) for user in users],
        "waiting": [ledger.waiting(user) for user in few],
        "unread": [ledger.unread(user) for user in users],
        "summary": [ledger.summary(user) for user in few],
        "newest": [ledger.newest(user, 5) for user in few],
    }


def seen_by_reader(file: File) -> dict[tuple[int, int], tuple[int, tuple[int, int, int], int]]:
    rows = file.rows()
    return {
        (receipt.seq, receipt.user): (receipt.state, receipt.times, receipt.client)
        for receipt in rows.receipts
        if receipt.state & 0x0F and rows.is_listed(receipt.seq)
    }


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
    st.tuples(st.just("take"), st.sampled_from([{}, {"take_bytes": 500}, {"log_bytes": 300}, {"log_bytes": 0}])),
    st.tuples(st.sampled_from(["lose", "reload", "repeat"])),
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
        self.written, self.facts = self.file.copy(), facts(self.ledger, self.seqs)

    def check(self) -> Ledger:
        """What was written last, loaded."""
        loaded = self.written.load()
        assert facts(loaded, self.seqs) == self.facts
        assert not has_changes(loaded) or self.written.notices
        return loaded

    def lose(self) -> None:
        """What was not written all the same is lost: a start without it."""
        self.ledger, self.file = self.check(), self.written.copy()
        self.seqs = [seq for seq in self.seqs if self.ledger.notice_state(seq)] or self.seqs[:0]

    def reload(self) -> None:
        self.take({})
        self.lose()

    def repeat(self) -> None:
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
def test_what_is_loaded_is_what_was_written(acts: list[Act]) -> None:
    world = World()
    for act in acts:
        world.act(act)
    world.check()
    world.reload()
    expected = {
        (seq, user): found[0]
        for seq in world.seqs
        if world.ledger.notice_state(seq) and not world.ledger.notice_state(seq) & HIDDEN
        for user in world.ledger.receipts(seq)
        if (found := world.ledger.receipt(seq, user)) is not None
    }
    assert {key: state for key, (state, _, _) in seen_by_reader(world.written).items()} == expected


# ---- damage


def full_file() -> tuple[File, list[int]]:
    """A file with every kind of part and entry in it, and the notices that are in it."""
    ledger, file = Ledger(MAX_WAITING), File()
    ledger.add_users(1500)
    everybody = list(range(1500))
    seqs = [*range(1, 40), *range(4090, 4100), 9000]
    for index, seq in enumerate(seqs):
        file.notices[seq] = START_MS + 1000 * index, index
        ledger.add_notice(seq, *file.notices[seq])
        if index % 3 == 0:
            ledger.begin_dense(seq)
        ledger.note(seq, everybody[index :: 3 if index % 3 else 5], OFFLINE, 0)
        ledger.note(seq, everybody[index::17], DELIVERED | ONLINE, START_MS + 1100 * index, everybody[index::17])
        if index % 4 == 0:
            file.take(ledger)
        ledger.mark(seq, index, CONFIRMED, START_MS + 2000 * index)
        ledger.wait(seq, [1, 2, index])
        if index % 2 == 0:
            ledger.set_notice(seq, SETTLED | SUCCESS)
    file.take_all(ledger)
    ledger.hide(seqs[0])
    for seq in seqs[::3]:
        ledger.mark(seq, 77, READ, START_MS + DAYS_MS)
    file.take_all(ledger)
    ledger.drop_waiting(seqs[0], 100)
    ledger.forget_before(2)
    ledger.note(4098, everybody[:3], DELIVERED, START_MS + 40 * DAYS_MS)
    file.take_all(ledger)
    return file, seqs


FULL, FULL_SEQS = full_file()
BLOBS = [("parts", key) for key in sorted(FULL.parts)] + [("changes", flush) for flush in sorted(FULL.changes)]


def test_the_full_file_has_everything() -> None:
    kinds = {(key >> 3 & 3, key & 7) for key in FULL.parts}
    assert kinds >= {
        (CHUNK_KIND, 0),
        *((DENSE_KIND, part) for part in (0, 1, 4)),
        *((PAGE_KIND, part) for part in (0, 1, 4)),
    }
    assert len(FULL.changes) > 5
    assert facts(FULL.load(), FULL_SEQS)["unread"] != [0] * 1500


def sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def damaged_file(table: str, key: int, blob: bytes) -> File:
    file = FULL.copy()
    getattr(file, table)[key] = blob
    return file


def loads_the_rest(file: File, table: str, key: int, is_refused: bool | None) -> None:
    """It is refused (None: or not), parts that need it are, all else is loaded, and the ledger can be used."""
    damaged: list[int] = []
    ledger = file.load(damaged)
    needing = {key} if table == "changes" or key & 7 else {key + part for part in range(5)}
    assert set(damaged) <= needing
    if is_refused is not None:
        assert (key in damaged) == is_refused
    facts(ledger, FULL_SEQS)
    for seq in FULL_SEQS[:12]:
        ledger.note(seq, list(range(0, 1500, 50)), DELIVERED | ONLINE, START_MS + 5, [3] * 30)
        ledger.mark(seq, 50, READ, START_MS + 6)
        ledger.wait(seq, [1, 2, 3])
    ledger.hide(FULL_SEQS[5])
    file.take_all(ledger)
    again = file.load([])
    assert again.flush >= ledger.flush
    facts(again, FULL_SEQS)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(BLOBS), st.data())
def test_what_is_damaged_is_refused_and_all_else_is_loaded(place: tuple[str, int], data: st.DataObject) -> None:
    blob = bytearray(getattr(FULL, place[0])[place[1]])
    match data.draw(st.sampled_from(["flip", "cut", "longer", "empty", "other"])):
        case "flip":
            blob[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del blob[data.draw(st.integers(0, len(blob) - 1)) :]
        case "longer":
            blob += b"\0" * data.draw(st.integers(1, 9))
        case "empty":
            blob.clear()
        case "other":
            other = data.draw(st.sampled_from([other for other in BLOBS if other != place]))
            blob = bytearray(getattr(FULL, other[0])[other[1]])
    loads_the_rest(damaged_file(*place, bytes(blob)), *place, True)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BLOBS), st.data())
def test_what_is_damaged_and_has_the_right_checksum_does_no_harm(place: tuple[str, int], data: st.DataObject) -> None:
    body = bytearray(getattr(FULL, place[0])[place[1]][:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        near = data.draw(st.integers(0, min(60, len(body) - 1)))
        at = data.draw(st.sampled_from([near, len(body) - 1 - near]) | st.integers(0, len(body) - 1))
        body[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    file = damaged_file(*place, sealed(bytes(body)))
    loads_the_rest(file, *place, None)


@pytest.mark.parametrize(
    ("at", "value", "told"),
    [
        (0, 0x50, "begins with b'PLdg', expected b'pLdg'"),
        (4, 2, "format 2, expected 1"),
        (5, 3, "kind 3, part 0, number"),
        (16, 0x7F, "flush|checksum"),
    ],
)
def test_errors_say_what_was_found_and_what_was_expected(at: int, value: int, told: str) -> None:
    key = next(key for key in FULL.parts if key >> 3 & 3 == DENSE_KIND and not key & 7)
    body = bytearray(FULL.parts[key][:-4])
    body[at] = value
    if at == 16:
        body[16:24] = (0).to_bytes(8, "little")
    ledger = Ledger(MAX_WAITING)
    ledger.add_users(1500)
    with pytest.raises(ValueError, match=told):
        load_part(ledger, key, sealed(bytes(body)))
    with pytest.raises(ValueError, match=r"checksum [0-9a-f]{8}, expected [0-9a-f]{8}"):
        load_part(ledger, key, FULL.parts[key][:-4] + b"abcd")
    with pytest.raises(ValueError, match=r"5 bytes, expected 32 at least"):
        load_part(ledger, key, b"pLdg\1")
    assert ledger.flush == 0


def test_a_part_needs_the_first_one_and_comes_once() -> None:
    first, second = sorted(key for key in FULL.parts if key >> 3 & 3 == DENSE_KIND and key >> 5 == FULL_SEQS[3])[:2]
    ledger = Ledger(MAX_WAITING)
    ledger.add_users(1500)
    with pytest.raises(ValueError, match="without part 0"):
        load_part(ledger, second, FULL.parts[second])
    load_part(ledger, first, FULL.parts[first])
    load_part(ledger, second, FULL.parts[second])
    with pytest.raises(ValueError, match="is there already"):
        load_part(ledger, first, FULL.parts[first])
    with pytest.raises(ValueError, match="beside part 0"):
        load_part(ledger, second, FULL.parts[second])


@pytest.mark.parametrize("key", [-1, -(2**63), 2**63 - 1, 3 << 3, 1 << 3 | 5, 1, 2**70])
def test_keys_that_are_none_are_refused(key: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        load_part(Ledger(MAX_WAITING), key, next(iter(FULL.parts.values())))


@pytest.mark.parametrize("flush", [-1, 0, 2**62, 2**70])
def test_flushes_that_are_none_are_refused(flush: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        replay(Ledger(MAX_WAITING), flush, next(iter(FULL.changes.values())))


def test_users_that_are_not_there_are_refused() -> None:
    ledger = Ledger(MAX_WAITING)
    ledger.add_users(10)
    for key in sorted(FULL.parts):
        if key >> 3 & 3 != CHUNK_KIND and not key & 7:
            with pytest.raises(ValueError, match=r"user|positions"):
                load_part(ledger, key, FULL.parts[key])


@pytest.mark.parametrize("body", [None, 5, "x", bytearray(b"x" * 40)])
def test_bodies_that_are_no_bytes_are_refused(body: Any) -> None:
    with pytest.raises(TypeError):
        load_part(Ledger(MAX_WAITING), 8, body)
    with pytest.raises(TypeError):
        replay(Ledger(MAX_WAITING), 1, body)


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
