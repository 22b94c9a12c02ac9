"""pushd beside other servers: how they are set up, what is made of their figures, and how the load client speaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bench.__main__ import gaps
from bench.loadlib.drive_plan import browser_headers
from bench.loadlib.native import limit_server, load_client
from bench.loadlib.options import LoadError
from bench.loadlib.peer_servers import PEERS, Family, Place, existing, family, filled, peer_server, program
from bench.loadlib.rounds import Result, table, targets, write
from bench.loadlib.servers import cores
from bench.peers import GUESTS, LIMIT, PUSHD, Contest, Entry, Round, Work, check, contestants, results

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
BODY = '{"type":"bench","data":{"t":{t},"n":{n}}}'


# ---- set up


def test_headers_of_a_browser_beside_those_of_every_handshake():
    lines = browser_headers("127.0.0.1")
    names = [line.partition(":")[0] for line in lines]
    assert "Origin: http://127.0.0.1" in lines
    assert {"User-Agent", "Cookie", "Sec-WebSocket-Extensions"} <= set(names)
    assert not {"Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version"} & set(names)


def test_configurations_are_filled_in(tmp_path: Path):
    place = Place(tmp_path, 81, 82, 1000)
    nchan = filled("nchan.conf", place, module="/m.so", user="").read_text()
    assert "worker_processes 1;" in nchan
    assert "listen 127.0.0.1:81 " in nchan
    assert "worker_connections 1450;" in nchan
    nats = filled("nats.conf", place).read_text()
    assert 'listen: "127.0.0.1:82"' in nats
    assert "compression: false" in nats
    assert "$" not in nchan + nats


def test_what_is_not_there_is_said(tmp_path: Path):
    there = tmp_path / "there"
    there.touch()
    assert existing(tmp_path / "ws", there) == there
    with pytest.raises(LoadError, match="ws is not installed"):
        existing(tmp_path / "ws")
    with pytest.raises(LoadError, match="no-such-server is not installed"):
        program("no-such-server")


def test_a_server_is_all_of_its_processes():
    with subprocess.Popen(["sh", "-c", "echo; sleep 60 & wait"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            while len(members := family(process.pid)) < 2:
                pass
            server = Family("it", 0, process)
            assert server.cpu_s > 0
            assert server.rss_bytes > 100_000
        finally:
            for pid in reversed(members):
                subprocess.run(["kill", str(pid)], check=False)
    assert members[0] == process.pid


def test_everybody_takes_part():
    names = [who.name for who in contestants()]
    assert names == [LIMIT, PUSHD, GUESTS, "uWebSockets", "ws", "websockets", "Nchan", "NATS"]
    assert [who.name for who in contestants() if not who.is_peer] == [LIMIT, PUSHD, GUESTS]
    assert all("--verbatim" in who.publish for who in contestants() if who.name not in (PUSHD, GUESTS))


# ---- figures


def turn(wall_ms: float, cpu_us: float, size: int = 200) -> Round:
    work = Work(1000, wall_ms, cpu_us / 1000, 0.1, size)
    return Round(wall_ms, work, work)


def entry(name: str, idle_bytes: float) -> Entry:
    who = next(who for who in contestants() if who.name == name)
    return Entry(who, None, None, idle_bytes)  # type: ignore[arg-type]


@pytest.fixture
def contest() -> Contest:
    done = {LIMIT: [turn(10, 4), turn(20, 8)], PUSHD: [turn(20, 16), turn(20, 16)], GUESTS: [turn(10, 4)] * 2,
            "ws": [turn(30, 8), turn(10, 16)], "uWebSockets": [turn(10, 4)] * 2}  # fmt: skip
    entries = {name: entry(name, 6000 if name == PUSHD else 3000) for name in done}
    return Contest(entries, {"Nchan": "nginx is not installed"}, done)


def test_work():
    assert turn(20, 4).in_turn.per_s == 50_000
    assert turn(20, 4).in_turn.cpu_us == 4


def found(contest: Contest, group: str, what: str) -> Result:
    (result,) = [one for one in results(contest, 1000) if (one.group, one.what) == (group, what)]
    return result


def test_ratios_are_of_the_same_round(contest: Contest):
    assert found(contest, "deliveries/s to the C limit's", PUSHD).values == [0.5, 1.0]
    assert found(contest, "CPU per delivery to the C limit's", PUSHD).values == [4.0, 2.0]
    assert found(contest, "one after the other: pushd's deliveries/s to the peer's", "pushd and ws").values == [
        1.5,
        0.5,
    ]
    group = "one after the other: the peer's CPU per delivery to pushd's"
    assert found(contest, group, "pushd, guests and ws").values == [2.0, 4.0]
    assert found(contest, "a broadcast from rest: the peer's time to pushd's", "pushd and ws").values == [1.5, 0.5]
    assert found(contest, "an idle connection: pushd's bytes to the peer's", "pushd and ws").verdict == "missed"


def test_level_with_uwebsockets_is_enough(contest: Contest):
    group = "one after the other: pushd's deliveries/s to the peer's"
    assert str(found(contest, group, "pushd, guests and uWebSockets").target) == ">= 0.97"
    assert str(found(contest, group, "pushd, guests and ws").target) == ">= 1"


def test_what_was_not_measured_is_in_the_table_and_the_file(contest: Contest, tmp_path: Path):
    found = results(contest, 1000)
    assert "  not measured: Nchan: nginx is not installed" in table({"peers": found}).splitlines()
    (file, _) = write("peers", found, is_quick=False, directory=tmp_path)
    last = json.loads(file.read_text())["results"][-1]
    assert (last["what"], last["values"]) == ("Nchan: nginx is not installed", [])
    assert targets({"peers": [found[-1]]}) == {}
    assert gaps({"peers": found}) == ["peers: Nchan: nginx is not installed"]


def test_only_a_peer_may_fail(contest: Contest):
    ours, peer = (next(who for who in contestants() if who.name == name) for name in (PUSHD, "NATS"))
    contest.note(peer, LoadError("gone\n  away"))
    assert contest.missing["NATS"] == "gone away"
    with pytest.raises(LoadError, match="gone"):
        contest.note(ours, LoadError("gone"))


def test_frames_are_of_one_size():
    check({LIMIT: [turn(1, 1, 200)], PUSHD: [turn(1, 1, 203)]})
    with pytest.raises(LoadError, match="different sizes"):
        check({LIMIT: [turn(1, 1, 200)], PUSHD: [turn(1, 1, 260)]})


# ---- the load client, and servers it speaks to


def options(directory: Path, port: int, *more: str) -> list[str]:
    notice = directory / "notice"
    notice.write_text(BODY)
    return ["--port", str(port), "--connections", "20", "--match", '{"type":"bench"', "--timeout", "5",
            "--notice", str(notice), *more]  # fmt: skip


@needs_compiler
async def test_broadcasts_at_once_by_post(tmp_path: Path):
    with limit_server(tmp_path, 20, core=cores().others) as server:
        given = options(tmp_path, server.port, "--verbatim")
        async with load_client(tmp_path, "clients", given, core=cores().others) as client:
            said = await client.ask("burst 7")
            assert said["broadcasts"] == 7
            assert 0 < said["last_ms"] <= said["wall_ms"]
            assert len((await client.ask("rounds 2 0"))["last_ms"]) == 2
            report = await client.ask("report")
            assert (report["delivery"]["count"], report["answer"]["count"]) == (180, 9)


@needs_compiler
async def test_broadcasts_by_a_frame_of_the_publisher(tmp_path: Path):
    (peer,) = [peer for peer in PEERS if peer.name == "websockets"]
    with peer_server(peer, tmp_path, 20, core=cores().others) as server:
        given = options(tmp_path, server.port, *peer.publish, "--path", "/ws", "--verbatim")
        async with load_client(tmp_path, "clients", given, core=cores().others) as client:
            assert len((await client.ask("rounds 2 0"))["last_ms"]) == 2
            assert (await client.ask("burst 3"))["frame_bytes"] > 40
            assert (await client.ask("expect 5"))["frames"] == 100


def ws_frame(payload: bytes) -> bytes:
    return bytes([0x82, len(payload)]) + payload


class Nats:
    """As much of NATS as it takes, for one publisher and its subscribers; frames end anywhere."""

    def __init__(self, is_damaging: bool) -> None:
        self.subscribers: list[asyncio.StreamWriter] = []
        self.publishers: list[asyncio.StreamWriter] = []
        self.is_damaging = is_damaging

    async def subscriber(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        accept = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n" + accept + b"\r\n\r\n" + ws_frame(b"INFO {}\r\nPI"))
        said = await reader.readuntil(b"SUB bench 1\r\nPING\r\n")
        assert b"CONNECT {" in said
        writer.write(ws_frame(b"NG\r\nPONG\r") + ws_frame(b"\n"))
        self.subscribers.append(writer)
        assert (await reader.readuntil(b"PONG\r\n"))[-6:] == b"PONG\r\n"

    async def publisher(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.publishers.append(writer)
        writer.write(b"INFO {}\r\n")
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        while line := await reader.readline():
            payload = await reader.readexactly(int(line.split()[2]))
            await reader.readexactly(2)
            payload = payload.replace(b'"n"', b'"m"') if self.is_damaging else payload
            message = b"MSG bench 1 %d\r\n%s\r\n" % (len(payload), payload)
            for number, subscriber in enumerate(self.subscribers):
                subscriber.write(ws_frame(message[:number]) + ws_frame(message[number:]))


@asynccontextmanager
async def nats(directory: Path, *, is_damaging: bool = False) -> AsyncIterator[list[str]]:
    """A server; the options for its clients."""
    it = Nats(is_damaging)
    async with (
        await asyncio.start_server(it.subscriber, "127.0.0.1", 0) as there,
        await asyncio.start_server(it.publisher, "127.0.0.1", 0) as here,
    ):
        ports = [server.sockets[0].getsockname()[1] for server in (there, here)]
        yield options(directory, ports[0], "--publish-port", str(ports[1]), "--publish", "nats", "--nats", "bench",
                      "--verbatim")  # fmt: skip
        for writer in it.subscribers + it.publishers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@needs_compiler
async def test_nats_in_frames_that_end_anywhere(tmp_path: Path):
    async with (
        nats(tmp_path) as given,
        load_client(tmp_path, "clients", given, core=cores().others) as client,
    ):
        assert client.connected["hello"]["count"] == 20
        assert (await client.ask("burst 4"))["broadcasts"] == 4
        assert len((await client.ask("rounds 2 0"))["last_ms"]) == 2


@needs_compiler
async def test_what_was_not_published_is_refused(tmp_path: Path):
    async with (
        nats(tmp_path, is_damaging=True) as given,
        load_client(tmp_path, "clients", given, core=cores().others) as client,
    ):
        with pytest.raises(LoadError, match="not what was published"):
            await client.ask("rounds 1 0")
