"""The C client of bench/native/drive.c as a process: told what to do, asked what it saw."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.loadlib import drive_log, drive_plan
from bench.loadlib.drive_log import Answer, Connect, Delivery
from bench.loadlib.machine import allow_descriptors
from bench.loadlib.native import built
from bench.loadlib.options import LoadError
from bench.loadlib.servers import Server, free_port, on_core, running, wait_for_port

SPARE_S = 20.0


@dataclass(frozen=True)
class Plan:
    """`members` of the handshakes connect first, `at_once` at a time; the other clients are visitors.

    `deliveries`: how many notices the members wait for. `within_s` bounds connecting, and publishing.
    """

    port: int
    handshakes: Sequence[bytes] = ()
    members: int = 0
    requests: Sequence[tuple[int, bytes]] = ()
    publishers: int = 0
    deliveries: int = 0
    is_acking: bool = False
    at_once: int = 128
    visits_per_s: float = 0.0
    stay_ms: int = 1000
    within_s: float = 60.0


@dataclass(frozen=True)
class Stretch:
    """What the client says of connecting, or of publishing: counts so far, and its own time of this stretch."""

    opened: int
    failed: int
    closed: int
    stray: int
    answered: int
    deliveries: int
    began_ns: int
    ended_ns: int
    cpu_s: float


@dataclass
class Drive:
    """A running client: connected, then `go`, then its log."""

    plan: Plan
    directory: Path
    process: Process = field(repr=False)
    connected: Stretch

    async def go(self) -> Stretch:
        """Publish; return when everything has come, or `within_s` is over. Raises LoadError."""
        assert self.process.stdin is not None, "a pipe was asked for"
        self.process.stdin.write(b"go\n")
        done = await _said(self.process, "done", self.plan, self.directory)
        if done.closed or done.stray:
            raise LoadError(f"the daemon closed {done.closed} connections; {done.stray} frames were not to be expected")
        return done

    def connects(self) -> list[Connect]:
        """Of all clients, by now."""
        return drive_log.connects((self.directory / "connects").read_bytes())

    def answers(self) -> list[Answer]:
        """By request; after `go`."""
        return drive_log.answers((self.directory / "answers").read_bytes())

    def deliveries(self) -> list[Delivery]:
        """In their order; after `go`."""
        return drive_log.deliveries((self.directory / "deliveries").read_bytes())


async def _said(process: Process, word: str, plan: Plan, directory: Path) -> Stretch:
    assert process.stdout is not None, "a pipe was asked for"
    try:
        async with asyncio.timeout(plan.within_s + SPARE_S):
            line = (await process.stdout.readline()).decode()
    except TimeoutError:
        line = ""
    said, _, figures = line.partition(" ")
    if said != word:
        raise LoadError(f"the load client did not get through: {(directory / 'drive.log').read_text()[-500:]}")
    return Stretch(**json.loads(figures))


@asynccontextmanager
async def driving(plan: Plan, directory: Path) -> AsyncIterator[Drive]:
    """A client whose members are connected; it ends with the block. Raises LoadError when one is not."""
    allow_descriptors(len(plan.handshakes) + plan.publishers + 200)
    directory.mkdir(exist_ok=True)
    (directory / "handshakes").write_bytes(drive_plan.handshakes_file(plan.handshakes))
    (directory / "requests").write_bytes(drive_plan.requests_file(plan.requests))
    program = await asyncio.to_thread(built, "drive")
    with (directory / "drive.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(program), str(directory), str(plan.port), str(plan.members), str(plan.at_once),
            str(plan.publishers), str(plan.deliveries), str(int(plan.is_acking)), str(plan.visits_per_s),
            str(plan.stay_ms), str(plan.within_s), stdin=PIPE, stdout=PIPE, stderr=log,
        )  # fmt: skip
    try:
        drive = Drive(plan, directory, process, await _said(process, "connected", plan, directory))
        drive_log.check_connects(drive.connects(), plan.members)
        yield drive
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(SPARE_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


@contextmanager
def bare_server(directory: Path, core: int) -> Iterator[Server]:
    """The least a server can do, on the daemon's core."""
    port, log = free_port(), directory / "bare.log"
    with ExitStack() as stack:
        with on_core(core):
            server = stack.enter_context(running("bare server", [str(built("bare")), str(port)], log))
        server.port = port
        wait_for_port(server, log)
        yield server
