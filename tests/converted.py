"""Old databases for tests of the conversion, and what the new ones say.

`tests/data` has databases with everything in them as SQL, written by the code of version 8 and carried into the tables
of 5 and 1, and what that code answered at ANSWERED_MS.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from pushd.ledger._ledger import Ledger
from pushd.ledger.clients import Clients
from pushd.ledger.labels import Labels
from pushd.ledger.users import Users
from pushd.model import Notice, recipients_text
from pushd.stores.sqlite.conversion import converted
from pushd.stores.sqlite.engine.schema import prepare
from pushd.stores.sqlite.ledger_load import Parts, load

DATA = Path(__file__).parent / "data"
ANSWERS: dict[str, Any] = json.loads((DATA / "answers.json").read_bytes())
ANSWERED_MS = 1_700_000_000_200
HIDDEN, STATUS = 0x08, 0xC0
ONLINE, BY_MAILBOX, STEPS = 0x40, 0x80, 0x0F
STEP_NAMES = ("", "pending", "offline", "expired", "delivered", "delivered", "delivered")
CLIENT = ("connection_id", "client_ip", "user_agent", "device_type", "platform", "browser")


class Stored:
    """What the converted file says, in the shapes of the old answers."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path)
        self.ledger, self.users, self.labels = Ledger(1000), Users(), Labels()
        assert load(self.db, Parts(self.ledger, self.users, Clients(), self.labels, has_records=True)) == 0
        self.clients = {row[0]: row[1:] for row in self.db.execute("SELECT * FROM client")}
        self.rows = {row[0]: row for row in self.db.execute("SELECT seq, message_id, accepted_ms, body FROM notice")}
        self.notices = {
            seq: msgspec.json.decode(row[3], type=Notice) for seq, row in self.rows.items() if row[3][:1] == b"{"
        }

    def close(self) -> None:
        self.db.close()

    def receipts(self) -> Iterator[dict[str, Any]]:
        """As ReceiptRow, in order of their notices, but for fields that are no longer kept."""
        for seq, message_id, accepted_ms, _ in self.rows.values():
            for number in sorted(self.ledger.receipts(seq), key=self.users.ids.__getitem__):
                found = self.ledger.receipt(seq, number)
                assert found is not None
                state, received_ms, read_ms, confirmed_ms, client = found
                name, role = self.users.name_role(number, seq)
                step = state & STEPS
                yield {
                    "message_id": message_id,
                    "user_id": self.users.ids[number],
                    "username": name,
                    "user_role": role,
                    "is_online": bool(state & ONLINE),
                    "is_received": step >= 4,
                    "is_read": step >= 5,
                    "is_confirmed": step == 6,
                    "received_ms": received_ms,
                    "read_ms": read_ms,
                    "confirmed_ms": confirmed_ms,
                    "created_ms": accepted_ms,
                    "delivery_status": STEP_NAMES[step],
                    "push_channel": "offline" if state & BY_MAILBOX else "websocket",
                    **dict(zip(CLIENT, self.clients.get(client, ("",) * 6), strict=True)),
                }

    def push_records(self) -> Iterator[dict[str, Any]]:
        """As PushRow, but for fields that are no longer kept."""
        for seq, notice in self.notices.items():
            state = self.ledger.notice_state(seq)
            if state & HIDDEN or not state & STATUS:
                continue
            counts = self.ledger.counts(seq)
            status = {0x40: "success", 0x80: "expired", 0xC0: "failed"}[state & STATUS]
            yield {
                "message_id": notice.message_id,
                "content": notice.content,
                "message_type": notice.type,
                "target": notice.target.kind,
                "target_user_ids": list(notice.target.user_ids) or None,
                "target_roles": list(notice.target.roles) or None,
                "recipients_count": recipients_text(notice.target),
                "status": status,
                "success": status != "failed",
                "push_ms": notice.accepted_ms,
                "created_ms": self.ledger.created_ms(seq),
                "expires_ms": notice.expires_ms,
                "sender_id": notice.sender_id,
                "sender_name": notice.sender_name,
                "priority": notice.priority,
                "need_confirm": notice.need_confirm,
                "extra_data": notice.data,
                "delivered_count": sum(count for state, count in counts.items() if state & STEPS >= 4),
                "failed_count": sum(count for state, count in counts.items() if state & STEPS == 3),
            }

    def mailbox(self, user_id: int) -> list[dict[str, Any]]:
        """What waits for the user, as MailboxItem; what is not kept there is put together for the frame."""
        number = self.users.number(user_id)
        seqs = [] if number is None else self.ledger.waiting(number)
        items = []
        for notice in (self.notices[seq] for seq in seqs if not 0 < self.notices[seq].expires_ms <= ANSWERED_MS):
            item = {
                "message_id": notice.message_id,
                "content": notice.content,
                "type": notice.type,
                "ts": notice.accepted_ms,
            }
            optional = {
                "data": (notice.data, None),
                "priority": (notice.priority, 1),
                "need_confirm": (notice.need_confirm, False),
                "expires_ms": (notice.expires_ms, 0),
            }
            items.append(item | {name: value for name, (value, default) in optional.items() if value != default})
        return items

    def journal(self, *, is_settled: bool) -> list[Notice]:
        """Notices by seq, those of which nothing is left to do or the others."""
        unsettled = set(self.ledger.unsettled())
        return [notice for seq, notice in self.notices.items() if (seq not in unsettled) == is_settled]


def started(path: Path) -> None:
    """Has a start find this database."""
    prepare(path, converted)


def old_database(directory: Path, version: int) -> Path:
    path = directory / "pushd.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((DATA / f"pushd.db.v{version}.sql").read_text())
    return path


def empty_database(directory: Path, version: int = 8) -> Path:
    """Only the tables."""
    path = old_database(directory, version)
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            connection.execute(f"DELETE FROM {table}")
        connection.commit()
    return path


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [*connection.iterdump()]
