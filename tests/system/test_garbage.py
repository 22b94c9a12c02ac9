"""What comes and goes leaves no reference cycles behind: the daemon never looks for old ones (`_settle_garbage`)."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

from tests.daemon import Probe, until


async def test_connections_and_notices_leave_no_cycles(probe: Probe) -> None:
    await _come_and_go(probe)  # what is made once and kept
    gc.collect()
    gc.disable()
    try:
        await _come_and_go(probe)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = Counter(type(thing).__qualname__ for thing in gc.garbage if _is_ours(thing))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


def _is_ours(thing: object) -> bool:
    return type(thing).__module__.split(".")[0] in ("pushd", "picows")


async def _come_and_go(probe: Probe) -> None:
    """Connections of both kinds, live, replayed and scheduled notices, receipts, refusals and API calls."""
    clients = [await probe.client(user_id, ack=user_id % 2 == 0) for user_id in range(1, 21)]
    published = await probe.publish(target="all")
    for client in clients:
        await client.receive()
        await client.ack(published["message_id"])
        await client.send({"type": "read", "message_ids": [published["message_id"]]})
        await client.send({"type": "nonsense"})
        await client.receive()
    await asyncio.gather(*(client.ws.close() for client in clients))
    await until(lambda: not probe.node.hub.connections_total)
    await probe.publish(target="custom", user_ids=[1, 2, 3])
    for user_id in (1, 2, 3):
        client = await probe.client(user_id, ack=True)
        await client.receive()
        client.ws.transport.abort()
    await until(lambda: not probe.node.hub.connections_total)
    later = [await probe.publish(delay_s=delay_s) for delay_s in (0.05, 0.05, 60)]
    for one in later:
        await probe.publish(message_id=one["message_id"])
    await probe.post(f"/notification/records/{later[-1]['message_id']}/cancel", {})
    await until(lambda: not probe.node.schedule.count)
    await probe.get("/notification/records")
    await probe.get("/notification/admin-receive-records")
    assert (await probe.http.get("/ws")).status_code == 426
    await probe.node.writers.flushed()
