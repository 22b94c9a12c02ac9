"""What the embedded stores do by themselves: a failure is logged, counted and in health, and the work goes on."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.model import Mark
from pushd.records import Part, ReceiptFilter, ReceiptSort
from pushd.stores.sqlite.receipt_columns import ReceiptColumns
from pushd.telemetry.supervision import supervised
from tests.daemon import until
from tests.samples import DELIVERED, push_record, receipt

from .conftest import Node

BY_NAME = ReceiptFilter(username="user")


async def names(node: Node) -> list[str]:
    """A list that is made of the columns."""
    rows = await node.stores.records.receive_records(BY_NAME, ReceiptSort.USERNAME, Part(0, 10))
    return [row.username for row in rows]


async def test_every_work_has_a_name_and_runs_until_it_is_cancelled(node: Node) -> None:
    assert set(node.stores.background) == {"database thread", "checkpoint", "receipt lists"}
    assert node.health.error == ""


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), TypeError("odd")])
async def test_lists_that_cannot_be_made_ready(node: Node, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """However often it fails, it is run again, and everything else works."""
    columns = node.stores.records._lists.columns  # type: ignore[attr-defined]
    real, failures, runs = columns.refresh, [error] * 20, []

    def refresh(connection: sqlite3.Connection) -> None:
        runs.append(None)
        if failures:
            raise failures.pop()
        real(connection)

    monkeypatch.setattr(columns, "refresh", refresh)
    works = {"receipt lists": node.stores.background["receipt lists"]}
    with capture_logs() as logs:
        async with supervised(works, node.health, first_pause_s=0.0):
            await until(lambda: bool(runs))
            await node.stores.records.write([push_record("m1")], [receipt("m1", 1, DELIVERED)])
            assert await names(node) == ["user1"]
            assert await node.stores.records.mark(1, ["m1"], Mark.READ, 2000) == ["m1"]
            await until(lambda: len(runs) > 20)
    assert node.metrics.errors.labels("background").value == 20
    assert node.health.last_error == "receipt lists failed"
    assert {(entry["task"], entry["event"]) for entry in logs} == {("receipt lists", "failed, and is run again")}
    assert str(error) in logs[0]["error"]


async def test_the_daemon_lives(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that fails from the start on is seen from outside, and hurts nobody."""
    failures: list[Exception] = [TypeError("odd")] * 3
    real = ReceiptColumns.refresh

    def refresh(columns: ReceiptColumns, connection: sqlite3.Connection) -> None:
        if failures:
            raise failures.pop()
        real(columns, connection)

    monkeypatch.setattr(ReceiptColumns, "refresh", refresh)
    probe = await start()
    client = await probe.client(7)
    published = await probe.publish("still served", target="all")
    assert (await client.receive())["message_id"] == published["message_id"]
    await until(lambda: not failures)
    assert (await probe.get("/websocket/health"))["last_error"] == "receipt lists failed"
    scraped = (await probe.http.get("/metrics")).text
    assert 'pushd_errors_total{kind="background"} 3.0' in scraped
