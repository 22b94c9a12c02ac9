"""The HTTP server alone, on a free port, with an application that does as its paths say."""

from __future__ import annotations

import asyncio
import base64
import gc
import http.client
import random
import re
import resource
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pushd.config.schema import AuthConfig, Config, LimitsConfig, ServerConfig
from pushd.errors import StartError
from pushd.http import sockets
from pushd.http.addresses import Addresses
from pushd.http.connection import HttpConnection
from pushd.http.deadlines import Times
from pushd.http.messages import Request, Response
from pushd.http.pipeline import BEGUN_MOST
from pushd.http.server import HttpServer, listening
from pushd.later import Later

HEAD = b"Host: localhost\r\n"
GET = b"GET /sync HTTP/1.1\r\n" + HEAD + b"\r\n"
KEY = base64.b64encode(bytes(16))
UPGRADE = (
    b"GET /ws HTTP/1.1\r\n" + HEAD + b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n\r\n"
)


class Echo(asyncio.Protocol):
    """What the application makes of an upgraded connection: everything comes back."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class FakeApplication:
    """`/sync` answers at once, `/slow` when `release` is set, `/boom` and `/late-boom` raise, `/big` is a lot.

    `/pending…` is answered without a task, after at most `answer_within_s`; `/pending-more` in pieces.
    """

    answer_within_s = 60.0

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.requests: list[Request] = []
        self.finished = 0

    def judge_head(self, request: Request) -> Response | bool:
        if request.path == "/refused":
            return Response(401, b"refused")
        return request.path != "/unread"

    def share(self, request: Request | None, response: Response) -> Response:
        return response

    def handle(self, request: Request) -> Response | Later[Response] | Awaitable[Response]:
        self.requests.append(request)
        match request.path:
            case "/boom":
                raise RuntimeError("secret")
            case "/wrong":
                return Response(200, headers=(("X", "a\r\nb"),))
            case "/big":
                return Response(200, bytes(4_000_000))
            case "/sync":
                return self._answer(request)
        return self._pend(request) if request.path.startswith("/pending") else self._await(request)

    def _pend(self, request: Request) -> Later[Response]:
        done: Later[None] = Later(asyncio.ensure_future(self._wait_if_slow(request)))
        return done.then(lambda _: self._respond(request))

    def too_late(self) -> Response:
        return Response(503, b"given up")

    async def _wait_if_slow(self, request: Request) -> None:
        if request.path == "/pending-slow":
            self.started.set()
            await self.release.wait()
        self.finished += 1

    def _respond(self, request: Request) -> Response:
        if request.path == "/pending-boom":
            raise RuntimeError("secret")
        if request.path == "/pending-wrong":
            return Response(200, headers=(("X", "a\r\nb"),))
        return self._answer(request)

    async def _await(self, request: Request) -> Response:
        if request.path == "/slow":
            self.started.set()
            await self.release.wait()
        if request.path == "/late-boom":
            raise RuntimeError("secret")
        if request.path == "/cancelled":
            raise asyncio.CancelledError
        self.finished += 1
        return self._answer(request)

    def _answer(self, request: Request) -> Response:
        more = [b" and", b" more"] if request.path.endswith("more") else ()
        body = b"%s %s %d" % (request.method.encode(), request.path.encode(), len(request.body))
        return Response(200, body, more=more)

    def failure(self, status: int, text: str) -> Response:
        return Response(status, text.encode(), "text/plain")

    async def admit(self, request: Request) -> Response | str:
        self.started.set()
        try:
            if "wait" in request.query:
                await self.release.wait()
            if "boom" in request.query:
                raise RuntimeError("secret")
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Response(401, b"no") if "no" in request.query else "admitted"

    def attach(self, transport: asyncio.Transport, request: Request, upgrade: str, tail: bytes) -> None:
        if "broken" in request.query:
            raise RuntimeError("secret")
        assert upgrade == "admitted"
        assert not transport.is_reading()
        transport.set_protocol(Echo(transport))
        transport.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + tail)
        transport.resume_reading()


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(5):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
            length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
            return int(lines[0].split()[1]), headers, await self.reader.readexactly(length)

    async def status(self) -> int:
        return (await self.receive())[0]

    async def is_closed(self) -> bool:
        """Whether the server ends the connection, without a reset and without another byte."""
        async with asyncio.timeout(5):
            return await self.reader.read(1) == b""


class Place:
    """A server, its application, and clients for it."""

    def __init__(self, server: HttpServer, application: FakeApplication, stack: AsyncExitStack) -> None:
        self.server = server
        self.application = application
        self._stack = stack

    async def connect(self, data: bytes = b"", **options: Any) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port, **options)
        self._stack.callback(writer.close)
        client = Client(reader, writer)
        client.send(data)
        return client

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        return await (await self.connect(data)).receive()


Open = Callable[..., Awaitable[Place]]


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    """Opens a server: `place = await opened(limits={...}, server={...}, open_sockets=...)`."""
    async with AsyncExitStack() as stack:

        async def open_one(
            limits: dict[str, Any] | None = None, server: dict[str, Any] | None = None, **options: Any
        ) -> Place:
            config = Config(
                server=ServerConfig(**{"port": 0} | (server or {})),
                limits=LimitsConfig(**limits or {}),
                auth=AuthConfig(mode="jwt", jwt_secret="s" * 32),
            )
            application = FakeApplication()
            http_server = await stack.enter_async_context(listening(application, config, **options))
            return Place(http_server, application, stack)

        yield open_one


@pytest.fixture
async def place(opened: Open) -> Place:
    return await opened()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def post(path: str, body: bytes, extra: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (path.encode(), HEAD, extra, len(body), body)


# Requests and answers


@pytest.mark.parametrize("path", ["/sync", "/awaited", "/pending"])
async def test_a_connection_answers_one_request_after_the_other(place: Place, path: str) -> None:
    client = await place.connect()
    for size in (0, 1, 100_000):
        client.send(post(path, bytes(size)))
        status, headers, body = await client.receive()
        assert (status, headers["connection"]) == (200, "keep-alive")
        assert body == f"POST {path} {size}".encode()
    assert place.server.connections == 1
    assert place.application.requests[0].peer == "127.0.0.1"


async def test_pipelined_requests_are_answered_in_order(place: Place) -> None:
    paths = [("/sync", "/awaited", "/pending", "/pending", "/sync")[number % 5] for number in range(200)]
    client = await place.connect(b"".join(post(path, bytes(number)) for number, path in enumerate(paths)))
    for number, path in enumerate(paths):
        assert (await client.receive())[2] == f"POST {path} {number}".encode()


@pytest.mark.parametrize("path", [b"/slow", b"/pending-slow"])
async def test_a_pipeline_waits_as_bytes_and_is_bounded(place: Place, path: bytes) -> None:
    client = await place.connect(b"GET " + path + b" HTTP/1.1\r\n" + HEAD + b"\r\n")
    await place.application.started.wait()
    client.writer.transport.set_write_buffer_limits(high=0)
    flood = asyncio.create_task(_flood(client, GET * 100_000))
    await asyncio.sleep(0.1)
    assert not flood.done(), "nobody reads on"
    assert len(place.application.requests) == 1
    flood.cancel()
    place.application.release.set()
    assert (await client.receive())[2] == b"GET %b 0" % path
    assert (await client.receive())[2] == b"GET /sync 0"


async def test_what_asks_for_the_same_is_begun_together_and_answered_in_order(place: Place) -> None:
    place.application.release.set()
    for number in range(1, 8):  # heads that came before
        await place.ask(post("/pending-slow", bytes(number)))
    place.application.release.clear()
    place.application.requests.clear()
    client = await place.connect(b"".join(post("/pending-slow", bytes(number)) for number in range(1, 5)))
    await until(lambda: len(place.application.requests) == 4)
    client.send(post("/pending-slow", bytes(5)) + post("/pending", bytes(6)) + post("/pending-slow", bytes(7)))
    await until(lambda: len(place.application.requests) == 5)
    await asyncio.sleep(0.05)
    assert len(place.application.requests) == 5, "what is not the same waits"
    place.application.release.set()
    paths = ["/pending-slow"] * 5 + ["/pending", "/pending-slow"]
    for number, path in enumerate(paths, 1):
        status, headers, body = await client.receive()
        assert (status, headers["connection"], body) == (200, "keep-alive", f"POST {path} {number}".encode())


async def test_so_many_are_begun_together(place: Place) -> None:
    client = await place.connect(post("/pending-slow", b"x") * 200)
    await until(lambda: len(place.application.requests) >= 10)
    await asyncio.sleep(0.1)
    assert len(place.application.requests) <= BEGUN_MOST
    place.application.release.set()
    assert [await client.status() for _ in range(200)] == [200] * 200


async def test_several_that_are_answered_too_late(opened: Open) -> None:
    place = await opened(times=Times(sweep_s=0.02))
    place.application.answer_within_s = 0.05
    client = await place.connect(post("/pending-slow", b"x") * 3)
    assert [await client.status() for _ in range(3)] == [503] * 3
    client.send(GET)
    assert await client.status() == 200


async def test_each_of_several_has_time_of_its_own(opened: Open) -> None:
    place = await opened(times=Times(sweep_s=0.02))
    place.application.answer_within_s = 0.3
    client = await place.connect(post("/pending-slow", b"x"))
    await until(lambda: len(place.application.requests) == 1)
    await asyncio.sleep(0.2)
    client.send(post("/pending-slow", b"x"))
    assert await client.status() == 503
    assert len(place.application.requests) == 2
    place.application.release.set()
    assert await client.status() == 200


async def test_who_leaves_several_behind(place: Place) -> None:
    client = await place.connect(post("/pending-slow", b"x") * 3)
    await until(lambda: len(place.application.requests) == 3)
    reset(client)
    await until(lambda: place.server.connections == 0)
    place.application.release.set()
    await until(lambda: place.application.finished == 3)


async def test_all_that_was_begun_is_answered_when_the_server_ends(place: Place) -> None:
    client = await place.connect(post("/pending-slow", b"x") * 3)
    await until(lambda: len(place.application.requests) == 3)
    place.server.shared.is_draining = True
    place.application.release.set()
    assert [(await client.receive())[1]["connection"] for _ in range(3)] == ["keep-alive", "keep-alive", "close"]


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [("/pending-boom", 500, b"internal error"), ("/pending-more", 200, b"POST /pending-more 1 and more")],
)
async def test_several_that_fail_or_are_answered_in_pieces(place: Place, path: str, status: int, text: bytes) -> None:
    client = await place.connect(post(path, b"x") * 5)
    for _ in range(5):
        said, _, body = await client.receive()
        assert (said, body) == (status, text)
    client.send(GET)
    assert await client.status() == 200


async def test_none_is_answered_behind_one_that_cannot_be(place: Place) -> None:
    client = await place.connect(post("/pending-wrong", b"x") * 3)
    status, headers, _ = await client.receive()
    assert (status, headers["connection"]) == (500, "close")
    assert await client.is_closed()
    await until(lambda: place.server.connections == 0)


async def _flood(client: Client, data: bytes) -> None:
    client.send(data)
    await client.writer.drain()


async def test_the_standard_client(place: Place) -> None:
    def use() -> list[tuple[int, bytes]]:
        connection = http.client.HTTPConnection("127.0.0.1", place.server.port, timeout=5)
        answers = []
        for method, body, chunked in (("POST", b"abc", False), ("POST", [b"ab", b"c"], True), ("HEAD", None, False)):
            connection.request(method, "/awaited", body, encode_chunked=chunked)
            response = connection.getresponse()
            answers.append((response.status, response.read()))
        connection.close()
        return answers

    assert await asyncio.to_thread(use) == [(200, b"POST /awaited 3"), (200, b"POST /awaited 3"), (200, b"")]


async def test_expect_100_continue(place: Place) -> None:
    client = await place.connect(
        b"POST /sync HTTP/1.1\r\n" + HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    assert (await client.receive())[0] == 100
    client.send(b"abc")
    assert (await client.receive())[2] == b"POST /sync 3"


async def test_no_interim_answer_to_a_head_that_is_refused(place: Place) -> None:
    head = b"POST /sync HTTP/1.1\r\n" + HEAD + b"Expect: %b\r\nContent-Length: %d\r\n\r\n"
    assert (await place.ask(head % (b"100-continue", 2_000_000)))[0] == 413
    assert (await place.ask(head % (b"tea", 1)))[0] == 417


@pytest.mark.parametrize("request_line", [b"GET /sync HTTP/1.0\r\n", b"GET /sync HTTP/1.1\r\nConnection: close\r\n"])
async def test_the_last_answer_ends_the_connection(place: Place, request_line: bytes) -> None:
    client = await place.connect(request_line + HEAD + b"\r\n")
    status, headers, _ = await client.receive()
    assert (status, headers["connection"]) == (200, "close")
    assert await client.is_closed()


@pytest.mark.parametrize("path", ["/slow", "/pending-slow"])
async def test_a_peer_that_half_closes_gets_its_answers(place: Place, path: str) -> None:
    client = await place.connect(post(path, b"") + GET)
    client.writer.write_eof()
    await place.application.started.wait()
    place.application.release.set()
    assert [await client.status(), await client.status()] == [200, 200]
    assert await client.is_closed()


async def test_a_peer_that_half_closes_after_what_looks_like_an_upgrade_gets_its_answers(place: Place) -> None:
    body = b"Upgrade: websocket\r\n"
    client = await place.connect(post("/sync", body) + post("/pending", body) + GET + UPGRADE)
    client.writer.write_eof()
    for path in ("POST /sync 20", "POST /pending 20", "GET /sync 0"):
        assert (await client.receive())[2] == path.encode()
    assert await client.is_closed()
    assert not place.application.started.is_set(), "who sends no more wants no upgrade"


async def test_an_upgrade_may_come_right_behind_an_answer_in_pieces(place: Place) -> None:
    place.application.admit = lambda request: "admitted"  # type: ignore[assignment,method-assign,return-value]
    client = await place.connect(b"GET /pending-more HTTP/1.1\r\n" + HEAD + b"\r\n" + UPGRADE + b"hello")
    assert (await client.receive())[2] == b"GET /pending-more 0 and more"
    assert await client.status() == 101
    assert await client.reader.readexactly(5) == b"hello"
    await until(lambda: place.server.connections == 0 and not place.server.shared.unsent.total)


async def test_a_peer_that_half_closes_without_a_request_is_closed(place: Place) -> None:
    client = await place.connect(GET[:10])
    client.writer.write_eof()
    assert await client.is_closed()


def reset(client: Client) -> None:
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


def half_close(client: Client) -> None:
    client.writer.write_eof()


def leave(client: Client) -> None:
    client.writer.close()


@pytest.mark.parametrize("path", ["/slow", "/pending-slow"])
@pytest.mark.parametrize("go", [reset, leave])
async def test_a_handler_goes_on_when_its_client_leaves(place: Place, go: Callable[[Client], None], path: str) -> None:
    client = await place.connect(post(path, b""))
    await place.application.started.wait()
    go(client)
    await until(lambda: place.server.connections == 0 or go is leave)
    place.application.release.set()
    await until(lambda: place.application.finished == 1 and place.server.connections == 0)


@pytest.mark.parametrize("path", ["/boom", "/late-boom", "/pending-boom", "/cancelled", "/wrong"])
async def test_errors_of_the_application_become_a_500_without_details(place: Place, path: str) -> None:
    status, _, body = await place.ask(post(path, b""))
    assert status == 500
    assert b"secret" not in body


async def test_a_peer_that_does_not_read_stops_the_work(place: Place) -> None:
    client = await place.connect(b"GET /big HTTP/1.1\r\n" + HEAD + b"\r\n" + GET)
    await until(lambda: place.application.requests)
    assert len((await client.receive())[2]) == 4_000_000
    assert (await client.receive())[2] == b"GET /sync 0"


# Refusals


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xa5", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n", 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 110, 431),
        (b"GET  /sync HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: 9999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    ],
)
async def test_bad_requests(place: Place, data: bytes, status: int) -> None:
    client = await place.connect(GET + data)
    assert await client.status() == 200
    assert await client.status() == status
    assert await client.is_closed()


async def test_the_answer_reaches_a_client_that_is_still_sending(place: Place) -> None:
    client = await place.connect(b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: 3000000\r\n\r\n" + bytes(3_000_000))
    assert await client.status() == 413
    assert await client.is_closed()


async def test_a_refused_client_that_lingers_is_dropped(place: Place) -> None:
    client = await place.connect(b"nonsense\r\n\r\n")
    assert await client.status() == 400
    await until(lambda: place.server.connections == 0)


async def test_an_application_that_cannot_say_why_still_refuses(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(status: int, text: str) -> Response:
        raise RuntimeError("secret")

    monkeypatch.setattr(place.application, "failure", fail)
    assert (await place.ask(b"nonsense\r\n\r\n"))[::2] == (400, b"")


# Time


@pytest.fixture
async def hasty(opened: Open) -> Place:
    """A server whose times are short."""
    times = Times(idle_s=0.2, body_s=0.2, answer_s=0.2, linger_s=0.2, sweep_s=0.02)
    return await opened(limits={"handshake_timeout_s": 0.2}, times=times)


async def test_a_connection_that_says_nothing_is_closed(hasty: Place) -> None:
    assert await (await hasty.connect()).is_closed()


async def test_an_idle_connection_is_closed(hasty: Place) -> None:
    client = await hasty.connect(GET)
    assert await client.status() == 200
    assert await client.is_closed()


async def _trickle(client: Client, data: bytes) -> None:
    for at in range(len(data)):
        client.send(data[at : at + 1])
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("start", [b"", b"POST /sync HTTP/1.1\r\n" + HEAD + b"Content-Length: 99\r\n\r\n", GET])
async def test_a_request_that_trickles_is_refused(hasty: Place, start: bytes) -> None:
    client = await hasty.connect(start)
    if start == GET:
        assert await client.status() == 200
    trickle = asyncio.create_task(_trickle(client, b"GET /xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"))
    assert await client.status() == 408
    trickle.cancel()


@pytest.mark.parametrize("path", ["/slow", "/pending-slow"])
async def test_a_slow_handler_is_not_the_clients_fault(hasty: Place, path: str) -> None:
    client = await hasty.connect(post(path, b""))
    await asyncio.sleep(0.4)
    hasty.application.release.set()
    assert await client.status() == 200


async def test_a_pending_answer_is_given_up_in_time_and_the_connection_goes_on(hasty: Place) -> None:
    hasty.application.answer_within_s = 0.1
    client = await hasty.connect(post("/pending-slow", b"") + GET)
    assert (await client.receive())[::2] == (503, b"given up")
    assert (await client.receive())[2] == b"GET /sync 0"
    hasty.application.release.set()
    await until(lambda: hasty.application.finished == 1)
    client.send(GET)
    assert (await client.receive())[2] == b"GET /sync 0"


async def test_an_answer_that_is_not_taken_drops_the_connection(hasty: Place) -> None:
    await hasty.connect(b"GET /big HTTP/1.1\r\n" + HEAD + b"\r\n", limit=1024)
    await until(lambda: hasty.application.requests)
    await until(lambda: hasty.server.connections == 0)


async def test_an_undecided_upgrade_is_refused(hasty: Place) -> None:
    client = await hasty.connect(UPGRADE.replace(b"/ws", b"/ws?wait"))
    status, headers, _ = await client.receive()
    assert (status, headers["retry-after"]) == (503, "1")
    assert hasty.application.cancelled.is_set()


# Upgrades


async def test_an_upgrade_is_handed_over_with_what_came_behind_it(place: Place) -> None:
    client = await place.connect(GET + UPGRADE + b"tail\r\n\r\n")
    assert await client.status() == 200
    assert await client.status() == 101
    assert await client.reader.readexactly(8) == b"tail\r\n\r\n"
    assert place.server.connections == 0
    client.send(b"more")
    assert await client.reader.readexactly(4) == b"more"


async def test_bytes_that_come_during_admission_are_handed_over(place: Place) -> None:
    client = await place.connect(UPGRADE.replace(b"/ws", b"/ws?wait"))
    await place.application.started.wait()
    client.send(b"early")
    await asyncio.sleep(0.05)
    place.application.release.set()
    assert await client.status() == 101
    assert await client.reader.readexactly(5) == b"early"


async def test_a_hand_over_leaves_nothing_for_the_garbage_collector(place: Place) -> None:
    gc.collect()
    gc.disable()
    try:
        client = await place.connect(UPGRADE)
        assert await client.status() == 101
        await asyncio.sleep(0)
        left = [thing for thing in gc.get_objects() if type(thing) is HttpConnection]  # proxies of others' may be dead
        assert left == []
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Version: 13", b"Version: 8", 426),
        (KEY, b"short", 400),
        (b"/ws", b"/ws?no", 401),
        (b"/ws", b"/ws?boom", 500),
        (b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\nx", 400),
    ],
)
async def test_upgrades_are_refused(place: Place, old: bytes, new: bytes, status: int) -> None:
    client = await place.connect(UPGRADE.replace(old, new))
    found, headers, _ = await client.receive()
    assert found == status
    assert headers.get("sec-websocket-version") == ("13" if status == 426 else None)
    assert await client.is_closed()


async def test_a_hand_over_that_fails_closes_the_connection(place: Place) -> None:
    client = await place.connect(UPGRADE.replace(b"/ws", b"/ws?broken"))
    assert await client.is_closed()
    assert place.server.connections == 0


@pytest.mark.parametrize("go", [reset, leave, half_close])
async def test_a_decision_on_an_upgrade_ends_when_the_peer_leaves(place: Place, go: Callable[[Client], None]) -> None:
    client = await place.connect(UPGRADE.replace(b"/ws", b"/ws?wait"))
    await place.application.started.wait()
    go(client)
    await asyncio.wait_for(place.application.cancelled.wait(), 5)
    await until(lambda: place.server.connections == 0)


# Limits of connections


async def test_one_connection_too_many_is_told_so(opened: Open) -> None:
    others = 1
    place = await opened(limits={"max_connections": 3}, open_sockets=lambda: others)
    for _ in range(2):
        client = await place.connect(GET)
        assert await client.status() == 200
    refused = await place.connect()
    status, headers, _ = await refused.receive()
    assert (status, headers["retry-after"]) == (503, "1")
    assert await refused.is_closed()
    others = 0
    assert (await place.ask(GET))[0] == 200


async def test_a_flood_of_connections_over_the_limit_is_dropped(opened: Open) -> None:
    place = await opened(limits={"max_connections": 1}, open_sockets=lambda: 1, max_refused=0)
    client = await place.connect()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await client.reader.readuntil(b"nothing like that")


# Bodies


def announce(path: str, size: int, extra: bytes = b"") -> bytes:
    return post(path, b"", extra).replace(b"Content-Length: 0", b"Content-Length: %d" % size)


@pytest.mark.parametrize("framing", [b"Content-Length: 900000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n9\r\n"])
@pytest.mark.parametrize("extra", [b"", b"Expect: 100-continue\r\n"])
async def test_a_body_is_refused_at_the_head(place: Place, framing: bytes, extra: bytes) -> None:
    client = await place.connect(b"POST /refused HTTP/1.1\r\n" + HEAD + extra + framing)
    status, headers, body = await client.receive()
    assert (status, headers["connection"], body) == (401, "close", b"refused")
    assert await client.is_closed()
    assert not place.application.requests
    assert not place.server.shared.bodies.held_bytes


async def test_who_writes_all_of_a_body_before_reading_gets_the_answer(place: Place) -> None:
    client = await place.connect(announce("/refused", 1_000_000))
    for _ in range(10):
        client.send(bytes(100_000))
        await client.writer.drain()
        await asyncio.sleep(0.15)  # longer than LINGER_S, all in all
    assert await client.status() == 401
    assert await client.is_closed()


async def test_a_body_that_nobody_reads_is_not_kept(place: Place) -> None:
    client = await place.connect(announce("/unread", 900_000) + bytes(899_999))
    await asyncio.sleep(0.05)
    assert place.server.shared.bodies.held_bytes == 0
    client.send(b"x" + GET)
    assert (await client.receive())[2] == b"POST /unread 0"
    assert (await client.receive())[2] == b"GET /sync 0"


async def arrived(place: Place, count: int) -> None:
    await until(lambda: place.server.shared.bodies.held_bytes == count)


async def test_bodies_have_room_together(opened: Open) -> None:
    place = await opened(limits={"max_bodies_bytes": 100_000})
    first = await place.connect(announce("/sync", 60_001) + bytes(60_000))
    await arrived(place, 60_000)
    second = await place.connect(announce("/sync", 60_001) + bytes(60_000))
    status, headers, _ = await second.receive()
    assert (status, headers["connection"]) == (503, "close")
    assert int(headers["retry-after"]) > 0
    await arrived(place, 60_000)
    assert (await place.ask(post("/sync", bytes(30_000))))[0] == 200, "what comes whole finds room"
    first.send(b"x")
    assert (await first.receive())[2] == b"POST /sync 60001"
    await arrived(place, 0)
    assert (await place.ask(post("/sync", bytes(90_000))))[0] == 200


@pytest.mark.parametrize("path", ["/slow", "/pending-slow"])
async def test_bodies_worked_on_take_room_too(opened: Open, path: str) -> None:
    place = await opened(limits={"max_bodies_bytes": 20_000})
    busy = await place.connect(post(path, bytes(18_000)))
    await place.application.started.wait()
    await arrived(place, 18_000)
    assert (await place.ask(announce("/sync", 9000) + bytes(8000)))[0] == 503
    assert (await place.ask(post("/sync", bytes(8000))))[0] == 503
    place.application.release.set()
    assert await busy.status() == 200
    await arrived(place, 0)


async def test_slow_bodies_give_way_to_new_ones(opened: Open) -> None:
    place = await opened(limits={"max_bodies_bytes": 100_000})
    slow = await place.connect(announce("/sync", 90_001) + bytes(90_000))
    await arrived(place, 90_000)
    place.server.shared.bodies.patience_s = 0.0
    quick = await place.connect(announce("/sync", 50_001) + bytes(50_000))
    assert await slow.status() == 503
    quick.send(b"x")
    assert (await quick.receive())[2] == b"POST /sync 50001"


@pytest.mark.parametrize("path", ["/slow", "/pending-slow"])
async def test_a_body_that_turned_out_empty_does_not_give_way(opened: Open, path: str) -> None:
    place = await opened(limits={"max_bodies_bytes": 100_000})
    empty = await place.connect(
        post(path, b"").replace(b"Content-Length: 0\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n0")
    )
    await arrived(place, 1)
    empty.send(b"\r\n\r\n" + GET[:-1])
    await place.application.started.wait()
    place.server.shared.bodies.patience_s = 0.0
    assert (await place.ask(announce("/sync", 100_002) + bytes(100_001)))[0] == 503
    place.application.release.set()
    assert (await empty.receive())[2] == f"POST {path} 0".encode()
    empty.send(GET[-1:])
    assert await empty.status() == 200


@pytest.mark.parametrize("go", [reset, half_close, leave])
async def test_bodies_given_up_leave_no_trace(place: Place, go: Callable[[Client], None]) -> None:
    client = await place.connect(announce("/sync", 90_001) + bytes(90_000))
    await arrived(place, 90_000)
    go(client)
    await arrived(place, 0)


# Pipelines


async def test_answers_that_nobody_reads_stop_the_work(place: Place) -> None:
    """What the kernel takes, and one answer more."""
    client = await place.connect(limit=1024)
    client.writer.transport.pause_reading()
    client.send(b"GET /big HTTP/1.1\r\n%b\r\n" % HEAD * 50 + GET)
    await until(lambda: place.application.requests)
    await asyncio.sleep(0.1)
    assert len(place.application.requests) == 1
    client.writer.transport.resume_reading()
    for _ in range(50):
        assert len((await client.receive())[2]) == 4_000_000
    assert (await client.receive())[2] == b"GET /sync 0"


async def test_pipelines_take_turns(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that comes later is answered before the pipelines end."""
    handle = place.application.handle

    def slowly(request: Request) -> Any:
        time.sleep(0.001)
        return handle(request)

    monkeypatch.setattr(place.application, "handle", slowly)
    pipelines = [await place.connect(GET * 200) for _ in range(5)]
    await until(lambda: len(place.application.requests) >= 5)
    assert (await place.ask(b"GET /pending HTTP/1.1\r\n" + HEAD + b"\r\n"))[0] == 200
    before = [request.path for request in place.application.requests].index("/pending")
    assert before < 500
    for client in pipelines:
        assert [await client.status() for _ in range(200)] == [200] * 200


@pytest.mark.parametrize("go", [reset, half_close, leave])
async def test_who_leaves_while_waiting_for_a_turn(place: Place, go: Callable[[Client], None]) -> None:
    place.server.shared.turns.is_free = lambda line: False  # type: ignore[method-assign]
    clients = [await place.connect(GET * 50 + announce("/refused", 10)) for _ in range(20)]
    for client in clients:
        go(client)
    await until(lambda: place.server.connections == 0)


# Addresses


async def test_an_address_has_so_many_connections(opened: Open) -> None:
    refused: list[str] = []
    place = await opened(limits={"max_connections_per_ip": 2}, on_refused=refused.append)
    first, second = await place.connect(GET), await place.connect()
    assert await first.status() == 200
    third = await place.connect()
    status, headers, _ = await third.receive()
    assert (status, refused) == (429, ["rate_limited"])
    assert int(headers["retry-after"]) > 0
    second.writer.close()
    await until(lambda: place.server.connections == 1)
    assert (await place.ask(GET))[0] == 200


async def test_an_address_may_connect_so_often(opened: Open) -> None:
    place = await opened(limits={"connects_per_ip_per_min": 3})
    assert [(await place.ask(GET))[0] for _ in range(5)] == [200, 200, 200, 429, 429]


async def test_a_trusted_proxy_is_not_counted(opened: Open) -> None:
    addresses = Addresses(("127.0.0.0/8",))
    limits = {"max_connections_per_ip": 1, "connects_per_ip_per_min": 1}
    place = await opened(limits=limits, addresses=addresses)
    assert [(await place.ask(GET))[0] for _ in range(3)] == [200] * 3
    assert addresses.open_from("127.0.0.1") == 0


async def test_connections_count_before_their_tls_handshake(opened: Open, tmp_path: Path) -> None:
    addresses = Addresses()
    limits = {"max_connections": 3, "handshake_timeout_s": 0.3}
    place = await opened(limits=limits, server=_certificate(tmp_path), addresses=addresses)
    silent = [await place.connect() for _ in range(3)]
    await until(lambda: place.server.connections == 3)
    assert addresses.open_from("127.0.0.1") == 3
    over = await place.connect()
    assert await over.is_closed(), "without a word"
    silent[0].send(b"no handshake at all")
    reset(silent[1])
    await until(lambda: place.server.connections == addresses.open_from("127.0.0.1") == 0)


async def test_every_end_gives_a_place_back_once(opened: Open) -> None:
    """Whatever a connection does, it counts once as long as it is the server's."""
    addresses = Addresses()
    limits = {"max_connections_per_ip": 25, "handshake_timeout_s": 0.5}
    place = await opened(limits=limits, addresses=addresses, times=Times(sweep_s=0.02))
    begun = [
        *(b"", GET, GET[:9], b"nonsense\r\n\r\n", UPGRADE, UPGRADE.replace(b"/ws", b"/ws?no")),
        *(UPGRADE.replace(b"/ws", b"/ws?wait"), UPGRADE.replace(b"/ws", b"/ws?broken"), post("/boom", b"")),
        *(announce("/refused", 9), announce("/sync", 9), post("/pending-slow", b""), post("/slow", b"x")),
    ]
    choose, open_now = random.Random(7), list[Client]()

    def is_exact() -> bool:
        return addresses.open_from("127.0.0.1") == place.server.connections

    for _ in range(150):
        open_now.append(await place.connect(choose.choice(begun)))
        if choose.random() < 0.6:
            choose.choice([reset, half_close, leave])(open_now.pop(choose.randrange(len(open_now))))
        await asyncio.sleep(choose.choice([0, 0, 0.001]))
        assert is_exact()
        assert place.server.connections <= 25
    place.application.release.set()
    for client in open_now:
        reset(client)
    await until(lambda: place.server.connections == 0 and is_exact())
    assert not place.server.shared.bodies.held_bytes


# The end


async def test_draining(place: Place) -> None:
    busy = await place.connect(post("/slow", b"") + GET)
    await place.application.started.wait()
    place.server.stop_accepting()
    place.application.release.set()
    status, headers, _ = await busy.receive()
    assert (status, headers["connection"]) == (200, "close")
    assert await busy.is_closed()
    busy.writer.close()
    await asyncio.wait_for(place.server.wait_idle(), 5)
    with pytest.raises(ConnectionError):
        await place.connect()


async def test_nothing_is_left_at_the_end() -> None:
    application = FakeApplication()
    async with listening(application, Config(server=ServerConfig(port=0))) as http_server:
        streams = [await asyncio.open_connection("127.0.0.1", http_server.port) for _ in range(3)]
        streams[0][1].write(post("/slow", b""))
        streams[1][1].write(UPGRADE.replace(b"/ws", b"/ws?wait"))
        await until(lambda: application.requests and application.started.is_set() and http_server.connections == 3)
    assert http_server.connections == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for reader, writer in streams:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()


# The socket


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("no-such-host.invalid", "no-such-host.invalid:0"),
        ("192.0.2.1", "192.0.2.1:0"),
        ("x" * 64, "x:0"),
        ("::%lo", "[::%lo]:0"),
    ],
)
async def test_a_host_that_is_not_ours_is_one_line(host: str, shown: str) -> None:
    with pytest.raises(StartError, match=rf"^cannot listen on .*{re.escape(shown)}: [^\n]+$"):
        sockets.listen(host, 0)


async def test_the_limit_of_connections_is_what_the_descriptors_allow() -> None:
    soft, hard = 1000, 4000

    def raise_limit(_: int, wanted: tuple[int, int]) -> None:
        nonlocal soft, hard
        soft, hard = wanted

    def room_for(max_connections: int) -> int:
        return sockets.room_for(max_connections, getrlimit=lambda _: (soft, hard), setrlimit=raise_limit)

    with structlog.testing.capture_logs() as logs:
        assert room_for(3000) == 4000 - sockets.SPARE_DESCRIPTORS
        assert logs == []
        assert room_for(100_000) == 4000 - sockets.SPARE_DESCRIPTORS
    assert [line["log_level"] for line in logs] == ["warning"]
    soft = hard = resource.RLIM_INFINITY
    assert room_for(100_000) == 100_000


async def test_localhost_is_both_loopback_addresses(opened: Open) -> None:
    place = await opened(server={"host": "localhost"})
    hosts = ["127.0.0.1", "::1"] if _has_ipv6() else ["127.0.0.1"]
    for host in hosts:
        _, writer = await asyncio.open_connection(host, place.server.port)
        writer.close()


@pytest.mark.parametrize(
    ("host", "answering", "silent"),
    [
        ("::", ["127.0.0.1", "127.1.2.3", "::1"], []),
        ("0::0", ["127.0.0.1", "::1"], []),
        ("0.0.0.0", ["127.0.0.1"], ["::1"]),
        ("::1", ["::1"], ["127.0.0.1"]),
        ("127.0.0.1", ["127.0.0.1"], ["::1", "127.1.2.3"]),
    ],
)
async def test_kinds_of_addresses(opened: Open, host: str, answering: list[str], silent: list[str]) -> None:
    if not _has_ipv6():
        pytest.skip("no IPv6 here")
    place = await opened(server={"host": host})
    for address in answering:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(address, place.server.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert await reader.read()
            writer.close()
        assert place.application.requests[-1].peer == (
            "::1" if address == "::1" else "127.0.0.1"
        )  # IPv4 looks like IPv4
    for address in silent:
        with pytest.raises(OSError):
            await asyncio.open_connection(address, place.server.port)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_a_taken_port_is_one_line(opened: Open) -> None:
    place = await opened()
    with pytest.raises(
        StartError, match=rf"^cannot listen on 127\.0\.0\.1:{place.server.port}: Address already in use$"
    ):
        await opened(server={"port": place.server.port})


def _certificate(folder: Path) -> dict[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {"tls_cert": str(cert_file), "tls_key": str(key_file)}


async def test_tls(opened: Open, tmp_path: Path) -> None:
    files = _certificate(tmp_path)
    place = await opened(server=files)
    context = ssl.create_default_context(cafile=files["tls_cert"])
    client = await place.connect(GET + UPGRADE + b"tail", ssl=context)
    assert await client.status() == 200
    assert place.application.requests[0].is_secure
    assert await client.status() == 101
    assert await client.reader.readexactly(4) == b"tail"
    refused = await place.connect(b"nonsense\r\n\r\n", ssl=context)
    assert await refused.status() == 400
    assert await refused.is_closed()
    plain = await place.connect(GET)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await plain.receive()


async def test_nothing_is_left_of_tls_at_the_end(tmp_path: Path) -> None:
    files = _certificate(tmp_path)
    context = ssl.create_default_context(cafile=files["tls_cert"])
    application = FakeApplication()
    async with listening(application, Config(server=ServerConfig(port=0, **files))) as http_server:
        streams = [await asyncio.open_connection("127.0.0.1", http_server.port, ssl=context) for _ in range(2)]
        streams.append(await asyncio.open_connection("127.0.0.1", http_server.port))
        streams[0][1].write(post("/slow", b""))
        await application.started.wait()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for _, writer in streams:
        writer.close()


async def test_bad_tls_files_are_named(opened: Open, tmp_path: Path) -> None:
    files = _certificate(tmp_path)
    bad = tmp_path / "bad.pem"
    bad.write_text("nonsense")
    for wrong, named in (
        ({"tls_cert": str(tmp_path / "absent.pem")}, "absent.pem"),
        ({"tls_key": str(tmp_path / "absent.pem")}, "absent.pem"),
        ({"tls_cert": str(bad)}, "bad.pem"),
    ):
        with pytest.raises(StartError, match=named):
            await opened(server=files | wrong)
