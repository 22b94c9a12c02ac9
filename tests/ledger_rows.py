"""The records and mailboxes of a `pushd.db`, read past the daemon: the witness its answers are compared with.

Plain Python over the stored form that the head of `pushd/ledger/_changes.pyx` describes; uses nothing of pushd.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]

HEAD = struct.Struct("<4s4B2qI")
PAGE = 4096
CHUNK, DENSE, PAGES, CHANGE = range(4)
NOTICES, ROWS, CHANGES, DROPPED = 1, 2, 3, 4

KNOWN, SETTLED, HIDDEN, STATUS = 0x01, 0x02, 0x08, 0xC0  # of a notice's state
STATUSES = {0: "accepted", 0x40: "success", 0x80: "expired", 0xC0: "failed"}
STEPS, WAITING, ONLINE, BY_MAILBOX = 0x0F, 0x10, 0x40, 0x80  # of a receipt's
NONE, PENDING, OFFLINE, EXPIRED, DELIVERED, READ, CONFIRMED, AGAIN = range(8)
DELIVERY = {PENDING: "pending", OFFLINE: "offline", EXPIRED: "expired"}
SECONDS = 0x80000000
TARGETS = {"admin": "all_admins"}
CLIENT_TEXTS = ("connection_id", "client_ip", "user_agent", "device_type", "platform", "browser")


Source = sqlite3.Connection | Path | str  # an open database, or where one is


class Receipt(NamedTuple):
    """One position of a block: its state, offsets of received, read and confirmed, and the client's number."""

    seq: int
    user: int
    state: int
    times: tuple[int, int, int]
    client: int


class _Notice:
    """What is known of one notice beside its row."""

    def __init__(self, created_ms: int, state: int) -> None:
        self.created_ms = created_ms
        self.state = state


class _Block:
    """A dense block or page: position -> [state, received, read, confirmed, client]; of pages also its notice, user."""

    def __init__(self, upto: int) -> None:
        self.upto = upto
        self.columns = 0
        self.owners: dict[int, tuple[int, int]] = {}
        self.positions: dict[int, list[int]] = {}

    def put(self, place: int, state: int, values: list[int]) -> None:
        self.positions[place] = [state, *values]


class _Reader:
    """The bytes of a change row's entries."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def column(self, kind: str, count: int) -> array[int]:
        values = array(kind)
        size = count * values.itemsize
        values.frombytes(self.data[self.at : self.at + size])
        self.at += size
        return values

    def places(self, count: int) -> Iterator[int]:
        place = -1
        for _ in range(count):
            place += self.number() + 1
            yield place


class _Stored:
    """Chunks, blocks and the log, put together."""

    def __init__(self) -> None:
        self.notices: dict[int, _Notice] = {}
        self.chunk_upto: dict[int, int] = {}
        self.blocks: dict[tuple[int, int], _Block] = {}

    def load(self, key: int, blob: bytes) -> None:
        number, kind, part = key >> 5, key >> 3 & 3, key & 7
        columns, upto, count, body = _opened(blob, kind, part, number)
        if kind == CHUNK:
            self._load_chunk(number, upto, count, body)
        elif part:
            self._load_column(self.blocks[kind, number], part, body)
        else:
            self._load_states(kind, number, _Block(upto), columns, count, body)

    def _load_chunk(self, number: int, upto: int, count: int, body: _Reader) -> None:
        (base_ms,) = body.column("q", 1)
        low, high = body.column("I", count), body.column("B", count)
        _labels, states = body.column("I", count), body.column("B", count)
        self.chunk_upto[number] = upto
        for place in range(count):
            if states[place]:
                created_ms = base_ms + (high[place] << 32) + low[place]
                self.notices[number * PAGE + place] = _Notice(created_ms, states[place])

    def _load_states(self, kind: int, number: int, block: _Block, columns: int, count: int, body: _Reader) -> None:
        if kind == PAGES:
            notices, users = body.column("I", count), body.column("I", count)
            block.owners = dict(enumerate(zip(notices, users, strict=True)))
        block.columns = columns
        for place, state in enumerate(body.column("B", count)):
            block.put(place, state, [0, 0, 0, 0])
        self.blocks[kind, number] = block

    def _load_column(self, block: _Block, part: int, body: _Reader) -> None:
        if block.columns & 1 << part:
            for place, value in enumerate(body.column("I", len(body.data) // 4)):
                block.positions[place][part] = value

    def replay(self, flush: int, blob: bytes) -> None:
        body = _opened(blob, CHANGE, 0, flush)[3]
        while body.at < len(body.data):
            entry = body.byte()
            if entry == NOTICES:
                self._notices(flush, body)
            elif entry == ROWS:
                self._rows(flush, body)
            elif entry == CHANGES:
                self._changes(flush, body)
            else:
                assert entry == DROPPED
                self._dropped(flush, body)

    def _notices(self, flush: int, body: _Reader) -> None:
        number, count = body.number(), body.number()
        for place in body.places(count):
            state = body.byte()
            notice = self.notices.get(number * PAGE + place)
            if notice is not None and self.chunk_upto.get(number, 0) < flush:
                notice.state = state

    def _rows(self, flush: int, body: _Reader) -> None:
        number, first, count, columns = body.number(), body.number(), body.number(), body.byte()
        notices, users = body.column("I", count), body.column("I", count)
        states = body.column("B", count)
        values = [
            body.column("I", count) if columns & 1 << part else array("I", bytes(4 * count)) for part in range(1, 5)
        ]
        block = self.blocks.setdefault((PAGES, number), _Block(0))
        if block.upto < flush:
            for index in range(count):
                block.owners[first + index] = notices[index], users[index]
                block.put(first + index, states[index], [column[index] for column in values])

    def _changes(self, flush: int, body: _Reader) -> None:
        kind, number, count = body.byte(), body.number(), body.number()
        block = self.blocks.get((kind, number))
        for place in body.places(count):
            state, columns = body.byte(), body.byte()
            values = [body.number() if columns & 1 << part else 0 for part in range(1, 5)]
            if block is not None and block.upto < flush and (kind == DENSE or place in block.owners):
                if columns & 1 and place in block.positions:  # the block was not in memory
                    values = joined(block.positions[place][1:], values)
                block.put(place, state, values)

    def _dropped(self, flush: int, body: _Reader) -> None:
        kind, number = body.byte(), body.number()
        block = self.blocks.get((kind, number))
        if block is not None and block.upto < flush:
            del self.blocks[kind, number]

    def receipts(self) -> Iterator[Receipt]:
        """All positions that say something, also of notices that are not there."""
        seqs = {seq & 0xFFFFFFFF: seq for seq in self.notices}
        for (kind, number), block in self.blocks.items():
            for place, (state, *times, client) in block.positions.items():
                seq, user = (number, place) if kind == DENSE else block.owners[place]
                if kind == PAGES:
                    seq = seqs.get(seq, -1)
                if state:
                    received, read, confirmed = times
                    yield Receipt(seq, user, state, (received, read, confirmed), client)


def joined(known: Sequence[int], values: Sequence[int]) -> list[int]:
    """The earlier of two times, 0 is none; the greater client."""
    times = [min(one, other) or max(one, other) for one, other in zip(known[:3], values[:3], strict=True)]
    return [*times, max(known[3], values[3])]


def _opened(blob: bytes, kind: int, part: int, number: int) -> tuple[int, int, int, _Reader]:
    """columns, upto, count and the body of a sound blob."""
    found = HEAD.unpack_from(blob)
    assert zlib.crc32(blob[:-4]) == int.from_bytes(blob[-4:], "little"), f"damaged: {kind}, {number}, {part}"
    assert (*found[:4], found[5]) == (b"pLdg", 1, kind, part, number), found
    return found[4], found[6], found[7], _Reader(blob[HEAD.size : -4])


def time_of(created_ms: int, value: int) -> int | None:
    """What a time column's value means."""
    if value == 0:
        return None
    return created_ms + ((value & ~SECONDS) * 1000 if value & SECONDS else value - 1)


class LedgerRows:
    """What one database says, at one moment. Rows come in the order of seq and user number."""

    def __init__(self, source: Source) -> None:
        if isinstance(source, sqlite3.Connection):
            self._read(source)
            return
        with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=5)) as connection:
            connection.execute("BEGIN")
            self._read(connection)

    def _read(self, connection: sqlite3.Connection) -> None:
        def rows(statement: str) -> list[tuple[Any, ...]]:
            cursor = connection.cursor()
            cursor.row_factory = None
            return cursor.execute(statement).fetchall()

        stored = _Stored()
        for key, blob in rows("SELECT key, body FROM block WHERE key >= 0 ORDER BY key"):
            stored.load(key, blob)
        self.bodies: dict[int, tuple[str | None, Row]] = {}
        newest_ms = 0
        for seq, message_id, accepted_ms, body in rows(
            "SELECT seq, message_id, accepted_ms, CAST(body AS TEXT) FROM notice ORDER BY seq"
        ):
            self.bodies[seq] = message_id, json.loads(body)
            hidden = HIDDEN if message_id is None else 0
            notice = stored.notices.setdefault(seq, _Notice(max(newest_ms, accepted_ms), KNOWN | hidden))
            newest_ms = max(newest_ms, notice.created_ms)
        for flush, blob in rows("SELECT flush, body FROM change WHERE flush >= 0 ORDER BY flush"):
            stored.replay(flush, blob)
        self.users = dict(rows("SELECT number, id FROM user_number"))
        self.identities: dict[int, list[tuple[int, str, int]]] = {}
        for user, *identity in rows("SELECT user, from_seq, name, role FROM identity ORDER BY user, from_seq"):
            self.identities.setdefault(user, []).append((identity[0], identity[1], identity[2]))
        self.clients = {
            number: texts for number, *texts in rows(f"SELECT number, {', '.join(CLIENT_TEXTS)} FROM client")
        }
        self.notices = stored.notices
        self.receipts = sorted(stored.receipts())

    def is_listed(self, seq: int) -> bool:
        """Whether records of the notice are kept; there is a push record once it has a status."""
        notice = self.notices.get(seq)
        return notice is not None and notice.state & (KNOWN | HIDDEN) == KNOWN

    def push_records(self) -> list[Row]:
        """`push_records` of CONTRACT section 5: times in ms, flags 0 or 1, lists and data as JSON values."""
        of_seq: dict[int, list[Receipt]] = {}
        for receipt in self.receipts:
            if receipt.state & STEPS:
                of_seq.setdefault(receipt.seq, []).append(receipt)
        return [
            self._push_record(seq, message_id, body, of_seq.get(seq, []))
            for seq, (message_id, body) in self.bodies.items()
            if message_id is not None and self.is_listed(seq)
        ]

    def _push_record(self, seq: int, message_id: str, body: Row, receipts: list[Receipt]) -> Row:
        notice = self.notices[seq]
        target = body["target"]
        status = STATUSES[notice.state & STATUS]
        steps = [receipt.state & STEPS for receipt in receipts]
        return {
            "message_id": message_id,
            "content": body["content"],
            "message_type": body.get("type", "system_notice"),
            "target": target["kind"],
            "target_user_ids": target.get("user_ids"),
            "target_roles": target.get("roles"),
            "recipients_count": _recipients_text(target),
            "status": status,
            "success": int(status != "failed"),
            "error": None,
            "push_time": notice.created_ms,
            "sender_id": body.get("sender_id", 0),
            "sender_name": body.get("sender_name", ""),
            "priority": body.get("priority", 1),
            "need_confirm": int(body.get("need_confirm", False)),
            "extra_data": body.get("data"),
            "total_count": len(receipts),
            "online_count": sum(1 for receipt in receipts if receipt.state & ONLINE),
            "delivered_count": sum(1 for step in steps if step >= DELIVERED),
            "failed_count": steps.count(EXPIRED),
            "created_at": notice.created_ms,
            "updated_at": max((self._latest(receipt) for receipt in receipts), default=notice.created_ms),
            "expires_at": body.get("expires_ms") or None,
        }

    def _latest(self, receipt: Receipt) -> int:
        created_ms = self.notices[receipt.seq].created_ms
        return max(created_ms, *(time_of(created_ms, value) or 0 for value in receipt.times))

    def receive_records(self) -> list[Row]:
        """`admin_user_receive_records` of CONTRACT section 5: times in ms or None, flags 0 or 1."""
        return [
            self._receive_record(receipt)
            for receipt in self.receipts
            if receipt.state & STEPS and self.is_listed(receipt.seq)
        ]

    def _receive_record(self, receipt: Receipt) -> Row:
        created_ms = self.notices[receipt.seq].created_ms
        received_at, read_at, confirmed_at = (time_of(created_ms, value) for value in receipt.times)
        step = receipt.state & STEPS
        name, role = self._identity(receipt.user, receipt.seq)
        texts = self.clients.get(receipt.client) or [""] * len(CLIENT_TEXTS)
        return {
            "message_id": self.bodies[receipt.seq][0] if receipt.seq in self.bodies else None,
            "user_id": self.users.get(receipt.user),
            "username": name,
            "user_role": role,
            "is_online": int(bool(receipt.state & ONLINE)),
            "is_received": int(step >= DELIVERED),
            "received_at": received_at,
            "is_read": int(step in (READ, CONFIRMED)),
            "read_at": read_at,
            "is_confirmed": int(step == CONFIRMED),
            "confirmed_at": confirmed_at,
            **dict(zip(CLIENT_TEXTS, texts, strict=True)),
            "push_channel": "offline" if receipt.state & BY_MAILBOX else "websocket",
            "delivery_status": DELIVERY.get(step, "delivered"),
            "retry_count": 0,
            "error_message": None,
            "created_at": created_ms,
            "updated_at": self._latest(receipt),
        }

    def _identity(self, user: int, seq: int) -> tuple[str, int]:
        """Name and role of a user when a notice went out: the last identity from it or before, else the first."""
        known = self.identities.get(user, [])
        past = [identity for identity in known if identity[0] <= seq] or known[:1]
        return (past[-1][1], past[-1][2]) if past else ("", 0)

    def mailbox(self) -> list[Row]:
        """What waits for whom, in publish order; also what is past its time and not purged yet."""
        return [
            {
                "user_id": self.users.get(receipt.user),
                "seq": receipt.seq,
                "message_id": self.bodies[receipt.seq][0] if receipt.seq in self.bodies else None,
            }
            for receipt in self.receipts
            if receipt.state & WAITING
        ]


def _recipients_text(target: Row) -> str:
    if target["kind"] == "custom":
        return f"{len(set(target.get('user_ids', ())).difference(target.get('exclude_ids', ())))}_users"
    return TARGETS.get(target["kind"], f"{target['kind']}_users")


def push_records(source: Source) -> list[Row]:
    """All push records, as `LedgerRows.push_records` has them."""
    return LedgerRows(source).push_records()


def receive_records(source: Source) -> list[Row]:
    """All receive records, as `LedgerRows.receive_records` has them."""
    return LedgerRows(source).receive_records()


def mailbox(source: Source) -> list[Row]:
    """What waits for whom: user_id, seq and message_id of each."""
    return LedgerRows(source).mailbox()


def unsettled(source: Source) -> list[int]:
    """The seqs of the notices with which something is left to do, ascending."""
    rows = LedgerRows(source)
    return [seq for seq in rows.bodies if rows.notices[seq].state & (KNOWN | SETTLED) == KNOWN]
