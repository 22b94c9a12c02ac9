"""CONTRACT section 4 from outside: the handshake, what clients may say, and the rules of RFC 6455 for both sides."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tests import raw
from tests.daemon import Probe, until
from tests.raw import Raw

BROWSER = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept: */*",
    "Accept-Language: zh-CN,zh;q=0.8,en-US;q=0.5,en;q=0.3",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Sec-WebSocket-Extensions: permessage-deflate",
    "Connection: keep-alive, Upgrade",
    "Cookie: session=0123456789abcdef; theme=dark",
    "Sec-Fetch-Dest: empty",
    "Sec-Fetch-Mode: websocket",
    "Sec-Fetch-Site: same-origin",
    "Pragma: no-cache",
    "Cache-Control: no-cache",
)


class TestHandshake:
    @pytest.mark.parametrize(
        ("offered", "chosen"),
        [
            (None, None),
            (["chat"], None),
            (["pushd.v1.json"], "pushd.v1.json"),
            (["pushd.v1.msgpack"], "pushd.v1.msgpack"),
            (["chat", "pushd.v1.msgpack", "pushd.v1.json"], "pushd.v1.msgpack"),
        ],
    )
    async def test_subprotocol(self, probe: Probe, offered: Any, chosen: str | None) -> None:
        ws = await probe.open("/ws?user_id=7", subprotocols=offered)
        assert ws.subprotocol == chosen
        hello = await ws.recv()
        decode = msgspec.msgpack.decode if chosen == "pushd.v1.msgpack" else msgspec.json.decode
        assert isinstance(hello, bytes if chosen == "pushd.v1.msgpack" else str)
        assert decode(hello)["type"] == "hello"

    @pytest.mark.parametrize("path", ["/ws", "/api/admin/ws"])
    async def test_both_paths(self, probe: Probe, path: str) -> None:
        ws = await probe.open(path)
        assert json.loads(await ws.recv())["type"] == "hello"

    async def test_as_a_browser_says_it(self, probe: Probe) -> None:
        origin = f"Origin: http://localhost:{probe.port}"
        async with await Raw.connect(probe.port) as client:
            client.send(raw.upgrade("/ws?user_id=7", *BROWSER, origin, host=f"localhost:{probe.port}"))
            assert await client.head() == 101
            assert client.headers["sec-websocket-accept"] == raw.ACCEPT
            assert client.headers["upgrade"].lower() == "websocket"
            assert client.headers["connection"].lower() == "upgrade"
            assert "sec-websocket-extensions" not in client.headers
            assert "sec-websocket-protocol" not in client.headers
            assert json.loads((await client.frame()).payload)["data"]["user_id"] == 7

    async def test_compression_is_not_negotiated(self, probe: Probe) -> None:
        ws = await probe.open(compression="deflate")
        assert ws.protocol.extensions == []
        assert json.loads(await ws.recv())["type"] == "hello"

    async def test_frames_sent_together_with_the_request(self, probe: Probe) -> None:
        pings = [raw.frame(raw.PING, bytes([number])) for number in range(3)]
        async with await Raw.connect(probe.port) as client:
            client.send(raw.upgrade("/ws?user_id=7"), *pings, raw.frame(raw.TEXT, b'{"type":"ping"}'))
            assert await client.head() == 101
            frames = [await client.frame() for _ in range(5)]
            assert [item.payload for item in frames if item.opcode == raw.PONG] == [b"\0", b"\1", b"\2"]
            texts = [json.loads(item.payload)["type"] for item in frames if item.opcode == raw.TEXT]
            assert sorted(texts) == ["hello", "pong"]

    async def test_a_request_that_arrives_byte_by_byte(self, probe: Probe) -> None:
        async with await Raw.connect(probe.port) as client:
            for byte in raw.upgrade():
                client.send(bytes([byte]))
                await client.writer.drain()
            assert await client.head() == 101

    @pytest.mark.parametrize(
        ("path", "headers", "status"),
        [
            ("/nothing", (), 404),
            ("/ws/echo", (), 404),
            ("/ws", ("Sec-WebSocket-Version: 8",), 426),
            ("/ws", ("Sec-WebSocket-Key: short",), 400),
            ("/ws", ("Sec-WebSocket-Key:",), 400),
            ("/ws", ("Upgrade: h2c",), 426),
            ("/ws", ("Connection: keep-alive",), 426),
            ("/ws?user_id=0", (), 400),
            ("/ws?user_id=-7", (), 400),
            ("/ws?user_id=seven", (), 400),
            ("/ws?user_id=99999999999999999999", (), 400),
            ("/ws?user_id=9223372036854775808", (), 400),
            ("/ws?user_id=%00", (), 400),
            ("/ws?user_id=%ff", (), 400),
            ("/ws?user_id=", (), 400),
        ],
    )
    async def test_refusals(self, probe: Probe, path: str, headers: tuple[str, ...], status: int) -> None:
        async with await Raw.connect(probe.port) as client:
            client.send(raw.upgrade(path, *headers))
            assert (await client.answer())[0] == status
        assert probe.node.hub.connections_total == 0


GARBAGE = [
    "",
    "hello",
    "null",
    "7",
    "[]",
    "{}",
    '"ping"',
    '{"type":null}',
    '{"type":"Ping"}',
    '{"type":"system_notice","content":"to all"}',
    '{"type":"hello"}',
    '{"type":"ack"}',
    '{"type":"ack","message_ids":"a"}',
    '{"type":"ack","message_ids":[]}',
    '{"type":"ack","message_ids":[null]}',
    '{"type":"ack","message_ids":[""]}',
    '{"type":"read","message_ids":{"a":1}}',
    '{"type":"confirm","message_ids":[1e400]}',
    '{"type":"message_received","message_id":7}',
    '{"type":"auth"}',
    '{"type":"auth","token":7}',
    '{"type":"ping"',
    '{"type":"ping"}{"type":"ping"}',
    '{"type":"\\ud800"}',
    '{"type":"ack","message_ids":["\\udfff"]}',
    '{"type":"ack","message_ids":' + "1" * 400 + "}",
    "[" * 4000,
    '{"type":' * 500,
    '{"a":' + "[" * 1500 + "]" * 1500 + ',"type":"ping_"}',
    "\0",
]


class TestMessages:
    async def test_ping(self, probe: Probe) -> None:
        client = await probe.client(7)
        await client.send({"type": "ping", "unknown": ["field"]})
        assert await client.receive() == {
            "type": "pong",
            "code": 200,
            "data": {"user_id": 7, "conn_id": client.hello["data"]["conn_id"], "status": "connected"},
        }

    async def test_garbage_is_answered_and_the_connection_stays_open(self, probe: Probe) -> None:
        other = await probe.client(8)
        client = await probe.client(7, ack=True)
        for garbage in GARBAGE:
            await client.ws.send(garbage)
            answer = await client.receive()
            assert (answer["type"], answer["error"]) == ("error", "INVALID_REQUEST"), garbage
            assert isinstance(answer["message"], str)
        await client.send({"type": "ping"})
        assert (await client.receive())["type"] == "pong"
        assert await other.is_quiet()

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\xc1",
            b"\x93\x01\x02\x03",
            b"\x81\xa4type\xa5Pingx",
            b"\x91" * 4000,
            b"\x82\xa4type\xa3ack\xabmessage_ids\x91\x01",
            b"\x81\xa4type\xdb\xff\xff\xff\xff",
            b"\x81\xa4type\xa1\xff",
            b"\x82\xa4type\xa3ack\xabmessage_ids\x91\xa1\xff",
        ],
    )
    async def test_garbage_in_messagepack(self, probe: Probe, garbage: bytes) -> None:
        ws = await probe.open("/ws?user_id=7", subprotocols=["pushd.v1.msgpack"])
        await ws.recv()
        await ws.send(garbage)
        answer = msgspec.msgpack.decode(await ws.recv())
        assert (answer["type"], answer["error"]) == ("error", "INVALID_REQUEST")
        await ws.send(msgspec.msgpack.encode({"type": "ping"}))
        assert msgspec.msgpack.decode(await ws.recv())["type"] == "pong"

    async def test_nothing_a_client_sends_reaches_another_user(self, probe: Probe) -> None:
        published = await probe.publish(target="custom", user_ids=[8])
        other, guest = await probe.client(8, ack=True), await probe.client()
        (message_id,) = await other.receive_ids(1)
        client = await probe.client(7)
        for message in (
            {"type": "system_notice", "content": "x", "target": "all"},
            {"type": "receipt", "message_id": message_id, "status": "read", "user_id": 8},
            {"type": "ack", "message_ids": [message_id], "user_id": 8},
            {"type": "message_received", "message_id": message_id},
            {"type": "read", "message_ids": [message_id], "user_id": 8},
            {"type": "confirm", "message_ids": [message_id]},
            {"type": "auth", "token": "x"},
            {"type": "ping"},
        ):
            await client.send(message)
        answers = [await client.receive() for _ in range(5)]
        assert {answer.get("error", "pong") for answer in answers} == {"INVALID_REQUEST", "NOT_FOUND", "pong"}
        assert await other.is_quiet()
        assert await guest.is_quiet()
        status = await probe.receive_status(published["message_id"])
        assert (status["received_users"], status["read_users"], status["confirmed_users"]) == (0, 0, 0)

    async def test_guests_cannot_acknowledge_anything(self, probe: Probe) -> None:
        guest = await probe.client(ack=True)
        published = await probe.publish(target="all")
        await guest.ack(*(await guest.receive_ids(1)))
        await guest.send({"type": "confirm", "message_ids": [published["message_id"]]})
        assert (await guest.receive())["error"] == "FORBIDDEN"
        assert (await probe.receive_status(published["message_id"]))["total_users"] == 0


class TestFrames:
    async def test_text_in_many_fragments(self, probe: Probe) -> None:
        async with await Raw.websocket(probe.port) as client:
            text = b'{"type":"ping","pad":"\xe4\xbd\xa0\xe5\xa5\xbd"}'
            client.send(raw.frame(raw.TEXT, text[:1], fin=False))
            for byte in text[1:-1]:
                client.send(raw.frame(raw.CONTINUATION, bytes([byte]), fin=False))
            client.send(raw.frame(raw.CONTINUATION, text[-1:]))
            assert json.loads((await client.frame()).payload)["type"] == "pong"

    async def test_pings_between_fragments(self, probe: Probe) -> None:
        async with await Raw.websocket(probe.port) as client:
            client.send(
                raw.frame(raw.TEXT, b'{"type"', fin=False),
                raw.frame(raw.PING, b"one"),
                raw.frame(raw.CONTINUATION, b"", fin=False),
                raw.frame(raw.PONG, b"unasked"),
                raw.frame(raw.PING, b"two"),
                raw.frame(raw.CONTINUATION, b':"ping"}'),
            )
            answers = [await client.frame() for _ in range(3)]
            assert [item.opcode for item in answers] == [raw.PONG, raw.PONG, raw.TEXT]
            assert [item.payload for item in answers[:2]] == [b"one", b"two"]
            assert json.loads(answers[2].payload)["type"] == "pong"

    @pytest.mark.parametrize("size", [0, 1, 125])
    async def test_a_ping_is_answered_with_its_payload(self, probe: Probe, size: int) -> None:
        async with await Raw.websocket(probe.port) as client:
            payload = bytes(range(size))
            client.send(raw.frame(raw.PING, payload))
            assert await client.frame() == (0x80 | raw.PONG, payload)

    async def test_an_unasked_pong_is_ignored(self, probe: Probe) -> None:
        async with await Raw.websocket(probe.port) as client:
            client.send(raw.frame(raw.PONG, b"x"), raw.frame(raw.PING, b"y"))
            assert await client.frame() == (0x80 | raw.PONG, b"y")

    async def test_a_message_as_big_as_allowed(self, probe: Probe) -> None:
        async with await Raw.websocket(probe.port) as client:
            text = b'{"type":"ping","pad":"' + b"x" * (16384 - 24) + b'"}'
            assert len(text) == 16384
            client.send(raw.frame(raw.TEXT, text), raw.frame(raw.TEXT, text[:2048], fin=False))
            client.send(raw.frame(raw.CONTINUATION, text[2048:]))
            assert [json.loads((await client.frame()).payload)["type"] for _ in range(2)] == ["pong", "pong"]

    async def test_frames_that_arrive_byte_by_byte(self, probe: Probe) -> None:
        async with await Raw.websocket(probe.port) as client:
            for byte in raw.frame(raw.TEXT, b'{"type":"ping"}'):
                client.send(bytes([byte]))
                await client.writer.drain()
            assert json.loads((await client.frame()).payload)["type"] == "pong"

    async def test_echo_for_conformance_tests(self, start: Any) -> None:
        probe = await start(debug={"echo": True})
        ws = await probe.open("/ws/echo")
        for message in ("text 你好", b"\0\xff", "", b""):
            await ws.send(message)
            assert await ws.recv() == message
        await ws.close()
        await until(lambda: not probe.node.hub.connections_total)
