"""The ledger in its file: what was committed comes back, whatever the disk did meanwhile and whatever became of it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from pushd.errors import StoreError, StoreUnavailable
from pushd.ledger import _changes
from pushd.model import User
from pushd.stores.sqlite import ledger_file, ledger_load
from pushd.stores.sqlite.journal import SqliteJournal
from pushd.stores.sqlite.ledger_file import LedgerFile
from pushd.stores.sqlite.ledger_load import CHUNK, FAR, HIDDEN, KNOWN, SETTLED
from tests.ledger_files import opened_file
from tests.samples import notice

PENDING, DELIVERED, READ, WAITING = 1, 4, 5, 0x10
MORE_PAGES = 20  # of the file, before the disk is full


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pushd.db"


def query(path: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


async def append(file: LedgerFile, *seqs: int, **fields: Any) -> None:
    await SqliteJournal(file).append([notice(seq, **fields) for seq in seqs])


def numbers(file: LedgerFile, *user_ids: int) -> list[int]:
    found = file.users.numbers(user_ids)
    file.ledger.add_users(len(file.users))
    return found


async def limit(file: LedgerFile, pages: int | None) -> None:
    """Let the file grow by so many pages and no more; None: without an end."""

    def run(connection: sqlite3.Connection) -> None:
        (used,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {2**32 - 2 if pages is None else used + pages}")

    await file.thread.submit("test", "limit", run)


def copied(path: Path, name: str = "copy.db") -> Path:
    """What a process that is killed now would leave."""
    for suffix in ("", "-wal"):
        shutil.copy(path.with_name(path.name + suffix), path.with_name(name + suffix))
    return path.with_name(name)


# ---- what is committed comes back


async def test_all_of_it_comes_back(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1, 2)
        users = numbers(file, 70, 50)
        file.users.note_names(users, [User(70, "ann", 3), User(50, "bob", 0)], 1)
        client = file.clients.number("c1", "10.0.0.1", "Firefox")
        file.clients.describe(client, ("pc", "Linux", "Firefox"))
        file.ledger.note(1, users, DELIVERED, 1500, [client, 0])
        file.ledger.wait(2, users[:1])
        file.ledger.set_notice(1, set=SETTLED)
        await file.commit()
        kept = copied(path)
    async with opened_file(kept) as file:
        assert file.ledger.notice_state(1) & (KNOWN | SETTLED) == KNOWN | SETTLED
        assert file.ledger.unsettled() == [2]
        assert file.users.known([50, 70, 9]) == [(50, users[1]), (70, users[0])]
        assert file.users.name_role(users[0], 1) == ("ann", 3)
        receipt = file.ledger.receipt(1, users[0])
        assert receipt is not None
        assert receipt[1] == 1500
        facts = await file.clients.facts([receipt[4]])
        assert tuple(facts[receipt[4]]) == ("c1", "10.0.0.1", "Firefox", "pc", "Linux", "Firefox")
        assert file.ledger.waiting(users[0]) == [2]
        label = file.labels.label(file.ledger.label(2))
        assert label is not None
        assert (label.type, label.target) == ("system_notice", "all")
        other = file.clients.number("c2", "10.0.0.1", "Firefox")
        assert other > receipt[4]


@pytest.mark.parametrize("step", ["replay", "load_part"])
async def test_a_failure_that_passes_puts_nothing_away(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """What is damaged fails every time."""
    async with opened_file(path) as file:
        file.users.numbers(range(1, 301))
        await append(file, 1)
        file.ledger.add_users(300)
        file.ledger.begin_dense(1)
        file.ledger.note(1, [*range(300)], DELIVERED, 1500)
        await file.commit()
        file.ledger.mark(1, 7, READ, 1600)
        await file.commit()
    use, failures = getattr(ledger_load, step), [ValueError("odd")]

    def once(*values: Any) -> None:
        if failures:
            raise failures.pop()
        use(*values)

    monkeypatch.setattr(ledger_load, step, once)
    with capture_logs() as logs:
        async with opened_file(path) as file:
            receipt = file.ledger.receipt(1, 7)
    assert receipt is not None
    assert receipt[0] & 0x0F == READ
    assert (logs, failures) == ([], [])


async def test_closing_writes_what_nobody_committed(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1)
        file.ledger.note(1, numbers(file, 1), PENDING)
    async with opened_file(path) as file:
        assert file.ledger.counts(1) == {PENDING: 1}


async def test_those_who_wait_share_a_transaction(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, *range(1, 51))
        await file.commit()
        before = query(path, "SELECT count(*) FROM change")[0][0]

        async def change(seq: int) -> None:
            file.ledger.note(seq, numbers(file, seq), PENDING)
            await file.commit()

        await asyncio.gather(*map(change, range(1, 51)))
        assert query(path, "SELECT count(*) FROM change")[0][0] == before + 1


async def test_what_changes_during_a_flush_is_in_the_next(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1, 2)
        (user,) = numbers(file, 1)
        file.ledger.note(1, [user], PENDING)
        first = asyncio.ensure_future(file.commit())
        for _ in range(3):
            await asyncio.sleep(0)
        file.ledger.note(2, [user], PENDING)
        await file.commit()
        assert first.done()
        async with opened_file(copied(path)) as other:
            assert [other.ledger.counts(seq) for seq in (1, 2)] == [{PENDING: 1}] * 2


async def test_much_is_written_in_several_transactions(path: Path) -> None:
    count = 100_000
    async with opened_file(path) as file:
        await append(file, *range(1, 5))
        users = numbers(file, *range(1, count + 1))
        for seq in range(1, 5):
            file.ledger.begin_dense(seq)
            file.ledger.note(seq, users, DELIVERED, 1500)
        flush = file.ledger.flush
        await file.commit()
        assert file.ledger.flush > flush + 1
        assert not _changes.has_changes(file.ledger)
        kept = copied(path)
    async with opened_file(kept) as file:
        assert [file.ledger.counts(seq) for seq in range(1, 5)] == [{DELIVERED: count}] * 4


async def test_many_new_users_are_stored_in_parts_before_the_receipts_that_name_them(path: Path) -> None:
    count = 2 * ledger_file.ROWS_AT_ONCE + 1
    async with opened_file(path) as file:
        await append(file, 1)
        users = numbers(file, *range(1, count + 1))
        file.users.note_names(users, [User(user_id, f"user {user_id}") for user_id in range(1, count + 1)], 1)
        file.ledger.begin_dense(1)
        file.ledger.note(1, users, DELIVERED, 1500)
        before = file.thread.done_total
        parts: list[Path] = []
        submit = file.thread.submit

        def copying(store: str, name: str, run: Any, **options: Any) -> asyncio.Future[Any]:
            parts.append(copied(path, f"part {len(parts)}"))
            return submit(store, name, run, **options)

        file.thread.submit = copying  # type: ignore[method-assign]
        await file.commit()
        assert file.thread.done_total == before + 3
        parts.append(copied(path))
    for place, part in enumerate(parts):
        async with opened_file(part) as file:
            assert len(file.users) == min(place * ledger_file.ROWS_AT_ONCE, count)
            assert file.ledger.counts(1) == ({DELIVERED: count} if place == len(parts) - 1 else {})
            for number in range(0, len(file.users), 100):
                assert file.users.name_role(number, 1) == (f"user {number + 1}", 0)


async def test_who_no_longer_waits_harms_nobody(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1)
        file.ledger.note(1, numbers(file, 1), PENDING)
        waiting = [asyncio.ensure_future(file.commit()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await waiting[1]
        assert waiting[0].cancelled()


# ---- a disk that refuses


async def test_what_a_full_disk_refused_is_written_before_anything_newer(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1, 2)
        users = numbers(file, *range(1, 20_001))
        await file.commit()
        file.ledger.note(1, users, PENDING)
        await limit(file, MORE_PAGES)
        flush, changes = file.ledger.flush, query(path, "SELECT count(*) FROM change")
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await file.commit()
            file.ledger.note(2, users[:5], PENDING)
            assert file.ledger.flush == flush + 1  # nothing newer is taken
        assert query(path, "SELECT count(*) FROM change") == changes
        await limit(file, None)
        await file.commit()
        kept = copied(path)
    async with opened_file(kept) as file:
        assert [file.ledger.counts(seq) for seq in (1, 2)] == [{PENDING: 20_000}, {PENDING: 5}]
        assert len(file.users) == 20_000


async def test_all_who_wait_are_told(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1)
        file.ledger.note(1, numbers(file, *range(1, 20_001)), PENDING)
        await limit(file, 0)
        told = await asyncio.gather(*(file.commit() for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in told] == [StoreUnavailable] * 3
        await limit(file, None)


async def test_a_disk_that_stays_full_is_logged_at_the_end(path: Path) -> None:
    with capture_logs() as logs:
        async with opened_file(path) as file:
            await append(file, 1)
            file.ledger.note(1, numbers(file, *range(1, 20_001)), PENDING)
            await limit(file, 0)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "the last changes of the ledger cannot be written"
    ]


async def test_a_text_that_cannot_be_stored_holds_up_nothing(path: Path) -> None:
    async with opened_file(path) as file:
        number = file.clients.number("c1", "\ud800", "Firefox")
        file.clients.describe(number, ("", "", ""))
        file.users.note_name(numbers(file, 1)[0], 1, "ann\udfff", 1 << 70)
        with capture_logs() as logs:
            await file.commit()
        assert [line["event"] for line in logs] == ["a row of the ledger cannot be stored"]  # the role is no number
    async with opened_file(path) as file:
        assert (await file.clients.facts([number]))[number].client_ip == "?"
        assert len(file.users) == 1


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 3)),
        st.tuples(st.just("note"), st.integers(0, 30), st.sets(st.integers(1, 300), min_size=1)),
        st.tuples(st.just("wait"), st.integers(0, 30), st.sets(st.integers(1, 300), min_size=1)),
        st.tuples(st.just("settle"), st.integers(0, 30)),
        st.tuples(st.just("full"), st.booleans()),
        st.tuples(st.just("commit")),
        st.tuples(st.just("restart")),
    ),
    max_size=25,
)


class Model:
    """What a plain program would keep, and the file that has to keep the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.states: dict[int, int] = {}
        self.receipts: dict[tuple[int, int], int] = {}  # of seq and user id
        self.is_full = False

    def seq(self, place: int) -> int | None:
        return place % len(self.states) + 1 if self.states else None

    async def apply(self, file: LedgerFile, step: tuple[Any, ...]) -> None:
        kind, *values = step
        if kind == "append" and not self.is_full:
            seqs = range(len(self.states) + 1, len(self.states) + 1 + values[0])
            await append(file, *seqs)
            self.states.update(dict.fromkeys(seqs, KNOWN))
        elif kind == "full":
            self.is_full = values[0]
            await limit(file, 0 if self.is_full else None)
        elif kind == "commit":
            try:
                await file.commit()
            except StoreUnavailable:
                assert self.is_full
        elif kind in ("note", "wait", "settle") and self.states:
            self.change(file, kind, *values)

    def change(self, file: LedgerFile, kind: str, place: int, user_ids: Any = ()) -> None:
        seq = self.seq(place)
        assert seq is not None
        if kind == "settle":
            file.ledger.set_notice(seq, set=SETTLED)
            self.states[seq] |= SETTLED
        elif kind == "note":
            file.ledger.note(seq, numbers(file, *user_ids), PENDING)
        else:
            file.ledger.wait(seq, numbers(file, *user_ids))
        for user_id in user_ids:
            bit = PENDING if kind == "note" else WAITING
            self.receipts[seq, user_id] = self.receipts.get((seq, user_id), 0) | bit

    def check(self, file: LedgerFile) -> None:
        assert {seq: file.ledger.notice_state(seq) for seq in self.states} == self.states
        ids = dict(file.users.known(range(1, 301)))
        for (seq, user_id), state in self.receipts.items():
            number = ids[user_id]
            found = file.ledger.receipt(seq, number)
            assert (0 if found is None else found[0] & PENDING) == state & PENDING
            assert (seq in file.ledger.waiting(number)) == bool(state & WAITING)


@given(steps=steps)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_it_is_as_a_plain_program_says(tmp_path_factory: Any, steps: list[tuple[Any, ...]]) -> None:
    async def run() -> None:
        model = Model(tmp_path_factory.mktemp("data") / "pushd.db")
        rest = [*steps, ("restart",)]
        while rest:
            cut = rest.index(("restart",))
            here, rest = rest[:cut], rest[cut + 1 :]
            async with opened_file(model.path) as file:
                for step in [*here, ("full", False), ("commit",)]:
                    await model.apply(file, step)
                model.check(file)
            async with opened_file(model.path) as file:
                model.check(file)

    asyncio.run(run())


# ---- what is damaged, or foreign


async def fill(path: Path) -> None:
    """Chunk 0 with a dense block and a page of three users each, chunk 1 with two notices; all settled."""
    async with opened_file(path) as file:
        await append(file, *range(1, CHUNK + 3))
        users = numbers(file, 1, 2, 3)
        file.ledger.begin_dense(7)
        for seq in (7, 8):
            file.ledger.note(seq, users, DELIVERED, 1500)
        for seq in range(1, CHUNK + 3):
            file.ledger.set_notice(seq, set=SETTLED)
        await file.commit()
        file.ledger.note(CHUNK + 1, users, PENDING)  # a full chunk is stored when it rests
        await file.commit()


def spoil(path: Path, table: str, where: str, value: bytes | str | None = None) -> int:
    """Turn a bit in the bodies of these rows, or put something else there; how many rows that are."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        rows = connection.execute(f"SELECT rowid, body FROM {table} WHERE {where}").fetchall()
        for rowid, body in rows:
            other = body[:-1] + bytes([body[-1] ^ 1]) if value is None else value
            connection.execute(f"UPDATE {table} SET body = ? WHERE rowid = ?", (other, rowid))
    return len(rows)


def is_kind(kind: int) -> str:
    return f"key >= 0 AND key >> 3 & 3 = {kind}"


@pytest.mark.parametrize("value", [None, b"", "text", b"\x00" * 100])
async def test_notices_of_a_damaged_chunk_are_taken_from_their_rows(path: Path, value: bytes | str | None) -> None:
    await fill(path)
    assert spoil(path, "block", is_kind(0), value)
    with capture_logs() as logs:
        async with opened_file(path) as file:
            ledger = file.ledger
            assert [ledger.notice_state(seq) & (KNOWN | SETTLED) for seq in (1, 7, 8, CHUNK - 1)] == [3] * 4
            assert ledger.unsettled() in ([], [CHUNK, CHUNK + 1, CHUNK + 2])
            assert [ledger.counts(seq) for seq in (7, 8)] == [{DELIVERED: 3}] * 2
            assert ledger.label(1) == ledger.label(CHUNK + 2) != 0
            assert ledger.created_ms(8) == 1000
            ledger.note(9, [0], PENDING)
            await file.commit()
    errors = [line for line in logs if line["log_level"] == "error"]
    assert [line["rows"] for line in errors] == [1]
    with capture_logs() as logs:
        async with opened_file(path) as file:
            assert [file.ledger.counts(seq) for seq in (8, 9)] == [{DELIVERED: 3}, {PENDING: 1}]
    assert not [line for line in logs if line["log_level"] == "error"]
    assert len(query(path, "SELECT key FROM block WHERE key < 0")) == 1  # for who wants to look


async def test_a_damaged_block_costs_its_receipts(path: Path) -> None:
    await fill(path)
    assert spoil(path, "block", is_kind(1))
    with capture_logs() as logs:
        async with opened_file(path) as file:
            assert file.ledger.counts(7) == {}
            assert file.ledger.counts(8) == {DELIVERED: 3}
            file.ledger.note(7, [1], PENDING)
            await file.commit()
    assert sum(line["rows"] for line in logs if line["log_level"] == "error") >= 1
    async with opened_file(path) as file:
        assert file.ledger.counts(7) == {PENDING: 1}


async def test_a_damaged_change_costs_what_it_says(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1)
        for number in numbers(file, 1, 2, 3):
            file.ledger.note(1, [number], PENDING)
            await file.commit()
    flushes = [flush for (flush,) in query(path, "SELECT flush FROM change ORDER BY flush")]
    assert len(flushes) == 3
    spoil(path, "change", f"flush = {flushes[1]}")
    with capture_logs() as logs:
        async with opened_file(path) as file:
            assert file.ledger.flush == flushes[-1]
            assert sum(file.ledger.counts(1).values()) in (1, 2)
    assert [line["rows"] for line in logs if line["log_level"] == "error"] != []
    assert query(path, "SELECT count(*) FROM change WHERE flush < 0")[0][0] >= 1


async def test_a_notice_that_no_flush_knew_is_found(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1, 2, 4)
        file.ledger.set_notice(1, set=SETTLED)
        await file.commit()
        await append(file, 3)  # behind one with a higher number
        await append(file, 5, message_id="m1")
        kept = copied(path)
    async with opened_file(kept) as file:
        assert file.ledger.unsettled() == [2, 3, 4, 5]
        assert file.ledger.notice_state(5) & HIDDEN  # a repeat of the first
        assert [notice.seq for notice in await SqliteJournal(file).unsettled()] == [2, 3, 4, 5]


async def test_a_notice_that_did_not_reach_the_disk_is_forgotten(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1)
        file.ledger.add_notice(2, 1000, 0)
        file.ledger.set_notice(2, set=SETTLED)
        await file.commit()
        file.ledger.set_notice(2, clear=SETTLED)  # the log knows it
        await file.commit()
    async with opened_file(path) as file:
        await SqliteJournal(file).unsettled()
        assert file.ledger.unsettled() == [1]


async def test_a_failed_append_in_the_log_does_not_take_the_notice_that_got_its_number(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1)
        file.ledger.add_notice(2, 1000, 0)
        await file.commit()
        file.ledger.forget_notice(2)
        await file.commit()
        await append(file, 2)
        kept = copied(path)
    async with opened_file(kept) as file:
        assert file.ledger.unsettled() == [1, 2]
        file.ledger.set_notice(2, set=SETTLED)
        await file.commit()
        again = copied(kept, "again.db")
    async with opened_file(again) as file:
        assert file.ledger.unsettled() == [1]


async def test_a_row_before_all_that_is_known_does_not_end_the_start(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, CHUNK + 1)
        file.ledger.note(CHUNK + 1, numbers(file, 1), PENDING)
        await file.commit()
        _changes.take_changes(file.ledger)
        file.ledger.set_notice(CHUNK + 1, set=SETTLED)
        flush, _, parts, _ = _changes.take_changes(file.ledger, log_bytes=0)
    query(path, "INSERT INTO block VALUES (?, ?)", *next(part for part in parts if part[0] >> 3 & 3 == 0))
    query(path, "INSERT INTO notice (seq, accepted_ms, body) VALUES (3, 1, x'7b7d')")
    with capture_logs() as logs:
        async with opened_file(path) as file:
            assert file.ledger.notice_state(CHUNK + 1) == KNOWN | SETTLED
    assert [line["rows"] for line in logs if line["log_level"] == "error"] == [1]
    assert flush


async def test_a_repeated_id_has_no_record_of_its_own_after_a_kill(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1)
        journal = SqliteJournal(file)
        kept = journal.append([notice(2, message_id="m1")])
        await asyncio.gather(file.commit(), kept)  # taken before it is known
        image = copied(path)
        assert file.ledger.notice_state(2) & HIDDEN
    async with opened_file(image) as file:
        journal = SqliteJournal(file)
        assert [one.seq for one in await journal.unsettled()] == [1, 2]
        assert file.ledger.notice_state(2) & HIDDEN


async def test_an_id_that_is_used_again_while_a_purge_looks_keeps_its_first_notice(path: Path) -> None:
    async with opened_file(path) as file:
        journal = SqliteJournal(file)
        await append(file, 1)
        await journal.settle([1])
        done = file.thread.done_total
        kept = journal.append([notice(2, message_id="m1")])
        while file.thread.done_total == done:  # it is on disk, and the loop does not know yet
            pass
        dropped, _ = await asyncio.gather(journal.purge(2000, 10), kept)
        assert dropped == 0
        assert await file.seqs_of(["m1"]) == {"m1": 1}


async def test_numbers_of_rows_begin_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_file(path) as file:
        await append(file, 1, 2)
        users = numbers(file, *range(1, 5001))
        file.ledger.note(1, users, PENDING)
        file.ledger.note(2, users[:5], DELIVERED, 1500)
        file.ledger.hide(1)
        file.ledger.set_notice(1, set=SETTLED)
        file.ledger.forget_before(2)
    monkeypatch.setattr(ledger_file, "MOST_PAGES", 1)
    async with opened_file(path) as file:
        pass
    pages = [key >> 5 for (key,) in query(path, "SELECT key FROM block") if key >> 3 & 3 == 2]
    assert set(pages) == {0}
    async with opened_file(path) as file:
        assert file.ledger.counts(2) == {DELIVERED: 5}
        assert file.ledger.summary(users[4]) == (1, 1, 2)


async def test_who_waits_for_a_flush_that_was_cancelled_gets_another(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1)
        first = asyncio.ensure_future(file.commit())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        flushing = file._flushing
        assert flushing is not None
        second = asyncio.ensure_future(file.commit())
        await asyncio.sleep(0)
        flushing.cancel()
        with pytest.raises(StoreError):
            await first
        await file.commit()
        assert second.done()
        await second


async def test_numbers_of_others_far_behind_are_left_aside(path: Path) -> None:
    async with opened_file(path) as file:
        await append(file, 1)
    for seq in (-5, 0, FAR + 10, 1 << 40, 2**63 - 1):
        query(path, "INSERT INTO notice (seq, accepted_ms, body) VALUES (?, 1, x'7b7d')", seq)
    with capture_logs() as logs:
        async with opened_file(path) as file:
            assert file.ledger.unsettled() == [1]
            assert await SqliteJournal(file).last_seq() == 1
    assert [line["rows"] for line in logs if line["log_level"] == "error"] == [2]


@pytest.mark.parametrize("accepted_ms", [None, "now", b"", -1, 2**63 - 1, 1e300])
async def test_a_row_with_an_odd_time_or_body_is_a_notice_all_the_same(path: Path, accepted_ms: Any) -> None:
    async with opened_file(path) as file:
        await append(file, 1)
    query(path, "INSERT INTO notice (seq, accepted_ms, body) VALUES (2, ifnull(?, 0), 'nonsense')", accepted_ms)
    async with opened_file(path) as file:
        assert file.ledger.unsettled() == [1, 2]
        assert file.ledger.label(2) == 0


async def test_without_records_no_notice_is_listed(path: Path) -> None:
    async with opened_file(path, has_records=False) as file:
        await append(file, 1)
        assert file.ledger.notice_state(1) == KNOWN | HIDDEN
        kept = copied(path)
    async with opened_file(kept, has_records=False) as file:
        assert file.ledger.notice_state(1) == KNOWN | HIDDEN


# ---- look-ups


async def test_seqs_of_ids(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_file, "RECENT_SEQS", 3)
    async with opened_file(path) as file:
        await append(file, *range(1, 1001))
        await append(file, 1001, message_id="m5")
        await append(file, 1002, message_id="with\0in")
        odd = ["", "m", "with", "with\0", "x" * 100_000, "\ud800", "'; DROP TABLE notice"]
        wanted = {f"m{seq}": seq for seq in range(1, 1001)} | {"with\0in": 1002}
        assert await file.seqs_of([*wanted, *odd]) == wanted
        assert await file.seqs_of(["m5"]) == {"m5": 5}
        assert await file.seqs_of([]) == {}
        file.ledger.forget_notice(5)
        assert await file.seqs_of(["m5", "m6"]) == {"m6": 6}


async def test_bodies_and_ids_of_seqs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_file, "RECENT_BODIES_BYTES", 5000)
    monkeypatch.setattr(ledger_file, "BODIES_BYTES", 10_000)
    async with opened_file(path) as file:
        await append(file, *range(1, 1201), content="x" * 300)
        await append(file, 1201, message_id="m7")
        kept = dict(query(path, "SELECT seq, body FROM notice"))
        for _ in range(2):
            assert await file.bodies([*range(1203, 0, -1), -1]) == kept
            assert await file.bodies([5, 3]) == {seq: kept[seq] for seq in (3, 5)}
        assert await file.bodies([9999]) == await file.bodies([]) == {}
        ids = {seq: f"m{seq}" for seq in range(1, 1201)}
        assert await file.message_ids([*range(1, 1210)]) == ids
