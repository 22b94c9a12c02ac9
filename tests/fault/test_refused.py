"""A store refuses what concerns one user for good: that is set aside, and everybody else's is written. And the ledger,
where everybody's is written together, refuses for a while."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from pushd.stores.sqlite import set_aside
from tests.daemon import Probe, until

USERS = list(range(1, 30))
REFUSED = 13


def change(probe: Probe, statement: str) -> None:
    path = probe.node.current.config.server.data_dir + "/pushd.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


async def test_what_is_refused_of_one_user_costs_nobody_else_anything(start: Any) -> None:
    probe: Probe = await start()
    change(
        probe,
        f"CREATE TRIGGER never BEFORE INSERT ON admin_user_online_status WHEN NEW.user_id = {REFUSED} "
        "BEGIN SELECT RAISE(ABORT, 'never'); END",
    )
    answer = await published(probe)
    assert answer["status"] == "delivered"
    for user_id in (*USERS[:3], REFUSED):
        await (await probe.client(user_id, ack=True)).ws.close()
    await until(lambda: probe.node.set_aside.counts == {"presence": 1})
    await until(lambda: not probe.node.intake.unsettled_total)
    assert (await probe.get("/websocket/health"))["set_aside"] == 1
    await all_is_there(probe, answer)
    change(probe, "DROP TRIGGER never")
    assert set_aside.want(probe.node.current.config.server.data_dir, None) == 1
    await until(lambda: probe.node.set_aside.total == 0)


@pytest.mark.parametrize("event", ["INSERT ON change", "INSERT ON user_number", "INSERT ON block"])
async def test_what_the_ledger_refuses_for_a_while_is_written_later(start: Any, event: str) -> None:
    """Nobody is told that it is in the mailbox before it is; live delivery goes on; nothing is lost or doubled."""
    probe: Probe = await start()
    live = await probe.client(99)
    change(probe, f"CREATE TRIGGER never BEFORE {event} BEGIN SELECT RAISE(ABORT, 'never'); END")
    answer = await published(probe)
    assert await live.receive_ids(1) == [answer["message_id"]]
    change(probe, "DROP TRIGGER never")
    await until(lambda: tried_again(probe))
    await until(lambda: not probe.node.intake.unsettled_total)
    await all_is_there(probe, answer, received=1)


async def tried_again(probe: Probe) -> bool:
    """What was set aside meanwhile is not any more."""
    if probe.node.set_aside.total:
        set_aside.want(probe.node.current.config.server.data_dir, None)
    another = await published(probe)
    return bool(answered_as_delivered(another) and not probe.node.set_aside.total)


def answered_as_delivered(answer: dict[str, Any]) -> bool:
    return bool(answer["status"] == "delivered")


async def published(probe: Probe) -> dict[str, Any]:
    response = await probe.post(
        "/system/notice?wait_ms=300", {"content": "x", "target": "custom", "user_ids": [*USERS, 99]}
    )
    answer: dict[str, Any] = response.json()["data"]
    return answer


async def all_is_there(probe: Probe, answer: dict[str, Any], received: int = 0) -> None:
    for user_id in USERS:
        assert answer["message_id"] in await probe.mailbox(user_id)
    status = await probe.receive_status(answer["message_id"])
    assert (status["total_users"], status["received_users"]) == (len(USERS) + 1, received)
