"""What the connection to MongoDB does with calls for which nobody waits any more."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from pymongo.errors import PyMongoError

from pushd.stores.mongo.connection import connect


def observe(store: str, operation: str, seconds: float, ok: bool) -> None:
    """Nobody is interested."""


async def test_the_failure_of_a_call_that_was_given_up_is_heard_of_before_the_end() -> None:
    failures: list[PyMongoError] = []

    async def listed() -> None:
        try:
            await connection.collection("push_records").find({}).to_list(None)
        except PyMongoError as error:
            failures.append(error)
            raise

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mongodb://127.0.0.1:{silent.getsockname()[1]}/?directConnection=true"
        async with connect("records", "records.url", url, "pushd", observe) as connection:
            call = asyncio.create_task(connection.read("list", listed))
            await asyncio.sleep(0.1)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
            assert call.cancelled()
            assert failures == []
        assert len(failures) == 1
