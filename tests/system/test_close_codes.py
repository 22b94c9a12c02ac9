"""Every close code of CONTRACT section 4 with what triggers it; and closes that clients begin."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from typing import Any

import pytest

from tests import raw
from tests.daemon import Probe, until
from tests.raw import Raw


async def _is_forgotten(probe: Probe) -> None:
    """No trace of a connection is left."""
    hub, gateway = probe.node.hub, probe.node.gateway
    await until(lambda: not hub.connections_total and not hub.users_total and not gateway.open_sockets)


TEXT_20K = b'{"type":"ping","pad":"' + b"x" * 20_000 + b'"}'

VIOLATIONS: list[tuple[str, int, list[bytes]]] = [
    ("a frame of 20 KB", 1009, [raw.frame(raw.TEXT, TEXT_20K)]),
    ("one that only claims to be big", 1009, [bytes([0x81, 0x80 | 127]) + struct.pack("!Q", 2**40) + bytes(4)]),
    ("one byte too many", 1009, [raw.frame(raw.TEXT, b"x" * 16385)]),
    (
        "fragments that add up",
        1009,
        [raw.frame(raw.TEXT, b"x" * 8000, fin=False), *[raw.frame(raw.CONTINUATION, b"x" * 8000, fin=False)] * 2],
    ),
    (
        "endless empty fragments",
        1009,
        [raw.frame(raw.TEXT, b"", fin=False), *[raw.frame(raw.CONTINUATION, b"", fin=False)] * 300],
    ),
    ("bad UTF-8", 1007, [raw.frame(raw.TEXT, b'{"type":"\xff"}')]),
    ("a surrogate in UTF-8", 1007, [raw.frame(raw.TEXT, b"\xed\xa0\x80")]),
    ("overlong UTF-8", 1007, [raw.frame(raw.TEXT, b"\xc0\xaf")]),
    ("UTF-8 that ends in the middle", 1007, [raw.frame(raw.TEXT, b"\xe4\xbd")]),
    (
        "bad UTF-8 over fragments",
        1007,
        [raw.frame(raw.TEXT, b"\xe4", fin=False), raw.frame(raw.CONTINUATION, b"\x28\xa1", fin=False)],
    ),
    (
        "UTF-8 that ends in the middle, over fragments",
        1007,
        [raw.frame(raw.TEXT, b"ok \xe4", fin=False), raw.frame(raw.CONTINUATION, b"\xbd")],
    ),
    ("bad UTF-8 in a close reason", 1007, [raw.close(1000, b"\xff")]),
    ("an unmasked frame", 1002, [raw.frame(raw.TEXT, b'{"type":"ping"}', masked=False)]),
    ("RSV1", 1002, [raw.frame(raw.TEXT, b"{}", rsv=4)]),
    ("RSV2", 1002, [raw.frame(raw.TEXT, b"{}", rsv=2)]),
    ("RSV3", 1002, [raw.frame(raw.PING, b"", rsv=1)]),
    ("opcode 3", 1002, [raw.frame(0x3, b"x")]),
    ("opcode 11", 1002, [raw.frame(0xB, b"x")]),
    ("a ping in fragments", 1002, [raw.frame(raw.PING, b"x", fin=False)]),
    ("a close in fragments", 1002, [raw.frame(raw.CLOSE, b"", fin=False)]),
    ("a ping of 126 bytes", 1002, [raw.frame(raw.PING, b"x" * 126)]),
    ("a close of 126 bytes", 1002, [raw.close(1000, b"x" * 124)]),
    ("nothing to continue", 1002, [raw.frame(raw.CONTINUATION, b"x")]),
    ("a text inside a text", 1002, [raw.frame(raw.TEXT, b"{", fin=False), raw.frame(raw.TEXT, b"}")]),
    ("half a close code", 1002, [raw.frame(raw.CLOSE, b"\x03")]),
    ("a binary message where JSON is spoken", 1003, [raw.frame(raw.BINARY, b"x")]),
    ("its first fragment", 1003, [raw.frame(raw.BINARY, b"x", fin=False)]),
]


@pytest.mark.parametrize(("code", "frames"), [case[1:] for case in VIOLATIONS], ids=[case[0] for case in VIOLATIONS])
async def test_violations(start: Any, code: int, frames: list[bytes]) -> None:
    probe = await start(limits={"max_frames_per_s": 1000})
    async with await Raw.websocket(probe.port, "/ws?user_id=7") as client:
        other = await probe.client(8)
        client.send(*frames, raw.frame(raw.TEXT, b'{"type":"ping"}'))
        assert await client.close_code() == code
        published = await probe.publish(target="all")
        assert await other.receive_ids(1) == [published["message_id"]]
        await other.ws.close()
    await _is_forgotten(probe)


async def test_close_codes_that_must_not_be_sent(probe: Probe) -> None:
    for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
        async with await Raw.websocket(probe.port, "/ws?user_id=7") as client:
            client.send(raw.close(code))
            assert await client.close_code() == 1002, code
        await _is_forgotten(probe)


async def test_text_where_messagepack_is_spoken(probe: Probe) -> None:
    ws = await probe.open(subprotocols=["pushd.v1.msgpack"])
    await ws.recv()
    await ws.send('{"type":"ping"}')
    await ws.wait_closed()
    assert ws.close_code == 1003


async def test_nothing_is_read_behind_a_violation(probe: Probe) -> None:
    published = await probe.publish(target="custom", user_ids=[7])
    async with await Raw.websocket(probe.port, "/ws?user_id=7&ack=1") as client:
        await client.frame()
        ack = {"type": "ack", "message_ids": [published["message_id"]]}
        client.send(raw.frame(raw.TEXT, b"\xff"), raw.frame(raw.TEXT, json.dumps(ack).encode()))
        assert await client.close_code() == 1007
    await _is_forgotten(probe)
    assert await probe.mailbox(7) == [published["message_id"]]


class TestByThePeer:
    async def test_its_code_comes_back(self, probe: Probe) -> None:
        for code in (1000, 1001, 1003, 1007, 1011, 1012, 1014, 3000, 3999, 4000, 4999):
            async with await Raw.websocket(probe.port, "/ws?user_id=7") as client:
                client.send(raw.close(code, "tschüss".encode()))
                assert (await client.frame()).close_code == code
                assert await client.end() == b""
            await _is_forgotten(probe)

    async def test_an_empty_close_is_answered_with_1000(self, probe: Probe) -> None:
        async with await Raw.websocket(probe.port) as client:
            client.send(raw.close())
            assert (await client.frame()).close_code == 1000
            assert await client.end() == b""

    async def test_a_close_between_fragments(self, probe: Probe) -> None:
        async with await Raw.websocket(probe.port) as client:
            client.send(raw.frame(raw.TEXT, b'{"ty', fin=False), raw.close(3000))
            assert (await client.frame()).close_code == 3000

    async def test_what_comes_behind_a_close_is_ignored(self, probe: Probe) -> None:
        async with await Raw.websocket(probe.port) as client:
            client.send(raw.close(1000), raw.frame(raw.TEXT, b'{"type":"ping"}'), raw.close(4000))
            assert (await client.frame()).close_code == 1000
            assert await client.end() == b""

    async def test_the_standard_client(self, probe: Probe) -> None:
        client = await probe.client(7)
        await client.ws.close(code=4321, reason="bye")
        assert (client.ws.close_code, client.ws.close_reason) == (4321, "")
        await _is_forgotten(probe)
        assert 'pushd_disconnects_total{code="other"} 1.0' in (await probe.http.get("/metrics")).text


HASTY = {"delivery": {"heartbeat_s": 0.2, "heartbeat_timeout_s": 0.2}}


class TestHeartbeat:
    async def test_who_never_answers_is_closed_with_4001(self, start: Any) -> None:
        probe = await start(**HASTY)
        async with await Raw.websocket(probe.port, "/ws?user_id=7&ack=1") as client:
            published = await probe.publish(target="custom", user_ids=[7])
            await client.frame()
            assert (await client.frame()).opcode == raw.PING
            assert await client.close_code() == 4001
        await _is_forgotten(probe)
        assert await probe.mailbox(7) == [published["message_id"]]

    async def test_who_vanishes_is_given_up_without_an_answer(self, start: Any) -> None:
        probe = await start(**HASTY)
        async with await Raw.websocket(probe.port, "/ws?user_id=7"):
            await until(lambda: not probe.node.gateway.open_sockets)
        await _is_forgotten(probe)

    async def test_who_answers_stays(self, start: Any) -> None:
        probe = await start(**HASTY)
        async with await Raw.websocket(probe.port) as client:
            for _ in range(3):
                ping = await client.frame()
                assert ping.opcode == raw.PING
                client.send(raw.frame(raw.PONG, ping.payload))
            assert probe.node.hub.connections_total == 1


class TestTooManyFrames:
    async def test_4029(self, start: Any) -> None:
        probe = await start(limits={"max_frames_per_s": 20})
        client, other = await probe.client(7), await probe.client(8)
        for _ in range(100):
            await client.ws.send('{"type":"ping"}')
        assert await client.closed() == 4029
        await other.send({"type": "ping"})
        assert (await other.receive())["type"] == "pong"

    async def test_pings_and_fragments_count(self, start: Any) -> None:
        probe = await start(limits={"max_frames_per_s": 20})
        for frames in ([raw.frame(raw.PING)] * 41, [raw.frame(raw.PONG)] * 41):
            async with await Raw.websocket(probe.port) as client:
                client.send(*frames)
                assert await client.close_code() == 4029

    async def test_as_many_as_allowed(self, start: Any) -> None:
        probe = await start(limits={"max_frames_per_s": 20})
        client = await probe.client(7)
        for _ in range(20):
            await client.ws.send('{"type":"ping"}')
        for _ in range(20):
            assert (await client.receive())["type"] == "pong"


class TestPerUserLimit:
    async def test_the_oldest_goes_with_4409(self, start: Any) -> None:
        probe = await start(limits={"max_connections_per_user": 2})
        first, second = await probe.client(7), await probe.client(7)
        other = await probe.client(8)
        third = await probe.client(7)
        assert await first.closed() == 4409
        fourth = await probe.client(7)
        assert await second.closed() == 4409
        published = await probe.publish(target="all")
        for client in (third, fourth, other):
            assert await client.receive_ids(1) == [published["message_id"]]

    async def test_guests_are_nobody_in_particular(self, start: Any) -> None:
        probe = await start(limits={"max_connections_per_user": 1})
        guests = [await probe.client() for _ in range(3)]
        await probe.publish()
        for guest in guests:
            await guest.receive_ids(1)

    async def test_what_the_oldest_owed_reaches_the_newest(self, start: Any) -> None:
        probe = await start(limits={"max_connections_per_user": 1})
        first = await probe.client(7, ack=True)
        published = await probe.publish(target="custom", user_ids=[7])
        await first.receive()
        second = await probe.client(7, ack=True)
        assert await second.receive_ids(1) == [published["message_id"]]
        assert await first.closed() == 4409


class TestDrain:
    async def test_1012_and_nothing_is_lost(self, probe: Probe) -> None:
        acking, plain, guest = await probe.client(7, ack=True), await probe.client(8), await probe.client()
        published = await probe.publish(target="all")
        for client in (acking, plain, guest):
            await client.receive_ids(1)
        draining = asyncio.create_task(probe.node.drain())
        assert [await client.closed() for client in (acking, plain, guest)] == [1012, 1012, 1012]
        await draining
        assert await probe.mailbox(7) == [published["message_id"]]
        assert await probe.mailbox(8) == []

    async def test_nothing_new_is_let_in(self, probe: Probe) -> None:
        await probe.node.drain()
        refused = await probe.post("/system/notice", {"content": "x"})
        assert (refused.status_code, refused.json()["error"]) == (503, "DRAINING")
        assert int(refused.headers["retry-after"]) > 0
        items = (await probe.post("/system/notices", {"notices": [{"content": "x"}]})).json()["data"]["items"]
        assert items[0]["error"] == "DRAINING"
        ready = await probe.http.get("/readyz")
        assert (ready.status_code, "retry-after" in ready.headers) == (503, True)
        assert (await probe.http.get("/healthz")).status_code == 200
        async with await Raw.connect(probe.port) as client:
            client.send(raw.upgrade())
            status, body = await client.answer()
            assert (status, json.loads(body)["error"]) == (503, "DRAINING")

    async def test_a_client_that_does_not_answer_does_not_hold_it_up(self, probe: Probe) -> None:
        async with await Raw.websocket(probe.port):
            began = time.monotonic()
            await probe.node.drain()
            assert time.monotonic() - began < 5
            assert not probe.node.gateway.open_sockets
