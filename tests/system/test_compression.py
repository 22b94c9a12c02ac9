"""permessage-deflate (RFC 7692) from outside: `websockets` on the other side, and frames that break its rules."""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from tests import raw
from tests.daemon import Probe, until
from tests.raw import Raw

RSV1 = 4
OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
LONG = "a notice that says the same again and again, " * 10
JSON, MSGPACK = "pushd.v1.json", "pushd.v1.msgpack"


def squeezed(payload: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def decoded(message: str | bytes) -> Any:
    return json.loads(message) if isinstance(message, str) else msgspec.msgpack.decode(message)


@pytest.fixture
async def on(start: Any) -> Probe:
    """A daemon that deflates."""
    probe: Probe = await start(server={"compression": "on"}, debug={"echo": True})
    return probe


async def greeted(probe: Probe, user_id: int, subprotocol: str, compression: str | None) -> ClientConnection:
    ws = await probe.open(f"/ws?user_id={user_id}", subprotocols=[subprotocol], compression=compression)
    assert decoded(await ws.recv())["type"] == "hello"
    return ws


class TestNegotiation:
    async def test_off_by_default(self, probe: Probe) -> None:
        async with await Raw.connect(probe.port) as client:
            client.send(raw.upgrade("/ws", OFFER))
            assert await client.head() == 101
            assert "sec-websocket-extensions" not in client.headers
            assert (await client.frame()).first == 0x81
            client.send(raw.frame(raw.TEXT, squeezed(b'{"type":"ping"}'), rsv=RSV1))
            assert await client.close_code() == 1002

    @pytest.mark.parametrize(
        ("offer", "answer"),
        [
            ("", None),
            (OFFER, ANSWER),
            (f"{OFFER}, permessage-deflate", ANSWER),
            ("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9", None),
            (
                "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9, "
                "permessage-deflate; server_max_window_bits=14",
                f"{ANSWER}; server_max_window_bits=12",
            ),
            ("Sec-WebSocket-Extensions: permessage-deflate; level=9", None),
            ("Sec-WebSocket-Extensions: ;;=,,", None),
        ],
    )
    async def test_answers(self, on: Probe, offer: str, answer: str | None) -> None:
        async with await Raw.connect(on.port) as client:
            client.send(raw.upgrade("/ws?user_id=7", *filter(None, [offer])))
            assert await client.head() == 101
            assert client.headers.get("sec-websocket-extensions") == answer
            assert json.loads((await client.frame()).payload)["type"] == "hello"

    async def test_together_with_a_subprotocol(self, on: Probe) -> None:
        ws = await on.open(subprotocols=[MSGPACK], compression="deflate")
        assert ws.subprotocol == MSGPACK
        assert [extension.name for extension in ws.protocol.extensions] == ["permessage-deflate"]

    async def test_a_client_that_wants_a_small_window(self, on: Probe) -> None:
        factory = ClientPerMessageDeflateFactory(server_max_window_bits=12, client_max_window_bits=9)
        ws = await on.open("/ws?user_id=7", extensions=[factory])
        assert ws.protocol.extensions
        await ws.recv()
        data = [os.urandom(3000).hex()] * 3
        await on.publish(target="online", data=data)
        assert decoded(await ws.recv())["data"] == data


class TestDelivery:
    async def test_all_kinds_of_clients_get_one_broadcast(self, on: Probe) -> None:
        kinds = [(subprotocol, how) for subprotocol in (JSON, MSGPACK) for how in ("deflate", None)] * 3
        clients = [await greeted(on, 1 + number, *kind) for number, kind in enumerate(kinds)]
        for content, data in (("short", None), (LONG, None), ("x", os.urandom(5000).hex()), ("x", ["row"] * 5000)):
            published = await on.publish(content, target="all", data=data)
            for client in clients:
                received = decoded(await client.recv())
                assert (received["content"], received["data"]) == (content, data)
                assert received["message_id"] == published["message_id"]

    async def test_the_same_bytes_go_to_all(self, on: Probe) -> None:
        clients = [await Raw.websocket(on.port, f"/ws?user_id={1 + number}", OFFER) for number in range(5)]
        await on.publish(LONG, target="online")
        frames = [await client.frame() for client in clients]
        assert len(set(frames)) == 1
        assert frames[0].first == 0xC1
        plain = zlib.decompress(frames[0].payload + b"\x00\x00\xff\xff\x03\x00", wbits=-12)
        assert json.loads(plain)["content"] == LONG
        assert len(frames[0].payload) < len(plain) / 2
        for client in clients:
            client.writer.transport.abort()

    async def test_what_is_for_one_connection_is_sent_as_it_is(self, on: Probe) -> None:
        published = [await on.publish(LONG, target="custom", user_ids=[7]) for _ in range(3)]
        async with await Raw.websocket(on.port, "/ws?user_id=7", OFFER) as client:
            replayed = [await client.frame() for _ in published]
            assert {frame.first for frame in replayed} == {0x81}
            await on.publish(LONG, target="custom", user_ids=[7])
            assert (await client.frame()).first == 0xC1

    async def test_behind_the_mailbox(self, on: Probe) -> None:
        await on.publish("waits", target="custom", user_ids=[7])
        ws = await on.open("/ws?user_id=7", compression="deflate")
        await on.publish(LONG, target="custom", user_ids=[7])
        contents = [decoded(await ws.recv()).get("content") for _ in range(3)]
        assert contents == [None, "waits", LONG]


class TestReceiving:
    @pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
    async def test_messages(self, on: Probe, subprotocol: str) -> None:
        ws = await greeted(on, 7, subprotocol, "deflate")
        for _ in range(3):
            message = {"type": "ping", "pad": "x" * 1000}
            await ws.send(json.dumps(message) if subprotocol == JSON else msgspec.msgpack.encode(message))
            assert decoded(await ws.recv())["type"] == "pong"

    async def test_acknowledgements(self, on: Probe) -> None:
        client = await on.client(7, ack=True, compression="deflate")
        published = await on.publish(LONG, target="custom", user_ids=[7])
        await client.ack(*(await client.receive_ids(1)))
        await until(lambda: self._received(on, published["message_id"]))

    async def _received(self, probe: Probe, message_id: str) -> bool:
        return bool((await probe.receive_status(message_id))["received_users"])

    async def test_echo_for_conformance_tests(self, on: Probe) -> None:
        ws = await on.open("/ws/echo", compression="deflate")
        for message in ("text 你好", b"\0\xff", "", b"", "字" * 1000, b"z" * 4096, os.urandom(4096)):
            await ws.send(message)
            assert await ws.recv() == message
        await ws.send(["a", "b" * 2000, "", "c"])
        assert await ws.recv() == "a" + "b" * 2000 + "c"

    async def test_echo_deflates(self, on: Probe) -> None:
        async with await Raw.connect(on.port) as client:
            client.send(raw.upgrade("/ws/echo", OFFER))
            await client.head()
            text = b"again and " * 200
            payload = squeezed(text)
            client.send(raw.frame(raw.TEXT, payload[:5], fin=False, rsv=RSV1), raw.frame(raw.PING, b"p"))
            client.send(raw.frame(raw.CONTINUATION, payload[5:]), raw.frame(raw.TEXT, text))
            assert await client.frame() == (0x8A, b"p")
            answers = [await client.frame() for _ in range(2)]
            assert answers[0] == answers[1]
            assert answers[0].first == 0xC1
            client.send(raw.frame(raw.BINARY, b"\0", rsv=RSV1))
            assert await client.frame() == (0x82, b"")

    @pytest.mark.parametrize(
        ("code", "frames"),
        [
            (1009, [raw.frame(raw.TEXT, squeezed(b" " * 16385), rsv=RSV1)]),
            (1009, [raw.frame(raw.TEXT, squeezed(b" " * 4_000_000), rsv=RSV1)]),
            (1009, [raw.frame(raw.TEXT, b"x" * 20_000, rsv=RSV1)]),
            (
                1009,
                [raw.frame(raw.TEXT, b"\0" * 10_000, rsv=RSV1, fin=False), raw.frame(raw.CONTINUATION, b"\0" * 10_000)],
            ),
            (1009, [raw.frame(raw.TEXT, b" " * 16385)]),
            (1007, [raw.frame(raw.TEXT, squeezed(b"\xff"), rsv=RSV1)]),
            (1002, [raw.frame(raw.TEXT, b"no deflate", rsv=RSV1)]),
            (1002, [raw.frame(raw.TEXT, b"", rsv=RSV1)]),
            (1002, [raw.frame(raw.TEXT, b"{}", rsv=RSV1 | 1)]),
            (1002, [raw.frame(raw.PING, b"", rsv=RSV1)]),
            (1002, [raw.frame(raw.TEXT, b"{", fin=False), raw.frame(raw.CONTINUATION, b"}", rsv=RSV1)]),
            (1003, [raw.frame(raw.BINARY, squeezed(b"{}"), rsv=RSV1)]),
        ],
    )
    async def test_violations(self, on: Probe, code: int, frames: list[bytes]) -> None:
        async with await Raw.websocket(on.port, "/ws?user_id=7", OFFER) as client:
            client.send(*frames, raw.frame(raw.TEXT, b'{"type":"ping"}'))
            assert await client.close_code() == code
        await until(lambda: not on.node.hub.connections_total)
