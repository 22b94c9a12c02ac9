"""The embedded mailbox: what is damaged in the file."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from structlog.testing import capture_logs

from pushd.model import MailboxItem
from pushd.stores.sqlite import open_stores
from tests.conftest import MakeConfig

USERS = range(1, 60)


@pytest.mark.parametrize(
    "body",
    ["{", '{"type":"t"}', "[]", "1", "[" * 5000, '{"type":"t","content":"\\ud800"}', b'{"type":"t","content":"\xff"}'],
)
async def test_a_body_that_cannot_be_read_is_left_out(make_config: MakeConfig, body: str | bytes) -> None:
    config = make_config()
    aside: list[int] = []
    async with open_stores(config, left_aside=aside.append) as stores:
        await stores.mailbox.save([(MailboxItem("t", name, message_id=name), USERS) for name in "abc"])
        with closing(sqlite3.connect(f"{config.server.data_dir}/pushd.db")) as connection:
            connection.execute("UPDATE mailbox_notice SET body = CAST(? AS TEXT) WHERE message_key = 'b'", (body,))
            connection.commit()
        with capture_logs() as logs:
            for _ in range(2):
                found = await stores.mailbox.read(USERS)
        assert {tuple(item.message_id for item in items) for items in found.values()} == {("a", "c")}
        assert len(found) == len(USERS)
        assert sum(aside) >= 2
        assert len(logs) == 1
        await stores.mailbox.remove({1: ["a", "b", "c"]})
        assert await stores.mailbox.read([1]) == {}


async def test_large_bodies_are_written_in_shares(make_config: MakeConfig) -> None:
    async with open_stores(make_config()) as stores:
        items = [MailboxItem("t", "x", message_id=f"m{number}", data="x" * 300_000) for number in range(12)]
        await stores.mailbox.save([(item, [1, 2]) for item in items])
        found = await stores.mailbox.read([1, 2])
        assert [item.message_id for item in found[1]] == [item.message_id for item in found[2]]
        assert [item.message_id for item in found[1]] == [item.message_id for item in items]
