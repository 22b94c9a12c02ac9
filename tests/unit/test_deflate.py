"""RFC 7692 by its own examples, by the sides of `websockets` and zlib, and against what must not get through."""

from __future__ import annotations

import contextlib
import json
import os
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame
from websockets.frames import Opcode as Opcodes

from pushd.errors import CloseCode, ProtocolError
from pushd.protocol.deflate import LEAST_BYTES, WINDOW_BITS, deflated, inflated, most_wire_bytes, negotiate

PLAIN = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
WITH_WINDOW = f"{PLAIN}; server_max_window_bits=12"
LIMIT = 4096


def refused(payload: bytes, max_bytes: int = LIMIT) -> CloseCode:
    with pytest.raises(ProtocolError) as caught:
        inflated(payload, max_bytes)
    return caught.value.code


def squeezed(payload: bytes, *settings: int) -> bytes:
    """As another side would send it."""
    compressor = zlib.compressobj(*(settings or (6, zlib.DEFLATED, -15)))
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


# ---- negotiation


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        ("", ""),
        ("permessage-deflate", PLAIN),
        # RFC 7692, examples of section 7.1
        ("permessage-deflate; client_max_window_bits; server_max_window_bits=10", ""),
        (
            "permessage-deflate; client_max_window_bits; server_max_window_bits=10, "
            "permessage-deflate; client_max_window_bits",
            PLAIN,
        ),
        ("permessage-deflate; server_no_context_takeover", PLAIN),
        ("permessage-deflate; client_no_context_takeover", PLAIN),
        ("permessage-deflate; client_max_window_bits", PLAIN),
        # what browsers and libraries say
        ("permessage-deflate; client_max_window_bits, x-webkit-deflate-frame", PLAIN),
        ("x-webkit-deflate-frame, permessage-deflate", PLAIN),
        ("permessage-deflate; client_no_context_takeover; server_no_context_takeover", PLAIN),
        ("permessage-deflate;server_no_context_takeover;client_max_window_bits=15", PLAIN),
        (" permessage-deflate ;\tclient_max_window_bits = 8 ", PLAIN),
        # quoted values mean the same (RFC 6455 section 9.1)
        ('permessage-deflate; client_max_window_bits="10"', PLAIN),
        ('permessage-deflate; server_max_window_bits="13"', WITH_WINDOW),
        ('permessage-deflate; client_max_window_bits=""', ""),
        ('permessage-deflate; client_max_window_bits="10', ""),
        ('permessage-deflate; client_max_window_bits="', ""),
        # the window of what we send
        *((f"permessage-deflate; server_max_window_bits={bits}", WITH_WINDOW) for bits in range(12, 16)),
        *((f"permessage-deflate; server_max_window_bits={bits}", "") for bits in range(8, 12)),
        ("permessage-deflate; server_max_window_bits=9, permessage-deflate; server_max_window_bits=15", WITH_WINDOW),
        # invalid values
        ("permessage-deflate; server_max_window_bits", ""),
        ("permessage-deflate; server_max_window_bits=", ""),
        ("permessage-deflate; server_max_window_bits=16", ""),
        ("permessage-deflate; server_max_window_bits=012", ""),
        ("permessage-deflate; server_max_window_bits=+12", ""),
        ("permessage-deflate; server_max_window_bits=1२", ""),
        ("permessage-deflate; client_max_window_bits=", ""),
        ("permessage-deflate; client_max_window_bits=7", ""),
        ("permessage-deflate; client_max_window_bits=16", ""),
        ("permessage-deflate; client_max_window_bits=08", ""),
        ("permessage-deflate; client_max_window_bits=ten", ""),
        ("permessage-deflate; server_no_context_takeover=true", ""),
        ("permessage-deflate; client_no_context_takeover=", ""),
        ("permessage-deflate; client_no_context_takeover=15", ""),
        # unknown parameters, duplicates, empty ones
        ("permessage-deflate; method=deflate", ""),
        ("permessage-deflate; Server_No_Context_Takeover", ""),
        ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", ""),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits=10", ""),
        ("permessage-deflate; server_max_window_bits=15; server_max_window_bits=15", ""),
        ("permessage-deflate;", ""),
        ("permessage-deflate;;client_max_window_bits", ""),
        ("permessage-deflate; x=1, permessage-deflate", PLAIN),
        # other extensions, and what is none
        ("permessage-bzip2", ""),
        ("permessage-deflated", ""),
        ("permessage deflate", ""),
        (",,,", ""),
        (", permessage-deflate ,", PLAIN),
        (";", ""),
        ("=", ""),
    ],
)
def test_negotiation(offers: str, answer: str) -> None:
    assert negotiate(offers) == answer


@given(st.text(alphabet=st.sampled_from('permessage-deflate;,=" \t12'), max_size=80))
def test_any_header_is_answered_or_not(offers: str) -> None:
    assert negotiate(offers) in ("", PLAIN, WITH_WINDOW)


@pytest.mark.parametrize("asks", [{}, {"server_max_window_bits": 12}, {"server_max_window_bits": 15}])
def test_answers_as_a_client_understands_them(asks: dict[str, int]) -> None:
    factory = ClientPerMessageDeflateFactory(client_max_window_bits=True, **asks)
    offer = "; ".join(name if value is None else f"{name}={value}" for name, value in factory.get_request_params())
    answer = negotiate(f"permessage-deflate; {offer}")
    pairs = [part.strip().partition("=") for part in answer.split(";")[1:]]
    agreed = factory.process_response_params([(name, value or None) for name, _, value in pairs], [])
    assert agreed.remote_no_context_takeover
    assert agreed.local_no_context_takeover
    assert agreed.remote_max_window_bits >= WINDOW_BITS


# ---- inflating


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        # RFC 7692 section 7.2.3
        ("f2 48 cd c9 c9 07 00", b"Hello"),
        ("00 05 00 fa ff 48 65 6c 6c 6f 00", b"Hello"),
        ("f3 48 cd c9 c9 07 00 00", b"Hello"),
        ("f2 48 05 00 00 00 ff ff ca c9 c9 07 00", b"Hello"),
        ("00", b""),
        ("02 00", b""),
        # a final block without the byte that should follow it
        ("f3 48 cd c9 c9 07 00", b"Hello"),
    ],
)
def test_examples(payload: str, message: bytes) -> None:
    assert inflated(bytes.fromhex(payload), LIMIT) == message


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "f2 00 11 00 00",  # section 7.2.3.2: "Hello" again, by a context taken over
        "f2 48 cd c9",  # cut short
        "f2 48 cd c9 c9 07",
        "00 05 00 fa ff 48 65",
        "00 05 00 fa ff 48",  # what is added at the end would complete it
        "00 05 00 fa fe 48 65 6c 6c 6f 00",  # lengths that contradict each other
        "ff",
        "07",
        "48 65 6c 6c 6f",
        "f3 48 cd c9 c9 07 00 f3 48 cd c9 c9 07 00 00",  # more behind the final block
        "f3 48 cd c9 c9 07 00 01",
        "03 00 03 00 03 00",
    ],
)
def test_what_is_no_whole_stream(payload: str) -> None:
    assert refused(bytes.fromhex(payload)) == CloseCode.PROTOCOL_ERROR


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_protocol_error(payload: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert len(inflated(payload, 1000)) <= 1000


@given(message=st.binary(min_size=200, max_size=2000), data=st.data())
def test_no_part_of_a_message_passes_for_a_whole_one(message: bytes, data: st.DataObject) -> None:
    whole = squeezed(message)
    at = data.draw(st.integers(0, len(whole) - 1))
    with contextlib.suppress(ProtocolError):
        assert message.startswith(inflated(whole[:at], LIMIT))


@given(
    message=st.binary(max_size=LIMIT) | st.text(max_size=1000).map(str.encode),
    level=st.integers(0, 9),
    bits=st.integers(9, 15),
    memory=st.integers(1, 9),
)
def test_whatever_a_client_deflates_with(message: bytes, level: int, bits: int, memory: int) -> None:
    payload = squeezed(message, level, zlib.DEFLATED, -bits, memory)
    assert len(payload) <= most_wire_bytes(len(message))
    assert inflated(payload, LIMIT) == message


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1])
@pytest.mark.parametrize("message", [b"x", os.urandom(1)])
def test_the_limit_is_of_the_inflated_size(size: int, message: bytes) -> None:
    payload = squeezed(message * size)
    if size <= LIMIT:
        assert inflated(payload, LIMIT) == message * size
    else:
        assert refused(payload) == CloseCode.MESSAGE_TOO_BIG


@pytest.mark.parametrize("memory", range(1, 10))
def test_noise_fits_the_wire(memory: int) -> None:
    for size in (1, 128, 4096, 100_000):
        noise = random.Random(size).randbytes(size)
        for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY):
            assert len(squeezed(noise, 9, zlib.DEFLATED, -15, memory, strategy)) <= most_wire_bytes(size)


def test_a_bomb_is_cut_off_before_it_unfolds() -> None:
    bomb = squeezed(b"\0" * 100_000_000)
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        assert refused(bomb, 65536) == CloseCode.MESSAGE_TOO_BIG
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 65536 + 3 * len(bomb) + 65536


# ---- deflating


@pytest.mark.parametrize("size", [0, 1, LEAST_BYTES - 1])
def test_small_messages_stay_as_they_are(size: int) -> None:
    assert deflated(b"x" * size) is None


def test_noise_stays_as_it_is() -> None:
    assert deflated(random.Random(1).randbytes(4096)) is None


def test_messages_from_the_least_size_on_get_smaller() -> None:
    assert len(deflated(b"x" * LEAST_BYTES) or b"x" * LEAST_BYTES) < 20


@given(
    st.lists(st.text(min_size=1), min_size=100).map(lambda words: json.dumps(words).encode())
    | st.binary(min_size=1, max_size=20).map(lambda piece: piece * 1000)
)
def test_what_is_deflated_is_what_others_inflate(message: bytes) -> None:
    smaller = deflated(message)
    if smaller is None:
        return
    assert len(smaller) < len(message)
    assert inflated(smaller, len(message)) == message
    other = PerMessageDeflate(True, True, WINDOW_BITS, 15)
    frame = Frame(Opcodes.BINARY, smaller, rsv1=True)
    assert other.decode(frame).data == message


def test_no_more_window_than_was_agreed() -> None:
    rng = random.Random(1)
    repeated = rng.randbytes(600)
    message = b"".join(repeated + rng.randbytes(distance) for distance in (100, 3000, 5000, 20_000, 40_000)) + repeated
    smaller = deflated(message)
    assert smaller is not None
    inflater = zlib.decompressobj(-WINDOW_BITS)
    assert b"".join(inflater.decompress(smaller[at : at + 97]) for at in range(0, len(smaller), 97)) == message


def test_nothing_is_kept_from_one_message_to_the_next() -> None:
    message = json.dumps(list(range(500))).encode()
    assert deflated(message) == deflated(message)
    assert deflated(message * 2) != deflated(message)
