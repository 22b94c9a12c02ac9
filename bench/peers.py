"""The same broadcasts, and the same idle connections, on pushd and on other servers: each as its own users would do it.

    python -m bench.peers [--quick]

A frame of 200 bytes goes to 10,000 clients, who check that each got every frame, intact and in order. One server at a
time has the daemon's core, the C clients have the other; all stay connected, and rounds alternate. Broadcasts come one
after the other (the next one when the last client has the last one), and all at once (where a server may write several
frames in one go). What triggers one is what the server has for it: a POST (pushd, the C limit server, Nchan), a frame
on a WebSocket of the publisher (uWebSockets, ws, websockets), PUB over TCP (NATS). Every server has one process and one
thread for the work, no compression and no heartbeats. CPU is the server's, with all that comes after a broadcast.

pushd does more for a broadcast than the others: it is set up as by default, so a notice is on disk before it is sent,
and who got it is recorded, 10,000 records each. "guests" are connections without a user, who leave no records: that is
nearest to what the others do.

Nothing is installed here: a peer that is missing is "not measured", with the reason. `make bench` installs them before,
by bench/install-peers.sh (from Debian only as root; the rest below build/).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.broadcast import FRAME, NOTICE, QUIET_FOR_S, quiet, template
from bench.loadlib import rounds
from bench.loadlib.drive_plan import browser_headers
from bench.loadlib.machine import allow_descriptors
from bench.loadlib.native import LoadClient, limit_server, load_client
from bench.loadlib.options import LoadError
from bench.loadlib.paired import middle
from bench.loadlib.peer_servers import PEERS, Family, peer_server
from bench.loadlib.rounds import Result, alternate, at_least, at_most, ratios, rounds_for
from bench.loadlib.servers import cores, daemon, scratch

CLIENTS, QUICK_CLIENTS = 10_000, 1_000
BROADCASTS = 6  # in each of the two ways, per round
WARM_CLIENTS = 100  # who come and go before memory is first looked at
SETTLE_S = 0.2  # of clients who come and go
AT_REST_S = 0.1  # of servers that put nothing off
CONTENT = "Order 4711 has been paid by card."  # so that the frame has about 200 bytes
CONFIG = "[delivery]\nheartbeat_s = 3600\n"
LIMIT, PUSHD, GUESTS = "C limit", "pushd", "pushd, guests"
AHEAD, LEVEL = 1.0, 0.97


# ---- who takes part


@dataclass(frozen=True)
class Contestant:
    """How the server is started, and what the load client is told."""

    name: str
    start: Callable[[Path, int], AbstractContextManager[Family]]
    publish: Sequence[str]
    path: str = "/ws"
    notice: str = template({**FRAME, "content": CONTENT})
    is_peer: bool = False
    at_rest_s: float = AT_REST_S


def contestants() -> list[Contestant]:
    """All of them, whether they are installed or not."""
    core = cores().daemon
    notice, post = template({**NOTICE, "content": CONTENT}), ("--post-path", "/api/admin/system/notice")
    return [
        Contestant(LIMIT, partial(_limit, core=core), ("--post-path", "/", "--verbatim")),
        Contestant(PUSHD, partial(_daemon, core=core), post, "/ws?user_id={uid}", notice, at_rest_s=QUIET_FOR_S),
        Contestant(GUESTS, partial(_daemon, core=core), post, "/ws", notice, at_rest_s=QUIET_FOR_S),
        *(
            Contestant(peer.name, partial(peer_server, peer, core=core), (*peer.publish, "--verbatim"), is_peer=True)
            for peer in PEERS
        ),
    ]


@contextmanager
def _daemon(directory: Path, clients: int, *, core: int) -> Iterator[Family]:
    with daemon(directory, CONFIG, clients, core=core) as server:
        yield Family.of(server)


@contextmanager
def _limit(directory: Path, clients: int, *, core: int) -> Iterator[Family]:
    with limit_server(directory, clients, core=core) as server:
        yield Family.of(server)


@dataclass(frozen=True)
class Entry:
    """One of them, running, all clients connected; `idle_bytes` per connection."""

    who: Contestant
    server: Family
    client: LoadClient
    idle_bytes: float


async def enter(stack: AsyncExitStack, who: Contestant, place: Path, clients: int) -> Entry:
    """Until the end of `stack`. Raises LoadError."""
    directory = place / str(len(list(place.iterdir())))
    directory.mkdir()
    async with AsyncExitStack() as own:
        server = own.enter_context(who.start(directory, clients))
        async with _clients(who, server, directory, WARM_CLIENTS):
            await asyncio.sleep(SETTLE_S)
        empty_bytes = await _settled(who, server)
        client = await own.enter_async_context(_clients(who, server, directory, clients, is_publishing=True))
        idle_bytes = (await _settled(who, server) - empty_bytes) / clients
        stack.push_async_exit(own.pop_all())
    return Entry(who, server, client, idle_bytes)


async def _settled(who: Contestant, server: Family) -> int:
    await quiet(server, who.at_rest_s)
    return server.rss_bytes


def _clients(
    who: Contestant, server: Family, directory: Path, count: int, *, is_publishing: bool = False
) -> AbstractAsyncContextManager[LoadClient]:
    notice = directory / "notice"
    notice.write_text(who.notice)
    options = ["--port", str(server.port), "--connections", str(count), "--path", who.path,
               "--match", '{"type":"bench"', *who.publish]  # fmt: skip
    for header in browser_headers("127.0.0.1"):
        options += ["--header", header]
    if is_publishing:
        options += ["--notice", str(notice), "--publish-port", str(server.publish_port)]
    return load_client(directory, f"clients{count}", options, core=cores().others)


# ---- what they do


@dataclass(frozen=True)
class Work:
    """Some broadcasts. `wall_ms` is from triggers to the last client's frame, `cpu_s` the server's."""

    deliveries: int
    wall_ms: float
    cpu_s: float
    client_share: float  # of a core
    frame_bytes: int

    @property
    def per_s(self) -> float:
        """Deliveries per second of wall time."""
        return 1000 * self.deliveries / self.wall_ms

    @property
    def cpu_us(self) -> float:
        """The server's CPU per delivery."""
        return 1e6 * self.cpu_s / self.deliveries


@dataclass(frozen=True)
class Round:
    """One contestant's turn. `alone_ms`: from the trigger to the last client, of a broadcast to a server at rest."""

    alone_ms: float
    in_turn: Work
    at_once: Work


async def turn(entry: Entry, clients: int) -> Round:
    """Both ways; the server is at rest between them. Raises LoadError."""
    in_turn, last_ms = await work(entry, clients, f"rounds {BROADCASTS} 0")
    at_once, _ = await work(entry, clients, f"burst {BROADCASTS}")
    return Round(last_ms[0], in_turn, at_once)


async def work(entry: Entry, clients: int, command: str) -> tuple[Work, list[float]]:
    """What the load client says of it."""
    cpu_s = entry.server.cpu_s
    said = await entry.client.ask(command)
    await quiet(entry.server, entry.who.at_rest_s)
    last_ms: list[float] = said["last_ms"] if isinstance(said["last_ms"], list) else [said["last_ms"]]
    cpu_s = entry.server.cpu_s - cpu_s
    return Work(clients * BROADCASTS, sum(last_ms), cpu_s, said["cpu"], said["frame_bytes"]), last_ms


@dataclass
class Contest:
    """Everybody's turns, and why some have none."""

    entries: dict[str, Entry] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    done: dict[str, list[Round]] = field(default_factory=dict)

    def note(self, who: Contestant, error: LoadError) -> None:
        """A peer that cannot be measured stops nobody. Raises the error of anybody else."""
        if not who.is_peer:
            raise error
        self.missing[who.name] = " ".join(str(error).split())[:300]

    async def enter(self, stack: AsyncExitStack, who: Contestant, place: Path, clients: int) -> None:
        """Raises LoadError."""
        try:
            self.entries[who.name] = await enter(stack, who, place, clients)
        except LoadError as error:
            self.note(who, error)

    async def turn(self, name: str, clients: int) -> Round | None:
        """None for one that has failed. Raises LoadError."""
        if name in self.missing:
            return None
        try:
            return await turn(self.entries[name], clients)
        except LoadError as error:
            self.note(self.entries[name].who, error)
            return None

    async def take_turns(self, clients: int, count: int) -> None:
        """All of them, alternating. Raises LoadError."""
        turns = await alternate({name: partial(self.turn, name, clients) for name in self.entries}, count)
        self.done = {name: [one for one in found if one] for name, found in turns.items() if name not in self.missing}
        check(self.done)


def check(done: Mapping[str, Sequence[Round]]) -> None:
    """All had frames of one size. Raises LoadError."""
    sizes = {name: middle([one.in_turn.frame_bytes for one in turns]) for name, turns in done.items()}
    if max(size.highest for size in sizes.values()) - min(size.lowest for size in sizes.values()) > 8:
        raise LoadError(f"frames are of different sizes: {sizes}")


# ---- figures


def results(contest: Contest, clients: int) -> list[Result]:
    """The lines of the table."""
    done = contest.done
    figures: list[tuple[str, str, Callable[[Round], float]]] = [
        ("a broadcast from rest, until the last client has it", "ms", alone),
        ("deliveries/s, one broadcast after the other", "/s", rate),
        ("deliveries/s, all broadcasts at once", "/s", rate_at_once),
        ("server's CPU per delivery, one after the other", "us", cost),
        ("server's CPU per delivery, all at once", "us", lambda one: one.at_once.cpu_us),
    ]
    found = [
        Result(name, [read(one) for one in turns], unit, group=group)
        for group, unit, read in figures
        for name, turns in done.items()
    ]
    group = f"{clients:,} idle connections, resident bytes of each"
    found += [Result(name, [contest.entries[name].idle_bytes], "B", group=group) for name in done]
    found += to_limit(done) + ahead(done) + idle(contest) + shares(done)
    return found + [Result(f"{name}: {why}", []) for name, why in contest.missing.items()]


def to_limit(done: Mapping[str, Sequence[Round]]) -> list[Result]:
    """Each to the C limit server in the same round."""
    rates, costs = "deliveries/s to the C limit's", "CPU per delivery to the C limit's"
    others = [name for name in done if name != LIMIT]
    return [
        *(Result(name, between(done, name, LIMIT, rate), "x", group=rates) for name in others),
        *(Result(name, between(done, name, LIMIT, cost), "x", group=costs) for name in others),
    ]


def ahead(done: Mapping[str, Sequence[Round]]) -> list[Result]:
    """pushd and each peer in the same round: what is above 1 is in pushd's favour."""
    found = []
    for it in COMPARISONS:
        for ours, peer in ((ours, peer) for ours in (PUSHD, GUESTS) for peer in peers_of(done)):
            values = between(done, peer, ours, it.read) if it.is_cost else between(done, ours, peer, it.read)
            bound = at_least(LEVEL if peer == "uWebSockets" else AHEAD)
            found.append(Result(f"{ours} and {peer}", values, "x", bound if ours in it.held else None, it.what))
    return found


def between(done: Mapping[str, Sequence[Round]], one: str, other: str, read: Callable[[Round], float]) -> list[float]:
    """The ratio of two contestants' figures, round by round."""
    return ratios([read(turn) for turn in done[one]], [read(turn) for turn in done[other]])


def alone(turn: Round) -> float:
    """From the trigger to the last client, ms."""
    return turn.alone_ms


def rate(turn: Round) -> float:
    """Deliveries/s, one broadcast after the other."""
    return turn.in_turn.per_s


def rate_at_once(turn: Round) -> float:
    """Deliveries/s, all broadcasts at once."""
    return turn.at_once.per_s


def cost(turn: Round) -> float:
    """The server's CPU per delivery, one broadcast after the other."""
    return turn.in_turn.cpu_us


@dataclass(frozen=True)
class Comparison:
    """A ratio of pushd and a peer. `is_cost`: less is better; `held`: who has a target."""

    what: str
    read: Callable[[Round], float]
    is_cost: bool
    held: tuple[str, ...]


COMPARISONS = (
    Comparison("a broadcast from rest: the peer's time to pushd's", alone, True, (PUSHD, GUESTS)),
    Comparison("one after the other: pushd's deliveries/s to the peer's", rate, False, (PUSHD, GUESTS)),
    Comparison("one after the other: the peer's CPU per delivery to pushd's", cost, True, (GUESTS,)),
    Comparison("all at once: pushd's deliveries/s to the peer's", rate_at_once, False, ()),
)


def peers_of(names: Iterable[str]) -> list[str]:
    """Those that are neither pushd nor the limit."""
    return [name for name in names if name not in (LIMIT, PUSHD, GUESTS)]


def idle(contest: Contest) -> list[Result]:
    """pushd's memory held against each peer's."""
    ours = contest.entries[PUSHD].idle_bytes
    return [
        Result(f"{PUSHD} and {name}", [ours / contest.entries[name].idle_bytes], "x", at_most(1.0),
               "an idle connection: pushd's bytes to the peer's")
        for name in peers_of(contest.done)
    ]  # fmt: skip


def shares(done: Mapping[str, Sequence[Round]]) -> list[Result]:
    """Are the clients the limit?"""
    return [
        Result(f"clients' share of their core, {name}", [100 * one.in_turn.client_share for one in turns], "%")
        for name, turns in done.items()
    ]


async def run(quick: bool) -> list[Result]:
    """Raises LoadError when pushd or the limit cannot be measured."""
    clients = QUICK_CLIENTS if quick else CLIENTS
    allow_descriptors(clients)
    contest = Contest()
    async with AsyncExitStack() as stack:
        place = stack.enter_context(scratch())
        for who in contestants():
            await contest.enter(stack, who, place, clients)
        await contest.take_turns(clients, rounds_for(quick))
    return results(contest, clients)


if __name__ == "__main__":
    sys.exit(rounds.script("peers", run))
