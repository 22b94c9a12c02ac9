"""One connection's protocol state: fragments, text, close codes, the frame rate, and the messages themselves."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.config.schema import LimitsConfig
from pushd.errors import CloseCode, ErrorCode, ProtocolError
from pushd.protocol import frames
from pushd.protocol.deflate import RSV1
from pushd.protocol.frames import Dialect, Opcode
from pushd.protocol.session import CloseReceived, Echo, Event, PingReceived, Session, Utf8Decoder, max_fragments

LIMITS = LimitsConfig(max_frame_bytes=2048, max_frames_per_s=0)
DATA_OPCODE = {Dialect.JSON: Opcode.TEXT, Dialect.MSGPACK: Opcode.BINARY}
PING = b'{"type":"ping"}'


def receive(
    session: Session,
    opcode: int,
    payload: bytes = b"",
    *,
    is_final: bool = True,
    reserved: int = 0,
    now: float = 100.0,
    limits: LimitsConfig = LIMITS,
) -> Event | None:
    return session.receive(opcode, is_final, reserved, payload, now, limits)


def refused(session: Session, opcode: int, payload: bytes = b"", **options: Any) -> CloseCode:
    with pytest.raises(ProtocolError) as caught:
        receive(session, opcode, payload, **options)
    assert caught.value.reason.isascii()
    return caught.value.code


def cut(payload: bytes, at: Iterable[int]) -> Iterator[tuple[bytes, bool]]:
    """Pieces of `payload`, and whether each is the last."""
    edges = [0, *sorted(at), len(payload)]
    for number, (start, end) in enumerate(pairwise(edges)):
        yield payload[start:end], number == len(edges) - 2


def receive_fragments(session: Session, opcode: int, payload: bytes, at: Iterable[int]) -> Event | None:
    event = None
    for number, (piece, is_final) in enumerate(cut(payload, at)):
        assert event is None, "an event before the last fragment"
        event = receive(session, opcode if number == 0 else Opcode.CONTINUATION, piece, is_final=is_final)
    return event


def encode(value: Any, dialect: Dialect) -> bytes:
    return json.dumps(value).encode() if dialect is Dialect.JSON else msgspec.msgpack.encode(value)


# ---- messages


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize(
    ("value", "event"),
    [
        ({"type": "ping"}, frames.Ping()),
        ({"type": "ack", "message_ids": ["a"]}, frames.Ack(["a"])),
        ({"type": "message_received", "message_id": "a"}, frames.MessageReceived("a")),
        ({"type": "read", "message_ids": ["é"]}, frames.Read(["é"])),
        ({"type": "confirm", "message_ids": ["a", "b"]}, frames.Confirm(["a", "b"])),
        ({"type": "auth", "token": "t"}, frames.Auth("t")),
    ],
)
def test_messages(value: Any, event: Event, dialect: Dialect) -> None:
    assert receive(Session(dialect), DATA_OPCODE[dialect], encode(value, dialect)) == event


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b'{"type":"pong"}',
        b'{"type":"ack","message_ids":[]}',
        b'{"type":"ack","message_ids":["\\ud800"]}',
        b'{"type":"auth","token":1e999}',
        b"[" * 1500,
        b'{"a":' * 400,
        b"\x91" * 1500,
        b"\x82\xa1a" + b"\x91" * 1500,
        b"\x81\xa4type\xa4p\xffng",
        b"\x82\xa4type\xa4auth\xa5token\xd6\xff\x00\x00\x00\x00",
        b"\x82\xa4type\xa3ack\xabmessage_ids\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc1",
    ],
)
def test_what_is_no_message_gets_an_error_and_the_connection_stays_open(payload: bytes, dialect: Dialect) -> None:
    session = Session(dialect)
    if dialect is Dialect.JSON and not _is_utf8(payload):
        assert refused(session, Opcode.TEXT, payload) == CloseCode.INVALID_TEXT
        return
    event = receive(session, DATA_OPCODE[dialect], payload)
    assert isinstance(event, frames.ErrorFrame)
    assert event.error is ErrorCode.INVALID_REQUEST
    assert frames.frame(event, dialect)
    assert receive(session, DATA_OPCODE[dialect], encode({"type": "ping"}, dialect)) == frames.Ping()


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("dialect", "opcode", "code"),
    [
        (Dialect.JSON, Opcode.BINARY, CloseCode.UNSUPPORTED_DATA),
        (Dialect.MSGPACK, Opcode.TEXT, CloseCode.UNSUPPORTED_DATA),
    ],
)
@pytest.mark.parametrize("is_final", [True, False])
def test_the_other_dialects_messages_end_the_connection(
    dialect: Dialect, opcode: Opcode, code: CloseCode, is_final: bool
) -> None:
    assert refused(Session(dialect), opcode, PING, is_final=is_final) == code


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
@pytest.mark.parametrize("at", [(), (1,), (1, 2)])
def test_echo_takes_both_kinds(opcode: Opcode, at: tuple[int, ...]) -> None:
    session = Session(Dialect.JSON, is_echo=True)
    assert receive_fragments(session, opcode, b"abc", at) == Echo(opcode, b"abc")


# ---- fragments


@given(data=st.data(), dialect=st.sampled_from(Dialect), seed=st.integers(0, 2**32))
def test_any_fragmentation_gives_the_same_event(data: st.DataObject, dialect: Dialect, seed: int) -> None:
    value = {"type": "read", "message_ids": data.draw(st.lists(st.text(min_size=1, max_size=20), min_size=1))}
    payload = encode(value, dialect)
    at = data.draw(st.lists(st.integers(0, len(payload)), max_size=max_fragments(2048) - 1))
    session = Session(dialect)
    assert receive_fragments(session, DATA_OPCODE[dialect], payload, at) == frames.Read(value["message_ids"])
    # Between two fragments control frames may come, and nothing of the first message is left in the second.
    interleaved = None
    rng = random.Random(seed)
    for number, (piece, is_final) in enumerate(cut(payload, at)):
        if rng.random() < 0.5:
            assert receive(session, Opcode.PING, b"p") == PingReceived(b"p")
            assert receive(session, Opcode.PONG, b"p") is None
        opcode = Opcode.CONTINUATION if number else DATA_OPCODE[dialect]
        interleaved = receive(session, opcode, piece, is_final=is_final)
    assert interleaved == frames.Read(value["message_ids"])


@pytest.mark.parametrize("is_echo", [False, True])
def test_fragments_out_of_turn(is_echo: bool) -> None:
    session = Session(Dialect.JSON, is_echo=is_echo)
    assert refused(session, Opcode.CONTINUATION, b"x") == CloseCode.PROTOCOL_ERROR
    assert receive(session, Opcode.TEXT, b"a", is_final=False) is None
    assert refused(session, Opcode.TEXT, b"b") == CloseCode.PROTOCOL_ERROR


def test_a_message_that_is_over_cannot_be_continued() -> None:
    session = Session(Dialect.JSON)
    assert receive_fragments(session, Opcode.TEXT, PING, (3,)) == frames.Ping()
    assert refused(session, Opcode.CONTINUATION, b"") == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("size", [2047, 2048, 2049])
@pytest.mark.parametrize("at", [(), (1,), (1024, 2000)])
def test_size_limit_is_of_the_whole_message(size: int, at: tuple[int, ...]) -> None:
    session = Session(Dialect.JSON, is_echo=True)
    payload = b"x" * size
    if size <= LIMITS.max_frame_bytes:
        assert receive_fragments(session, Opcode.BINARY, payload, at) == Echo(Opcode.BINARY, payload)
    else:
        with pytest.raises(ProtocolError) as caught:
            receive_fragments(session, Opcode.BINARY, payload, at)
        assert caught.value.code == CloseCode.MESSAGE_TOO_BIG


def test_endless_empty_fragments_end() -> None:
    session = Session(Dialect.JSON)
    assert receive(session, Opcode.TEXT, b"", is_final=False) is None
    for _ in range(max_fragments(2048) - 1):
        assert receive(session, Opcode.CONTINUATION, b"", is_final=False) is None
    assert refused(session, Opcode.CONTINUATION, b"", is_final=False) == CloseCode.MESSAGE_TOO_BIG


# ---- text

TEXTS = ["κόσμε", "漢字かな", "a😀b", "\u0000\ud7ff\ue000\uffff\U0010ffff"]
BAD_TEXTS = [
    b"\xff",
    b"\xc0\xaf",  # overlong
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xed\xa0\x80",  # surrogates
    b"\xed\xbf\xbf",
    b"\xf4\x90\x80\x80",  # beyond U+10FFFF
    b"\xf5\x80\x80\x80",
    b"\x80",
    b"ok\xc3",  # cut short
    b"ok\xe2\x82",
    b"ok\xf0\x9f\x98",
    b"\xc3(",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_may_be_split_at_every_byte(text: str) -> None:
    payload = text.encode()
    for at in range(len(payload) + 1):
        session = Session(Dialect.JSON, is_echo=True)
        assert receive_fragments(session, Opcode.TEXT, payload, (at,)) == Echo(Opcode.TEXT, payload)
    session = Session(Dialect.JSON, is_echo=True)
    assert receive_fragments(session, Opcode.TEXT, payload, range(1, len(payload))) == Echo(Opcode.TEXT, payload)


@pytest.mark.parametrize("payload", BAD_TEXTS)
def test_bad_text_is_refused_wherever_it_is_split(payload: bytes) -> None:
    assert refused(Session(Dialect.JSON), Opcode.TEXT, payload) == CloseCode.INVALID_TEXT
    for at in range(len(payload) + 1):
        with pytest.raises(ProtocolError) as caught:
            receive_fragments(Session(Dialect.JSON), Opcode.TEXT, payload, (at,))
        assert caught.value.code == CloseCode.INVALID_TEXT


def test_bad_text_is_refused_before_the_message_is_over() -> None:
    session = Session(Dialect.JSON)
    assert receive(session, Opcode.TEXT, b"fine \xc3", is_final=False) is None
    assert refused(session, Opcode.CONTINUATION, b"(", is_final=False) == CloseCode.INVALID_TEXT


@pytest.mark.parametrize("payload", BAD_TEXTS)
def test_binary_messages_may_hold_anything(payload: bytes) -> None:
    session = Session(Dialect.MSGPACK, is_echo=True)
    assert receive_fragments(session, Opcode.BINARY, payload, (1,)) == Echo(Opcode.BINARY, payload)


# ---- deflated messages


def squeezed(payload: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def receive_deflated(session: Session, opcode: int, payload: bytes, at: Iterable[int] = ()) -> Event | None:
    event = None
    for number, (piece, is_final) in enumerate(cut(payload, at)):
        first = {"reserved": RSV1} if number == 0 else {}
        event = receive(session, Opcode.CONTINUATION if number else opcode, piece, is_final=is_final, **first)
    return event


@given(data=st.data(), dialect=st.sampled_from(Dialect))
def test_a_deflated_message_is_the_same_message(data: st.DataObject, dialect: Dialect) -> None:
    value = {"type": "read", "message_ids": data.draw(st.lists(st.text(min_size=1, max_size=20), min_size=1))}
    payload = squeezed(encode(value, dialect))
    at = data.draw(st.lists(st.integers(0, len(payload)), max_size=max_fragments(2048) - 1))
    session = Session(dialect, can_inflate=True)
    for _ in range(2):
        assert receive_deflated(session, DATA_OPCODE[dialect], payload, at) == frames.Read(value["message_ids"])
        assert (
            receive_fragments(session, DATA_OPCODE[dialect], encode({"type": "ping"}, dialect), (1,)) == frames.Ping()
        )


@pytest.mark.parametrize("reserved", [RSV1, RSV1 | 0x20, 0x20, 0x10])
@pytest.mark.parametrize("opcode", list(Opcode))
def test_reserved_bits_that_were_not_agreed_on(opcode: Opcode, reserved: int) -> None:
    for can_inflate in (False, True):
        session = Session(Dialect.JSON, is_echo=True, can_inflate=can_inflate)
        if opcode == Opcode.CONTINUATION:
            assert receive(session, Opcode.TEXT, b"a", is_final=False) is None
        if can_inflate and reserved == RSV1 and opcode in (Opcode.TEXT, Opcode.BINARY):
            assert receive(session, opcode, squeezed(b"a"), reserved=reserved) == Echo(opcode, b"a")
        else:
            assert refused(session, opcode, b"a", reserved=reserved) == CloseCode.PROTOCOL_ERROR


def test_a_deflated_message_is_not_deflated_again_behind_its_first_frame() -> None:
    session = Session(Dialect.JSON, is_echo=True, can_inflate=True)
    payload = squeezed(b"abc")
    assert receive(session, Opcode.TEXT, payload[:1], is_final=False, reserved=RSV1) is None
    assert refused(session, Opcode.CONTINUATION, payload[1:], reserved=RSV1) == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("at", [(), (1,), (3, 5)])
@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (squeezed(b"x" * (LIMITS.max_frame_bytes + 1)), CloseCode.MESSAGE_TOO_BIG),
        (squeezed(b"\0" * 10_000_000), CloseCode.MESSAGE_TOO_BIG),
        (b"\0\0\0\xff\xff" * 1000, CloseCode.MESSAGE_TOO_BIG),  # says nothing, at length
        (b"not deflated", CloseCode.PROTOCOL_ERROR),
        (squeezed(b"abc")[:-1], CloseCode.PROTOCOL_ERROR),
        (squeezed(b"ok\xc3"), CloseCode.INVALID_TEXT),
        (squeezed(b"\xed\xa0\x80"), CloseCode.INVALID_TEXT),
    ],
)
def test_bad_deflated_messages(payload: bytes, code: CloseCode, at: tuple[int, ...]) -> None:
    session = Session(Dialect.JSON, is_echo=True, can_inflate=True)
    with pytest.raises(ProtocolError) as caught:
        receive_deflated(session, Opcode.TEXT, payload, at)
    assert caught.value.code == code


@pytest.mark.parametrize("at", [(), (1,), (1000, 2000)])
def test_noise_as_big_as_allowed_may_be_longer_on_the_wire(at: tuple[int, ...]) -> None:
    noise = random.Random(1).randbytes(LIMITS.max_frame_bytes)
    payload = squeezed(noise)
    assert len(payload) > len(noise)
    session = Session(Dialect.JSON, is_echo=True, can_inflate=True)
    assert receive_deflated(session, Opcode.BINARY, payload, at) == Echo(Opcode.BINARY, noise)


def test_plain_messages_are_held_to_the_limit_as_ever() -> None:
    session = Session(Dialect.JSON, is_echo=True, can_inflate=True)
    assert refused(session, Opcode.BINARY, b"x" * (LIMITS.max_frame_bytes + 1)) == CloseCode.MESSAGE_TOO_BIG


# ---- control frames


def test_pings_carry_their_payload_and_pongs_mean_nothing() -> None:
    session = Session(Dialect.JSON)
    assert receive(session, Opcode.PING, b"\xff" * 125) == PingReceived(b"\xff" * 125)
    assert receive(session, Opcode.PONG, b"never asked for") is None


@pytest.mark.parametrize("opcode", list(Opcode))
def test_reserved_bits(opcode: Opcode) -> None:
    assert refused(Session(Dialect.JSON), opcode, b"", reserved=True) == CloseCode.PROTOCOL_ERROR


ALLOWED_CLOSE_CODES = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


def test_every_close_code() -> None:
    """RFC 6455 section 7.4 and the registry of codes: what may be sent is answered alike, the rest with 1002."""
    session = Session(Dialect.JSON)
    for code in (*range(6000), 0x7FFF, 0x8000, 0xFFFF):
        payload = code.to_bytes(2, "big") + b"bye"
        if code in ALLOWED_CLOSE_CODES:
            assert receive(session, Opcode.CLOSE, payload) == CloseReceived(code)
        else:
            assert refused(session, Opcode.CLOSE, payload) == CloseCode.PROTOCOL_ERROR, code


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", None),
        (b"\x03", CloseCode.PROTOCOL_ERROR),
        (b"\x03\xe8" + "é".encode(), None),
        (b"\x03\xe8\xc3", CloseCode.INVALID_TEXT),
        (b"\x03\xe8\xed\xa0\x80", CloseCode.INVALID_TEXT),
        (b"\x03\xed\xff", CloseCode.PROTOCOL_ERROR),
    ],
)
def test_close_payloads(payload: bytes, code: CloseCode | None) -> None:
    if code is None:
        assert receive(Session(Dialect.JSON), Opcode.CLOSE, payload) == CloseReceived(1000)
    else:
        assert refused(Session(Dialect.JSON), Opcode.CLOSE, payload) == code


# ---- the frame rate


def test_frames_are_counted_per_second() -> None:
    limits = LimitsConfig(max_frames_per_s=3)
    session = Session(Dialect.JSON)
    for now in (10.0, 10.5, 10.99):
        receive(session, Opcode.PONG, now=now, limits=limits)
    assert refused(session, Opcode.PONG, now=10.999, limits=limits) == CloseCode.TOO_MANY_FRAMES
    receive(session, Opcode.PONG, now=11.0, limits=limits)


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.CONTINUATION, Opcode.PING, Opcode.PONG, Opcode.CLOSE])
def test_every_kind_of_frame_counts(opcode: Opcode) -> None:
    limits = LimitsConfig(max_frames_per_s=1)
    session = Session(Dialect.JSON)
    receive(session, Opcode.TEXT, PING[:5], is_final=False, limits=limits)
    payload = PING if opcode == Opcode.TEXT else b""
    options: dict[str, Any] = {"is_final": opcode != Opcode.CONTINUATION}
    if opcode == Opcode.TEXT:
        session = Session(Dialect.JSON)
        receive(session, Opcode.PONG, limits=limits)
    assert refused(session, opcode, payload, limits=limits, **options) == CloseCode.TOO_MANY_FRAMES


def test_no_limit() -> None:
    session = Session(Dialect.JSON)
    for _ in range(1000):
        receive(session, Opcode.PONG, limits=LIMITS)


@given(
    steps=st.lists(st.floats(0, 2, allow_nan=False), max_size=60),
    first=st.floats(0, 1e6, allow_nan=False),
    limit=st.integers(1, 10),
)
def test_rate_against_a_model(steps: list[float], first: float, limit: int) -> None:
    """Fixed windows: one begins with the first frame at least a second after the last began."""
    limits = LimitsConfig(max_frames_per_s=limit)
    session = Session(Dialect.JSON)
    now = started = first + 1.0
    count = 0
    for step in steps:
        now += step
        if now - started >= 1.0 or count == 0:
            started, count = now, 0
        count += 1
        if count > limit:
            assert refused(session, Opcode.PONG, now=now, limits=limits) == CloseCode.TOO_MANY_FRAMES
            return
        receive(session, Opcode.PONG, now=now, limits=limits)


def test_changed_limits_hold_from_the_next_frame() -> None:
    session = Session(Dialect.JSON, is_echo=True)
    payload = b"x" * 100
    receive(session, Opcode.BINARY, payload)
    assert (
        refused(session, Opcode.BINARY, payload, limits=LimitsConfig(max_frame_bytes=64)) == CloseCode.MESSAGE_TOO_BIG
    )


# ---- anything

FRAMES = st.tuples(
    st.sampled_from(Opcode) | st.integers(0, 15),
    st.booleans(),
    st.sampled_from([0] * 9 + [RSV1] * 3 + [0x10]),
    st.binary(max_size=150)
    | st.sampled_from([PING, b"\x81\xa4type\xa4ping", b"\x03\xe8", "é".encode(), b"\xf2H\xcd\xc9\xc9\x07\0"]),
)


@given(
    sent=st.lists(FRAMES, max_size=30),
    dialect=st.sampled_from(Dialect),
    is_echo=st.booleans(),
    can_inflate=st.booleans(),
)
def test_arbitrary_frames_raise_nothing_but_protocol_errors(
    sent: list[tuple[int, bool, int, bytes]], dialect: Dialect, is_echo: bool, can_inflate: bool
) -> None:
    session = Session(dialect, is_echo=is_echo, can_inflate=can_inflate)
    for opcode, is_final, reserved, payload in sent:
        try:
            event = receive(session, opcode, payload, is_final=is_final, reserved=reserved)
        except ProtocolError as error:
            frames.close_frame(error.code, error.reason)
            return
        if isinstance(event, frames.ErrorFrame):
            assert frames.frame(event, dialect)


@given(payload=st.binary(max_size=400), dialect=st.sampled_from(Dialect))
def test_arbitrary_messages(payload: bytes, dialect: Dialect) -> None:
    if dialect is Dialect.JSON and not _is_utf8(payload):
        assert refused(Session(dialect), Opcode.TEXT, payload) == CloseCode.INVALID_TEXT
    else:
        event = receive(Session(dialect), DATA_OPCODE[dialect], payload)
        assert isinstance(event, frames.ClientMessage | frames.ErrorFrame)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["type", "message_ids"]), inner),
        max_leaves=10,
    ),
    name=st.sampled_from(["ping", "ack", "message_received", "read", "confirm", "auth", "hello"]),
    data=st.data(),
)
def test_messagepack_of_any_shape(value: Any, name: str, data: st.DataObject) -> None:
    whole = {"type": name, "message_ids": value, "message_id": value, "token": value, "more": value}
    payload = bytearray(msgspec.msgpack.encode(whole))
    if data.draw(st.booleans()):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    limits = LimitsConfig(max_frame_bytes=65536, max_frames_per_s=0)
    event = receive(Session(Dialect.MSGPACK), Opcode.BINARY, bytes(payload), limits=limits)
    assert isinstance(event, frames.ClientMessage | frames.ErrorFrame)
    if isinstance(event, frames.ErrorFrame):
        assert frames.frame(event, Dialect.MSGPACK)
        assert frames.frame(event, Dialect.JSON)


# ---- the rate of ids


def owed_s(session: Session, now: float) -> float:
    """For so long nothing should be read."""
    return max(0.0, session.paid_at - now)


def message(kind: str, count: int, size: int = 0) -> bytes:
    fields = {"message_id": "a"} if kind == "message_received" else {"message_ids": ["a"] * count}
    return json.dumps({"type": kind, **fields}).encode().ljust(size)


@pytest.mark.parametrize("kind", ["ack", "message_received"])
def test_acknowledgements_are_no_frames(kind: str) -> None:
    limits = LimitsConfig(max_frames_per_s=1)
    session = Session(Dialect.JSON)
    for _ in range(500):
        receive(session, Opcode.TEXT, message(kind, 1), limits=limits)
    assert owed_s(session, 100.0) == 0
    receive(session, Opcode.PONG, limits=limits)
    assert refused(session, Opcode.PONG, limits=limits) == CloseCode.TOO_MANY_FRAMES


@pytest.mark.parametrize("kind", ["read", "confirm", "auth", "read_all"])
def test_other_messages_are(kind: str) -> None:
    limits = LimitsConfig(max_frames_per_s=1)
    session = Session(Dialect.JSON)
    payload = b'{"type":"%b","token":"t"}' % kind.encode() if kind in ("auth", "read_all") else message(kind, 1)
    receive(session, Opcode.TEXT, payload, limits=limits)
    assert refused(session, Opcode.TEXT, payload, limits=limits) == CloseCode.TOO_MANY_FRAMES


def test_all_read_counts_whatever_it_names() -> None:
    session = Session(Dialect.JSON)
    for _ in range(60):
        receive(session, Opcode.TEXT, b'{"type":"read_all","until_ts":5}', limits=LimitsConfig(max_frames_per_s=1000))
    assert owed_s(session, 100.0) == pytest.approx(0.2)


@pytest.mark.parametrize("kind", ["ack", "read", "confirm"])
def test_ids_are_counted_those_named_twice_too(kind: str) -> None:
    limits = LimitsConfig(max_frames_per_s=1000, max_ids_per_s=100)
    session = Session(Dialect.JSON)
    receive(session, Opcode.TEXT, message(kind, 100), limits=limits)
    assert owed_s(session, 100.0) == pytest.approx(0)
    receive(session, Opcode.TEXT, message(kind, 50), limits=limits)
    assert owed_s(session, 100.0) == pytest.approx(0.5)
    assert owed_s(session, 100.5) == pytest.approx(0)
    receive(
        session, Opcode.TEXT, message(kind, 100), limits=limits, now=110.0
    )  # no more than a second's worth is saved up
    assert owed_s(session, 110.0) == pytest.approx(0)
    receive(session, Opcode.TEXT, message(kind, 1), limits=limits, now=110.0)
    assert owed_s(session, 110.0) == pytest.approx(0.01)


@pytest.mark.parametrize("is_deflated", [False, True])
def test_long_messages_count_as_if_they_named_more(is_deflated: bool) -> None:
    limits = LimitsConfig(max_frame_bytes=16_384, max_ids_per_s=256)
    session = Session(Dialect.JSON, can_inflate=is_deflated)
    payload = message("ack", 1, 16_384)
    if is_deflated:
        squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
        payload = (squeezer.compress(payload) + squeezer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    for owed in (0.0, 1.0):
        receive(session, Opcode.TEXT, payload, reserved=RSV1 if is_deflated else 0, limits=limits)
        assert owed_s(session, 100.0) == pytest.approx(owed)


def test_short_messages_are_not_free_however_many_ids_are_allowed() -> None:
    limits = LimitsConfig(max_ids_per_s=10_000_000)
    session = Session(Dialect.JSON)
    for _ in range(3000):
        receive(session, Opcode.TEXT, message("ack", 1), limits=limits)
    assert 1.5 < owed_s(session, 100.0) < 2.5


def test_tokens_are_rated() -> None:
    session = Session(Dialect.JSON)
    for _ in range(10):
        receive(session, Opcode.TEXT, b'{"type":"auth","token":"t"}')
    assert owed_s(session, 100.0) == pytest.approx(1.0)


@pytest.mark.parametrize("limit", [128, 2048, 4096, 4097, 16_384, 1_048_576])
def test_the_longer_a_message_may_be_the_more_fragments(limit: int) -> None:
    limits = LimitsConfig(max_frame_bytes=limit, max_frames_per_s=1_000_000)
    session = Session(Dialect.JSON)
    most = max(64, limit // 64)
    for number in range(most):
        opcode = Opcode.CONTINUATION if number else Opcode.TEXT
        assert receive(session, opcode, b"", is_final=False, limits=limits) is None
    assert refused(session, Opcode.CONTINUATION, b"", is_final=False, limits=limits) == CloseCode.MESSAGE_TOO_BIG


# ---- text under way


def fits(session: Session, opcode: int, payload: bytes, reserved: int = 0) -> bool | None:
    """What the decoder says of the beginning of a frame; None without one."""
    decoder = session.text_under_way(opcode, reserved)
    if decoder is None:
        return None
    try:
        decoder.decode(payload)
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("bad", BAD_TEXTS)
def test_bad_text_under_way(bad: bytes) -> None:
    assert fits(Session(Dialect.JSON), Opcode.TEXT, b"ok" + bad + b"....") is False


def test_a_character_over_fragments_under_way() -> None:
    session = Session(Dialect.JSON)
    receive(session, Opcode.TEXT, "é".encode()[:1], is_final=False)
    assert fits(session, Opcode.CONTINUATION, "é".encode()[1:]) is True
    assert fits(session, Opcode.CONTINUATION, b"x") is False
    assert fits(session, Opcode.CONTINUATION, "é".encode()[1:]) is True  # looking changes nothing
    assert receive(session, Opcode.CONTINUATION, "é".encode()[1:], is_final=False) is None


def test_what_is_no_text_under_way() -> None:
    assert fits(Session(Dialect.MSGPACK), Opcode.TEXT, b"\xff") is None
    assert fits(Session(Dialect.JSON), Opcode.BINARY, b"\xff") is None
    assert fits(Session(Dialect.JSON), Opcode.CONTINUATION, b"\xff") is None
    assert fits(Session(Dialect.JSON, can_inflate=True), Opcode.TEXT, b"\xff", RSV1) is None
    deflated = Session(Dialect.JSON, can_inflate=True)
    receive(deflated, Opcode.TEXT, b"\xff", is_final=False, reserved=RSV1)
    assert fits(deflated, Opcode.CONTINUATION, b"\xff") is None
    assert fits(Session(Dialect.MSGPACK, is_echo=True), Opcode.TEXT, b"\xff") is False


@pytest.mark.parametrize(
    "bad", [b"\xed\xa0", b"\xed\xbf", b"\xf4\x90", b"\xe0\x80", b"\xf0\x80", b"\xc1", b"\xf5", b"\x80"]
)
def test_bad_text_is_bad_as_soon_as_no_text_can_begin_so(bad: bytes) -> None:
    for place in range(len(bad)):
        assert fits(Session(Dialect.JSON), Opcode.TEXT, b"ok" + bad[:place]) is True
    assert fits(Session(Dialect.JSON), Opcode.TEXT, b"ok" + bad) is False
    session = Session(Dialect.JSON)
    assert refused(session, Opcode.TEXT, b"ok" + bad, is_final=False) == CloseCode.INVALID_TEXT


@given(st.text(), st.lists(st.integers(1, 5)))
def test_the_decoder_takes_what_python_takes(text: str, steps: list[int]) -> None:
    data, decoder, decoded = text.encode("utf-8", "ignore"), Utf8Decoder(), ""
    for step in steps:
        decoded += decoder.decode(data[:step])
        data = data[step:]
    decoded += decoder.decode(data, True)
    assert decoded == text.encode("utf-8", "ignore").decode()
