"""The counts in push records: kept up to date in the background, whatever fails."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.errors import StoreError, StoreLost
from pushd.model import Mark
from pushd.stores.mongo.counts import NOTICES_AT_ONCE
from pushd.telemetry.supervision import supervised
from tests.daemon import until
from tests.samples import DELIVERED, EXPIRED, PENDING, push_record, receipt

from .mongo_node import MongoNode, opened_records

IMPLEMENTATIONS = ("mongodb",)


def counts_of(node: MongoNode, message_id: str) -> tuple[int, int]:
    found = node.database["push_records"].find_one({"message_id": message_id})
    assert found is not None
    return found["delivered_count"], found["failed_count"]


async def test_stored_counts_become_true(node: MongoNode) -> None:
    written = [receipt("m1", 1, DELIVERED), receipt("m1", 2, EXPIRED), receipt("m1", 3, PENDING)]
    async with opened_records(node, every_s=0.01) as (records, _), supervised(records.background, node.health):
        await records.write([push_record("m1"), push_record("m2")], written)
        await until(lambda: counts_of(node, "m1") == (1, 1))
        await records.mark(3, ["m1"], Mark.READ, 2000)
        await until(lambda: counts_of(node, "m1") == (2, 1))
    assert node.health.error == ""


@pytest.mark.parametrize("error", [StoreError("records", "refused"), TypeError("odd")])
async def test_counts_that_fail_are_noted_and_keep_no_others_from_being_stored(
    node: MongoNode, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Logged, counted, in health; and the work goes on."""
    message_ids = [f"m{number:03}" for number in range(NOTICES_AT_ONCE + 1)]  # the last one is counted by a second call
    async with opened_records(node, every_s=0.01) as (records, counts):
        real = counts._connection.count
        is_failing = True

        async def count(operation: str, work: Any) -> Any:
            nonlocal is_failing
            if is_failing:
                is_failing = False
                raise error
            return await real(operation, work)

        monkeypatch.setattr(counts._connection, "count", count)
        await records.write(
            [push_record(name) for name in message_ids], [receipt(name, 1, DELIVERED) for name in message_ids]
        )
        with capture_logs() as logs:
            async with supervised(records.background, node.health, first_pause_s=0.0):
                await until(lambda: counts_of(node, message_ids[-1]) == (1, 0))
                await until(lambda: node.health.error == "stored counts failed")
                assert counts_of(node, message_ids[0]) == (0, 0)
                await records.mark(1, message_ids[:1], Mark.READ, 2000)
                await until(lambda: counts_of(node, message_ids[0]) == (1, 0))
    assert node.metrics.errors.labels("background").value == 1
    assert [(entry["task"], entry["log_level"]) for entry in logs] == [("stored counts", "error")]


async def test_a_server_that_is_away_is_waited_for(node: MongoNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_records(node, every_s=0.001) as (records, counts):
        real, failures = counts._connection.count, [StoreLost("records", "no answer")] * 20

        async def count(operation: str, work: Any) -> Any:
            if failures:
                raise failures.pop()
            return await real(operation, work)

        await records.write([push_record("m1")], [receipt("m1", 1, DELIVERED)])
        monkeypatch.setattr(counts._connection, "count", count)
        async with supervised(records.background, node.health):
            await until(lambda: counts_of(node, "m1") == (1, 0))
    assert node.health.error == ""


async def test_a_failure_is_noted_though_the_server_went_away_after_it(
    node: MongoNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_ids = [f"m{number:03}" for number in range(NOTICES_AT_ONCE + 1)]  # two calls count them
    async with opened_records(node, every_s=0.001) as (records, counts):
        real, failures = counts._connection.count, [StoreLost("records", "no answer"), TypeError("odd")]

        async def count(operation: str, work: Any) -> Any:
            if failures:
                raise failures.pop()
            return await real(operation, work)

        await records.write(
            [push_record(name) for name in message_ids], [receipt(name, 1, DELIVERED) for name in message_ids]
        )
        monkeypatch.setattr(counts._connection, "count", count)
        async with supervised(records.background, node.health, first_pause_s=0.0):
            await until(lambda: counts_of(node, message_ids[-1]) == (1, 0))
    assert node.health.error == "stored counts failed"
    assert node.metrics.errors.labels("background").value == 1


async def test_stored_counts_are_true_after_the_end(node: MongoNode) -> None:
    await node.stores.records.write([push_record("m1")], [receipt("m1", 1, DELIVERED)])
    await node.stop()
    assert counts_of(node, "m1") == (1, 0)
