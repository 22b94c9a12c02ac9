"""A store refuses what concerns one user for good: that is set aside, and everybody else's is written."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from pushd.stores.sqlite import set_aside
from tests.daemon import Probe, until

TABLES = {"mailbox": "mailbox", "records": "admin_user_receive_records", "presence": "admin_user_online_status"}
USERS = list(range(1, 30))
REFUSED = 13


def change(probe: Probe, statement: str) -> None:
    path = probe.node.current.config.server.data_dir + "/pushd.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


@pytest.mark.parametrize("kind", TABLES)
async def test_what_is_refused_of_one_user_costs_nobody_else_anything(start: Any, kind: str) -> None:
    probe: Probe = await start()
    change(
        probe,
        f"CREATE TRIGGER never BEFORE INSERT ON {TABLES[kind]} WHEN NEW.user_id = {REFUSED} "
        "BEGIN SELECT RAISE(ABORT, 'never'); END",
    )
    response = await probe.post(
        "/system/notice?wait_ms=300", {"content": "x", "target": "custom", "user_ids": [*USERS, 99]}
    )
    answer = response.json()["data"]
    assert answer["status"] == ("accepted" if kind == "mailbox" else "delivered")
    for user_id in (*USERS[:3], REFUSED):
        await (await probe.client(user_id, ack=True)).ws.close()
    await until(lambda: probe.node.set_aside.counts == {kind: 1})
    await until(lambda: not probe.node.intake.unsettled_total)
    assert (await probe.get("/websocket/health"))["set_aside"] == 1
    waiting = [user_id for user_id in USERS if await probe.mailbox(user_id) == [answer["message_id"]]]
    assert waiting == [user_id for user_id in USERS if kind != "mailbox" or user_id != REFUSED]
    status = await probe.receive_status(answer["message_id"])
    assert status["total_users"] == len(USERS) + (kind != "records")
    change(probe, "DROP TRIGGER never")
    assert set_aside.want(probe.node.current.config.server.data_dir, None) == 1
    await until(lambda: probe.node.set_aside.total == 0)
    assert await probe.mailbox(REFUSED) == [answer["message_id"]]
    assert (await probe.receive_status(answer["message_id"]))["total_users"] == len(USERS) + 1
