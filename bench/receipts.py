"""What a delivery with a receipt costs, to one without: users who acknowledge or do not, and guests.

    python -m bench.receipts [--quick]

Guests get notices and leave no receipts; users of all kinds get the same broadcasts from a daemon of their own, and
everything that comes after a delivery is in the figure: acknowledgements, records, mailboxes, the journal. Rounds
alternate.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from bench.broadcast import NOTICE, quiet, template
from bench.loadlib import rounds
from bench.loadlib.admin import Admin
from bench.loadlib.drive_cost import cpu_of
from bench.loadlib.native import LoadClient, load_client
from bench.loadlib.options import LoadError
from bench.loadlib.rounds import Result, alternate, at_most, ratios, rounds_for
from bench.loadlib.servers import Server, cores, daemon, scratch

CLIENTS, QUICK_CLIENTS = 4_000, 1_000
NOTICES = 20  # per round; a multiple of BATCH
BATCH = 10
GAP_MS = 20


@dataclass(frozen=True)
class Kind:
    """Clients of one kind."""

    path: str
    options: tuple[str, ...] = ()
    target: float = 0.0  # of its CPU to that of guests


KINDS = {
    "guests": Kind("/ws"),
    "users": Kind("/ws?user_id={uid}", (), 1.25),
    "users who acknowledge": Kind("/ws?user_id={uid}&ack=1", ("--ack",), 2.0),
    f"users who acknowledge {BATCH} at a time": Kind("/ws?user_id={uid}&ack=1", ("--ack-every", str(BATCH)), 1.5),
}


async def delivered(client: LoadClient, server: Server, clients: int) -> float:
    """One round: microseconds of the daemon's CPU per delivery, all that comes after it included."""
    before = cpu_of(server.process.pid)
    await client.ask(f"rounds {NOTICES} {GAP_MS}")
    await quiet(server)
    await client.ask("report")
    return 1e6 * (cpu_of(server.process.pid) - before).total_s / (NOTICES * clients)


async def compare(clients: int, count: int) -> dict[str, list[float]]:
    """All kinds, alternating. Raises LoadError."""
    with scratch() as place:
        async with AsyncExitStack() as stack:
            ways: dict[str, Callable[[], Awaitable[float]]] = {}
            for number, (name, kind) in enumerate(KINDS.items()):
                directory = place / str(number)
                directory.mkdir()
                server = stack.enter_context(daemon(directory, "", clients, core=cores().daemon))
                notice = directory / "notice.json"
                notice.write_text(template(NOTICE))
                options = ["--port", str(server.port), "--connections", str(clients), "--path", kind.path,
                           "--match", '{"type":"bench"', "--notice", str(notice),
                           "--post-path", "/api/admin/system/notice", *kind.options]  # fmt: skip
                client = await stack.enter_async_context(
                    load_client(directory, "clients", options, core=cores().others)
                )
                ways[name] = _way(client, server, clients)
                if kind.options:
                    stack.push_async_callback(_check, server, NOTICES * clients * (count + 1))
                await quiet(server)
            return await alternate(ways, count)


def _way(client: LoadClient, server: Server, clients: int) -> Callable[[], Awaitable[float]]:
    return lambda: delivered(client, server, clients)


async def _check(server: Server, deliveries: int) -> None:
    async with Admin(server.port) as admin:
        acks = (await admin.metrics()).total("pushd_acks_total")
    if acks != deliveries:
        raise LoadError(f"{deliveries} notices were acknowledged, the daemon counted {acks:.0f}")


async def run(quick: bool) -> list[Result]:
    """Each kind's CPU per delivery, and its ratio to the guests'."""
    clients = QUICK_CLIENTS if quick else CLIENTS
    done = await compare(clients, rounds_for(quick))
    group = f"CPU per delivery of a broadcast to {clients:,} clients"
    found = [Result(name, taken, "us", group=group) for name, taken in done.items()]
    for name, kind in KINDS.items():
        if kind.target:
            found.append(Result(f"{name}, to guests", ratios(done[name], done["guests"]), "x", at_most(kind.target)))
    return found


if __name__ == "__main__":
    sys.exit(rounds.script("receipts", run))
