"""Bad data on disk: the next start comes up and serves the others; the operator sees it, and has it tried again."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Probe, Process, until

NOW_MS = 1_700_000_000_000
BAD_BODIES = [b"nonsense", b"\xff\xfe", b"[]", b"[" * 20_000]

# What may be wrong, by table: a statement, run on what a daemon left.
SPOILED = {
    "notice": "UPDATE notice SET body = ?",
    "notices of all times": "UPDATE notice SET accepted_ms = ?, expires_ms = 'x' WHERE seq = 2",
    "outbox of mailboxes": "INSERT INTO outbox (writer, body) VALUES ('mailbox', ?)",
    "outbox of records": "INSERT INTO outbox (writer, body) VALUES ('records', ?)",
    "outbox of statuses": "INSERT INTO outbox (writer, body) VALUES ('presence', ?)",
    "outbox of nobody": "INSERT INTO outbox (writer, body) VALUES (?, x'00')",
    "ledger": "UPDATE block SET body = ?",
    "changes of the ledger": "UPDATE change SET body = ?",
    "identities": "UPDATE identity SET name = ?, from_seq = 'x' || from_seq",
    "clients": "UPDATE client SET user_agent = ?",
    "labels": "UPDATE label SET type = ?, priority = 99",
    "user numbers": "UPDATE user_number SET id = ? WHERE id = 8",
    "user": "UPDATE user SET username = ?, user_type = 'x'",
    "presence": "UPDATE admin_user_online_status SET username = ?, is_online = 1, online_time = 'x'",
    "alive": "UPDATE alive SET at_ms = ?",
    "set aside": "INSERT INTO set_aside (kind, at_ms, cause, is_wanted, size, body) VALUES ('notice', 0, '', 1, 1, ?)",
    "set aside, of no kind": (
        "INSERT INTO set_aside (kind, at_ms, cause, is_wanted, size, body) VALUES (?, 'x', x'ff', 1, 1, x'00')"
    ),
}


async def run(process: Process, *arguments: str) -> tuple[int, str, str]:
    """`pushd-server set-aside`: its exit status, and what it said."""
    command = [sys.executable, "-m", "pushd", "set-aside", *arguments, "--config", str(process.config_file)]
    ended = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
    out, err = await ended.communicate()
    assert ended.returncode is not None
    return ended.returncode, out.decode(), err.decode()


def change(directory: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(directory / "data" / "pushd.db", isolation_level=None)) as connection:
        connection.execute(statement, values)


async def serves(probe: Probe, first_id: int) -> None:
    """Users of whom nothing bad is stored get everything, connected or not."""
    live = await probe.client(first_id, ack=True)
    notice = await probe.publish(target="custom", user_ids=[first_id, first_id + 1])
    everybody = await probe.publish(target="all", wait_ms=0)
    assert await live.receive_ids(2) == [notice["message_id"], everybody["message_id"]]
    late = await probe.client(first_id + 1, ack=True)
    assert notice["message_id"] in await late.receive_ids(1)
    assert (await probe.http.get("/readyz")).status_code == 200


@pytest.mark.parametrize("body", BAD_BODIES, ids=["nonsense", "no UTF-8", "another shape", "deep"])
async def test_the_next_start_serves_the_others(tmp_path: Path, body: bytes) -> None:
    """All at once: each start has all of it to live with."""
    async with Process(tmp_path) as process:
        async with await process.start() as probe:
            await (await probe.client(7)).ws.close()
            await probe.publish(target="custom", user_ids=[7, 8])
            await probe.publish(target="all", wait_ms=0)
            silent = await probe.client(9, ack=True)
            await probe.publish(target="custom", user_ids=[9])
            await silent.receive()
            await process.kill()  # with something left to do
        for statement in SPOILED.values():
            change(tmp_path, statement, body)
        for first_id in (101, 201):
            async with await process.start() as probe:
                await serves(probe, first_id)
                health = await probe.get("/websocket/health")
                assert health["set_aside"] >= 6
                assert "set aside" in health["last_error"]
            await process.kill()
        status, listed, _ = await run(process, "list", "--json")
        assert status == 0
        kinds = {entry["kind"] for entry in json.loads(listed)}
        assert kinds >= {"notice", "mailbox", "records", "presence"}


async def test_the_command_beside_a_running_daemon(tmp_path: Path) -> None:
    notice = {"seq": 99, "message_id": "m99", "content": "again", "target": {"kind": "custom", "user_ids": [7]}}
    body = json.dumps({**notice, "accepted_ms": NOW_MS}).encode()
    keep = "INSERT INTO set_aside (kind, at_ms, cause, size, body) VALUES (?, ?, ?, ?, ?)"
    async with Process(tmp_path) as process, await process.start() as probe:
        user = await probe.client(7, ack=True)
        assert await run(process, "list") == (0, "nothing is set aside\n", "")
        change(tmp_path, keep, "notice", NOW_MS, "TypeError: odd", len(body), body)
        for _ in range(2):
            change(tmp_path, keep, "records", NOW_MS, "ValueError: bad", 3, b"bad")
        status, listed, _ = await run(process, "list")
        assert status == 0
        assert listed.splitlines() == [
            "id  kind     at                         bytes  state  cause",
            f"1   notice   2023-11-14 22:13:20+00:00  {len(body)}    aside  TypeError: odd",
            "2   records  2023-11-14 22:13:20+00:00  3      aside  ValueError: bad",
            "3   records  2023-11-14 22:13:20+00:00  3      aside  ValueError: bad",
        ]
        assert await run(process, "retry", "1", "2") == (0, "2 to be tried again\n", "")
        assert (await user.receive(5))["message_id"] == "m99"
        await user.ack("m99")
        await until(lambda: has_set_aside(probe, 2))
        status, listed, _ = await run(process, "list", "--json")
        assert [(entry["id"], entry["state"]) for entry in json.loads(listed)] == [(2, "aside"), (3, "aside")]
        assert "ValueError: bad" not in json.loads(listed)[0]["cause"]
        status, _, error = await run(process, "drop", "3", "7")
        assert (status, error) == (1, "pushd: not set aside: 7; nothing was done\n")
        assert await run(process, "drop", "--all") == (0, "2 dropped\n", "")
        await until(lambda: has_set_aside(probe, 0))
        metrics = (await probe.http.get("/metrics")).text
        assert 'pushd_set_aside_total{kind="records"} 1.0' in metrics


async def has_set_aside(probe: Probe, count: int) -> bool:
    health = await probe.get("/websocket/health")
    return bool(health["set_aside"] == count)


async def test_what_was_wanted_while_no_daemon_ran_is_tried_by_the_next(tmp_path: Path) -> None:
    async with Process(tmp_path) as process:
        async with await process.start() as probe:
            silent = await probe.client(7, ack=True)
            await probe.publish(target="custom", user_ids=[7])
            await silent.receive()
            await process.kill()
        spoil = "UPDATE notice SET body = CAST(replace(CAST(body AS TEXT), '\"seq\":{}', '\"seq\":{}') AS BLOB)"
        change(tmp_path, spoil.format(1, 9))
        async with await process.start() as probe:
            await until(lambda: has_set_aside(probe, 1))
        await process.kill()
        change(tmp_path, "UPDATE set_aside SET body = replace(body, '\"seq\":9', '\"seq\":1')")
        change(tmp_path, spoil.format(9, 1))
        assert (await run(process, "retry", "--all"))[:2] == (0, "1 to be tried again\n")
        async with await process.start() as probe:
            await until(lambda: has_set_aside(probe, 0))
            user = await probe.client(7, ack=True)
            assert len(await user.receive_ids(1)) == 1
