"""Cases of RFC 6455 that conformance suites try: what comes before a violation, behind a CLOSE, and bad text slowly.

The numbers are those of the Autobahn test suite.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests import raw
from tests.raw import Frame, Raw

TEXT = raw.frame(raw.TEXT, b"Hello, world!")
ECHO = Frame(0x80 | raw.TEXT, b"Hello, world!")


@pytest.fixture
async def port(start: Any) -> int:
    probe = await start(debug={"echo": True}, limits={"max_frames_per_s": 1_000_000})
    return probe.port


async def echo(port: int) -> Raw:
    client = await Raw.connect(port)
    client.send(raw.upgrade("/ws/echo"))
    assert await client.head() == 101
    return client


# ---- 4.1 and 4.2: reserved opcodes, behind frames that are good


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("payload", [b"", b"reserved opcode payload"])
@pytest.mark.parametrize("in_one_piece", [True, False])
async def test_what_was_sent_before_a_violation_is_answered_first(
    port: int, opcode: int, payload: bytes, in_one_piece: bool
) -> None:
    async with await echo(port) as client:
        sent = [TEXT, raw.frame(raw.PING, b"p"), raw.frame(opcode, payload), raw.frame(raw.PING), TEXT]
        if in_one_piece:
            client.send(*sent)
        else:
            for byte in b"".join(sent):
                client.send(bytes([byte]))
                await asyncio.sleep(0)
        assert await client.frame() == ECHO
        assert await client.frame() == (0x80 | raw.PONG, b"p")
        assert (await client.frame()).close_code == 1002
        assert await client.end() == b""


@pytest.mark.parametrize(
    ("code", "violation"),
    [
        (1002, raw.frame(raw.TEXT, b"x", masked=False)),
        (1002, raw.frame(raw.TEXT, b"x", rsv=2)),
        (1002, raw.frame(raw.PING, b"x" * 126)),
        (1002, raw.frame(raw.PING, b"x", fin=False)),
        (1002, raw.close(1005)),
        (1002, raw.close(1000, b"x" * 124)),
        (1002, raw.frame(raw.CONTINUATION, b"x")),
        (1007, raw.frame(raw.TEXT, b"\xff")),
        (1007, raw.close(1000, b"\xff")),
        (1009, raw.frame(raw.TEXT, b"x" * 20_000)),
        (1009, raw.frame(raw.TEXT, b"", fin=False) + raw.frame(raw.CONTINUATION, b"", fin=False) * 300),
    ],
)
async def test_hundreds_of_answers_before_any_violation(port: int, code: int, violation: bytes) -> None:
    """However far the client is behind, and whatever it goes on to send."""
    async with await echo(port) as client:
        client.send(TEXT * 300, violation, TEXT * 3000)
        for _ in range(300):
            assert await client.frame() == ECHO
        assert (await client.frame()).close_code == code


# ---- 7.1: behind a CLOSE


@pytest.mark.parametrize(
    "behind",
    [
        raw.close(1000),
        raw.close(1000) * 5,
        raw.frame(raw.PING),
        TEXT,
        raw.frame(raw.TEXT, b"half", fin=False),
        raw.frame(raw.CONTINUATION, b"x"),
        raw.frame(0x3, b"x"),
        raw.frame(raw.TEXT, b"\xff"),
        TEXT * 20_000,
        b"\xff" * 1000,
    ],
    ids=["close", "five closes", "ping", "text", "fragment", "continuation", "reserved", "bad text", "many", "garbage"],
)
@pytest.mark.parametrize("in_one_piece", [True, False])
async def test_nothing_behind_a_close_is_looked_at(port: int, behind: bytes, in_one_piece: bool) -> None:
    async with await echo(port) as client:
        if in_one_piece:
            client.send(TEXT, raw.close(1000, b"bye"), behind)
        else:
            client.send(TEXT, raw.close(1000, b"bye"))
            await asyncio.sleep(0)
            client.send(behind)
        assert await client.frame() == ECHO
        assert (await client.frame()).close_code == 1000
        assert await client.end() == b""


async def test_nothing_behind_a_close_in_the_midst_of_a_message(port: int) -> None:
    async with await echo(port) as client:
        client.send(raw.frame(raw.TEXT, b"half", fin=False), raw.close(1000), raw.frame(raw.CONTINUATION, b"half"))
        assert (await client.frame()).close_code == 1000
        assert await client.end() == b""


# ---- 6.4: text that cannot become UTF-8

GOOD = "Hello-µ@ßöäüàá-UTF-8!!".encode()


@pytest.mark.parametrize("bad", [b"\xff", b"\xc0", b"\xf5", b"\xed\xa0", b"\xf4\x90"])
@pytest.mark.parametrize("later", [0, 5000])
async def test_bad_text_is_refused_before_its_frame_has_come(port: int, bad: bytes, later: int) -> None:
    """The rest never comes."""
    whole = raw.frame(raw.TEXT, GOOD + bad + b"edited" + b"x" * later)
    end = len(whole) - later - len(b"edited")
    async with await echo(port) as client:
        client.send(whole[: end - len(bad)])
        await asyncio.sleep(0.01)
        client.send(whole[end - len(bad) : end])
        assert (await client.frame()).close_code == 1007


async def test_bad_text_is_refused_at_its_byte_and_not_before(port: int) -> None:
    whole = raw.frame(raw.TEXT, GOOD + b"\xf4\x90\x80\x80edited")
    end = len(whole) - len(b"\x80\x80edited")
    async with await echo(port) as client:
        client.send(raw.frame(raw.PING), whole[: end - 1])
        assert (await client.frame()).opcode == raw.PONG
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.reader.readexactly(1)
        client.send(whole[end - 1 : end])
        assert (await client.frame()).close_code == 1007


async def test_bad_text_in_a_fragment_that_has_not_come_whole(port: int) -> None:
    """A character that began in the fragment before."""
    fragment = raw.frame(raw.CONTINUATION, b"(" + b"x" * 100, fin=False)
    async with await echo(port) as client:
        client.send(raw.frame(raw.TEXT, b"ok \xe4", fin=False), fragment[:7])
        assert (await client.frame()).close_code == 1007


async def test_good_text_byte_by_byte(port: int) -> None:
    text = ("aµ漢😀" * 20).encode()
    async with await echo(port) as client:
        for byte in raw.frame(raw.TEXT, text[:51], fin=False) + raw.frame(raw.CONTINUATION, text[51:]):
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await client.frame() == (0x80 | raw.TEXT, text)


async def test_binary_that_is_no_text_byte_by_byte(port: int) -> None:
    async with await echo(port) as client:
        for byte in raw.frame(raw.BINARY, b"\xff\xfe" * 20):
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await client.frame() == (0x80 | raw.BINARY, b"\xff\xfe" * 20)


# ---- 5: fragments


@pytest.mark.parametrize("count", [64, 65, 250, 256])
async def test_a_message_of_many_fragments(port: int, count: int) -> None:
    async with await echo(port) as client:
        client.send(raw.frame(raw.TEXT, b"x", fin=False))
        client.send(*[raw.frame(raw.CONTINUATION, b"x", fin=number == count - 1) for number in range(1, count)])
        assert await client.frame() == (0x80 | raw.TEXT, b"x" * count)
