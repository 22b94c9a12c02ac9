"""Frames on the wire, read back by decoders that are not ours."""

from __future__ import annotations

import contextlib
import json
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame
from websockets.streams import StreamReader

from pushd.errors import ErrorCode
from pushd.model import Mark, Notice, Priority, Target, TargetKind
from pushd.protocol import frames
from pushd.protocol.deflate import LEAST_BYTES, WINDOW_BITS
from pushd.protocol.frames import Dialect, Opcode

UTC = ZoneInfo("UTC")
HELLO_DATA = frames.HelloData(user_id=7, conn_id="c1", heartbeat_s=25.0, unread_count=3, node_id="n")
INTEGERS = st.integers(-(2**63), 2**64 - 1)  # what both dialects can say
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def parse(data: bytes, *extensions: Extension) -> list[Frame]:
    """Every frame of `data`, by the parser of `websockets`; AssertionError when the last one is not complete."""
    reader = StreamReader()
    reader.feed_data(data)
    found = []
    while reader.buffer:
        step = Frame.parse(reader.read_exact, mask=False, extensions=extensions)
        try:
            next(step)
        except StopIteration as done:
            found.append(done.value)
        else:
            raise AssertionError(f"incomplete frame behind {len(found)} complete ones")
    return found


def payload_of(frame: bytes, opcode: int) -> bytes:
    (parsed,) = parse(frame)
    assert parsed.fin
    assert (parsed.rsv1, parsed.rsv2, parsed.rsv3) == (False, False, False)
    assert parsed.opcode == opcode
    return bytes(parsed.data)


def decoded(message: frames.ServerMessage, dialect: Dialect) -> Any:
    payload = payload_of(frames.frame(message, dialect), dialect.opcode)
    return json.loads(payload) if dialect is Dialect.JSON else msgspec.msgpack.decode(payload)


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x82\x00"),
        (1, b"\x82\x01"),
        (125, b"\x82\x7d"),
        (126, b"\x82\x7e\x00\x7e"),
        (127, b"\x82\x7e\x00\x7f"),
        (65535, b"\x82\x7e\xff\xff"),
        (65536, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
        (70001, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x11\x71"),
    ],
)
def test_header(size: int, header: bytes) -> None:
    payload = bytes(index % 251 for index in range(size))
    frame = frames.ws_frame(Opcode.BINARY, payload)
    assert frame == header + payload
    assert payload_of(frame, Opcode.BINARY) == payload


@pytest.mark.parametrize("opcode", list(Opcode))
def test_every_opcode_is_understood_elsewhere(opcode: Opcode) -> None:
    payload = b"\x03\xe8" if opcode is Opcode.CLOSE else b""
    assert payload_of(frames.ws_frame(opcode, payload), opcode) == payload


def test_the_ping_is_empty() -> None:
    assert payload_of(frames.PING_FRAME, Opcode.PING) == b""


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("", ""),
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        ("x" * 122 + "é", "x" * 122),  # the two bytes of é: 123 and 124
        ("x" * 121 + "é", "x" * 121 + "é"),
        ("x" * 121 + "漢", "x" * 121),
        ("x" * 122 + "漢", "x" * 122),
        ("x" * 120 + "漢", "x" * 120 + "漢"),
        ("x" * 120 + "😀", "x" * 120),
        ("x" * 119 + "😀", "x" * 119 + "😀"),
        ("漢" * 41, "漢" * 41),
        ("漢" * 42, "漢" * 41),
        ("😀" * 40, "😀" * 30),
    ],
)
def test_close_reason_is_cut_between_characters(reason: str, kept: str) -> None:
    payload = payload_of(frames.close_frame(4008, reason), Opcode.CLOSE)
    assert payload[:2] == (4008).to_bytes(2, "big")
    assert payload[2:].decode() == kept


@given(st.integers(1000, 4999), st.text(max_size=200))
def test_any_close(code: int, reason: str) -> None:
    payload = payload_of(frames.close_frame(code, reason), Opcode.CLOSE)
    assert len(payload) <= 125
    assert int.from_bytes(payload[:2], "big") == code
    kept = payload[2:].decode()
    assert reason.startswith(kept)
    assert kept == reason or len((kept + reason[len(kept)]).encode()) > 123


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            frames.Hello(HELLO_DATA),
            {
                "type": "hello",
                "code": 200,
                "data": {
                    "user_id": 7,
                    "conn_id": "c1",
                    "status": "connected",
                    "heartbeat_s": 25.0,
                    "unread_count": 3,
                    "node_id": "n",
                },
            },
        ),
        (
            frames.Pong(frames.HelloData(user_id=-1, conn_id="c2")),
            {"type": "pong", "code": 200, "data": {"user_id": -1, "conn_id": "c2", "status": "connected"}},
        ),
        (
            frames.ReceiptFrame(message_id="m", status=Mark.READ, unread_count=0),
            {"type": "receipt", "message_id": "m", "status": "read", "unread_count": 0},
        ),
        (
            frames.ErrorFrame(error=ErrorCode.NOT_FOUND, message="no"),
            {"type": "error", "error": "NOT_FOUND", "message": "no"},
        ),
        (
            frames.ErrorFrame(error=ErrorCode.NOT_FOUND, message="no", ref="m"),
            {"type": "error", "error": "NOT_FOUND", "message": "no", "ref": "m"},
        ),
    ],
)
def test_server_messages(message: frames.ServerMessage, expected: dict[str, Any], dialect: Dialect) -> None:
    found = decoded(message, dialect)
    assert found == expected
    assert next(iter(found)) == "type"


@pytest.mark.parametrize("dialect", list(Dialect))
@given(content=st.text(max_size=300), data=VALUES, priority=st.sampled_from(Priority), need_confirm=st.booleans())
def test_any_notice(dialect: Dialect, content: str, data: Any, priority: Priority, need_confirm: bool) -> None:
    notice = Notice(
        seq=1,
        message_id="m1",
        content=content,
        target=Target(kind=TargetKind.ALL),
        accepted_ms=1_700_000_000_123,
        type="order_paid",
        data=data,
        priority=priority,
        need_confirm=need_confirm,
    )
    live = {
        "type": "order_paid",
        "content": content,
        "data": data,
        "time": "2023-11-14 22:13:20",
        "ts": 1_700_000_000_123,
        "message_id": "m1",
        "priority": int(priority),
        "need_confirm": need_confirm,
    }
    found = decoded(frames.notice_frame(notice, UTC), dialect)
    assert found == live
    assert next(iter(found)) == "type"
    waited = frames.replayed_frame(frames.mailbox_item(notice, UTC, saved_ms=1_700_000_009_000))
    assert decoded(waited, dialect) == live | {"offline": True}


@pytest.mark.parametrize("dialect", Dialect)
def test_title_url_and_tags_are_there_when_the_notice_has_them(dialect: Dialect) -> None:
    given = {"title": "T", "url": "/u", "tags": ("a", "b")}
    for fields in ({}, {"title": "T"}, {"url": "/u"}, {"tags": ("a",)}, given):
        notice = Notice(1, "m", "c", Target(TargetKind.ALL), 1_700_000_000_000, **fields)
        live = decoded(frames.notice_frame(notice, UTC), dialect)
        waited = decoded(frames.replayed_frame(frames.mailbox_item(notice, UTC, saved_ms=5)), dialect)
        shown = {name: [*value] if name == "tags" else value for name, value in fields.items()}
        assert {name: live[name] for name in given if name in live} == shown
        assert waited == live | {"offline": True}


def test_a_mailbox_item_keeps_when_it_was_published_and_when_it_expires() -> None:
    notice = Notice(
        seq=1,
        message_id="m",
        content="c",
        target=Target(kind=TargetKind.ALL),
        accepted_ms=1_700_000_000_000,
        expires_ms=1_700_000_060_000,
    )
    item = frames.mailbox_item(notice, ZoneInfo("Asia/Shanghai"), saved_ms=5)
    assert (item.time, item.ts, item.expires_ms, item.saved_at) == (
        "2023-11-15 06:13:20",
        1_700_000_000_000,
        1_700_000_060_000,
        5,
    )


CLIENT_MESSAGES = [
    ({"type": "ping"}, frames.Ping()),
    ({"type": "ping", "extra": [1, {}]}, frames.Ping()),
    ({"type": "ack", "message_ids": ["a", "b"]}, frames.Ack(["a", "b"])),
    ({"message_ids": ["a"], "type": "ack"}, frames.Ack(["a"])),
    ({"type": "message_received", "message_id": "a"}, frames.MessageReceived("a")),
    ({"type": "read", "message_ids": ["é" * 128]}, frames.Read(["é" * 128])),
    ({"type": "confirm", "message_ids": ["a"] * 1000}, frames.Confirm(["a"] * 1000)),
    ({"type": "ack", "message_ids": ["x" * 10_000]}, frames.Ack(["x" * 10_000])),
    ({"type": "auth", "token": ""}, frames.Auth("")),
]

NO_MESSAGES = [
    None,
    1,
    "ping",
    [],
    {},
    {"type": "hello"},
    {"type": None},
    {"type": ["ping"]},
    {"type": "ack"},
    {"type": "ack", "message_ids": []},
    {"type": "ack", "message_ids": "a"},
    {"type": "ack", "message_ids": [""]},
    {"type": "ack", "message_ids": [1]},
    {"type": "ack", "message_ids": ["a"] * 1001},
    {"type": "message_received", "message_id": ["a"]},
    {"type": "auth", "token": 1},
]


def encode(value: Any, dialect: Dialect) -> bytes:
    return json.dumps(value).encode() if dialect is Dialect.JSON else msgspec.msgpack.encode(value)


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize(("value", "message"), CLIENT_MESSAGES)
def test_client_messages(value: Any, message: frames.ClientMessage, dialect: Dialect) -> None:
    assert frames.decode(encode(value, dialect), dialect) == message


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("value", NO_MESSAGES)
def test_what_is_no_message(value: Any, dialect: Dialect) -> None:
    with pytest.raises(msgspec.DecodeError):
        frames.decode(encode(value, dialect), dialect)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x81\xa4type\xa4p\xffng",  # the tag
        b"\x81\xa4t\xffpe\xa4ping",  # a key
        b"\x82\xa4type\xa3ack\xabmessage_ids\x91\xa1\xff",
        b"\x82\xa4type\xa4auth\xa5token\xa3\xed\xa0\x80",  # a surrogate
    ],
)
def test_msgpack_with_bad_utf8_is_no_message(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        frames.decode(payload, Dialect.MSGPACK)


@pytest.mark.parametrize("dialect", list(Dialect))
@given(payload=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_decode_error(dialect: Dialect, payload: bytes) -> None:
    with contextlib.suppress(msgspec.DecodeError):
        assert isinstance(frames.decode(payload, dialect), frames.ClientMessage)


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("size", [100, 1000, 100_000])
def test_shared_frames_are_deflated_where_that_was_negotiated(dialect: Dialect, size: int) -> None:
    message = frames.ErrorFrame(error=ErrorCode.NOT_FOUND, message="x" * size)
    plain = frames.frame(message, dialect)
    assert frames.frame(message, dialect | frames.DEFLATED) == frames.shared_frame(message, dialect) == plain
    shared = frames.shared_frame(message, dialect | frames.DEFLATED)
    if size < LEAST_BYTES:
        assert shared == plain
        return
    assert len(shared) < len(plain)
    assert shared[0] == 0x80 | 0x40 | dialect.opcode
    (parsed,) = parse(shared, PerMessageDeflate(True, True, WINDOW_BITS, 15))
    assert parsed.data == payload_of(plain, dialect.opcode)


def test_dialects_deflated_or_not_are_the_hubs_four() -> None:
    assert sorted({dialect | deflated for dialect in Dialect for deflated in (0, frames.DEFLATED)}) == [0, 1, 2, 3]


def test_subprotocols_name_the_dialects() -> None:
    assert frames.SUBPROTOCOLS == {"pushd.v1.json": Dialect.JSON, "pushd.v1.msgpack": Dialect.MSGPACK}
    assert (Dialect.JSON.opcode, Dialect.MSGPACK.opcode) == (Opcode.TEXT, Opcode.BINARY)


@pytest.mark.parametrize("dialect", Dialect)
def test_data_that_is_still_json_is_the_same_in_every_frame(dialect: Dialect) -> None:
    target = Target(TargetKind.ALL)
    as_json, as_values = (
        Notice(1, "m", "c", target, 1_700_000_000_000, data=data)
        for data in (msgspec.Raw(b'{"a":[1.50,null,"\xc3\xa9"]}'), {"a": [1.5, None, "é"]})
    )
    for made in (
        lambda notice: frames.notice_frame(notice, UTC),
        lambda notice: frames.replayed_frame(frames.mailbox_item(notice, UTC, saved_ms=5)),
        lambda notice: frames.UpdateFrame(frames.notice_frame(notice, UTC)),
    ):
        assert decoded(made(as_json), dialect) == decoded(made(as_values), dialect)
    assert (b"1.50" in frames.frame(frames.notice_frame(as_json, UTC), dialect)) == (dialect is Dialect.JSON)
