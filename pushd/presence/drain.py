"""The end of all connections when the node stops, spread over a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pushd._fastpath import Hub
from pushd.errors import CloseCode
from pushd.presence.failures import Failures

TICK_S = 0.05


async def close_all(
    hub: Hub, failures: Failures, within_s: float, *, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Close every connection with 1012, spread over `within_s`, so that they do not all reconnect at once."""
    connections = hub.snapshot()
    if not connections:
        return
    ticks = max(1, int(within_s / TICK_S))
    share = -(-len(connections) // ticks)
    for start in range(0, len(connections), share):
        for connection in connections[start : start + share]:
            failures.close(connection, CloseCode.SERVICE_RESTART, "restarting")
        if start + share < len(connections):
            await pause(within_s / ticks)
