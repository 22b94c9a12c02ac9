"""How SQLite goes about the statements of lists: by which index, and what it sorts; and records of version 1."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pushd.model import Channel, DeliveryStatus
from pushd.records import Part, PushFilter, PushSort, ReceiptFilter, ReceiptSort
from pushd.stores.sqlite import push_queries, receipt_columns, receipt_queries, records
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.schema import APPLICATION_ID, LADDER, prepare
from pushd.stores.sqlite.engine.statements import Query

PAGE = Part(20, 10)
ANY = ReceiptFilter()
NEWEST = ReceiptSort.CREATED_AT
STATES = {
    "is_online": True,
    "is_received": False,
    "is_read": True,
    "is_confirmed": False,
    "delivery_status": DeliveryStatus.OFFLINE,
    "push_channel": Channel.OFFLINE,
}
FILTERS = {
    "none": ANY,
    "time": ReceiptFilter(since_ms=1000, before_ms=2000),
    "all": ReceiptFilter("m1", 1, "name", since_ms=1000, before_ms=2000, **STATES),  # type: ignore[arg-type]
    **{name: ReceiptFilter(**{name: value}) for name, value in STATES.items()},
}


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    prepare(tmp_path / "pushd.db")
    with closing(open_connection(tmp_path / "pushd.db", synchronous="NORMAL")) as opened:
        yield opened


def plan_of(connection: sqlite3.Connection, query: Query | str) -> list[str]:
    if isinstance(query, str):
        query = Query(query, dict.fromkeys(re.findall(r":(\w+)", query), b"[]"))
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query.statement}", query.parameters)]


def bare_scans(plan: list[str]) -> list[str]:
    tables = r"(receipt|mine|push_records|admin_\w+)"
    return [step for step in plan if re.match(rf"SCAN {tables}\b(?!.*USING .*INDEX)", step)]


def sorts(plan: list[str]) -> list[str]:
    """Steps that sort everything, or ("RIGHT PART", "LAST TERM") what is equal so far."""
    return [step for step in plan if step.startswith("USE TEMP B-TREE")]


@pytest.mark.parametrize("is_descending", [True, False])
@pytest.mark.parametrize(
    ("query", "index"),
    [
        (lambda part: receipt_queries.walked(ANY, part), "receive_records_created"),
        (lambda part: receipt_queries.walked(FILTERS["time"], part), "receive_records_created (created_at>? AND"),
        (lambda part: receipt_queries.walked(ReceiptFilter("m1"), part), "receive_records_created (created_at>? AND"),
        (lambda part: receipt_queries.walked(FILTERS["is_read"], part), "COVERING INDEX receive_records_state"),
        (lambda part: receipt_queries.by_user(ANY, ReceiptSort.USER_ID, part), "COVERING INDEX receive_records_user"),
        (
            lambda part: receipt_queries.by_user(FILTERS["is_read"], ReceiptSort.USERNAME, part),
            "COVERING INDEX receive_records_user (user_id=?)",
        ),
        *(
            (
                lambda part, sort=sort: receipt_queries.by_time(FILTERS["is_confirmed"], sort, part),
                f"COVERING INDEX receive_records_{sort.removesuffix('_at')}",
            )
            for sort in receipt_queries.TIMES
        ),
        *(
            (lambda part, sort=sort: push_queries.page(PushFilter(), sort, part), f"COVERING INDEX {index}")
            for sort, index in [
                (PushSort.PUSH_TIME, "push_records_time"),
                (PushSort.CREATED_AT, "push_records_created"),
                (PushSort.PRIORITY, "push_records_priority"),
                (PushSort.MESSAGE_TYPE, "push_records_type"),
                (PushSort.STATUS, "push_records_status"),
                (PushSort.TOTAL_COUNT, "push_records_total"),
            ]
        ),
        (
            lambda part: push_queries.page(PushFilter(status="failed"), PushSort.PUSH_TIME, part),
            "push_records_status (status=?)",
        ),
        (
            lambda part: push_queries.page(PushFilter(sender_id=1, keyword="x"), PushSort.PUSH_TIME, part),
            "push_records_sender (sender_id=?)",
        ),
        (
            lambda part: push_queries.page(PushFilter(since_ms=1, before_ms=2, keyword="x"), PushSort.PUSH_TIME, part),
            "push_records_time (push_time>? AND push_time<?)",
        ),
    ],
)
def test_a_list_is_read_off_an_index(
    connection: sqlite3.Connection, query: object, index: str, is_descending: bool
) -> None:
    assert callable(query)
    plan = plan_of(connection, query(Part(0, 10, is_descending)))
    assert index in " ".join(plan)
    assert not sorts(plan), plan
    assert not bare_scans(plan), plan


@pytest.mark.parametrize("where", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("sort", ReceiptSort)
def test_no_list_scans_a_table(connection: sqlite3.Connection, where: ReceiptFilter, sort: ReceiptSort) -> None:
    queries = [receipt_queries.stats(where), receipt_queries.sorted_all(where, sort, PAGE)]
    if not receipt_queries.is_narrow(where):
        queries += [
            receipt_queries.runs(where),
            receipt_queries.walked(where, PAGE),
            receipt_queries.sought(where, PAGE),
        ]
    for query in queries:
        plan = plan_of(connection, query)
        assert not bare_scans(plan), plan


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (receipt_queries.stats(ANY), "SCAN counts"),
        (receipt_queries.stats(FILTERS["time"]), "SEARCH counts USING PRIMARY KEY (created_at>? AND created_at<?)"),
        (receipt_queries.stats(ReceiptFilter("m1")), "INDEX receive_counts_message (message_id=?)"),
        (receipt_queries.stats(ReceiptFilter(user_id=1)), "COVERING INDEX receive_records_user (user_id=?)"),
        (receipt_queries.stats(ReceiptFilter("m1", username="a")), "(message_id=? AND user_id=?)"),
        (receipt_queries.sought(FILTERS["is_read"], PAGE), "COVERING INDEX receive_records_state (created_at=? AND"),
        (receipt_queries.sorted_all(ReceiptFilter("m1"), ReceiptSort.READ_AT, PAGE), "(message_id=?)"),
        (
            receipt_queries.sorted_all(ReceiptFilter("m1", is_read=True), ReceiptSort.READ_AT, PAGE),
            "INDEX receive_records_state (created_at=? AND message_id=?",
        ),
        (receipt_queries.sorted_all(ReceiptFilter(user_id=1), NEWEST, PAGE), "INDEX receive_records_user (user_id=?)"),
        (
            receipt_columns.LOAD,
            "_receive_records_1 ((message_id,user_id)>(?,?) AND (message_id,user_id)<(?,?))",
        ),
        (receipt_columns.PLACE, "COVERING INDEX sqlite_autoindex_admin_user_receive_records_1 ((message_id,user_id)>"),
        (receipt_columns.RELOAD, "_receive_records_1 (message_id=? AND user_id=?)"),
        (receipt_columns.NAMES, "COVERING INDEX receive_names_username"),
        (receipt_queries.NEWEST, "INDEX receive_records_user (user_id=?)"),
        (receipt_queries.USER_SUMMARY, "receive_totals USING PRIMARY KEY (user_id=?)"),
        (receipt_queries.USER_SUMMARY, "COVERING INDEX receive_records_user (user_id=?)"),
        (receipt_queries.ALL_USER_RECEIPTS, "COVERING INDEX receive_records_user"),
        (receipt_queries.SOME_USER_RECEIPTS, "INDEX receive_records_created (created_at>? AND created_at<?)"),
        (receipt_queries.DROP_RECEIPTS, "(message_id=?)"),
        (records.UNREAD_COUNTS, "receive_totals USING PRIMARY KEY (user_id=?)"),
        (push_queries.ROWS, "push_records USING INTEGER PRIMARY KEY (rowid=?)"),
        (push_queries.ROW, "push_records USING INDEX sqlite_autoindex_push_records_1 (message_id=?)"),
        (push_queries.ROWS, "INDEX receive_counts_message (message_id=?)"),
        (push_queries.stats(PushFilter()), "COVERING INDEX push_records_time"),
        (push_queries.DROP_PUSH_RECORD, "(message_id=?)"),
    ],
)
def test_an_index_serves_what_it_is_for(connection: sqlite3.Connection, query: Query | str, index: str) -> None:
    plan = plan_of(connection, query)
    assert index in " ".join(plan)


def test_a_long_list_is_counted_from_a_short_table(connection: sqlite3.Connection) -> None:
    assert "receive_counts" in receipt_queries.stats(ANY).statement
    assert "admin_user_receive_records" not in receipt_queries.stats(FILTERS["is_read"]).statement


def test_records_of_version_1_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "pushd.db"
    with closing(sqlite3.connect(path)) as old:
        for statement in LADDER[0]:
            old.execute(statement)
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute("PRAGMA user_version = 1")
        for user_id, status in ((1, "delivered"), (2, "delivered"), (3, "offline")):
            old.execute(
                "INSERT INTO admin_user_receive_records (message_id, user_id, username, is_received, delivery_status,"
                " created_at, updated_at) VALUES ('m1', ?, 'ann', ?, ?, 5, 5)",
                (user_id, status == "delivered", status),
            )
        for target, ids in (("custom", "[1,2,3]"), ("all", None), ("admin", None), ("role", None)):
            old.execute(
                "INSERT INTO push_records (message_id, content, message_type, target, target_user_ids, status,"
                " push_time, created_at, updated_at) VALUES (?, '', 't', ?, ?, 'success', 1, 1, 1)",
                (target, target, ids),
            )
        old.commit()
    prepare(path)
    with closing(sqlite3.connect(path)) as new:
        assert new.execute("PRAGMA user_version").fetchone()[0] == len(LADDER)
        counted = new.execute("SELECT delivery_status, total FROM receive_counts ORDER BY 1").fetchall()
        assert counted == [("delivered", 2), ("offline", 1)]
        assert new.execute("SELECT * FROM receive_names").fetchall() == [("ann", user, "ann") for user in (1, 2, 3)]
        texts = dict(new.execute("SELECT target, recipients_count FROM push_records"))
        assert texts == {"custom": "3_users", "all": "all_users", "admin": "all_admins", "role": "role_users"}
        new.execute("DELETE FROM admin_user_receive_records WHERE user_id > 1")
        assert new.execute("SELECT delivery_status, total FROM receive_counts").fetchall() == [("delivered", 1)]
        assert new.execute("SELECT * FROM receive_names").fetchall() == [("ann", 1, "ann")]
